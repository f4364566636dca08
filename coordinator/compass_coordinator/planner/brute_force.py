"""The exact planner for small spaces: every config at every placement, minus what can never be chosen.

For one query the matcher sees a plan as a cost and a demand on each resource; every plan that meets the SLO
is worth the query's weight. So a plan that another one equals or beats in cost and in every demand can go
without changing the optimum, whatever the other queries do. Among plans that are equal in all of these the
more accurate stays, then the faster. It serves fleets of a few sites and is the oracle of faster planners.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compass_coordinator.estimator import Estimates, Floats, Indices, PlanSpace, estimate, waits_at
from compass_coordinator.plan_space import build_space
from compass_coordinator.planner.dominance import undominated
from compass_coordinator.planner.policy import Policy, anywhere
from compass_coordinator.planner.refusal import Refusal, explain
from compass_coordinator.planner.unplaceable import unplaceable
from compass_shared.plan import Plan
from compass_shared.problem import Problem, SiteLoad
from compass_shared.query import Query
from compass_shared.splitting import whole_with_state


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """Plans of one query that the matcher may choose from: each meets the SLO and fits on its own."""

    query: Query
    space: PlanSpace
    """Only the candidates."""
    estimates: Estimates
    """At the load that they were found for."""

    def __len__(self) -> int:
        return len(self.space)

    @property
    def resources(self) -> tuple[str, ...]:
        """Names of the columns of ``demand``."""
        return self.estimates.resources

    @property
    def cost_usd_per_s(self) -> Floats:
        """(n,) at the query's rate."""
        return self.query.rate_hz * self.space.cost_usd

    @property
    def demand(self) -> Floats:
        """(n, resources) at the query's rate, in the resource's unit."""
        return self.estimates.demand

    def plan(self, row: int) -> Plan:
        """One candidate with its estimate."""
        return self.space.plan(row, self.estimates.row(row))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stacked:
    """Candidates of several queries as the arrays that a matcher takes."""

    resources: tuple[str, ...]
    values: Floats
    """(queries, plans) the query's weight, -inf where there is no plan."""
    costs: Floats
    """(queries, plans) USD per second."""
    demands: Floats
    """(queries, plans, resources)."""


def stacked(found: Sequence[Candidates | None]) -> Stacked:
    """Lay candidates out side by side; None stands for a query without any."""
    present = [candidates for candidates in found if candidates is not None]
    resources = tuple(sorted({resource for candidates in present for resource in candidates.resources}))
    shape = len(found), max((len(candidates) for candidates in present), default=0)
    values, costs = np.full(shape, -np.inf), np.zeros(shape)
    demands = np.zeros((*shape, len(resources)))
    for at, candidates in enumerate(found):
        if candidates is not None:
            plans = slice(len(candidates))
            values[at, plans] = candidates.query.weight
            costs[at, plans] = candidates.cost_usd_per_s
            columns = [resources.index(resource) for resource in candidates.resources]
            demands[at, plans, columns] = candidates.demand.T
    return Stacked(resources=resources, values=values, costs=costs, demands=demands)


def find_candidates(problem: Problem, query: Query, policy: Policy = anywhere) -> Candidates | Refusal:
    """Plan one query exactly, at the load that the problem states.

    Args:
        problem: Sites, links, profiles, accuracy, and the loads to evaluate waiting at.
        query: One of its queries.
        policy: Placements to consider.

    Returns:
        The undominated plans that meet the SLO, or why there are none.

    Raises:
        PlanningError: If the origin or pipeline is unknown, or the space too large to enumerate.
    """
    query = whole_with_state(problem, query)
    if (refusal := unplaceable(problem, query, policy)) is not None:
        return refusal
    space = build_space(problem, query, policy(problem, query))
    found = candidates_within(problem, query, space, problem.loads)
    if len(found):
        return found
    at_load = estimate(space, query, waits_at(problem, space.sites, problem.loads))
    return explain(space, at_load, query, problem.capacities())


def candidates_within(
    problem: Problem, query: Query, space: PlanSpace, loads: Mapping[str, SiteLoad]
) -> Candidates:
    """The undominated plans of a space that serve a query when visits meet the given loads."""
    estimates = estimate(space, query, waits_at(problem, space.sites, loads))
    rows = serving(estimates, query, problem.capacities())
    estimates = estimates.take(rows)
    features = np.column_stack([estimates.cost_usd_per_1000, estimates.demand])
    kept = undominated(features, (-estimates.accuracy, estimates.latency_p95_s))
    return Candidates(query=query, space=space.take(rows[kept]), estimates=estimates.take(kept))


def serving(estimates: Estimates, query: Query, capacities: Mapping[str, float]) -> Indices:
    """Rows that meet a query's whole SLO, keep up with it and fit the capacities while nobody else uses them.

    Of a divisible query a fraction has to fit, not the whole.
    """
    limits = np.array([capacities[resource] for resource in estimates.resources])
    if query.divisible:
        limits = np.where(limits > 0, np.inf, 0.0)
    # Comparisons with nan (not measured) are false, so such plans never pass.
    unmeasured = np.full(len(estimates.accuracy), np.nan)
    return np.flatnonzero(
        (estimates.latency_p95_s <= query.slo.latency_p95_s)
        & (estimates.accuracy >= query.slo.accuracy)
        & (estimates.cost_usd_per_1000 <= query.slo.cost_usd_per_1000)
        & (estimates.demand <= limits).all(axis=1)
        & (estimates.serial <= 1)
        & np.logical_and.reduce(
            [estimates.metrics.get(name, unmeasured) >= least for name, least in query.slo.metrics.items()],
            axis=0,
            initial=True,
        )
    )
