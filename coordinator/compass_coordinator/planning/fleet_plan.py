"""Planning a fleet: from a problem to one plan for each query that can be served.

Waiting depends on who else is served, and who can be served depends on waiting. So the fleet is matched
exactly under two assumed loads, and each match is settled at the load that really follows from it:

1. Nobody waits. No plan does better at any load, so this match bounds what any choice of plans can serve.
2. Every site is as busy as its cap allows, with service times as in the first match. Plans that are chosen
   then hold whatever else is chosen, as long as the mix of segments stays alike.

The better result wins; further rounds (the resulting mix, the resulting load) were tried and never won. Both
rounds share one enumeration: a plan that misses its SLO on an idle fleet misses it at any load, so only the
others are kept, and waits are added per round.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from compass_coordinator.estimator import PlanSpace, estimate, waits_at
from compass_coordinator.matcher import REFUSED, match_milp
from compass_coordinator.plan_space import build_space
from compass_coordinator.planner.brute_force import candidates_within, serving
from compass_coordinator.planner.fallback import best_local_plan
from compass_coordinator.planner.policy import Policy, anywhere
from compass_coordinator.planner.refusal import Binding, Refusal, explain
from compass_coordinator.planning.joining import Choice, Choices, mixes, why_not
from compass_coordinator.planning.settling import Spaces, chosen_plans, objective, settle
from compass_shared.errors import PlanningError, ProfileError
from compass_shared.evaluate import estimate_at_load
from compass_shared.plan import Plan, PlanShare
from compass_shared.problem import Problem, SiteLoad
from compass_shared.query import Query
from compass_shared.queueing import SiteMix


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPlan:
    """What a fleet is to run."""

    plans: Mapping[str, Plan]
    """Query name -> plan, with its estimate at the load that results from all of them."""
    refusals: Mapping[str, Refusal]
    """Why each of the other queries has none."""
    fallbacks: Mapping[str, Plan]
    """Query name -> what it can do at its origin alone; not for queries that were not measured there."""
    goodput: float
    """Weight of the queries that are served; each meets its whole SLO."""
    cost_usd_per_s: float
    """Of all served queries at their rates."""
    bound: float
    """No set of plans could have a larger goodput, even if nobody ever waited."""
    seconds: Mapping[str, float]
    """Stage -> time spent in it: ``enumerate``, ``match``, ``settle``."""
    split: Mapping[str, tuple[PlanShare, ...]] = field(default_factory=dict)
    """Query name -> its plans with fractions, for the divisible queries that were given several or a part."""
    prices: Mapping[str, float] = field(default_factory=dict)
    """Resource -> weight that one more unit of it would serve (0 where there is enough)."""

    @property
    def gap(self) -> float:
        """``(bound - goodput) / bound``: no more than this share of the best goodput is missed."""
        return (self.bound - self.goodput) / self.bound if self.bound > 0 else 0.0


def plan_fleet(
    problem: Problem,
    policy: Policy = anywhere,
    *,
    timer: Callable[[], float] = lambda: 0.0,
    time_limit_s: float | None = None,
) -> FleetPlan:
    """Choose plans that serve as much weight of queries as possible, then for as little cost as possible.

    Args:
        problem: Sites, links, profiles and queries. Its ``loads`` are not read: they follow from the plans.
        policy: Placements to consider.
        timer: Seconds since some start, read between stages; the default measures nothing.
        time_limit_s: Limit of each run of the matcher's solver; None for as long as it takes.

    Returns:
        Plans that ``check_plan`` finds no fault with, and a reason for every query that has none.

    Raises:
        PlanningError: If the problem is malformed or too large to enumerate.
    """
    _require_distinct_names(problem)
    watch = _Stopwatch(timer)
    spaces, refusals = _servable(problem, policy)
    watch.lap("enumerate")

    relaxed = _match(problem, spaces, {}, time_limit_s)
    watch.lap("match")
    best = settle(problem, spaces, relaxed.chosen)
    watch.lap("settle")
    # Only if waiting costs something at all is there anything left to gain.
    if objective(best) < objective(relaxed.chosen):
        busy = _match(problem, spaces, _loads_at_cap(problem, spaces, mixes(relaxed.chosen)), time_limit_s)
        watch.lap("match")
        best = max(best, settle(problem, spaces, busy.chosen), key=objective)
        watch.lap("settle")

    left_out = {
        name: why_not(problem, query, space, best)
        for name, (query, space) in spaces.items()
        if name not in best
    }
    goodput, negative_cost = objective(best)
    return FleetPlan(
        plans=_published(problem, best),
        refusals=refusals | left_out,
        fallbacks=_fallbacks(problem),
        goodput=goodput,
        cost_usd_per_s=-negative_cost,
        bound=max(relaxed.bound, goodput),
        seconds=watch.seconds,
    )


@dataclass(slots=True)
class _Stopwatch:
    timer: Callable[[], float]
    seconds: dict[str, float] = field(default_factory=dict)
    _last_s: float = 0.0

    def __post_init__(self) -> None:
        self._last_s = self.timer()

    def lap(self, stage: str) -> None:
        """Add the time since the last lap to a stage."""
        now_s = self.timer()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now_s - self._last_s
        self._last_s = now_s


@dataclass(frozen=True, slots=True, kw_only=True)
class _Matched:
    chosen: Choices
    bound: float


def _servable(problem: Problem, policy: Policy) -> tuple[Spaces, dict[str, Refusal]]:
    """For each query the plans that serve it when nobody else is there, or why there are none."""
    spaces, refusals = {}, {}
    enumerated: dict[tuple[str, str, tuple[str, ...]], PlanSpace] = {}
    capacities = problem.capacities()
    for query in problem.queries:
        if (unknown := _unknown(problem, query)) is not None:
            refusals[query.name] = Refusal(query=query.name, binding=Binding.PROFILE, detail=unknown)
            continue
        key = query.pipeline, query.origin, problem.sites_for(query)
        if key not in enumerated:
            enumerated[key] = build_space(problem, query, policy(problem, query))
        space = enumerated[key]
        idle = estimate(space, query, waits_at(problem, space.sites, {}))
        rows = serving(idle, query, capacities)
        if rows.size:
            spaces[query.name] = query, space.take(rows)
        else:
            refusals[query.name] = explain(space, idle, query, capacities)
    return spaces, refusals


def _require_distinct_names(problem: Problem) -> None:
    names = [query.name for query in problem.queries]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise PlanningError(f"query names must differ; given more than once: {', '.join(twice)}")


def _unknown(problem: Problem, query: Query) -> str | None:
    """What a query refers to and the problem does not know: one such query must not stop the others."""
    if query.pipeline not in problem.pipelines:
        return f"pipeline {query.pipeline!r} is not known"
    if query.origin not in problem.sites:
        return f"its origin {query.origin!r} is not a known site"
    return None


def _match(
    problem: Problem, spaces: Spaces, loads: Mapping[str, SiteLoad], time_limit_s: float | None
) -> _Matched:
    """Match exactly under an assumed load."""
    found = [candidates_within(problem, query, space, loads) for query, space in spaces.values()]
    resources = sorted({resource for candidates in found for resource in candidates.resources})
    shape = len(found), max((len(candidates) for candidates in found), default=0)
    values = np.full(shape, -np.inf)
    costs = np.zeros(shape)
    demands = np.zeros((*shape, len(resources)))
    for at, candidates in enumerate(found):
        plans = slice(len(candidates))
        values[at, plans] = candidates.query.weight
        costs[at, plans] = candidates.cost_usd_per_s
        columns = [resources.index(resource) for resource in candidates.resources]
        demands[at, plans, columns] = candidates.demand.T
    capacities = problem.capacities()
    limits = [capacities[resource] for resource in resources]
    result = match_milp(values, demands, limits, costs, time_limit_s=time_limit_s)
    chosen = {
        candidates.query.name: Choice(query=candidates.query, space=candidates.space, row=int(row))
        for candidates, row in zip(found, result.choice, strict=True)
        if row != REFUSED
    }
    return _Matched(chosen=chosen, bound=result.bound)


def _loads_at_cap(problem: Problem, spaces: Spaces, mix: Mapping[str, SiteMix]) -> dict[str, SiteLoad]:
    """Every site as busy as its cap allows, with the residual of the mix that it is likely to see."""
    residuals_s = {
        site: brought.load(problem.sites[site].cores).residual_s
        for site, brought in mix.items()
        if brought.busy_cores > 0
    }
    return {
        name: SiteLoad(
            utilisation=site.utilisation_cap,
            residual_s=residuals_s[name] if name in residuals_s else _typical_residual_s(spaces, name),
        )
        for name, site in problem.sites.items()
    }


def _typical_residual_s(spaces: Spaces, site: str) -> float:
    """Residual at a site that nobody uses yet: the rate-weighted median over the plans that could."""
    weights, medians = [0.0], [0.0]
    for query, space in spaces.values():
        if site in space.sites:
            at = space.sites.index(site)
            visiting = space.busy_s[at] > 0
            if visiting.any():
                residual_s = space.second_moment_s2[at, visiting] / (2 * space.busy_s[at, visiting])
                weights.append(query.rate_hz)
                medians.append(float(np.median(residual_s)))
    total = sum(weights)
    return float(np.dot(weights, medians)) / total if total > 0 else 0.0


def _fallbacks(problem: Problem) -> dict[str, Plan]:
    fallbacks = {}
    for query in problem.queries:
        # Without measurements at the origin there is nothing to choose by; such a query has no fallback.
        if _unknown(problem, query) is None:
            with contextlib.suppress(ProfileError):
                fallbacks[query.name] = best_local_plan(problem, query)
    return fallbacks


def _published(problem: Problem, chosen: Choices) -> dict[str, Plan]:
    """Chosen plans with the estimates at the load that results, in the order of the queries."""
    plans = chosen_plans(chosen)
    estimates = estimate_at_load(problem, plans)
    return {
        query.name: replace(plans[query.name], estimate=estimates[query.name])
        for query in problem.queries
        if query.name in plans
    }
