"""Planning a large fleet: the best of several rounds, what can still be let in, and what is handed back.

``rounds`` matches templates by prices at assumed loads. Here the best round becomes plans: who can still join
at the loads that really result is let in (``filling``), fleets of some dozens are settled pair by pair like
small ones (``settling``), and every query that is left out is told why (``refusing``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from compass_coordinator.estimator import PlanSpace
from compass_coordinator.listed_plans import distinct_plans, space_of
from compass_coordinator.planner.fleet.candidates import FleetCandidates
from compass_coordinator.planner.fleet.evaluate import Evaluation
from compass_coordinator.planner.fleet.space import TemplateCache
from compass_coordinator.planner.policy import Policy
from compass_coordinator.planning.filling import Filler
from compass_coordinator.planning.joining import Choice
from compass_coordinator.planning.refusing import Refuser
from compass_coordinator.planning.result import Fallbacks, FleetPlan, Stopwatch
from compass_coordinator.planning.resulting import Running, reevaluate, resulting_loads, resulting_mixes
from compass_coordinator.planning.rounds import Held, Match, Rounds
from compass_coordinator.planning.settling import chosen_plans, objective, settle
from compass_shared.evaluate import estimate_at_load, evaluate_plan
from compass_shared.plan import Plan, PlanShare
from compass_shared.problem import Problem, SiteLoad
from compass_shared.query import Query
from compass_shared.site import Tier

LEAST_ROOM = 0.02
"""Utilisation of a shared site that is not worth halving when further queries are let in."""
FEW_TO_SETTLE = 48
"""Queries up to which what was found is settled like a small fleet."""
MAX_OFFERS = 5000
"""Queries that are looked at one by one in the end."""


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
    rounds = Rounds(problem, policy, watch, templates)
    relaxed = rounds.relaxed()
    return relaxed.bound, rounds.loads_after(relaxed)


class _Planner:
    def __init__(self, problem: Problem, policy: Policy, watch: Stopwatch, templates: TemplateCache) -> None:
        self._problem = problem
        self._policy = policy
        self._watch = watch
        self._rounds = Rounds(problem, policy, watch, templates)

    def plan(self) -> FleetPlan:
        relaxed = self._rounds.relaxed()
        held = self._rounds.best(relaxed)
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
        refusals = Refuser(self._problem, self._policy, relaxed, best).refusals(served)
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
        self, relaxed: Match, best: Match, plans: Mapping[str, Plan]
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
        relaxed: Match,
        held: Held,
        plans: Mapping[str, Plan],
        split: Mapping[str, tuple[PlanShare, ...]],
    ) -> tuple[dict[str, Plan], Held]:
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
        if not filler.added or (found.latency_p95_s > self._rounds.slo_s[held.running.query]).any():
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
        self, held: Held, plans: Mapping[str, Plan], split: Mapping[str, tuple[PlanShare, ...]]
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

    def _safe_loads(self, held: Held) -> dict[str, SiteLoad]:
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
                reevaluate(candidates, running, safe).latency_p95_s > self._rounds.slo_s[running.query]
            )
            crowded = self._rounds.visited(candidates, running.take(late)) & room.keys()
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
