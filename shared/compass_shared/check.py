"""Checking chosen plans against the problem, independently of whatever chose them.

Everything is recomputed from the profiles at the load that all plans cause together. The coordinator calls
this before it publishes; the tests and the simulator call it on every result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from compass_shared.errors import ConfigError, ProfileError
from compass_shared.evaluate import (
    estimate_at_load,
    pipeline_of,
    segment_works,
    serial_busy,
    unknown_metric,
)
from compass_shared.pipeline import variant_key
from compass_shared.plan import Allocation, Estimate, Plan
from compass_shared.problem import Problem
from compass_shared.query import Query
from compass_shared.site import cores_resource, memory_resource
from compass_shared.splitting import Split, in_parts, keeps_state

TOLERANCE = 1e-9
"""Relative excess over a limit that is rounding, not a violation."""
ESTIMATE_TOLERANCE = 1e-6
"""Relative difference up to which a plan's own estimate is taken to agree."""


class ViolationKind(Enum):
    """What a chosen plan, or all of them together, can break."""

    QUERY = "query"
    CONFIG = "config"
    PLACEMENT = "placement"
    CONSTRAINT = "constraint"
    """An operator is where it must not run."""
    ALLOCATION = "allocation"
    PROFILE = "profile"
    LATENCY = "latency"
    ACCURACY = "accuracy"
    METRIC = "metric"
    COST = "cost"
    ESTIMATE = "estimate"
    CAPACITY = "capacity"
    MEMORY = "memory"
    SPLIT = "split"


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One thing that is wrong with a set of chosen plans."""

    kind: ViolationKind
    query: str | None = None
    """Whose plan it is; None where a shared resource is overdrawn."""
    resource: str | None = None
    """What is overdrawn; of METRIC the metric."""
    limit: float | None = None
    """In the unit of what is limited: seconds, share, USD per 1,000 requests, cores, bytes per second."""
    actual: float | None = None
    text: str


def check_plan(
    problem: Problem, assignments: Mapping[str, Plan], split: Split | None = None
) -> list[Violation]:
    """Find everything that is wrong with a set of chosen plans.

    Args:
        problem: Sites, links, profiles and queries; its ``loads`` are not read.
        assignments: Query name -> plan, for the queries that were given one.
        split: Query name -> plans with fractions, for the divisible queries that were given several; their
            parts are named ``query#index`` in violations.

    Returns:
        Violations, none if the plans may be published. Plans that cannot be evaluated at all (unknown query,
        config, site, ...) are reported and left out of the load that the others are checked at.
    """
    known = {query.name: query for query in problem.queries}
    shared_out = dict(split or {})
    uneven = [found for name in shared_out for found in _uneven(problem, known.get(name), name, shared_out)]
    problem, assignments = in_parts(problem, assignments, shared_out)
    known = {query.name: query for query in problem.queries}
    malformed = [
        v for name, plan in assignments.items() for v in _malformed(problem, known.get(name), name, plan)
    ]
    broken = {violation.query for violation in malformed}
    sound = {name: plan for name, plan in assignments.items() if name not in broken}
    estimates = estimate_at_load(problem, sound)
    missed = [
        violation
        for name, estimate in estimates.items()
        for violation in (
            *_forbidden(problem, known[name], sound[name]),
            *_held_up(problem, known[name], sound[name]),
            *_missed_slos(known[name], estimate),
            *_missed_metrics(problem, known[name], estimate),
            *_stale_estimate(name, sound[name], estimate),
        )
    ]
    overdrawn = _overdrawn(problem, estimates)
    return [*uneven, *malformed, *missed, *overdrawn, *_crowded(problem, known, sound)]


def _uneven(problem: Problem, query: Query | None, name: str, split: Split) -> Iterator[Violation]:
    """What is wrong with the way a query is split."""
    if query is None:
        yield Violation(kind=ViolationKind.QUERY, query=name, text=f"query {name!r} is not known")
        return
    if not query.divisible:
        yield Violation(
            kind=ViolationKind.SPLIT, query=name, text=f"query {name!r} is split, which it does not allow"
        )
    elif keeps_state(problem, query):
        yield Violation(
            kind=ViolationKind.SPLIT,
            query=name,
            text=f"query {name!r} is split, but operators of {query.pipeline!r} keep state: one plan for all "
            "requests",
        )
    fractions = [share.fraction for share in split[name]]
    total = math.fsum(fractions)
    if not all(0 < fraction <= 1 for fraction in fractions) or _exceeds(total, 1.0):
        yield Violation(
            kind=ViolationKind.SPLIT,
            query=name,
            limit=1.0,
            actual=total,
            text=f"query {name!r}: fractions {fractions} are not shares of its requests",
        )


def _malformed(problem: Problem, query: Query | None, name: str, plan: Plan) -> Iterator[Violation]:
    """What keeps a plan from being evaluated; later checks rely on the earlier ones."""
    if query is None:
        yield Violation(kind=ViolationKind.QUERY, query=name, text=f"query {name!r} is not known")
        return
    if query.pipeline not in problem.pipelines or query.origin not in problem.sites:
        unknown = query.pipeline if query.pipeline not in problem.pipelines else query.origin
        yield Violation(
            kind=ViolationKind.QUERY, query=name, text=f"query {name!r} refers to the unknown {unknown!r}"
        )
        return
    found = [*_bad_config(problem, query, plan), *_bad_placement(problem, query, plan)]
    yield from found
    yield from _bad_allocation(problem, query, plan)
    if not found:
        yield from _unmeasured(problem, query, plan)


def _bad_config(problem: Problem, query: Query, plan: Plan) -> Iterator[Violation]:
    try:
        pipeline_of(problem, query).check_config(plan.config)
    except ConfigError as error:
        yield Violation(kind=ViolationKind.CONFIG, query=query.name, text=f"query {query.name!r}: {error}")


def _bad_placement(problem: Problem, query: Query, plan: Plan) -> Iterator[Violation]:
    operators = {operator.name for operator in pipeline_of(problem, query).operators}
    usable = problem.sites_for(query)
    complaints = [
        *(f"operator {name!r} has no site" for name in sorted(operators - set(plan.placement))),
        *(f"{name!r} is not an operator" for name in sorted(set(plan.placement) - operators)),
        *(
            f"operator {name!r} is placed at {site!r}; the query can use {', '.join(usable)}"
            for name, site in plan.placement.items()
            if site not in usable
        ),
    ]
    for complaint in complaints:
        yield Violation(
            kind=ViolationKind.PLACEMENT, query=query.name, text=f"query {query.name!r}: {complaint}"
        )


def _forbidden(problem: Problem, query: Query, plan: Plan) -> Iterator[Violation]:
    for operator in pipeline_of(problem, query).operators:
        site = plan.placement[operator.name]
        if not problem.may_run(query, operator, site):
            yield Violation(
                kind=ViolationKind.CONSTRAINT,
                query=query.name,
                text=f"query {query.name!r}: operator {operator.name!r} must run on "
                f"{' or '.join(operator.must_run_on)}, not at {site!r} ({problem.sites[site].tier.value})",
            )


def _held_up(problem: Problem, query: Query, plan: Plan) -> Iterator[Violation]:
    """Operators with state, whose calls run one at a time, that cannot keep up with their own query."""
    for operator, busy in serial_busy(problem, query, plan).items():
        site = problem.sites[plan.placement[operator]]
        if _exceeds(busy, site.utilisation_cap):
            yield Violation(
                kind=ViolationKind.CAPACITY,
                query=query.name,
                limit=site.utilisation_cap,
                actual=busy,
                text=f"query {query.name!r}: {operator!r} keeps state and takes one request after the other; "
                f"at {query.rate_hz:g} Hz it would be busy {100 * busy:.4g}% of the time at "
                f"{site.name!r}, which allows {100 * site.utilisation_cap:.4g}%",
            )


def _bad_allocation(problem: Problem, query: Query, plan: Plan) -> Iterator[Violation]:
    """Estimates assume one core and no batching; any other allocation would not be what was checked."""
    operators = {operator.name for operator in pipeline_of(problem, query).operators}
    for name, allocation in plan.allocation.items():
        if name not in operators or allocation != Allocation():
            yield Violation(
                kind=ViolationKind.ALLOCATION,
                query=query.name,
                text=f"query {query.name!r}: {allocation} for {name!r}, but plans are estimated for one core "
                "and batch 1 of each operator",
            )


def _unmeasured(problem: Problem, query: Query, plan: Plan) -> Iterator[Violation]:
    table = problem.accuracy.get(query.pipeline)
    key = pipeline_of(problem, query).config_key(plan.config)
    if table is None or key not in table.configs:
        yield Violation(
            kind=ViolationKind.PROFILE,
            query=query.name,
            text=f"query {query.name!r}: the accuracy of config {key} was not measured",
        )
    try:
        segment_works(problem, query, plan)
    except ProfileError as error:
        yield Violation(kind=ViolationKind.PROFILE, query=query.name, text=f"query {query.name!r}: {error}")


def _missed_slos(query: Query, estimate: Estimate) -> Iterator[Violation]:
    slo = query.slo
    if _exceeds(estimate.latency_p95_s, slo.latency_p95_s):
        yield Violation(
            kind=ViolationKind.LATENCY,
            query=query.name,
            limit=slo.latency_p95_s,
            actual=estimate.latency_p95_s,
            text=f"query {query.name!r}: p95 latency {estimate.latency_p95_s * 1e3:.1f} ms at the resulting "
            f"load, SLO {slo.latency_p95_s * 1e3:.1f} ms",
        )
    if _exceeds(slo.accuracy, estimate.accuracy):
        yield Violation(
            kind=ViolationKind.ACCURACY,
            query=query.name,
            limit=slo.accuracy,
            actual=estimate.accuracy,
            text=f"query {query.name!r}: accuracy {estimate.accuracy:.4f}, SLO {slo.accuracy:.4f}",
        )
    if _exceeds(estimate.cost_usd_per_1000, slo.cost_usd_per_1000):
        yield Violation(
            kind=ViolationKind.COST,
            query=query.name,
            limit=slo.cost_usd_per_1000,
            actual=estimate.cost_usd_per_1000,
            text=f"query {query.name!r}: ${estimate.cost_usd_per_1000:.6g} per 1,000 requests, "
            f"SLO ${slo.cost_usd_per_1000:.6g}",
        )


def _missed_metrics(problem: Problem, query: Query, estimate: Estimate) -> Iterator[Violation]:
    unknown = unknown_metric(problem, query)
    for name, least in query.slo.metrics.items():
        actual = estimate.metrics.get(name)
        if actual is None or _exceeds(least, actual):
            reached = "was not measured" if actual is None else f"{actual:.4f}"
            yield Violation(
                kind=ViolationKind.METRIC,
                query=query.name,
                resource=name,
                limit=least,
                actual=actual,
                text=f"query {query.name!r}: {unknown or f'{name} {reached}, SLO {least:.4f}'}",
            )


def _stale_estimate(name: str, plan: Plan, actual: Estimate) -> Iterator[Violation]:
    """What does not depend on the load must agree; latency is published as it was planned."""
    stated = plan.estimate
    if stated is None:
        return
    resources = sorted(set(stated.demand) | set(actual.demand))
    figures = [
        ("accuracy", None, stated.accuracy, actual.accuracy),
        ("cost", None, stated.cost_usd_per_1000, actual.cost_usd_per_1000),
        *((m, None, value, actual.metrics.get(m, math.nan)) for m, value in sorted(stated.metrics.items())),
        *((r, r, stated.demand.get(r, 0.0), actual.demand.get(r, 0.0)) for r in resources),
    ]
    for what, resource, claimed, recomputed in figures:
        if not math.isclose(claimed, recomputed, rel_tol=ESTIMATE_TOLERANCE, abs_tol=1e-12):
            yield Violation(
                kind=ViolationKind.ESTIMATE,
                query=name,
                resource=resource,
                limit=claimed,
                actual=recomputed,
                text=f"query {name!r}: the plan states {what} {claimed:.6g}, recomputed {recomputed:.6g}",
            )


def _overdrawn(problem: Problem, estimates: Mapping[str, Estimate]) -> Iterator[Violation]:
    capacities = problem.capacities()
    used: dict[str, list[float]] = {}
    for estimate in estimates.values():
        for resource, demand in estimate.demand.items():
            used.setdefault(resource, []).append(demand)
    for resource, demands in used.items():
        total = math.fsum(demands)
        if _exceeds(total, capacities[resource]):
            unit = "cores" if resource.startswith(cores_resource("")) else "bytes/s"
            yield Violation(
                kind=ViolationKind.CAPACITY,
                resource=resource,
                limit=capacities[resource],
                actual=total,
                text=f"{resource}: {total:.4g} {unit} used of {capacities[resource]:.4g}",
            )


def _crowded(
    problem: Problem, queries: Mapping[str, Query], assignments: Mapping[str, Plan]
) -> Iterator[Violation]:
    """Sites that are to hold more variants than their memory takes; each variant counts once."""
    hosted: dict[str, dict[tuple[str, str], float]] = {}
    for name, plan in assignments.items():
        pipeline = pipeline_of(problem, queries[name])
        for operator in pipeline.operators:
            site = plan.placement[operator.name]
            variant = variant_key(operator.name, plan.config.get(operator.name, {}))
            found = problem.profiles[site, pipeline.name].measured(variant)
            hosted.setdefault(site, {})[pipeline.name, variant] = found.memory_bytes if found else 0.0
    for site, variants in hosted.items():
        total, limit = math.fsum(variants.values()), problem.sites[site].memory_bytes
        if _exceeds(total, limit):
            yield Violation(
                kind=ViolationKind.MEMORY,
                resource=memory_resource(site),
                limit=limit,
                actual=total,
                text=f"{memory_resource(site)}: variants of {total:.4g} bytes, room for {limit:.4g}",
            )


def _exceeds(value: float, limit: float) -> bool:
    return not (value <= limit or value <= limit + TOLERANCE * abs(limit))
