"""One query of a large fleet looked at on its own: all its templates, as what explains a refusal takes."""

from __future__ import annotations

import numpy as np

from compass_coordinator.estimator import Estimates, Floats, Indices
from compass_coordinator.planner.brute_force import serving
from compass_coordinator.planner.fleet.coefficients import coefficients_of
from compass_coordinator.planner.fleet.evaluate import evaluate_block
from compass_coordinator.planner.fleet.space import FleetSpace
from compass_coordinator.planner.refusal import Binding, Refusal, explain
from compass_shared.pipeline import Pipeline
from compass_shared.plan import Estimate, Plan


class QueryPlans:
    """Every template of one query at every choice of its sites."""

    def __init__(self, space: FleetSpace, query: int) -> None:
        self._space = space
        self._query = space.problem.queries[query]
        parts = [
            (number, group.query.searchsorted(query), group.query.searchsorted(query, side="right"))
            for number, group in enumerate(space.groups)
        ]
        self._instances = [
            (number, instance) for number, first, last in parts for instance in range(first, last)
        ]
        sizes = [len(space.features[number]) for number, _ in self._instances]
        self._starts: Indices = np.cumsum([0, *sizes])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def pipeline(self) -> Pipeline:
        """That the query runs."""
        return self._space.problem.pipelines[self._query.pipeline]

    def plan(self, row: int, estimate: Estimate | None = None) -> Plan:
        """One of the plans."""
        at = int(np.searchsorted(self._starts, row, side="right")) - 1
        number, instance = self._instances[at]
        features = self._space.features[number]
        names = self._space.tables.sites.names
        sites = [names[site] for site in self._space.groups[number].sites[instance]]
        found = features.templates.plan(int(features.rows[row - self._starts[at]]), sites)
        return Plan(config=found.config, placement=found.placement, estimate=estimate)

    def estimates(self) -> Estimates:
        """Of all plans at the loads of the space."""
        tables = self._space.tables
        used: dict[int, int] = {}
        parts = []
        for number, instance in self._instances:
            features = self._space.features[number]
            group = self._space.groups[number].take(np.array([instance]))
            made = coefficients_of(tables, group, features)
            found = evaluate_block(features, made, np.arange(len(features)))
            columns = [used.setdefault(int(resource), len(used)) for resource in made.resources[0]]
            parts.append((found, features.accuracy, columns))
        demand = np.zeros((len(self), len(used)))
        for start, (found, accuracy, columns) in zip(self._starts[:-1], parts, strict=True):
            demand[start : start + len(accuracy), columns] = self._query.rate_hz * found.amounts[0]
        return Estimates(
            resources=tuple(tables.resources[resource] for resource in used),
            latency_mean_s=_joined([found.latency_mean_s[0] for found, _, _ in parts]),
            latency_var_s2=_joined([found.latency_var_s2[0] for found, _, _ in parts]),
            latency_p95_s=_joined([found.latency_p95_s[0] for found, _, _ in parts]),
            accuracy=_joined([accuracy for _, accuracy, _ in parts]),
            cost_usd_per_1000=1000 * _joined([found.cost_usd[0] for found, _, _ in parts]),
            demand=demand,
            # Templates are of configs that reach the floors, at sites that keep up.
            metrics={name: np.full(len(self), least) for name, least in self._query.slo.metrics.items()},
            serial=np.zeros(len(self)),
        )


def why_none(space: FleetSpace, query: int) -> Refusal | None:
    """Why no plan of a query serves it at the loads of a space; None if one does.

    Policies that forbid placements are not looked at: callers whose space has one ask the planner of small
    fleets instead.
    """
    plans = QueryPlans(space, query)
    asked = space.problem.queries[query]
    if not len(plans):
        detail = f"no config of pipeline {asked.pipeline!r} was measured at the sites it may use"
        return Refusal(query=asked.name, binding=Binding.PROFILE, detail=detail)
    estimates = plans.estimates()
    capacities = space.problem.capacities()
    serves = serving(estimates, asked, capacities).size > 0
    return None if serves else explain(plans, estimates, asked, capacities)


def _joined(arrays: list[Floats]) -> Floats:
    return np.concatenate(arrays)
