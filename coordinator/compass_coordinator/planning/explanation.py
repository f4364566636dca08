"""Why a query got its plan: what else there was, and what each objective and each price said of it.

Every alternative is judged at the load that would result if the query ran by it and all others stayed as they
are; only the last one has the whole fleet to itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from compass_coordinator.estimator import (
    Estimates,
    Floats,
    Indices,
    PlanSpace,
    estimate,
    waits_at,
    waits_joining,
)
from compass_coordinator.plan_space import build_space
from compass_coordinator.planline import plan_line
from compass_coordinator.planner.brute_force import serving
from compass_coordinator.planner.policy import Policy, anywhere, cloud_only, device_only
from compass_coordinator.planner.refusal import Refusal, explain
from compass_coordinator.planning.result import FleetPlan
from compass_shared.errors import PlanningError
from compass_shared.evaluate import pipeline_of, site_mixes
from compass_shared.plan import Estimate, Placement, Plan
from compass_shared.problem import Problem
from compass_shared.query import Query
from compass_shared.queueing import SiteMix
from compass_shared.site import cores_resource, link_resource
from compass_shared.splitting import in_parts, whole_name, whole_with_state

MAX_PLANS = 300_000
"""Spaces above this are looked at in part: the origin with one other site at a time."""
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What one objective says of a plan."""

    objective: str
    """Field of ``Slo``, ``metrics.NAME`` for an extra metric."""
    value: float | None
    """None: without end, a site would be overloaded; of a metric: it was not measured."""
    limit: float
    slack: float | None
    """In the objective's unit; below 0 it is missed by that much."""

    @property
    def met(self) -> bool:
        """Whether it is."""
        return self.slack is not None and self.slack >= 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What a plan asks of one resource that is scarce."""

    resource: str
    demand: float
    """At the query's rate, in the resource's unit."""
    price: float
    """Weight that one more unit would serve."""
    value: float
    """Demand x price: the weight of others that it displaces."""
    missing: float
    """How much more it needs than the others leave; 0 if it fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """One plan, beside the others."""

    title: str
    plan: Plan
    line: str
    """The plan in one line."""
    slo: tuple[Said, ...]
    cost_usd_per_s: float
    """At the query's rate."""
    charges: tuple[Charge, ...]
    """Resources that have a price, or too little left."""

    @property
    def meets_slo(self) -> bool:
        """Whether all objectives are met."""
        return all(said.met for said in self.slo)

    @property
    def charged(self) -> float:
        """Weight of others that it displaces, by the prices."""
        return sum(charge.value for charge in self.charges)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why this plan, or none."""

    query: Query
    chosen: tuple[Alternative, ...]
    """None for a query that was refused, several for one that was split."""
    refusal: str | None
    alternatives: tuple[Alternative, ...]
    prices: Mapping[str, float]
    """Resource that the query could use -> weight that one more unit would serve."""
    considered: int
    """Plans that the alternatives were picked from."""
    partial: bool
    """Whether there are more: placements at several other sites at once were left out."""


def explain_choice(
    problem: Problem, fleet_plan: FleetPlan, query_name: str, policy: Policy = anywhere
) -> Explanation:
    """Say why a query got the plan that it has.

    Args:
        problem: What was planned.
        fleet_plan: What came of it.
        query_name: One of the problem's queries.
        policy: Placements that were considered.

    Raises:
        PlanningError: If there is no such query, or its pipeline or origin is not known.
    """
    query = whole_with_state(problem, _query(problem, query_name))
    view = _view(problem, fleet_plan, query)
    placements, partial = _placements(problem, query, policy)
    space = _measured(problem, query, placements)
    return Explanation(
        query=query,
        chosen=tuple(view.judged(title, plan, found) for title, plan, found in _chosen(fleet_plan, query)),
        refusal=_refusal(view, fleet_plan.refusals.get(query_name), space),
        alternatives=tuple(view.alternatives(space)) if space is not None else (),
        prices={resource: price for resource, price in view.prices.items() if price > 0},
        considered=len(space) if space is not None else 0,
        partial=partial,
    )


def _chosen(fleet_plan: FleetPlan, query: Query) -> Iterator[tuple[str, Plan, Estimate]]:
    """The plan of a query, or each of several with its share of the requests."""
    whole = fleet_plan.plans.get(query.name)
    if whole is not None and whole.estimate is not None:
        yield "chosen", whole, whole.estimate
    for share in fleet_plan.split.get(query.name, ()):
        if share.plan.estimate is not None:
            yield f"chosen for {100 * share.fraction:.3g}%", share.plan, share.plan.estimate


def _query(problem: Problem, name: str) -> Query:
    for query in problem.queries:
        if query.name == name:
            return query
    known = ", ".join(query.name for query in problem.queries[:5])
    more = ", ..." if len(problem.queries) > 5 else ""
    raise PlanningError(f"no query is called {name!r}; there are {known}{more}")


def _refusal(view: _View, refusal: Refusal | None, space: PlanSpace | None) -> str | None:
    """Why there is no plan, worked out in full: planning a large fleet leaves that to whoever asks."""
    if refusal is None or space is None:
        return refusal.detail if refusal is not None else None
    idle = estimate(space, view.query, waits_at(view.problem, space.sites, {}))
    capacities = _capacities(view.problem, view.query.origin, space.sites)
    if not serving(idle, view.query, capacities).size:
        return explain(space, idle, view.query, capacities).detail
    joined = estimate(
        space, view.query, waits_joining(view.problem, space.sites, view.mixes, space, view.query.rate_hz)
    )
    if not serving(joined, view.query, view.left).size:
        return f"beside the queries served, {explain(space, joined, view.query, view.left).detail}"
    return refusal.detail


def _measured(problem: Problem, query: Query, placements: Sequence[Placement]) -> PlanSpace | None:
    """The plans at these placements that can be judged at all."""
    if not placements:
        return None
    space = build_space(problem, query, placements)
    rows = np.flatnonzero(np.isfinite(space.accuracy) & np.isfinite(space.cost_usd))
    return space.take(rows) if rows.size else None


def _placements(problem: Problem, query: Query, policy: Policy) -> tuple[list[Placement], bool]:
    """What to look at, and whether that is only a part of what the policy allows."""
    pipeline, sites = pipeline_of(problem, query), problem.sites_for(query)
    most = MAX_PLANS // pipeline.config_count()
    if len(sites) ** len(pipeline.operators) <= most:
        return list(policy(problem, query)), False
    found: dict[tuple[str, ...], Placement] = {}
    for other in sites[1:]:
        alone = replace(problem, reachable={**problem.reachable, query.name: (other,)})
        for placement in policy(alone, query):
            if len(found) == most:
                return list(found.values()), True
            found[tuple(placement.values())] = placement
    return list(found.values()), True


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """The fleet as one query finds it."""

    problem: Problem
    query: Query
    mixes: Mapping[str, SiteMix]
    """What the others bring to each site."""
    left: Mapping[str, float]
    """Resource that the query could use -> what the others leave."""
    prices: Mapping[str, float]
    """The same resources -> weight that one more unit would serve."""

    def alternatives(self, space: PlanSpace) -> Iterator[Alternative]:
        """The best plan in each respect; ties go to what misses the SLO least, then to the cheapest."""
        waits = waits_joining(self.problem, space.sites, self.mixes, space, self.query.rate_hz)
        joined = estimate(space, self.query, waits)
        excess, cost_usd = _excess(joined, self.query), joined.cost_usd_per_1000
        everything = np.arange(len(space))
        on_device = _at(space, device_only(self.problem, self.query))
        in_cloud = _at(space, cloud_only(self.problem, self.query))
        fitting = serving(joined, self.query, self.left)
        yield from self._best("cheapest that fits", space, joined, fitting, (cost_usd,))
        yield from self._best("cheapest", space, joined, everything, (cost_usd, excess))
        yield from self._best("fastest", space, joined, everything, (joined.latency_p95_s, excess))
        yield from self._best("most accurate", space, joined, everything, (-joined.accuracy, excess))
        yield from self._best("best on its device", space, joined, on_device, (excess, cost_usd))
        yield from self._best("best in the cloud", space, joined, in_cloud, (excess, cost_usd))
        free = estimate(space, self.query, waits_at(self.problem, space.sites, {}))
        met = np.flatnonzero(_excess(free, self.query) <= 0)
        yield from self._best("if all were free", space, free, met, (free.cost_usd_per_1000,))

    def judged(self, title: str, plan: Plan, found: Estimate) -> Alternative:
        """A plan with what objectives and prices say of it."""
        slo = self.query.slo
        return Alternative(
            title=title,
            plan=replace(plan, estimate=None),
            line=plan_line(pipeline_of(self.problem, self.query), plan),
            slo=(
                _said("latency_p95_s", found.latency_p95_s, slo.latency_p95_s),
                _said("accuracy", found.accuracy, slo.accuracy, at_least=True),
                _said("cost_usd_per_1000", found.cost_usd_per_1000, slo.cost_usd_per_1000),
                *(
                    _said(f"metrics.{name}", found.metrics.get(name, math.nan), least, at_least=True)
                    for name, least in slo.metrics.items()
                ),
            ),
            cost_usd_per_s=self.query.rate_hz * found.cost_usd_per_1000 / 1000,
            charges=tuple(self._charges(found)),
        )

    def _best(
        self, title: str, space: PlanSpace, estimates: Estimates, rows: Indices, keys: tuple[Floats, ...]
    ) -> Iterator[Alternative]:
        if rows.size:
            preferred = (*keys, estimates.cost_usd_per_1000, -estimates.accuracy, estimates.latency_p95_s)
            row = int(rows[np.lexsort([key[rows] for key in reversed(preferred)])[0]])
            yield self.judged(title, space.plan(row), estimates.row(row))

    def _charges(self, found: Estimate) -> Iterator[Charge]:
        for resource, demand in found.demand.items():
            price = self.prices.get(resource, 0.0)
            missing = max(0.0, demand - self.left.get(resource, math.inf))
            if price > 0 or missing > _ROUNDING * demand:
                yield Charge(
                    resource=resource, demand=demand, price=price, value=demand * price, missing=missing
                )


def _view(problem: Problem, fleet_plan: FleetPlan, query: Query) -> _View:
    sites = problem.sites_for(query)
    parts, running = in_parts(problem, fleet_plan.plans, fleet_plan.split)
    others = {
        name: plan
        for name, plan in running.items()
        if whole_name(name) != query.name and not set(sites).isdisjoint(plan.placement.values())
    }
    left = _capacities(problem, query.origin, sites)
    for plan in others.values():
        if plan.estimate is not None:
            for resource, demand in plan.estimate.demand.items():
                if resource in left:
                    left[resource] -= demand
    return _View(
        problem=problem,
        query=query,
        mixes=site_mixes(parts, others),
        left=left,
        prices={resource: fleet_plan.prices.get(resource, 0.0) for resource in left},
    )


def _capacities(problem: Problem, origin: str, sites: Sequence[str]) -> dict[str, float]:
    """What may be handed out of the resources that plans from an origin can use."""
    found = {cores_resource(name): problem.sites[name] for name in sites}
    capacities = {resource: site.cores * site.utilisation_cap for resource, site in found.items()}
    for source, target in [pair for site in sites[1:] for pair in ((origin, site), (site, origin))]:
        link = problem.links[source, target]
        capacities[link_resource(source, target)] = link.bandwidth_bps * link.utilisation_cap
    return capacities


def _at(space: PlanSpace, placements: Iterable[Placement]) -> Indices:
    """Rows of a space at any of some placements."""
    wanted = {tuple(sorted(placement.items())) for placement in placements}
    of_placement = np.array(
        [tuple(sorted(each.items())) in wanted for each in space.placements], dtype=np.bool_
    )
    return np.flatnonzero(of_placement[space.placement_of])


def _excess(estimates: Estimates, query: Query) -> Floats:
    """By how much plans miss the SLO, relative to its values and summed over them; 0 where it is met."""
    slo, nothing = query.slo, np.zeros(len(estimates.accuracy))
    over = (
        (estimates.latency_p95_s - slo.latency_p95_s) / slo.latency_p95_s,
        (slo.accuracy - estimates.accuracy) / max(slo.accuracy, _ROUNDING),
        (estimates.cost_usd_per_1000 - slo.cost_usd_per_1000) / max(slo.cost_usd_per_1000, _ROUNDING),
        estimates.serial - 1,
        *(
            (least - np.nan_to_num(estimates.metrics.get(name, nothing))) / max(least, _ROUNDING)
            for name, least in slo.metrics.items()
        ),
    )
    return np.asarray(sum(np.maximum(each, 0.0) for each in over), dtype=np.float64)


def _said(objective: str, value: float, limit: float, *, at_least: bool = False) -> Said:
    if not math.isfinite(value):
        return Said(objective=objective, value=None, limit=limit, slack=None)
    slack = value - limit if at_least else limit - value
    return Said(objective=objective, value=value, limit=limit, slack=slack)
