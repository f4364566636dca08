"""Planning a small fleet: all plans of every query, an exact match, settled at the load that results.

Waiting depends on who else is served, and who can be served depends on waiting. So the fleet is matched under
two assumed loads, and each match is settled at the load that really follows from it:

1. Nobody waits. No plan does better at any load, so this match bounds what any choice of plans can serve.
2. Every site is as busy as its cap allows, with service times as in the first match. Plans that are chosen
   then hold whatever else is chosen, as long as the mix of segments stays alike.

The better result wins; further rounds (the resulting mix, the resulting load) were tried and never won. Both
rounds share one enumeration: a plan that misses its SLO on an idle fleet misses it at any load, so only the
others are kept, and waits are added per round.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from compass_coordinator.estimator import PlanSpace, estimate, waits_at
from compass_coordinator.matcher import REFUSED, MatchResult, match, match_milp
from compass_coordinator.plan_space import build_space
from compass_coordinator.planner.brute_force import Candidates, candidates_within, serving, stacked
from compass_coordinator.planner.policy import Policy, anywhere
from compass_coordinator.planner.refusal import Binding, Refusal, explain
from compass_coordinator.planner.unplaceable import unplaceable
from compass_coordinator.planning.joining import Choice, Choices, mixes, why_not
from compass_coordinator.planning.loads import loads_at_cap
from compass_coordinator.planning.result import Fallbacks, FleetPlan, Stopwatch, unknown_to
from compass_coordinator.planning.searched import is_searched, searched_space
from compass_coordinator.planning.settling import Spaces, chosen_plans, objective, settle
from compass_shared.evaluate import estimate_at_load
from compass_shared.plan import Plan, PlanShare
from compass_shared.problem import Problem, SiteLoad
from compass_shared.query import Query
from compass_shared.splitting import part_name, whole_name

_NO_PRICE = 1e-6
"""Share of the goodput that a whole resource has to be worth to have a price; less is rounding."""
_NOTHING: Mapping[str, PlanSpace | Refusal] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fleet:
    """Queries with their plans and a choice among them; each part of a split query is one of the queries."""

    problem: Problem
    spaces: Spaces
    chosen: Choices
    fractions: Mapping[str, float]
    """Part -> its share of its query's requests."""
    bound: float
    prices: Mapping[str, float]

    def settled(self) -> _Fleet:
        """The same with a choice that holds at the load it causes."""
        return replace(self, chosen=settle(self.problem, self.spaces, self.chosen))


def plan_exactly(
    problem: Problem, policy: Policy, watch: Stopwatch, *, time_limit_s: float | None = None
) -> FleetPlan:
    """Plan a fleet whose plans can all be enumerated.

    Args:
        problem: Sites, links, profiles and queries with distinct names.
        policy: Placements to consider.
        watch: Takes the time of ``enumerate``, ``match`` and ``settle``.
        time_limit_s: Limit of each run of the exact matcher; None for as long as it takes.

    Raises:
        PlanningError: If the problem is malformed or too large to enumerate.
    """
    searches = {
        query.name: searched_space(problem, query)
        for query in problem.queries
        if policy is anywhere and is_searched(problem, query) and unplaceable(problem, query) is None
    }
    if searches:
        watch.lap("search")
    spaces, refusals = servable(problem, policy, {name: found for name, (found, _) in searches.items()})
    watch.lap("enumerate")
    relaxed = _match(problem, spaces, {}, time_limit_s)
    watch.lap("match")
    best = relaxed.settled()
    watch.lap("settle")
    # Only if waiting costs something at all is there anything left to gain.
    if objective(best.chosen) < objective(relaxed.chosen):
        busy = _match(problem, spaces, loads_at_cap(problem, spaces, mixes(relaxed.chosen)), time_limit_s)
        watch.lap("match")
        best = max(best, busy.settled(), key=lambda fleet: objective(fleet.chosen))
        watch.lap("settle")
    plan = _published(problem, spaces, refusals, relaxed, best, watch)
    return replace(plan, searched={name: result for name, (_, result) in searches.items()})


def servable(
    problem: Problem, policy: Policy, searched: Mapping[str, PlanSpace | Refusal] = _NOTHING
) -> tuple[Spaces, dict[str, Refusal]]:
    """For each query the plans that serve it when nobody else is there, or why there are none.

    Args:
        problem: The planning problem.
        policy: Placements to consider.
        searched: What was found for queries that are not to be enumerated.
    """
    spaces, refusals = {}, {}
    enumerated: dict[tuple[str, str, tuple[str, ...]], PlanSpace] = {}
    capacities = problem.capacities()
    for query in problem.queries:
        if (unknown := unknown_to(problem, query)) is not None:
            refusals[query.name] = Refusal(query=query.name, binding=Binding.PROFILE, detail=unknown)
            continue
        if (nowhere := unplaceable(problem, query, policy)) is not None:
            refusals[query.name] = nowhere
            continue
        if query.name in searched:
            found = searched[query.name]
            if isinstance(found, Refusal):
                refusals[query.name] = found
            else:
                spaces[query.name] = query, found
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


