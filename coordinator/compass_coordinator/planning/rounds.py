"""Rounds of planning a large fleet: a match at assumed loads, and what holds at the loads that result.

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

Each match is repeated with the plans that queries would like best at its prices (column generation), so that
the few candidates it looks at lose nothing against all plans.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from compass_coordinator.estimator import Floats
from compass_coordinator.matcher import REFUSED, MatchResult, SparseDemands, match
from compass_coordinator.planner.fleet.candidates import FleetCandidates, add_columns, candidates_of
from compass_coordinator.planner.fleet.evaluate import Evaluation
from compass_coordinator.planner.fleet.space import FleetSpace, TemplateCache
from compass_coordinator.planner.policy import Policy, anywhere
from compass_coordinator.planning.own_device import OtherWork, late_candidates
from compass_coordinator.planning.placements import AllowedBy
from compass_coordinator.planning.result import Stopwatch
from compass_coordinator.planning.resulting import Running, reevaluate, resulting_loads, resulting_mixes
from compass_shared.problem import Problem, SiteLoad
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
COLUMN_ROUNDS = 1
"""Rounds of column generation a match; a second was tried and changed the value by less than 0.01%."""
MAX_REMOTE = 2
"""Remote sites that one plan uses at most."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Match:
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
class Held:
    """What is left of a match at the load that it causes."""

    match: Match
    running: Running
    found: Evaluation
    """Of each entry, at ``loads``."""
    loads: Mapping[str, SiteLoad]
    worth: tuple[float, float]
    """Goodput, then minus cost in USD per second."""

    def much_better_than(self, other: Held) -> bool:
        """Whether it serves more, or the same for so much less that another round may be worth it."""
        (goodput, negative_cost), (goodput_before, negative_before) = self.worth, other.worth
        if goodput == goodput_before:
            return negative_cost > negative_before * (1 - WORTH_A_ROUND)
        return goodput > goodput_before


class Rounds:
    """Matches at assumed loads, and what is left of each at the load that results.

    Args:
        problem: Sites, links, profiles and queries.
        policy: Placements to consider.
        watch: Takes the time of ``templates``, ``evaluate``, ``match`` and ``settle``.
        templates: Built earlier; new ones are added.
    """

    def __init__(self, problem: Problem, policy: Policy, watch: Stopwatch, templates: TemplateCache) -> None:
        self._problem = problem
        self._allowed = None if policy is anywhere else AllowedBy(policy)
        self._watch = watch
        self._templates = templates
        self.slo_s = np.array([query.slo.latency_p95_s for query in problem.queries])
        self._weights = np.array([query.weight for query in problem.queries])
        at = {name: index for index, name in enumerate(problem.sites)}
        self._origin = np.array([at.get(query.origin, 0) for query in problem.queries], dtype=np.int64)
        self._others = OtherWork(len(problem.queries))
        self._rates_hz = np.array([query.rate_hz for query in problem.queries])

    def best(self, relaxed: Match) -> Held:
        """Rounds until they serve no more; the best of them."""
        best = max(
            self.held(relaxed),
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
        return best

    def _round(self, loads: Mapping[str, SiteLoad], prices: Floats) -> Held:
        held = self.held(self._match(loads, prices))
        self._watch.lap("settle")
        return held

    def _as_it_turned_out(self, held: Held) -> dict[str, SiteLoad]:
        """The loads of shared sites that resulted, with some headroom."""
        return {
            name: replace(
                load,
                utilisation=load.utilisation + HEADROOM * max(0.0, site.utilisation_cap - load.utilisation),
            )
            for name, load in held.loads.items()
            if (site := self._problem.sites[name]).tier is not Tier.DEVICE
        }

    def _caps(self, loads: Mapping[str, SiteLoad]) -> dict[str, float]:
        """Nobody may make a shared site busier than it is assumed to be."""
        return {
            name: load.utilisation
            for name, load in loads.items()
            if load.utilisation > 0 and self._problem.sites[name].tier is not Tier.DEVICE
        }

    def _match(self, loads: Mapping[str, SiteLoad], prices: Floats | None) -> Match:
        space = FleetSpace.of(
            self._problem,
            loads,
            self._templates,
            max_remote=MAX_REMOTE,
            allowed=self._allowed,
            caps=self._caps(loads),
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
        return Match(candidates=candidates, result=result, bound=max(bound, result.value), prices=prices)

    def _late(self, candidates: FleetCandidates, loads: Mapping[str, SiteLoad]) -> NDArray[np.bool_] | None:
        """Candidates that are too slow for the wait on their own device; without loads nobody waits."""
        return late_candidates(candidates, loads, self._others, self.slo_s) if loads else None

    def relaxed(self) -> Match:
        """The match if nobody waited."""
        return self._match({}, None)

    def loads_after(self, match: Match) -> dict[str, SiteLoad]:
        """Shared sites as busy as their caps allow, with the mix of segments of a match."""
        loads = resulting_loads(self._problem, resulting_mixes(match.candidates, match.running()))
        return {
            name: replace(load, utilisation=site.utilisation_cap)
            for name, load in loads.items()
            if (site := self._problem.sites[name]).tier is not Tier.DEVICE
        }

    def held(self, match: Match) -> Held:
        """Leave late queries out until none is late, the lighter half of them at a time."""
        running, candidates = match.running(), match.candidates
        weights = self._weights
        while True:
            loads = resulting_loads(self._problem, resulting_mixes(candidates, running))
            found = reevaluate(candidates, running, loads)
            late = np.flatnonzero(found.latency_p95_s > self.slo_s[running.query])
            if not late.size:
                worth = math.fsum(weights[running.query] * running.fraction)
                cost = math.fsum(self._rates_hz[running.query] * running.fraction * found.cost_usd)
                return Held(
                    match=match,
                    running=running,
                    found=found,
                    loads=loads,
                    worth=(worth, -cost),
                )
            lightest = late[np.lexsort((running.query[late], weights[running.query[late]]))]
            gone = running.query[lightest[: -(-late.size // 2)]]
            running = running.take(np.flatnonzero(~np.isin(running.query, gone)))

    def visited(self, candidates: FleetCandidates, running: Running) -> set[str]:
        """Sites that some entries' plans may visit."""
        names = candidates.space.tables.sites.names
        visited: set[str] = set()
        at = running.query, running.candidate
        for group, instance in zip(candidates.group[at], candidates.instance[at], strict=True):
            visited.update(names[site] for site in candidates.space.groups[group].sites[instance])
        return visited


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
