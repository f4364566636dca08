"""What a query may use of what was measured at a site.

Placement constraints say where an operator may run at all; an operator with state, whose calls run one at a
time, must be fast enough for its query's rate. Both depend on query, operator, variant and site alone. So
templates stay exact if the kind of a site is made of these measurements and no others: sites that differ in
what may run there are of different kinds, and no template of one stands for a plan of the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from compass_shared.pipeline import Operator, Pipeline, variant_key
from compass_shared.problem import Problem
from compass_shared.profile import OperatorProfile, SiteProfile
from compass_shared.query import Query

Operators: TypeAlias = Mapping[str, OperatorProfile]


@dataclass(slots=True, eq=False)
class Usable:
    """Measurements by site and query; sites of which the same may be used share one mapping."""

    problem: Problem
    _bound: dict[str, tuple[tuple[Operator, tuple[str, ...]], ...]] = field(default_factory=dict)
    """Pipeline -> operators that may not be used everywhere, with their variants."""
    _kept: dict[tuple[int, frozenset[str]], Operators] = field(default_factory=dict)

    def operators(self, query: Query, profile: SiteProfile) -> Operators:
        """Variant key -> measurement, of what the query may use at the profile's site."""
        bound = self._bound_of(self.problem.pipelines[query.pipeline])
        if not bound:
            return profile.operators
        dropped = frozenset(
            key
            for operator, keys in bound
            for key in keys
            if key in profile.operators and not self._may_use(query, operator, key, profile)
        )
        if not dropped:
            return profile.operators
        known = id(profile.operators), dropped
        if known not in self._kept:
            self._kept[known] = {key: found for key, found in profile.operators.items() if key not in dropped}
        return self._kept[known]

    def _bound_of(self, pipeline: Pipeline) -> tuple[tuple[Operator, tuple[str, ...]], ...]:
        if pipeline.name not in self._bound:
            self._bound[pipeline.name] = tuple(
                (operator, tuple(variant_key(operator.name, knobs) for knobs in operator.variants()))
                for operator in pipeline.operators
                if operator.must_run_on or operator.stateful
            )
        return self._bound[pipeline.name]

    def _may_use(self, query: Query, operator: Operator, key: str, profile: SiteProfile) -> bool:
        if not self.problem.may_run(query, operator, profile.site):
            return False
        found = profile.measured(key) if operator.stateful else None
        return found is None or self.problem.keeps_up(query, found.mean_s, profile.site)
