"""All plans of all queries of a fleet, ready to be searched at any prices."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from compass_coordinator.estimator import Indices
from compass_coordinator.planner.fleet.blocks import PER_REGION, SIZE
from compass_coordinator.planner.fleet.coefficients import Features, coefficients_of
from compass_coordinator.planner.fleet.grouping import Group, group_instances
from compass_coordinator.planner.fleet.pricing import Best, Directions, Search
from compass_coordinator.planner.fleet.tables import NO_CAPS, TIERS, FleetTables
from compass_coordinator.planner.templates import Kind, Templates, build_templates, templates_key
from compass_shared.errors import PlanningError
from compass_shared.pipeline import Pipeline
from compass_shared.problem import Problem, SiteLoad
from compass_shared.profile import AccuracyTable, meeting
from compass_shared.site import Tier

MEMORY_BYTES = 2 << 30
MAX_CONFIGS = 4_000_000
MOST_INSTANCES = 32768
"""Searched together: more share the overhead, but their bounds leave the cache."""

Allowed: TypeAlias = Callable[[Templates, tuple[Tier, ...], frozenset[Tier]], NDArray[np.bool_]]
"""A placement policy: which templates (n,) may be used when the roles have these tiers and the query can use
sites of those tiers, in a role of the template or not."""


class TemplateCache:
    """Templates by what they were built from, so that a fleet that plans again builds none again.

    Args:
        max_entries: Patterns that are kept; the least recently used go first.
        max_bytes: Memory of all that is kept.
    """

    def __init__(self, *, max_entries: int = 1024, max_bytes: int = 2 << 30) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._known: OrderedDict[str, Features] = OrderedDict()
        self._nbytes = 0

    def __len__(self) -> int:
        return len(self._known)

    @property
    def nbytes(self) -> int:
        """Memory of all that is kept, in bytes."""
        return self._nbytes

    def features(self, described: Pipeline, accuracy: AccuracyTable, kinds: tuple[Kind, ...]) -> Features:
        """Templates that use all remote roles of a pattern.

        Args:
            described: Pipeline.
            accuracy: Of the configs that may be chosen.
            kinds: Of the roles.
        """
        if described.config_count() > MAX_CONFIGS:
            raise PlanningError(
                f"pipeline {described.name!r} has {described.config_count()} configs, too many for templates "
                f"({MAX_CONFIGS}); such pipelines are searched in fleets of few queries"
            )
        key = templates_key(described, accuracy, kinds, None)
        if key not in self._known:
            built = build_templates(described, accuracy, kinds)
            everywhere = np.asarray(built.used)[:, 1:].all(axis=1)
            self._known[key] = Features.of(built, np.flatnonzero(everywhere))
            self._nbytes += self._known[key].nbytes
        self._known.move_to_end(key)
        found = self._known[key]
        while self._known and (len(self._known) > self._max_entries or self.nbytes > self._max_bytes):
            _, gone = self._known.popitem(last=False)
            self._nbytes -= gone.nbytes
        return found


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FleetSpace:
    """Every plan of every query, as templates at instances."""

    problem: Problem
    tables: FleetTables
    groups: tuple[Group, ...]
    features: tuple[Features, ...]
    """Of each group."""
    memory_bytes: int

    @classmethod
    def of(
        cls,
        problem: Problem,
        loads: Mapping[str, SiteLoad],
        templates: TemplateCache,
        *,
        max_remote: int = 2,
        memory_bytes: int = MEMORY_BYTES,
        allowed: Allowed | None = None,
        caps: Mapping[str, float] = NO_CAPS,
    ) -> FleetSpace:
        """Read a problem and get the templates it needs.

        Args:
            problem: The planning problem.
            loads: To evaluate waiting at; sites that are not listed have none.
            templates: Templates found earlier; new ones are added.
            max_remote: Most remote sites that one plan may use.
            memory_bytes: Budget for what is kept and for what is made on the way.
            allowed: Placement policy; None for all placements.
            caps: Site -> utilisation up to which it may be used, where that is less than its own cap.
        """
        tables = FleetTables.of(problem, loads, caps)
        groups = tuple(
            group
            for group in group_instances(problem, tables, max_remote)
            if group.pipeline in problem.accuracy
        )
        reach = np.zeros(0, dtype=np.int64)
        if allowed is not None:
            reach = _tiers_in_reach(tables, groups)
            groups = tuple(part for group in groups for part in _by_tiers(tables, group, reach))
        accuracy = {
            (pipeline, floors): meeting(problem.accuracy[pipeline], dict(floors))
            for pipeline, floors in {(group.pipeline, group.floors) for group in groups}
        }
        features = tuple(
            templates.features(
                problem.pipelines[group.pipeline], accuracy[group.pipeline, group.floors], group.kinds
            )
            for group in groups
        )
        if allowed is not None:
            features = tuple(
                _restricted(tables, group, reach, found, allowed)
                for group, found in zip(groups, features, strict=True)
            )
        return cls(
            problem=problem,
            tables=tables,
            groups=groups,
            features=features,
            memory_bytes=memory_bytes,
        )

    def best(self, directions: Directions, known: Best | None = None) -> Best:
        """In every direction the best plan of every query that meets its SLO and fits alone.

        Args:
            directions: What to compare by.
            known: Plans to do better than, in the same directions; improved in place.
        """
        best = Best.none(len(self.tables.queries), len(directions)) if known is None else known
        for number, (group, features) in enumerate(zip(self.groups, self.features, strict=True)):
            looked_at = directions.first(directions.deep) if group.sites.shape[1] > 2 else directions
            if not len(looked_at):
                continue
            batch = self._batch(features, len(looked_at))
            for start in range(0, len(group) if len(features) else 0, batch):
                part = group.take(slice(start, start + batch))
                made = coefficients_of(self.tables, part, features)
                Search.of(features, made, part.query, looked_at, group=number, first=start, best=best).run()
        return best

    def _batch(self, features: Features, directions: int) -> int:
        """Instances whose coefficients, weights and bounds stay well within the budget."""
        each = 2 * features.instance_bytes + 8 * directions * (3 * len(features.slot_of) + features.slots)
        each += 4 * len(features.regions) + 8 * directions * (PER_REGION + SIZE)
        return max(1, min(MOST_INSTANCES, self.memory_bytes // (2 * each)))


def _tiers_in_reach(tables: FleetTables, groups: Sequence[Group]) -> Indices:
    """(queries,) the tiers of all sites that a query can use, one bit each."""
    found = np.zeros(len(tables.queries), dtype=np.int64)
    for group in groups:
        bits = np.left_shift(1, tables.sites.tier[group.sites])
        np.bitwise_or.at(found, group.query, np.bitwise_or.reduce(bits, axis=1))
    return found


def _by_tiers(tables: FleetTables, group: Group, reach: Indices) -> Iterator[Group]:
    """Parts of a group in which every role has one tier, and all queries the same tiers in reach."""
    alike = np.column_stack([tables.sites.tier[group.sites], reach[group.query]])
    for found in np.unique(alike, axis=0):
        yield group.take(np.flatnonzero((alike == found).all(axis=1)))


def _restricted(
    tables: FleetTables, group: Group, reach: Indices, features: Features, allowed: Allowed
) -> Features:
    """Only the templates that a policy allows at the tiers of a group's sites."""
    tiers = tuple(TIERS[tier] for tier in tables.sites.tier[group.sites[0]])
    usable = frozenset(tier for at, tier in enumerate(TIERS) if reach[group.query[0]] >> at & 1)
    kept = allowed(features.templates, tiers, usable)[features.rows]
    return Features.of(features.templates, features.rows[kept])
