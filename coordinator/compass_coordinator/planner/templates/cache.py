"""Keeping templates: they change only when a pipeline or something measured of it does."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

from compass_coordinator.planner.templates.build import LIMIT, build_templates
from compass_coordinator.planner.templates.kinds import Kind
from compass_coordinator.planner.templates.templates import Templates
from compass_shared.pipeline import Pipeline
from compass_shared.profile import AccuracyTable


def templates_key(
    pipeline: Pipeline, accuracy: AccuracyTable, kinds: Sequence[Kind], max_remote: int | None
) -> str:
    """Digest of all that templates are built from: equal keys, equal templates."""
    operators = [(op.name, op.inputs, sorted(op.knobs.items())) for op in pipeline.operators]
    means = sorted((config, found.mean) for config, found in accuracy.configs.items())
    roles = [kind.key for kind in kinds]
    parts = (pipeline.name, pipeline.digest, operators, pipeline.output, means, roles, max_remote)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


class TemplateCache:
    """Templates that were built, up to a number of sets and of bytes; the least recently used go first."""

    def __init__(self, *, max_entries: int = 256, max_bytes: int = 1_000_000_000) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._built: OrderedDict[str, Templates] = OrderedDict()

    def __len__(self) -> int:
        return len(self._built)

    @property
    def nbytes(self) -> int:
        """Memory of all that is kept, in bytes."""
        return sum(templates.nbytes for templates in self._built.values())

    def get(
        self,
        pipeline: Pipeline,
        accuracy: AccuracyTable,
        kinds: Sequence[Kind],
        *,
        max_remote: int | None = None,
        limit: int = LIMIT,
    ) -> Templates:
        """What ``build_templates`` gives for the same arguments, built only if it is not kept.

        Raises:
            PlanningError: If there are too many plans to build.
        """
        key = templates_key(pipeline, accuracy, kinds, max_remote)
        if key not in self._built:
            self._built[key] = build_templates(pipeline, accuracy, kinds, max_remote=max_remote, limit=limit)
        self._built.move_to_end(key)
        found = self._built[key]
        while self._built and (len(self._built) > self._max_entries or self.nbytes > self._max_bytes):
            self._built.popitem(last=False)
        return found
