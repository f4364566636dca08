"""Letting queries in, one by one, that a match left out for loads that in the end did not come about.

Everybody who is served holds at *safe* loads. A further query may join by a plan if the load that then
results makes nobody wait longer than these at any shared site, if everybody on its own device still makes it,
and if it makes it itself. Nobody else has to be looked at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from compass_shared.evaluate import evaluate_plan, segment_works
from compass_shared.plan import Estimate, Plan
from compass_shared.problem import Problem, SiteLoad
from compass_shared.query import Query
from compass_shared.queueing import SiteMix, total_mix, wait_at
from compass_shared.site import Tier

_SLACK = 1e-12
"""Relative; kept free of capacities, so that sums in another order do not overdraw them."""


@dataclass(slots=True, eq=False)
class Filler:
    """Who is served, and what is left."""

    problem: Problem
    safe: Mapping[str, SiteLoad]
    """Loads at which everybody served holds."""
    used: dict[str, float]
    """Resource -> demand of all who are served."""
    mixes: dict[str, SiteMix]
    """Site -> what all who are served bring."""
    residents: dict[str, list[tuple[Query, Plan]]]
    """Device -> queries that are served from it."""
    added: dict[str, Plan] = field(default_factory=dict)
    """Query -> plan, of those that were let in."""
    _capacities: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        self._capacities = self.problem.capacities()

    def offer(self, query: Query, plans: Iterable[Plan]) -> bool:
        """Let a query in by the first plan that it can join by.

        Args:
            query: One that is not served.
            plans: With estimates, the preferred ones first.
        """
        return any(self._joins(query, plan) for plan in plans)

    def _joins(self, query: Query, plan: Plan) -> bool:
        estimate = plan.estimate
        if estimate is None or not self._fits(estimate):
            return False
        brought = self._brought(query, plan)
        mixes = {site: total_mix((self.mixes.get(site, SiteMix()), mix)) for site, mix in brought.items()}
        loads = {site: mix.load(self.problem.sites[site].cores) for site, mix in mixes.items()}
        if not all(self._is_safe(site, load) for site, load in loads.items() if not self._is_device(site)):
            return False
        own = {site: load for site, load in loads.items() if self._is_device(site)}
        if not self._in_time(query, plan, own):
            return False
        if not all(
            self._in_time(*resident, own) for site in own for resident in self.residents.get(site, ())
        ):
            return False
        self.mixes.update(mixes)
        for resource, amount in estimate.demand.items():
            self.used[resource] = self.used.get(resource, 0.0) + amount
        for site in own:
            self.residents.setdefault(site, []).append((query, plan))
        self.added[query.name] = plan
        return True

    def _fits(self, estimate: Estimate) -> bool:
        return all(
            self.used.get(resource, 0.0) + amount <= self._capacities[resource] * (1 - _SLACK)
            for resource, amount in estimate.demand.items()
        )

    def _brought(self, query: Query, plan: Plan) -> dict[str, SiteMix]:
        brought: dict[str, SiteMix] = {}
        for work in segment_works(self.problem, query, plan):
            mix = SiteMix(
                busy_cores=query.rate_hz * work.compute_s,
                second_moment_s=query.rate_hz * work.second_moment_s2,
            )
            site = work.segment.site
            brought[site] = total_mix((brought.get(site, SiteMix()), mix))
        return brought

    def _is_device(self, site: str) -> bool:
        return self.problem.sites[site].tier is Tier.DEVICE

    def _is_safe(self, site: str, load: SiteLoad) -> bool:
        if site not in self.safe:
            return False
        cores = self.problem.sites[site].cores
        now, then = wait_at(self.safe[site], cores), wait_at(load, cores)
        return then.mean_s <= now.mean_s and then.var_s2 <= now.var_s2

    def _in_time(self, query: Query, plan: Plan, own: Mapping[str, SiteLoad]) -> bool:
        found = evaluate_plan(self.problem, query, plan, {**self.safe, **own})
        return found.latency_p95_s <= query.slo.latency_p95_s
