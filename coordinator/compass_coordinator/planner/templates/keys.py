"""What templates depend on: they change only when a pipeline or something measured of it does."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from compass_coordinator.planner.templates.kinds import Kind
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
