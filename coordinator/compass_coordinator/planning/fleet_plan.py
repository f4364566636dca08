"""Planning a fleet: from a problem to one plan for each query that can be served.

Few queries are planned exactly (``exact``): every plan of each is enumerated and settled at the load that
results. Many are planned by templates and prices (``scaled``), near-optimal with a bound.
"""

from __future__ import annotations

from collections.abc import Callable

from compass_coordinator.planner.fleet.space import TemplateCache
from compass_coordinator.planner.policy import Policy, anywhere
from compass_coordinator.planning.exact import plan_exactly
from compass_coordinator.planning.result import FleetPlan, Stopwatch, require_distinct_names
from compass_coordinator.planning.scaled import plan_at_scale
from compass_shared.problem import Problem
from compass_shared.query import Query

FEW_QUERIES = 16
FEW_PLANS = 3_000_000
"""All queries together; about a second of enumerating and 2 GB at the worst."""


def plan_fleet(
    problem: Problem,
    policy: Policy = anywhere,
    *,
    timer: Callable[[], float] = lambda: 0.0,
    time_limit_s: float | None = None,
    templates: TemplateCache | None = None,
) -> FleetPlan:
    """Choose plans that serve as much weight of queries as possible, then for as little cost as possible.

    Args:
        problem: Sites, links, profiles and queries. Its ``loads`` are not read: they follow from the plans.
        policy: Placements to consider.
        timer: Seconds since some start, read between stages; the default measures nothing.
        time_limit_s: Limit of each run of the exact matcher's solver; None for as long as it takes.
        templates: Kept from one planning of a fleet to the next, it saves building templates again.

    Returns:
        Plans that ``check_plan`` finds no fault with, and a reason for every query that has none.

    Raises:
        PlanningError: If the problem is malformed or too large to enumerate.
    """
    require_distinct_names(problem)
    watch = Stopwatch(timer)
    if is_small(problem):
        return plan_exactly(problem, policy, watch, time_limit_s=time_limit_s)
    return plan_at_scale(problem, policy, watch, templates=templates)


def is_small(problem: Problem) -> bool:
    """Whether a fleet is planned exactly."""
    if len(problem.queries) > FEW_QUERIES:
        return False
    return sum(_plans(problem, query) for query in problem.queries) <= FEW_PLANS


def _plans(problem: Problem, query: Query) -> int:
    """How many plans a query has anywhere; 0 if it cannot be planned."""
    pipeline = problem.pipelines.get(query.pipeline)
    if pipeline is None or query.origin not in problem.sites:
        return 0
    return pipeline.config_count() * len(problem.sites_for(query)) ** len(pipeline.operators)
