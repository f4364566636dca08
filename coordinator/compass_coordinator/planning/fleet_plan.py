"""Planning a fleet: from a problem to one plan for each query that can be served.

Few queries are planned exactly (``exact``): every plan of each is enumerated and settled at the load that
results. Many are planned by templates and prices (``scaled``), near-optimal with a bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from compass_coordinator.planner.fleet.space import TemplateCache
from compass_coordinator.planner.policy import Policy, anywhere
from compass_coordinator.planning.exact import plan_exactly, servable
from compass_coordinator.planning.hosted_variants import Variants, host_for_few, host_for_many
from compass_coordinator.planning.memory import limited_sites
from compass_coordinator.planning.placements import AllowedBy
from compass_coordinator.planning.result import FleetPlan, Stopwatch, require_distinct_names
from compass_coordinator.planning.scaled import assumed_loads, plan_at_scale
from compass_coordinator.planning.searched import MAX_ENUMERATED, plan_count
from compass_shared.problem import Problem, SiteLoad
from compass_shared.splitting import with_state_whole

FEW_QUERIES = 16
FEW_PLANS = 3_000_000
"""Enumerated for all queries together; up to a quarter of a minute and 2 GB at the worst."""
KEPT_PLANS = 2 * FEW_PLANS
"""Of all queries together, if each kept all that was enumerated for it."""


SOLVER_LIMIT_S = 5.0
"""Of the exact matcher, which for few queries mostly needs a tenth of a second; then the better of its choice
and that of the matcher by prices is taken, with the better bound."""


def plan_fleet(
    problem: Problem,
    policy: Policy = anywhere,
    *,
    timer: Callable[[], float] = lambda: 0.0,
    time_limit_s: float | None = SOLVER_LIMIT_S,
    templates: TemplateCache | None = None,
    hosted_now: Variants = frozenset(),
    loading_weight: float = 0.0,
) -> FleetPlan:
    """Choose plans that serve as much weight of queries as possible, then for as little cost as possible.

    Args:
        problem: Sites, links, profiles and queries. Its ``loads`` are not read: they follow from the plans.
        policy: Placements to consider.
        timer: Seconds since some start, read between stages; the default measures nothing.
        time_limit_s: Limit of each run of the exact matcher's solver; None for as long as it takes.
        templates: Kept from one planning of a fleet to the next, it saves building templates again.
        hosted_now: What sites with limited memory hold already.
        loading_weight: Weight of queries that loading a variant has to be worth.

    Returns:
        Plans that ``check_plan`` finds no fault with, and a reason for every query that has none.

    Raises:
        PlanningError: If the problem is malformed or too large to enumerate.
    """
    require_distinct_names(problem)
    problem = with_state_whole(problem)
    watch = Stopwatch(timer)
    known = TemplateCache() if templates is None else templates
    if not limited_sites(problem):
        return _planned(problem, policy, watch, known, time_limit_s)
    bound, at_cap = assumed_loads(problem, policy, watch, known)

    def over_hosted(loads: Mapping[str, SiteLoad]) -> tuple[Problem, Variants]:
        if is_small(problem):
            spaces, _ = servable(problem, policy)
            fleet = host_for_few(problem, spaces, loads, hosted_now=hosted_now, loading=loading_weight)
        else:
            allowed = None if policy is anywhere else AllowedBy(policy)
            fleet = host_for_many(
                problem, loads, known, allowed=allowed, hosted_now=hosted_now, loading=loading_weight
            )
        watch.lap("host")
        return fleet.problem, fleet.hosted

    # Idle sites let too much in, sites at their caps too little: what holds better shows when it is planned.
    offers = {hosted: offered for offered, hosted in map(over_hosted, ({}, at_cap))}
    plans = [
        _over_hosted(_planned(offered, policy, watch, known, time_limit_s), hosted, bound)
        for hosted, offered in offers.items()
    ]
    return max(plans, key=lambda plan: (plan.goodput, -plan.cost_usd_per_s))


def _planned(
    problem: Problem,
    policy: Policy,
    watch: Stopwatch,
    templates: TemplateCache,
    time_limit_s: float | None,
) -> FleetPlan:
    if is_small(problem):
        return plan_exactly(problem, policy, watch, time_limit_s=time_limit_s)
    return plan_at_scale(problem, policy, watch, templates=templates)


def _over_hosted(plan: FleetPlan, hosted: Variants, bound: float) -> FleetPlan:
    """A plan over what is hosted, as one of the whole fleet."""
    by_site: dict[str, tuple[str, ...]] = {}
    for site, pipeline, variant in sorted(hosted):
        by_site[site] = (*by_site.get(site, ()), f"{pipeline}/{variant}")
    refusals = {
        name: replace(refusal, detail=f"{refusal.detail} (over the variants that sites have the memory for)")
        for name, refusal in plan.refusals.items()
    }
    return replace(plan, hosted=by_site, refusals=refusals, bound=max(bound, plan.goodput))


def is_small(problem: Problem) -> bool:
    """Whether a fleet is planned exactly."""
    if len(problem.queries) > FEW_QUERIES:
        return False
    enumerated: dict[tuple[str, str, tuple[str, ...]], int] = {}
    kept = 0
    for query in problem.queries:
        count = plan_count(problem, query)
        if 0 < count <= MAX_ENUMERATED:  # those with more are searched, whoever else there is
            enumerated[query.pipeline, query.origin, problem.sites_for(query)] = count
            kept += count
    # Queries from one place share an enumeration, and each keeps the plans that serve it.
    return sum(enumerated.values()) <= FEW_PLANS and kept <= KEPT_PLANS
