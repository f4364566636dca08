"""A ``PlanSpace`` of given plans, one by one: the few that were found in a space too large to enumerate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compass_coordinator.estimator import Floats, PlanSpace
from compass_shared.errors import ProfileError
from compass_shared.evaluate import (
    SegmentWork,
    evaluate_plan,
    paths,
    pipeline_of,
    segment_works,
    serial_busy,
)
from compass_shared.plan import Plan
from compass_shared.problem import Problem
from compass_shared.query import Query
from compass_shared.site import cores_resource, link_resource


def space_of(problem: Problem, query: Query, plans: Sequence[Plan]) -> PlanSpace:
    """Price given plans of a query.

    Args:
        problem: Profiles, links, prices, accuracy.
        query: Gives pipeline, origin and usable sites; its rate and SLO do not matter here.
        plans: Each at sites that the query can use.

    Returns:
        The plans in their order.

    Raises:
        ProfileError: If something about a plan was not measured.
    """
    sites = problem.sites_for(query)
    remote = [site for site in sites if site != query.origin]
    ends = [pair for site in remote for pair in ((query.origin, site), (site, query.origin))]
    resources = (*(cores_resource(site) for site in sites), *(link_resource(*pair) for pair in ends))
    works = [segment_works(problem, query, plan) for plan in plans]
    ways = [tuple(paths([work.segment for work in found])) for found in works]
    at_rate_one = [evaluate_plan(problem, query, plan, {}) for plan in plans]
    n, k = len(plans), max((len(way) for way in ways), default=1)
    usage = np.array([[found.demand.get(name, 0.0) for name in resources] for found in at_rate_one])
    usage = usage.reshape(n, len(resources)) / query.rate_hz
    second = np.zeros((len(sites), n))
    mean_s, var_s2 = np.full((k, n), -np.inf), np.zeros((k, n))
    visits = np.zeros((k, len(sites), n))
    for row, (found, way) in enumerate(zip(works, ways, strict=True)):
        steps = [_latency(problem, query, work) for work in found]
        for work in found:
            second[sites.index(work.segment.site), row] += work.second_moment_s2
        for path, indices in enumerate(way):
            mean_s[path, row] = sum(steps[index][0] for index in indices)
            var_s2[path, row] = sum(steps[index][1] for index in indices)
            for index in indices:
                visits[path, sites.index(found[index].segment.site), row] += 1
    return PlanSpace(
        pipeline=pipeline_of(problem, query),
        origin=query.origin,
        sites=sites,
        resources=resources,
        configs=tuple(plan.config for plan in plans),
        placements=tuple(plan.placement for plan in plans),
        config_of=np.arange(n),
        placement_of=np.arange(n),
        accuracy=_column([found.accuracy for found in at_rate_one]),
        metrics={
            name: _column([found.metrics.get(name, np.nan) for found in at_rate_one])
            for name in sorted({name for found in at_rate_one for name in found.metrics})
        },
        serial_s=_column([_serial_s(problem, query, plan) for plan in plans]),
        cost_usd=_column([found.cost_usd_per_1000 for found in at_rate_one]) / 1000,
        usage=usage,
        busy_s=np.ascontiguousarray(usage[:, : len(sites)].T),
        second_moment_s2=second,
        path_mean_s=mean_s,
        path_var_s2=var_s2,
        path_visits=visits,
    )


def distinct_plans(plans: Sequence[Plan]) -> list[Plan]:
    """Each config at each placement once, in the order of their first appearance."""
    kept: list[Plan] = []
    for plan in plans:
        if all((plan.config, plan.placement) != (other.config, other.placement) for other in kept):
            kept.append(plan)
    return kept


def _serial_s(problem: Problem, query: Query, plan: Plan) -> float:
    """Longest mean time of an operator with state, over the utilisation cap of its site."""
    found = [
        (busy / query.rate_hz, problem.sites[plan.placement[operator]].utilisation_cap)
        for operator, busy in serial_busy(problem, query, plan).items()
    ]
    return max((mean_s / cap if cap > 0 else np.inf for mean_s, cap in found), default=0.0)


def _column(values: Sequence[float]) -> Floats:
    return np.array(values, dtype=np.float64)


def _latency(problem: Problem, query: Query, work: SegmentWork) -> tuple[float, float]:
    """Mean and variance of a segment's call on an idle site."""
    site = work.segment.site
    mean_s, var_s2 = work.compute_s, work.compute_var_s2
    if site == query.origin:
        return mean_s, var_s2
    for pair, payload in (((query.origin, site), work.up), ((site, query.origin), work.down)):
        if pair not in problem.links:
            raise ProfileError(f"the link from {pair[0]!r} to {pair[1]!r} was not measured")
        link = problem.links[pair]
        transfer_s = payload.mean_bytes / link.bandwidth_bps
        mean_s += transfer_s
        var_s2 += payload.var_bytes2 / link.bandwidth_bps**2 + (transfer_s * link.bandwidth_rel_sd) ** 2
    there = problem.links[query.origin, site]
    return mean_s + there.rtt_s, var_s2 + there.rtt_var_s2
