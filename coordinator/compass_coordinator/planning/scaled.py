"""Planning a large fleet: templates evaluated for all queries at once, matched by prices.

Waiting depends on who else is served, and who can be served depends on waiting. So rounds alternate between a
match at assumed loads and the loads that result from it:

1. Nobody waits. No plan does better at any load, so the bound of this match, over all plans of all queries,
   bounds what any choice of plans can serve.
2. Shared sites are as busy as their caps allow, with service times as in the first match, and plans wait on
   their own device for themselves and for its other queries (``own_device``). What is chosen holds at any
   load that the matcher allows, as long as the mix of segments stays alike; what is late all the same is left
   out.
3. Every shared site is about as busy as it was after the round before, and nobody may make it much busier.
   This lets queries in that are only late at the cap. It is repeated while it serves more, or the same for
   less.
4. Who can still join at the loads that result in the end, is let in (``filling``).

Each match is repeated with the plans that queries would like best at its prices (column generation), so that
the few candidates it looks at lose nothing against all plans.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from compass_coordinator.estimator import Floats, PlanSpace
from compass_coordinator.listed_plans import distinct_plans, space_of
from compass_coordinator.matcher import REFUSED, MatchResult, SparseDemands, match
from compass_coordinator.planner.brute_force import find_candidates
from compass_coordinator.planner.fleet.candidates import FleetCandidates, add_columns, candidates_of
from compass_coordinator.planner.fleet.evaluate import Evaluation
from compass_coordinator.planner.fleet.space import FleetSpace, TemplateCache
from compass_coordinator.planner.policy import Policy, anywhere
from compass_coordinator.planner.refusal import Binding, Refusal
from compass_coordinator.planning.alone import why_none
from compass_coordinator.planning.filling import Filler
from compass_coordinator.planning.joining import Choice
from compass_coordinator.planning.own_device import OtherWork, late_candidates
from compass_coordinator.planning.placements import AllowedBy
from compass_coordinator.planning.result import Fallbacks, FleetPlan, Stopwatch, unknown_to
from compass_coordinator.planning.resulting import Running, reevaluate, resulting_loads, resulting_mixes
from compass_coordinator.planning.settling import chosen_plans, objective, settle
from compass_shared.evaluate import estimate_at_load, evaluate_plan
from compass_shared.plan import Plan, PlanShare
from compass_shared.problem import Problem, SiteLoad
from compass_shared.query import Query
from compass_shared.site import Tier

PATIENCE = 2
"""Rounds that may serve no more than the best before it."""
MAX_ROUNDS = 6
"""Of those that start from what resulted."""
ENOUGH = 0.005
"""Share of the bound that no further round is made for."""
WORTH_A_ROUND = 0.01
"""Share of the cost that a round has to save to be followed by another."""
HEADROOM = 0.25
"""Share of what is left below a cap by which a site is assumed to be busier than in the round before."""
LEAST_ROOM = 0.02
"""Utilisation of a shared site that is not worth halving when further queries are let in."""
FEW_TO_SETTLE = 48
"""Queries up to which what was found is settled like a small fleet."""
MAX_OFFERS = 5000
"""Queries that are looked at one by one in the end."""
COLUMN_ROUNDS = 1
"""Rounds of column generation a match; a second was tried and changed the value by less than 0.01%."""
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
        at = {name: index for index, name in enumerate(problem.sites)}
        self._origin = np.array([at.get(query.origin, 0) for query in problem.queries], dtype=np.int64)
        self._others = OtherWork(len(problem.queries))
        self._rates_hz = np.array([query.rate_hz for query in problem.queries])

    def plan(self) -> FleetPlan:
        relaxed = self.relaxed()
        best = max(
            self._held(relaxed),
            self._round(self.loads_after(relaxed), relaxed.prices),
            key=lambda held: held.worth,
        )
        latest, patience = best, PATIENCE
        for _ in range(MAX_ROUNDS):
            if best.worth[0] >= relaxed.bound * (1 - ENOUGH) or not patience:
                break
            self._others.update(latest.match.candidates, latest.running, self._origin)
            latest = self._round(self._as_it_turned_out(latest), latest.match.prices)
            patience = PATIENCE if latest.much_better_than(best) else patience - 1
            best = max(best, latest, key=lambda held: held.worth)
        return self._published(relaxed, best)

    def _round(self, loads: Mapping[str, SiteLoad], prices: Floats) -> _Held:
        held = self._held(self._match(loads, prices))
        self._watch.lap("settle")
        return held

    def _as_it_turned_out(self, held: _Held) -> dict[str, SiteLoad]:
        """The loads of shared sites that resulted, with some headroom."""
        return {
            name: replace(
                load,
                utilisation=load.utilisation + HEADROOM * max(0.0, site.utilisation_cap - load.utilisation),
            )
            for name, load in held.loads.items()
            if (site := self._problem.sites[name]).tier is not Tier.DEVICE
        }

    def _limited(self, loads: Mapping[str, SiteLoad]) -> Problem:
        """The fleet where nobody can make a shared site busier than it is assumed to be."""
        sites = {
            name: replace(site, utilisation_cap=min(site.utilisation_cap, loads[name].utilisation))
            if name in loads and site.tier is not Tier.DEVICE and loads[name].utilisation > 0
            else site
            for name, site in self._problem.sites.items()
        }
        return replace(self._problem, sites=sites)

    def _match(self, loads: Mapping[str, SiteLoad], prices: Floats | None) -> _Match:
        space = FleetSpace.of(
            self._limited(loads), loads, self._templates, max_remote=MAX_REMOTE, allowed=self._allowed
        )
        self._watch.lap("templates")
        candidates = candidates_of(space, prices=prices)
        late = self._late(candidates, loads)
        self._watch.lap("evaluate")
        result, prices = _matched(candidates, late, prices)
        bound = math.inf
        self._watch.lap("match")
        for _ in range(COLUMN_ROUNDS):
            before = _count(candidates)
            candidates, over_all = add_columns(candidates, prices)
            bound = min(bound, over_all)
            self._watch.lap("evaluate")
            if _count(candidates) == before:
                break
            late = self._late(candidates, loads)
            result, prices = _matched(candidates, late, prices)
            self._watch.lap("match")
        return _Match(candidates=candidates, result=result, bound=max(bound, result.value), prices=prices)

    def _late(self, candidates: FleetCandidates, loads: Mapping[str, SiteLoad]) -> NDArray[np.bool_] | None:
        """Candidates that are too slow for the wait on their own device; without loads nobody waits."""
        return late_candidates(candidates, loads, self._others, self._slo_s) if loads else None

    def relaxed(self) -> _Match:
        """The match if nobody waited."""
        return self._match({}, None)

    def loads_after(self, match: _Match) -> dict[str, SiteLoad]:
        """Shared sites as busy as their caps allow, with the mix of segments of a match."""
        loads = resulting_loads(self._problem, resulting_mixes(match.candidates, match.running()))
        return {
            name: replace(load, utilisation=site.utilisation_cap)
            for name, load in loads.items()
            if (site := self._problem.sites[name]).tier is not Tier.DEVICE
        }

    def _held(self, match: _Match) -> _Held:
        """Leave late queries out until none is late, the lighter half of them at a time."""
        running, candidates = match.running(), match.candidates
        weights = self._weights
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
                    worth=(worth, -cost),
                )
            lightest = late[np.lexsort((running.query[late], weights[running.query[late]]))]
            gone = running.query[lightest[: -(-late.size // 2)]]
            running = running.take(np.flatnonzero(~np.isin(running.query, gone)))

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
        added, held = self._filled(relaxed, held, plans, split)
        self._watch.lap("fill")
        if added:
            plans, split = self._plans(best.candidates, held.running, held.found)
            plans.update(added)
        goodput, negative_cost = held.worth
        if len(self._problem.queries) <= FEW_TO_SETTLE and not split:
            plans, (goodput, negative_cost) = self._settled(relaxed, best, plans)
            self._watch.lap("settle")
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

    def _settled(
        self, relaxed: _Match, best: _Match, plans: Mapping[str, Plan]
    ) -> tuple[dict[str, Plan], tuple[float, float]]:
        """Few enough to look at every pair of queries: who is left out may displace or move another."""
        spaces: dict[str, tuple[Query, PlanSpace]] = {}
        chosen: dict[str, Choice] = {}
        for at, query in enumerate(self._problem.queries):
            offered = [plans[query.name]] if query.name in plans else []
            for candidates in (relaxed.candidates, best.candidates):
                usable = np.flatnonzero(np.isfinite(candidates.values[at]))
                offered += [candidates.plan(at, int(candidate)) for candidate in usable]
            if offered:
                space = space_of(self._problem, query, distinct_plans(offered))
                spaces[query.name] = query, space
                if query.name in plans:
                    chosen[query.name] = Choice(query=query, space=space, row=0)
        settled = settle(self._problem, spaces, chosen)
        running = chosen_plans(settled)
        estimates = estimate_at_load(self._problem, running)
        named = {name: replace(plan, estimate=estimates[name]) for name, plan in running.items()}
        return named, objective(settled)

    def _filled(
        self,
        relaxed: _Match,
        held: _Held,
        plans: Mapping[str, Plan],
        split: Mapping[str, tuple[PlanShare, ...]],
    ) -> tuple[dict[str, Plan], _Held]:
        """Let in who can join at the loads that really result; the others' estimates change with it."""
        candidates = relaxed.candidates
        usable = np.isfinite(candidates.values)
        waiting = [
            (query, at)
            for at, query in enumerate(self._problem.queries)
            if query.name not in plans and query.name not in split and usable[at].any()
        ]
        filler = self._filler(held, plans, split)
        waiting.sort(key=lambda pair: (-pair[0].weight, pair[0].name))
        for query, at in waiting[:MAX_OFFERS]:
            filler.offer(query, (candidates.plan(at, int(k)) for k in np.flatnonzero(usable[at])))
        loads = resulting_loads(self._problem, filler.mixes)
        found = reevaluate(held.match.candidates, held.running, loads)
        if not filler.added or (found.latency_p95_s > self._slo_s[held.running.query]).any():
            return {}, held
        queries = {query.name: query for query, _ in waiting}
        added = {
            name: replace(plan, estimate=evaluate_plan(self._problem, queries[name], plan, loads))
            for name, plan in filler.added.items()
        }
        weight = math.fsum(queries[name].weight for name in added)
        cost = math.fsum(
            queries[name].rate_hz * plan.estimate.cost_usd_per_1000 / 1000
            for name, plan in added.items()
            if plan.estimate is not None
        )
        worth = held.worth[0] + weight, held.worth[1] - cost
        return added, replace(held, found=found, loads=loads, worth=worth)

    def _filler(
        self, held: _Held, plans: Mapping[str, Plan], split: Mapping[str, tuple[PlanShare, ...]]
    ) -> Filler:
        used: dict[str, float] = {}
        residents: dict[str, list[tuple[Query, Plan]]] = {}
        for query in self._problem.queries:
            shares = [share.plan for share in split.get(query.name, ())]
            for plan in [plans[query.name]] if query.name in plans else shares:
                residents.setdefault(query.origin, []).append((query, plan))
                for resource, amount in plan.estimate.demand.items() if plan.estimate else ():
                    used[resource] = used.get(resource, 0.0) + amount
        return Filler(
            problem=self._problem,
            safe=self._safe_loads(held),
            used=used,
            mixes=resulting_mixes(held.match.candidates, held.running),
            residents=residents,
        )

    def _safe_loads(self, held: _Held) -> dict[str, SiteLoad]:
        """Loads of shared sites, as large as was found in a few tries, at which everybody served holds."""
        candidates, running = held.match.candidates, held.running
        room = {
            name: max(0.0, site.utilisation_cap - load.utilisation)
            for name, load in held.loads.items()
            if (site := self._problem.sites[name]).tier is not Tier.DEVICE
        }
        while True:
            safe = {
                name: replace(load, utilisation=load.utilisation + room.get(name, 0.0))
                for name, load in held.loads.items()
            }
            late = np.flatnonzero(
                reevaluate(candidates, running, safe).latency_p95_s > self._slo_s[running.query]
            )
            crowded = self._visited(candidates, running.take(late)) & room.keys()
            if not late.size or not any(room[name] for name in crowded):
                return safe if not late.size else dict(held.loads)
            for name in crowded:
                room[name] = room[name] / 2 if room[name] > LEAST_ROOM else 0.0

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


def _matched(
    candidates: FleetCandidates, late: NDArray[np.bool_] | None, prices: Floats | None
) -> tuple[MatchResult, Floats]:
    """Match on the resources that can run out; prices of the others are 0."""
    demands, capacities, kept = candidates.scarce()
    if not kept.size:
        demands = SparseDemands(resources=demands.resources[:, :, :0], amounts=demands.amounts[:, :, :0])
    divisible = candidates.space.tables.queries.divisible
    result = match(
        candidates.values if late is None else np.where(late, -np.inf, candidates.values),
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
