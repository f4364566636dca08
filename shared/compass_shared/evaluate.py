"""Evaluating one plan, scalar and by the book: the definition in ``compass_shared.problem``, line by line.

This is what ``check_plan`` recounts with and what the estimates shown to people come from. The coordinator's
estimator computes the same for many plans at once and shares nothing with this module but the cut into
segments; a property test holds the two together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from compass_shared.errors import PlanningError, ProfileError
from compass_shared.pipeline import REQUEST, Pipeline, variant_key
from compass_shared.plan import Estimate, Plan
from compass_shared.problem import Z95, Problem, SiteLoad
from compass_shared.profile import OperatorProfile, SiteProfile
from compass_shared.query import Query
from compass_shared.queueing import SiteMix, Wait, total_mix, wait_at
from compass_shared.segments import Segment, cut
from compass_shared.site import Link, cores_resource, link_resource


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """Bytes that one call moves one way."""

    mean_bytes: float = 0.0
    var_bytes2: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentWork:
    """What one request costs at one segment of a plan, load and rate aside."""

    segment: Segment
    compute_s: float
    compute_var_s2: float
    up: Payload
    """From the origin to the segment's site; nothing for a segment at the origin."""
    down: Payload

    @property
    def second_moment_s2(self) -> float:
        """``E[S^2]`` of the time it holds a core."""
        return self.compute_var_s2 + self.compute_s**2


def pipeline_of(problem: Problem, query: Query) -> Pipeline:
    """The pipeline that a query runs.

    Raises:
        PlanningError: If it is not known.
    """
    if query.pipeline not in problem.pipelines:
        raise PlanningError(f"query {query.name!r}: pipeline {query.pipeline!r} is not known")
    return problem.pipelines[query.pipeline]


def segment_works(problem: Problem, query: Query, plan: Plan) -> tuple[SegmentWork, ...]:
    """Work of one request at each segment of a plan.

    Raises:
        ProfileError: If an operator variant was not measured at its site.
        PlanningError: If the placement is incomplete.
    """
    pipeline = pipeline_of(problem, query)
    measured = {
        operator.name: _measured(problem, query, plan, operator.name) for operator in pipeline.operators
    }
    sizes = {
        name: Payload(mean_bytes=profile.output_mean_bytes, var_bytes2=profile.output_var_bytes2)
        for name, profile in measured.items()
    }
    source = _site_profile(problem, query.origin, query.pipeline)
    sizes[REQUEST] = Payload(mean_bytes=source.request_mean_bytes, var_bytes2=source.request_var_bytes2)
    works = []
    for segment in cut(pipeline, plan.placement, query.origin):
        remote = segment.site != query.origin
        works.append(
            SegmentWork(
                segment=segment,
                compute_s=sum(measured[name].mean_s for name in segment.operators),
                compute_var_s2=sum(measured[name].var_s2 for name in segment.operators),
                up=_sum(sizes[name] for name in segment.needs) if remote else Payload(),
                down=_sum(sizes[name] for name in segment.exports) if remote else Payload(),
            )
        )
    return tuple(works)


def evaluate_plan(problem: Problem, query: Query, plan: Plan, loads: Mapping[str, SiteLoad]) -> Estimate:
    """Predict what a plan does when its visits meet the given loads.

    Args:
        problem: Sites, links and profiles.
        query: Whose requests the plan serves.
        plan: Config and placement; its own estimate is not read.
        loads: Load at each site, this query's own included; sites that are not listed have none.

    Raises:
        ProfileError: If the accuracy of the config, a variant at its site, or a link was not measured.
        PlanningError: If the placement is incomplete or names an unknown site.
    """
    works = segment_works(problem, query, plan)
    steps = [_latency(problem, query, work, loads) for work in works]
    mean_s, var_s2 = max(
        (_path_latency(path, steps) for path in paths([work.segment for work in works])), key=_p95
    )
    return Estimate(
        latency_mean_s=mean_s,
        latency_var_s2=var_s2,
        latency_p95_s=_p95((mean_s, var_s2)),
        accuracy=_accuracy(problem, query, plan),
        metrics=metrics_of(problem, query.pipeline, pipeline_of(problem, query).config_key(plan.config)),
        cost_usd_per_1000=1000 * sum(_cost_usd(problem, query, work) for work in works),
        demand=_demand(query, works),
    )


