"""Planning a fleet: from a problem to one plan for each query that can be served."""

from __future__ import annotations

from collections.abc import Callable

from compass_coordinator.planner.policy import Policy, anywhere
from compass_coordinator.planning.exact import plan_exactly
from compass_coordinator.planning.result import FleetPlan, Stopwatch, require_distinct_names
from compass_shared.problem import Problem


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
    require_distinct_names(problem)
    return plan_exactly(problem, policy, Stopwatch(timer), time_limit_s=time_limit_s)
