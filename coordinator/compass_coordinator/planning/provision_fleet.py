"""How many units of each pool a fleet needs: the cheapest that serve a share of its queries, with the plans.

Which plans meet their SLOs depends on how long a pool's queue is, and that on how many cores it has. So
candidates are found for some numbers of units, the cheapest units are found for these candidates
(``provisioning``), and both again for the numbers that result. In the end the fleet is planned on the units
as on any others; as long as that serves too little, the unit that promises most for its price is added.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from compass_coordinator.estimator import Floats
from compass_coordinator.planner.fleet import FleetSpace, TemplateCache, candidates_of
from compass_coordinator.planner.policy import Policy, anywhere
from compass_coordinator.planning.fleet_plan import plan_fleet
from compass_coordinator.planning.offers import Offers, offers_of
from compass_coordinator.planning.placements import AllowedBy
from compass_coordinator.planning.provisioning import Pools, Provision, provision
from compass_coordinator.planning.result import FleetPlan, Stopwatch, require_distinct_names
from compass_coordinator.planning.scaled import assumed_loads
from compass_shared.errors import PlanningError
from compass_shared.problem import Problem
from compass_shared.site import Units, cores_resource
from compass_shared.splitting import with_state_whole

MAX_ROUNDS = 3
MAX_ADDED = 50
"""Units that are added, one by one, after the first plan on what was found."""
_SECONDS_PER_HOUR = 3600.0
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetProvision:
    """Units to buy, and the plans on them."""

    counts: Mapping[str, int]
    """Site -> units, for every site that is bought in units."""
    usd_per_hour: float
    """Units and running cost."""
    units_usd_per_hour: float
    running_usd_per_hour: float
    """Of the plans, without the cores that the units pay for."""
    goodput: float
    """Share of the weight of all queries that is served."""
    bound_usd_per_hour: float
    """What the units and plans would cost at least, over the candidates that were considered."""
    plan: FleetPlan


def provision_fleet(
    problem: Problem,
    policy: Policy = anywhere,
    *,
    goodput: float = 1.0,
    timer: Callable[[], float] = lambda: 0.0,
    templates: TemplateCache | None = None,
    time_limit_s: float | None = None,
) -> FleetProvision:
    """Find the cheapest units on which a share of all queries, by weight, meets its whole SLO.

    Args:
        problem: Sites, links, profiles and queries; at least one site with ``units``, whose ``cores`` do not
            matter here.
        policy: Placements to consider.
        goodput: Share of the weight of all queries, in (0, 1].
        timer: Seconds since some start, read between stages.
        templates: Built earlier; new ones are added.
        time_limit_s: No further improvement of the units is begun after that.

    Raises:
        PlanningError: If no site comes in units, or all units there are serve too little.
    """
    require_distinct_names(problem)
    problem = with_state_whole(problem)
    if not 0 < goodput <= 1:
        raise PlanningError(f"goodput must be in (0, 1], got {goodput}")
    pools = {name: site.units for name, site in problem.sites.items() if site.units is not None}
    if not pools:
        raise PlanningError("no site comes in units: give one or more of them `units` in the fleet file")
    known = TemplateCache() if templates is None else templates
    return _Provisioner(problem, policy, pools, goodput, Stopwatch(timer), known).run(time_limit_s)


def sized(problem: Problem, counts: Mapping[str, int]) -> Problem:
    """The fleet with so many units of each pool; a pool without any is left out."""
    none = {name for name, count in counts.items() if count == 0}
    sites = {}
    for name, site in problem.sites.items():
        if site.units is not None and name in counts:
            site = replace(site, cores=counts[name] * site.units.cores)  # noqa: PLW2901
        if name not in none:
            sites[name] = site
    links = {ends: link for ends, link in problem.links.items() if not none & set(ends)}
    return replace(problem, sites=sites, links=links)


@dataclass(slots=True, eq=False)
class _Provisioner:
    problem: Problem
    policy: Policy
    pools: Mapping[str, Units]
    goodput: float
    watch: Stopwatch
    templates: TemplateCache

    def run(self, time_limit_s: float | None) -> FleetProvision:
        counts = {name: units.maximum for name, units in self.pools.items()}
        counts, found = self._found(counts, time_limit_s)
        for _ in range(MAX_ROUNDS - 1):
            try:
                again, better = self._found(counts, time_limit_s)
            except PlanningError:
                break  # so few units are late when they are as busy as may be; the plan on them decides
            if again == counts:
                break
            counts, found = again, better
        for _ in range(MAX_ADDED):
            plan = plan_fleet(
                sized(self.problem, counts), self.policy, timer=self.watch.timer, templates=self.templates
            )
            if plan.goodput >= self.goodput * self._total() * (1 - _ROUNDING):
                return self._result(counts, found, plan)
            counts = self._with_another(counts, plan)
        raise PlanningError(f"no plan on {self._named(counts)} serves {self.goodput:.6g} of the weight")

    def _total(self) -> float:
        return math.fsum(query.weight for query in self.problem.queries)

    def _found(
        self, assumed: Mapping[str, int], time_limit_s: float | None
    ) -> tuple[dict[str, int], Provision]:
        """The cheapest units for the plans that serve when there are so many units."""
        at_least = {name: max(1, count) for name, count in assumed.items() if self.pools[name].maximum}
        problem = sized(self.problem, {**dict.fromkeys(self.pools, 0), **at_least})
        _, loads = assumed_loads(problem, self.policy, self.watch, self.templates)
        allowed = None if self.policy is anywhere else AllowedBy(self.policy)
        space = FleetSpace.of(problem, loads, self.templates, max_remote=2, allowed=allowed)
        candidates = candidates_of(space)
        resources = candidates.resources
        column = [resources.index(cores_resource(name)) for name in at_least]
        offers = offers_of([candidates], always=column)
        found = self._provision(problem, offers, candidates.capacities, resources, time_limit_s)
        self.watch.lap("provision")
        counts = dict.fromkeys(self.pools, 0)
        counts.update(zip(at_least, map(int, found.counts), strict=True))
        return counts, found

    def _provision(
        self,
        problem: Problem,
        offers: Offers,
        capacities: Floats,
        resources: tuple[str, ...],
        time_limit_s: float | None,
    ) -> Provision:
        names = [resources[at] for at in offers.columns]
        pools = {name: units for name, units in self.pools.items() if name in problem.sites}
        fixed = capacities[offers.columns].copy()
        brings = np.zeros((len(pools), len(names)))
        running = offers.costs.copy()
        for at, (name, units) in enumerate(pools.items()):
            column = names.index(cores_resource(name))
            fixed[column] = 0.0
            brings[at, column] = units.cores * problem.sites[name].utilisation_cap
            running -= problem.sites[name].prices.core_s_usd * offers.demands[:, :, column]
        servable = math.fsum(
            query.weight
            for query, values in zip(problem.queries, offers.values, strict=True)
            if np.isfinite(values).any()
        )
        if servable < self.goodput * self._total() * (1 - _ROUNDING):
            raise PlanningError(
                f"goodput {self.goodput:.6g} is out of reach: with all units there are, queries of "
                f"{servable / self._total():.6g} of the weight have a plan that meets their SLO; "
                "`compass plan` says why the others have none"
            )
        return provision(
            offers.values,
            offers.demands,
            fixed,
            Pools(
                unit_capacity=brings,
                unit_usd_per_hour=np.array([units.usd_per_hour for units in pools.values()]),
                minimum=np.array([units.minimum for units in pools.values()], dtype=np.int64),
                maximum=np.array([units.maximum for units in pools.values()], dtype=np.int64),
            ),
            np.maximum(running, 0.0),
            goodput=min(1.0, self.goodput * self._total() / servable),
            time_limit_s=time_limit_s,
        )

    def _with_another(self, counts: Mapping[str, int], plan: FleetPlan) -> dict[str, int]:
        """One unit more, of the pool whose cores are worth most for the money."""
        open_ones = [name for name, units in self.pools.items() if counts[name] < units.maximum]
        if not open_ones:
            raise PlanningError(
                f"goodput {self.goodput:.6g} is out of reach: all units there are serve "
                f"{plan.goodput / self._total():.6g} of the weight; allow more units or a lower goodput"
            )

        def promise(name: str) -> tuple[float, float]:
            units, price = self.pools[name], plan.prices.get(cores_resource(name), 0.0)
            usd = max(units.usd_per_hour, 1e-12)
            return price * units.cores / usd, -usd

        best = max(open_ones, key=promise)
        return {**counts, best: counts[best] + 1}

    def _result(self, counts: Mapping[str, int], found: Provision, plan: FleetPlan) -> FleetProvision:
        units_usd = math.fsum(count * self.pools[name].usd_per_hour for name, count in counts.items())
        shares = [share.plan for parts in plan.split.values() for share in parts]
        paid = math.fsum(
            chosen.estimate.demand.get(cores_resource(name), 0.0) * self.problem.sites[name].prices.core_s_usd
            for name in self.pools
            for chosen in (*plan.plans.values(), *shares)
            if chosen.estimate is not None
        )
        running_usd = _SECONDS_PER_HOUR * max(0.0, plan.cost_usd_per_s - paid)
        return FleetProvision(
            counts=counts,
            usd_per_hour=units_usd + running_usd,
            units_usd_per_hour=units_usd,
            running_usd_per_hour=running_usd,
            goodput=plan.goodput / self._total() if self._total() > 0 else 1.0,
            bound_usd_per_hour=min(found.bound, units_usd + running_usd),
            plan=replace(plan, seconds=_added(self.watch.seconds, plan.seconds)),
        )

    def _named(self, counts: Mapping[str, int]) -> str:
        return ", ".join(f"{count} units of {name}" for name, count in counts.items())


def _added(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """Seconds by stage, of finding units and of planning on them."""
    return {stage: one.get(stage, 0.0) + other.get(stage, 0.0) for stage in {**one, **other}}