def metrics_of(problem: Problem, pipeline: str, config_key: str) -> dict[str, float]:
    """Extra metrics of a config, as far as they were measured."""
    table = problem.accuracy.get(pipeline)
    others = table.others if table is not None else {}
    return {metric: known[config_key].mean for metric, known in others.items() if config_key in known}


def serial_busy(problem: Problem, query: Query, plan: Plan) -> dict[str, float]:
    """How busy a query keeps each operator with state, which takes one request after the other.

    Returns:
        Operator -> rate x mean seconds at its site; at most the site's utilisation cap where it keeps up.

    Raises:
        ProfileError: If one was not measured at its site.
    """
    return {
        operator.name: query.rate_hz * _measured(problem, query, plan, operator.name).mean_s
        for operator in pipeline_of(problem, query).operators
        if operator.stateful
    }


def unknown_metric(problem: Problem, query: Query) -> str | None:
    """Which metric a query's SLO names that nothing is known of, in words; None if there is none."""
    pipeline = pipeline_of(problem, query)
    table = problem.accuracy.get(query.pipeline)
    declared = [metric.name for metric in pipeline.extra_metrics]
    for name in query.slo.metrics:
        if pipeline.metric is not None and name == pipeline.metric.name:
            return f"its SLO sets a floor for {name!r}, which is what `accuracy` stands for: set that"
        if name not in declared:
            listed = ", ".join(declared) or "none"
            return (
                f"its SLO sets a floor for the metric {name!r}; the extra metrics of pipeline "
                f"{pipeline.name!r} are: {listed}"
            )
        if table is not None and name not in table.others:
            return (
                f"its SLO sets a floor for {name!r}, which the accuracy table of pipeline {pipeline.name!r} "
                "does not hold: profile the pipeline again"
            )
    return None


def paths(segments: Sequence[Segment]) -> Iterator[tuple[int, ...]]:
    """Every way from a segment that waits for none to one that none waits for, as indices."""
    followers: dict[int, list[int]] = {segment.index: [] for segment in segments}
    for segment in segments:
        for before in segment.after:
            followers[before].append(segment.index)

    def onwards(index: int) -> Iterator[tuple[int, ...]]:
        if not followers[index]:
            yield (index,)
        for follower in followers[index]:
            for rest in onwards(follower):
                yield (index, *rest)

    for segment in segments:
        if not segment.after:
            yield from onwards(segment.index)


def site_mixes(problem: Problem, assignments: Mapping[str, Plan]) -> dict[str, SiteMix]:
    """What the plans together bring to each site that any of them visits.

    Args:
        problem: The planning problem.
        assignments: Query name -> plan.
    """
    brought: dict[str, list[SiteMix]] = {}
    for query, plan in _running(problem, assignments):
        for work in segment_works(problem, query, plan):
            brought.setdefault(work.segment.site, []).append(
                SiteMix(
                    busy_cores=query.rate_hz * work.compute_s,
                    second_moment_s=query.rate_hz * work.second_moment_s2,
                )
            )
    return {site: total_mix(mixes) for site, mixes in brought.items()}


def resulting_loads(problem: Problem, assignments: Mapping[str, Plan]) -> dict[str, SiteLoad]:
    """The load at each visited site that results when all these plans run together."""
    return {
        site: mix.load(problem.sites[site].cores) for site, mix in site_mixes(problem, assignments).items()
    }


def estimate_at_load(problem: Problem, assignments: Mapping[str, Plan]) -> dict[str, Estimate]:
    """Estimates of all plans at the load that they cause together: the ones to publish and to show."""
    loads = resulting_loads(problem, assignments)
    return {
        query.name: evaluate_plan(problem, query, plan, loads)
        for query, plan in _running(problem, assignments)
    }


def _running(problem: Problem, assignments: Mapping[str, Plan]) -> Iterator[tuple[Query, Plan]]:
    queries = {query.name: query for query in problem.queries}
    for name, plan in assignments.items():
        if name not in queries:
            raise PlanningError(f"the problem has no query {name!r}")
        yield queries[name], plan


