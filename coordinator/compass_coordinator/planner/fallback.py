"""The plan of last resort: what a query runs when it has no other plan, or the fleet is out of reach."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from compass_coordinator.estimator import estimate, waits_joining
from compass_coordinator.plan_space import build_space
from compass_coordinator.planner.brute_force import serving
from compass_coordinator.planner.policy import device_only
from compass_coordinator.planner.search import Budget, search_plan
from compass_shared.errors import InfeasibleError, ProfileError
from compass_shared.evaluate import pipeline_of
from compass_shared.plan import Plan
from compass_shared.problem import Problem
from compass_shared.query import Query

MAX_CONFIGS = 100_000
"""Configs up to which all are looked at."""


def best_local_plan(problem: Problem, query: Query) -> Plan:
    """The best plan that needs nothing but the origin, were the query alone on it.

    The cheapest that meets the SLO; if none does, the most accurate in time; if none is in time, the fastest.

    Raises:
        ProfileError: If nothing was measured at the origin, so that there is nothing to choose by.
        InfeasibleError: If an operator must not run at the origin.
    """
    pipeline = pipeline_of(problem, query)
    for operator in pipeline.operators:
        if not problem.may_run(query, operator, query.origin):
            places = " or ".join(operator.must_run_on)
            detail = f"operator {operator.name!r} must run on {places}, not at {query.origin!r}"
            raise InfeasibleError(query.name, "placement", f"no plan of last resort: {detail}")
    if pipeline.config_count() > MAX_CONFIGS:
        return _found(problem, query)
    space = build_space(problem, query, device_only(problem, query))
    space = space.take(np.flatnonzero(np.isfinite(space.accuracy) & np.isfinite(space.cost_usd)))
    if not len(space):
        raise ProfileError(
            f"query {query.name!r}: no config of pipeline {query.pipeline!r} was measured at {query.origin!r}"
        )
    at_load = estimate(space, query, waits_joining(problem, space.sites, {}, space, query.rate_hz))
    in_time = (at_load.latency_p95_s <= query.slo.latency_p95_s) & (at_load.serial <= 1)
    # Capacities are not asked for: who has nothing else overloads its own device.
    met = np.isin(np.arange(len(space)), serving(at_load, query, dict.fromkeys(at_load.resources, np.inf)))
    # An overloaded origin has no finite p95; the least work is then the best that can be said.
    work_s = space.path_mean_s.max(axis=0)
    if met.any():
        order = np.lexsort((at_load.latency_p95_s, -at_load.accuracy, at_load.cost_usd_per_1000, ~met))
    elif in_time.any():
        order = np.lexsort((at_load.latency_p95_s, -at_load.accuracy, ~in_time))
    else:
        order = np.lexsort((-at_load.accuracy, work_s, at_load.latency_p95_s))
    row = int(order[0])
    return space.plan(row, at_load.row(row))


def _found(problem: Problem, query: Query) -> Plan:
    """The best of so many configs that listing them would take longer than searching."""
    alone = replace(problem, reachable={**problem.reachable, query.name: ()}, loads={})
    found = search_plan(alone, query, budget=Budget(evaluations=MAX_CONFIGS))
    if found.plan is None and query.slo.metrics:
        without = replace(query, slo=replace(query.slo, metrics={}))
        found = search_plan(alone, without, budget=Budget(evaluations=MAX_CONFIGS))
    if found.plan is None:
        raise ProfileError(f"query {query.name!r}: {found.reason or 'nothing was measured at its origin'}")
    return found.plan
