"""Planning a large fleet: templates evaluated for all queries at once, matched by prices.

Waiting depends on who else is served, and who can be served depends on waiting. So rounds alternate between a
match at assumed loads and the loads that result from it:

1. Nobody waits. No plan does better at any load, so the bound of this match, over all plans of all queries,
   bounds what any choice of plans can serve.
2. Shared sites are as busy as their caps allow, with service times as in the first match; a device is as busy
   as its own queries made it. What is chosen holds at any load that the matcher allows, as long as the mix of
   segments stays alike; queries that are late all the same are left out.
3. Every site is about as busy as it was after the round before, which lets queries in that are only late at
   the cap. Rounds go on while they serve more, or the same for less.

Each match is repeated with the plans that queries would like best at its prices (column generation), so that
the few candidates it looks at lose nothing against all plans.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from compass_coordinator.estimator import Floats
from compass_coordinator.matcher import REFUSED, MatchResult, SparseDemands, match
from compass_coordinator.planner.brute_force import find_candidates
from compass_coordinator.planner.fleet.candidates import FleetCandidates, add_columns, candidates_of
from compass_coordinator.planner.fleet.evaluate import Evaluation
from compass_coordinator.planner.fleet.space import FleetSpace, TemplateCache
from compass_coordinator.planner.policy import Policy, anywhere
from compass_coordinator.planner.refusal import Binding, Refusal
from compass_coordinator.planning.alone import why_none
from compass_coordinator.planning.placements import AllowedBy
from compass_coordinator.planning.result import Fallbacks, FleetPlan, Stopwatch, unknown_to
from compass_coordinator.planning.resulting import Running, reevaluate, resulting_loads, resulting_mixes
from compass_shared.plan import Plan, PlanShare
from compass_shared.problem import Problem, SiteLoad
from compass_shared.query import Query
from compass_shared.site import Tier

MAX_ROUNDS = 5
WORTH_A_ROUND = 0.01
"""Share of the cost that a round has to save to be followed by another."""
HEADROOM = 0.25
"""Share of what is left below a cap by which a site is assumed to be busier than in the round before."""
_ROUNDING = 1e-9
_IDLE = SiteLoad(utilisation=0.0, residual_s=0.0)
COLUMN_ROUNDS = 2
"""Rounds of column generation a match; a third was tried and never changed the value by 0.01%."""
EXPLAINED = 50
"""Queries without any plan whose refusal is looked into; the others are told how to ask."""
MAX_REMOTE = 2
"""Remote sites that one plan uses at most."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Match:
    """Candidates at assumed loads with a choice among them."""

    candidates: FleetCandidates
    result: MatchResult
    bound: float
    """Over all plans of all queries, not only the candidates."""
    prices: Floats
    """(resources of the fleet,)."""

    def running(self) -> Running:
        """What is chosen."""
        whole = np.flatnonzero(self.result.choice != REFUSED)
        shares = self.result.shares
        return Running(
            query=np.concatenate([whole, shares.query]),
            candidate=np.concatenate([self.result.choice[whole], shares.plan]),
            fraction=np.concatenate([np.ones(len(whole)), shares.fraction]),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Held:
    """What is left of a match at the load that it causes."""

    match: _Match
    running: Running
    found: Evaluation
    """Of each entry, at ``loads``."""
    loads: Mapping[str, SiteLoad]
    late_sites: frozenset[str]
    """Sites of the entries that were left out because they came late."""
    worth: tuple[float, float]
    """Goodput, then minus cost in USD per second."""

    def much_better_than(self, other: _Held) -> bool:
        """Whether it serves more, or the same for so much less that another round may be worth it."""
        (goodput, negative_cost), (goodput_before, negative_before) = self.worth, other.worth
        if goodput == goodput_before:
            return negative_cost > negative_before * (1 - WORTH_A_ROUND)
        return goodput > goodput_before


def plan_at_scale(
    problem: Problem, policy: Policy, watch: Stopwatch, *, templates: TemplateCache | None = None
) -> FleetPlan:
    """Plan a fleet by templates and prices.

    Args:
        problem: Sites, links, profiles and queries with distinct names.
        policy: Placements to consider.
        watch: Takes the time of ``templates``, ``evaluate``, ``match`` and ``settle``.
        templates: Built earlier; new ones are added.

    Raises:
        PlanningError: If a pipeline has too many plans to build templates of.
    """
    planner = _Planner(problem, policy, watch, TemplateCache() if templates is None else templates)
    return planner.plan()


def assumed_loads(
    problem: Problem, policy: Policy, watch: Stopwatch, templates: TemplateCache
) -> tuple[float, dict[str, SiteLoad]]:
    """Match a fleet as if nobody waited.

    Returns:
        A bound on the weight that any plans can serve, and the loads to assume when looking for plans: shared
        sites at their caps, devices as busy as that match makes them.
    """
    planner = _Planner(problem, policy, watch, templates)
    relaxed = planner.relaxed()
    return relaxed.bound, planner.loads_after(relaxed)


class _Planner:
    def __init__(self, problem: Problem, policy: Policy, watch: Stopwatch, templates: TemplateCache) -> None:
        self._problem = problem
        self._allowed = None if policy is anywhere else AllowedBy(policy)
        self._policy = policy
        self._watch = watch
        self._templates = templates
        self._slo_s = np.array([query.slo.latency_p95_s for query in problem.queries])
        self._weights = np.array([query.weight for query in problem.queries])
        self._rates_hz = np.array([query.rate_hz for query in problem.queries])

    def plan(self) -> FleetPlan:
        relaxed = self.relaxed()
        loads = self.loads_after(relaxed)
        best: _Held | None = None
        for _ in range(MAX_ROUNDS):
            prices = relaxed.prices if best is None else best.match.prices
            held = self._held(self._match(loads, prices))
            self._watch.lap("settle")
            better = best is None or held.worth > best.worth
            settled = best is not None and not held.much_better_than(best)
            if better or best is None:
                best = held
            if settled or held.worth[0] >= relaxed.bound * (1 - _ROUNDING):
                break
            loads = self._between(loads, held)
        return self._published(relaxed, best or self._held(relaxed))

    def _match(self, loads: Mapping[str, SiteLoad], prices: Floats | None) -> _Match:
        space = FleetSpace.of(
            self._problem, loads, self._templates, max_remote=MAX_REMOTE, allowed=self._allowed
        )
        self._watch.lap("templates")
        candidates = candidates_of(space, prices=prices)
        self._watch.lap("evaluate")
        result, prices = _matched(candidates, prices)
        bound = math.inf
        self._watch.lap("match")
        for _ in range(COLUMN_ROUNDS):
            before = _count(candidates)
            candidates, over_all = add_columns(candidates, prices)
            bound = min(bound, over_all)
            self._watch.lap("evaluate")
            if _count(candidates) == before:
                break
            result, prices = _matched(candidates, prices)
            self._watch.lap("match")
        return _Match(candidates=candidates, result=result, bound=max(bound, result.value), prices=prices)

    def relaxed(self) -> _Match:
        """The match if nobody waited."""
        return self._match({}, None)

    def loads_after(self, match: _Match) -> dict[str, SiteLoad]:
        """Shared sites as busy as their caps allow, devices as busy as a match makes them."""
        loads = resulting_loads(self._problem, resulting_mixes(match.candidates, match.running()))
        return {
            name: load
            if (site := self._problem.sites[name]).tier is Tier.DEVICE
            else replace(load, utilisation=max(load.utilisation, site.utilisation_cap))
            for name, load in loads.items()
        }

    def _held(self, match: _Match) -> _Held:
        """Leave late queries out until none is late, the lighter half of them at a time."""
        running, candidates = match.running(), match.candidates
        weights = self._weights
        late_sites: set[str] = set()
        while True:
            loads = resulting_loads(self._problem, resulting_mixes(candidates, running))
            found = reevaluate(candidates, running, loads)
            late = np.flatnonzero(found.latency_p95_s > self._slo_s[running.query])
            if not late.size:
                worth = math.fsum(weights[running.query] * running.fraction)
                cost = math.fsum(self._rates_hz[running.query] * running.fraction * found.cost_usd)
                return _Held(
                    match=match,
                    running=running,
                    found=found,
                    loads=loads,
                    late_sites=frozenset(late_sites),
                    worth=(worth, -cost),
                )
            late_sites |= self._visited(candidates, running.take(late))
            lightest = late[np.lexsort((running.query[late], weights[running.query[late]]))]
            gone = running.query[lightest[: -(-late.size // 2)]]
            running = running.take(np.flatnonzero(~np.isin(running.query, gone)))

    def _between(self, assumed: Mapping[str, SiteLoad], held: _Held) -> dict[str, SiteLoad]:
        """Loads for the next round: what resulted and some headroom, and no less where queries were late."""
        loads = {}
        for name in assumed.keys() | held.loads.keys():
            site = self._problem.sites[name]
            before, now = assumed.get(name, _IDLE), held.loads.get(name, _IDLE)
            headroom = (
                0.0
                if site.tier is Tier.DEVICE
                else HEADROOM * max(0.0, site.utilisation_cap - now.utilisation)
            )
            if name in held.late_sites:
                loads[name] = SiteLoad(
                    utilisation=max(before.utilisation, now.utilisation),
                    residual_s=max(before.residual_s, now.residual_s),
                )
            elif now.utilisation > 0:
                loads[name] = replace(now, utilisation=now.utilisation + headroom)
            else:
                loads[name] = before
        return loads

    def _visited(self, candidates: FleetCandidates, running: Running) -> set[str]:
        names = candidates.space.tables.sites.names
        visited: set[str] = set()
        at = running.query, running.candidate
        for group, instance in zip(candidates.group[at], candidates.instance[at], strict=True):
            visited.update(names[site] for site in candidates.space.groups[group].sites[instance])
        return visited

    # --- what is handed back ----------------------------------------------------------------------

    def _published(self, relaxed: _Match, held: _Held) -> FleetPlan:
        best = held.match
        plans, split = self._plans(best.candidates, held.running, held.found)
        goodput, negative_cost = held.worth
        served = plans.keys() | split.keys()
        refused = [query for query in self._problem.queries if query.name not in served]
        index = {query.name: at for at, query in enumerate(self._problem.queries)}
        has_plan = np.asarray(np.isfinite(best.candidates.values).any(axis=1))
        refusals = {
            query.name: self._no_room(best, query, index[query.name])
            for query in refused
            if has_plan[index[query.name]]
        }
        without = [query for query in refused if query.name not in refusals]
        refusals.update(
            (query.name, self._without_plan(relaxed, query, index[query.name], number))
            for number, query in enumerate(without)
        )
        self._watch.lap("explain")
        resources = best.candidates.resources
        return FleetPlan(
            plans=plans,
            split=split,
            refusals=refusals,
            fallbacks=Fallbacks(self._problem),
            goodput=goodput,
            cost_usd_per_s=-negative_cost,
            bound=max(relaxed.bound, goodput),
            seconds=self._watch.seconds,
            prices={resources[at]: float(best.prices[at]) for at in np.flatnonzero(best.prices)},
        )

    def _plans(
        self, candidates: FleetCandidates, running: Running, found: Evaluation
    ) -> tuple[dict[str, Plan], dict[str, tuple[PlanShare, ...]]]:
        plans: dict[str, Plan] = {}
        shares: dict[str, list[PlanShare]] = {}
        for entry in np.argsort(running.query, kind="stable"):
            query = self._problem.queries[running.query[entry]]
            plan = candidates.plan(int(running.query[entry]), int(running.candidate[entry]))
            fraction = float(running.fraction[entry])
            if plan.estimate is None:
                continue
            estimate = replace(
                plan.estimate,
                latency_mean_s=float(found.latency_mean_s[entry]),
                latency_var_s2=float(found.latency_var_s2[entry]),
                latency_p95_s=float(found.latency_p95_s[entry]),
                demand={name: fraction * amount for name, amount in plan.estimate.demand.items()},
            )
            plan = replace(plan, estimate=estimate)
            if fraction == 1.0:
                plans[query.name] = plan
            else:
                shares.setdefault(query.name, []).append(PlanShare(plan=plan, fraction=fraction))
        return plans, {name: tuple(parts) for name, parts in shares.items()}

    def _no_room(self, best: _Match, query: Query, index: int) -> Refusal:
        """There are plans that meet the SLO, but others make more of what they need."""
        candidates = best.candidates
        usable = np.isfinite(candidates.values[index])
        resources, amounts = candidates.demands.resources[index], candidates.demands.amounts[index]
        worth = best.prices[resources] * amounts
        nearest = int(np.argmin(np.where(usable, worth.sum(axis=1), np.inf)))
        slot = int(np.argmax(worth[nearest]))
        name, needed = candidates.resources[resources[nearest, slot]], float(amounts[nearest, slot])
        total = float(worth[nearest].sum())
        if total > 0:
            detail = (
                f"its plan that takes least from others needs {needed:.4g} of {name}; what it needs serves "
                f"others of weight {total:.3g}, its own is {query.weight:g}"
            )
        else:
            detail = f"beside the queries served its plan that needs {needed:.4g} of {name} is too slow"
        binding = Binding.CAPACITY if total > 0 else Binding.LATENCY
        return Refusal(
            query=query.name, binding=binding, detail=detail, nearest=candidates.plan(index, nearest)
        )

    def _without_plan(self, relaxed: _Match, query: Query, index: int, number: int) -> Refusal:
        """No plan meets the SLO within the capacities at the loads that were assumed."""
        if (unknown := unknown_to(self._problem, query)) is not None:
            return Refusal(query=query.name, binding=Binding.PROFILE, detail=unknown)
        if np.isfinite(relaxed.candidates.values[index]).any():
            plan = relaxed.candidates.plan(index, 0)
            idle_s = plan.estimate.latency_p95_s if plan.estimate is not None else math.nan
            detail = (
                f"beside the queries served no plan is fast enough: its cheapest takes {1e3 * idle_s:.4g} ms "
                f"of {1e3 * query.slo.latency_p95_s:.4g} ms with no waiting"
            )
            return Refusal(query=query.name, binding=Binding.LATENCY, detail=detail, nearest=plan)
        if number < EXPLAINED:
            found = self._explained(relaxed, query, index)
            if found is not None:
                return found
        detail = f"no plan meets its SLO; `compass plan --explain {query.name}` says which objective binds"
        return Refusal(query=query.name, binding=Binding.LATENCY, detail=detail)

    def _explained(self, relaxed: _Match, query: Query, index: int) -> Refusal | None:
        if self._allowed is None:
            return why_none(relaxed.candidates.space, index)
        found = find_candidates(replace(self._problem, loads={}), query, self._policy)
        return found if isinstance(found, Refusal) else None


def _matched(candidates: FleetCandidates, prices: Floats | None) -> tuple[MatchResult, Floats]:
    """Match on the resources that can run out; prices of the others are 0."""
    demands, capacities, kept = candidates.scarce()
    if not kept.size:
        demands = SparseDemands(resources=demands.resources[:, :, :0], amounts=demands.amounts[:, :, :0])
    divisible = candidates.space.tables.queries.divisible
    result = match(
        candidates.values,
        demands,
        capacities,
        candidates.costs,
        divisible=divisible if divisible.any() else None,
        warm_prices=None if prices is None else prices[kept],
    )
    all_prices = np.zeros(len(candidates.capacities))
    all_prices[kept] = result.prices
    return result, all_prices


def _count(candidates: FleetCandidates) -> int:
    return int(np.isfinite(candidates.values).sum())