def _latency(
    problem: Problem, query: Query, work: SegmentWork, loads: Mapping[str, SiteLoad]
) -> tuple[float, float]:
    """Mean and variance of the time from a segment's call to its answer."""
    site = problem.sites[work.segment.site]
    wait = wait_at(loads[site.name], site.cores) if site.name in loads else Wait(mean_s=0.0, var_s2=0.0)
    mean_s = wait.mean_s + work.compute_s
    var_s2 = wait.var_s2 + work.compute_var_s2
    if site.name != query.origin:
        there = _link(problem, query.origin, site.name)
        back = _link(problem, site.name, query.origin)
        mean_s += there.rtt_s
        var_s2 += there.rtt_var_s2
        for link, payload in ((there, work.up), (back, work.down)):
            transfer_s = payload.mean_bytes / link.bandwidth_bps
            mean_s += transfer_s
            var_s2 += payload.var_bytes2 / link.bandwidth_bps**2
            var_s2 += (transfer_s * link.bandwidth_rel_sd) ** 2
    return mean_s, var_s2


def _path_latency(path: Sequence[int], steps: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return sum(steps[index][0] for index in path), sum(steps[index][1] for index in path)


def _p95(latency: tuple[float, float]) -> float:
    mean_s, var_s2 = latency
    return mean_s + Z95 * math.sqrt(var_s2)


def _cost_usd(problem: Problem, query: Query, work: SegmentWork) -> float:
    site = problem.sites[work.segment.site]
    origin = problem.sites[query.origin]
    return (
        work.compute_s * site.compute_s_usd
        + work.up.mean_bytes * origin.prices.egress_byte_usd
        + work.down.mean_bytes * site.prices.egress_byte_usd
    )


def _demand(query: Query, works: Sequence[SegmentWork]) -> dict[str, float]:
    demand: dict[str, float] = {}

    def add(resource: str, amount: float) -> None:
        demand[resource] = demand.get(resource, 0.0) + query.rate_hz * amount

    for work in works:
        site = work.segment.site
        add(cores_resource(site), work.compute_s)
        if site != query.origin:
            add(link_resource(query.origin, site), work.up.mean_bytes)
            add(link_resource(site, query.origin), work.down.mean_bytes)
    return demand


def _accuracy(problem: Problem, query: Query, plan: Plan) -> float:
    key = pipeline_of(problem, query).config_key(plan.config)
    table = problem.accuracy.get(query.pipeline)
    if table is None or key not in table.configs:
        raise ProfileError(f"query {query.name!r}: the accuracy of config {key} was not measured")
    return table.configs[key].mean


def _measured(problem: Problem, query: Query, plan: Plan, operator: str) -> OperatorProfile:
    if operator not in plan.placement:
        raise PlanningError(f"query {query.name!r}: the placement names no site for operator {operator!r}")
    site = plan.placement[operator]
    if site not in problem.sites:
        raise PlanningError(f"query {query.name!r}: site {site!r} is not known")
    variant = variant_key(operator, plan.config.get(operator, {}))
    profile = _site_profile(problem, site, query.pipeline)
    found = profile.measured(variant)
    if found is None:
        raise ProfileError(f"{variant} of pipeline {query.pipeline!r} was not measured at site {site!r}")
    return found


def _site_profile(problem: Problem, site: str, pipeline: str) -> SiteProfile:
    if (site, pipeline) not in problem.profiles:
        raise ProfileError(f"site {site!r} was not profiled for pipeline {pipeline!r}")
    return problem.profiles[site, pipeline]


def _link(problem: Problem, source: str, target: str) -> Link:
    if (source, target) not in problem.links:
        raise ProfileError(f"the link from {source!r} to {target!r} was not measured")
    return problem.links[source, target]


def _sum(payloads: Iterator[Payload]) -> Payload:
    listed = tuple(payloads)
    return Payload(
        mean_bytes=sum(payload.mean_bytes for payload in listed),
        var_bytes2=sum(payload.var_bytes2 for payload in listed),
    )
