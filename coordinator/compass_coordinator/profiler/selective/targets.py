"""The queries that a profile is made for: those of a fleet, given SLOs on this machine, or any SLO on it.

On this machine a config costs the operator-seconds that it takes, so that the best one is the least work that
meets the SLO.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compass_coordinator.estimator import latency, waits_at
from compass_coordinator.plan_space import build_space
from compass_coordinator.planner.policy import anywhere
from compass_coordinator.profiler.selective.decisions import Decide, Decisions
from compass_coordinator.profiler.selective.operator_times import OperatorTimes
from compass_coordinator.profiler.selective.space import Floats, Space
from compass_shared.errors import ConfigError
from compass_shared.problem import Z95, Problem

LEVELS = 100
"""Accuracies asked for, evenly over [0, 1], where any SLO may come."""
HASTE = (0.1, 0.25, 0.5, 1.0)
"""Shares of the configs that are fast enough for the latencies asked for then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """An SLO on this machine."""

    accuracy: float
    latency_p95_s: float = np.inf


def of_targets(space: Space, targets: Sequence[Target]) -> Decide:
    """Given SLOs on this machine.

    Args:
        space: The configs.
        targets: At least one.
    """
    needed = np.array([target.accuracy for target in targets])
    limits = np.array([target.latency_p95_s for target in targets])

    def decide(times: OperatorTimes) -> Decisions:
        work_s, p95_s = _here(space, times)
        return _decisions(work_s, p95_s, needed, limits)

    return decide


def of_any(space: Space) -> Decide:
    """Every level of accuracy at several latencies, on this machine."""

    def decide(times: OperatorTimes) -> Decisions:
        work_s, p95_s = _here(space, times)
        known = p95_s[np.isfinite(p95_s)]
        limits = np.quantile(known, HASTE) if len(known) else np.full(len(HASTE), np.inf)
        levels = (np.arange(LEVELS) + 0.5) / LEVELS
        pairs = list(itertools.product(levels, limits))
        return _decisions(
            work_s, p95_s, np.array([level for level, _ in pairs]), np.array([limit for _, limit in pairs])
        )

    return decide


def of_fleet(problem: Problem, pipeline: str) -> Decide:
    """The queries of a planning problem, at sites without load.

    Args:
        problem: Its profiles give the times: operators run at its sites, not here.
        pipeline: Queries of others are left out.

    Raises:
        ConfigError: If no query is of this pipeline.
    """
    queries = [query for query in problem.queries if query.pipeline == pipeline]
    if not queries:
        raise ConfigError(f"the fleet has no query of pipeline {pipeline!r}", field="queries")
    rows = []
    found: dict[tuple[str, tuple[str, ...]], tuple[Floats, Floats]] = {}
    for query in queries:
        key = query.origin, problem.sites_for(query)
        if key not in found:
            plans = build_space(problem, query, anywhere(problem, query))
            _, _, p95_s = latency(plans, waits_at(problem, plans.sites, {}))
            found[key] = (
                plans.cost_usd.reshape(len(plans.placements), -1),
                p95_s.reshape(len(plans.placements), -1),
            )
        cost_usd, p95_s = found[key]
        serves = (p95_s <= query.slo.latency_p95_s) & (1000 * cost_usd <= query.slo.cost_usd_per_1000)
        rows.append(np.where(serves, cost_usd, np.inf).min(axis=0))
    weights = np.array([query.weight for query in queries])
    decisions = Decisions(
        costs=np.array(rows),
        needed=np.array([query.slo.accuracy for query in queries]),
        weights=weights * len(queries) / weights.sum(),
    )
    return lambda _times: decisions


def _here(space: Space, times: OperatorTimes) -> tuple[Floats, Floats]:
    """(configs,) operator-seconds of one request, and its latency: operators run one after the other."""
    variants = space.node_variant[space.nodes]
    work_s = times.mean_s[variants].sum(axis=1)
    return work_s, work_s + Z95 * np.sqrt(times.var_s2[variants].sum(axis=1))


def _decisions(work_s: Floats, p95_s: Floats, needed: Floats, limits: Floats) -> Decisions:
    # NaN, for variants that never ran, is in time for nobody.
    in_time = p95_s <= limits[:, np.newaxis]
    return Decisions(costs=np.where(in_time, work_s, np.inf), needed=needed, weights=np.ones(len(needed)))