def _match(
    problem: Problem, spaces: Spaces, loads: Mapping[str, SiteLoad], time_limit_s: float | None
) -> _Fleet:
    """Choose among the plans that hold when visits meet these loads."""
    capacities = problem.capacities()
    found = [candidates_within(problem, query, space, loads) for query, space in spaces.values()]
    arrays = stacked(found)
    values, demands, costs = arrays.values, arrays.demands, arrays.costs
    limits = np.array([capacities[resource] for resource in arrays.resources])
    divisible = np.array([candidates.query.divisible for candidates in found], dtype=np.bool_)
    priced = match(values, demands, limits, costs, divisible=divisible)
    result, bound = priced, priced.bound
    if not divisible.any():  # the solver knows no fractions
        exact = match_milp(values, demands, limits, costs, time_limit_s=time_limit_s)
        result = max(priced, exact, key=lambda found: (found.value, -found.cost))
        bound = min(priced.bound, exact.bound)
    worth_naming = priced.prices * limits > _NO_PRICE * max(result.value, 1e-300)
    prices = dict(zip(arrays.resources, map(float, np.where(worth_naming, priced.prices, 0.0)), strict=True))
    return _in_parts(problem, spaces, found, result, bound, prices)


def _in_parts(
    problem: Problem,
    spaces: Spaces,
    found: list[Candidates],
    result: MatchResult,
    bound: float,
    prices: Mapping[str, float],
) -> _Fleet:
    """A match as a choice, every plan of a split query that of a query with its share of the requests."""
    chosen: dict[str, Choice] = {}
    fractions: dict[str, float] = {}
    parts: dict[str, tuple[Query, PlanSpace]] = dict(spaces)
    queries = {query.name: query for query in problem.queries}
    for candidates, row in zip(found, result.choice, strict=True):
        if row != REFUSED:
            query = candidates.query
            chosen[query.name] = Choice(query=query, space=candidates.space, row=int(row))
    shares = result.shares
    for at, row, fraction in zip(shares.query, shares.plan, shares.fraction, strict=True):
        query = found[at].query
        name = part_name(query.name, sum(whole_name(part) == query.name for part in fractions))
        part = replace(
            query, name=name, rate_hz=query.rate_hz * fraction, weight=query.weight * float(fraction)
        )
        parts.pop(query.name, None)
        queries.pop(query.name, None)
        queries[name] = part
        parts[name] = part, spaces[query.name][1]
        chosen[name] = Choice(query=part, space=found[at].space, row=int(row))
        fractions[name] = float(fraction)
    reachable = {
        name: problem.reachable[whole_name(name)] for name in queries if whole_name(name) in problem.reachable
    }
    return _Fleet(
        problem=replace(problem, queries=tuple(queries.values()), reachable=reachable),
        spaces=parts,
        chosen=chosen,
        fractions=fractions,
        bound=bound,
        prices=prices,
    )


def _published(
    problem: Problem,
    spaces: Spaces,
    refusals: Mapping[str, Refusal],
    relaxed: _Fleet,
    best: _Fleet,
    watch: Stopwatch,
) -> FleetPlan:
    """The result with estimates at the load that results, and a reason for every query left out."""
    plans, split = _whole_and_split(problem, best)
    left_out = {
        name: why_not(problem, query, space, best.chosen)
        for name, (query, space) in spaces.items()
        if name not in plans and name not in split
    }
    goodput, negative_cost = objective(best.chosen)
    return FleetPlan(
        plans=plans,
        split=split,
        refusals={**refusals, **left_out},
        fallbacks=dict(Fallbacks(problem)),
        goodput=goodput,
        cost_usd_per_s=-negative_cost,
        bound=max(relaxed.bound, goodput),
        seconds=watch.seconds,
        prices=relaxed.prices,
    )


def _whole_and_split(
    problem: Problem, fleet: _Fleet
) -> tuple[dict[str, Plan], dict[str, tuple[PlanShare, ...]]]:
    """Chosen plans with their estimates, in the order of the queries."""
    running = chosen_plans(fleet.chosen)
    estimates = estimate_at_load(fleet.problem, running)
    running = {name: replace(plan, estimate=estimates[name]) for name, plan in running.items()}
    plans, split = {}, {}
    for query in problem.queries:
        if query.name in running:
            plans[query.name] = running[query.name]
        shares = [
            PlanShare(plan=plan, fraction=fleet.fractions[name])
            for name, plan in running.items()
            if name in fleet.fractions and whole_name(name) == query.name
        ]
        if shares:
            split[query.name] = tuple(shares)
    return plans, split
