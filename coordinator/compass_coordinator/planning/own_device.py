"""Waiting on one's own device: the one load that a query makes for itself, and that differs by its plan.

Templates are searched as if nobody waited on a device, since no single load is right for all plans of a
query: who does everything there meets a busy device, who only prepares the input an idle one. What is found
is then evaluated with the wait that each plan brings about together with the others on its device.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from compass_coordinator.estimator import Floats, Indices, Waits, waits_of
from compass_coordinator.planner.fleet.candidates import FleetCandidates
from compass_coordinator.planning.resulting import Running, reevaluate, role_work
from compass_shared.problem import SiteLoad
from compass_shared.site import Tier


class OtherWork:
    """What the other queries of its device bring beside a query, by their latest plans; at first nothing."""

    def __init__(self, queries: int) -> None:
        self.busy_cores: Floats = np.zeros(queries)
        """(queries,)."""
        self.second_moment_s: Floats = np.zeros(queries)
        """(queries,)."""

    def update(self, candidates: FleetCandidates, running: Running, origin: Indices) -> None:
        """Take the plans of another round; ``origin`` (queries,) is the site of each query's origin."""
        work = role_work(candidates, running)
        rate_hz = candidates.space.tables.queries.rate_hz[running.query] * running.fraction
        for mine, brought in (
            (self.busy_cores, work.busy_s[:, 0]),
            (self.second_moment_s, work.second_moment_s2[:, 0]),
        ):
            own = np.bincount(running.query, weights=rate_hz * brought, minlength=len(mine))
            by_site = np.bincount(origin, weights=own)
            mine[:] = np.maximum(by_site[origin] - own, 0.0)


def late_candidates(
    candidates: FleetCandidates, loads: Mapping[str, SiteLoad], others: OtherWork, slo_s: Floats
) -> NDArray[np.bool_]:
    """Which candidates miss their latency SLO once the wait on the own device counts.

    Args:
        candidates: Found at these loads.
        loads: At shared sites; devices have none.
        others: On each query's device.
        slo_s: (queries,) latency p95 that is asked for.

    Returns:
        ``(queries, K)``; False where there is no candidate.
    """
    query, candidate = np.nonzero(np.isfinite(candidates.values))
    running = Running(query=query, candidate=candidate, fraction=np.ones(len(query)))
    tables = candidates.space.tables
    work = role_work(candidates, running)
    device = np.array([site.tier is Tier.DEVICE for site in candidates.space.problem.sites.values()])
    origin = work.site[:, 0]
    rate_hz = np.where(device[origin], tables.queries.rate_hz[query], 0.0)
    busy = np.where(device[origin], others.busy_cores[query], 0.0) + rate_hz * work.busy_s[:, 0]
    second = (
        np.where(device[origin], others.second_moment_s[query], 0.0) + rate_hz * work.second_moment_s2[:, 0]
    )
    cores = np.array([site.cores for site in candidates.space.problem.sites.values()])[origin]
    found = reevaluate(candidates, running, loads, _waits(busy, second, cores))
    late = np.zeros(candidates.values.shape, dtype=np.bool_)
    late[query, candidate] = found.latency_p95_s > slo_s[query]
    return late


def _waits(busy: Floats, second: Floats, cores: Floats) -> Waits:
    residual_s = np.divide(second, 2 * busy, out=np.zeros_like(busy), where=busy > 0)
    utilisation = np.divide(busy, cores, out=np.zeros_like(busy), where=cores > 0)
    waits = waits_of(utilisation[np.newaxis], residual_s[np.newaxis], cores[np.newaxis])
    # An endless wait is one beyond every SLO; infinity times no visit would be no number.
    return Waits(
        mean_s=np.minimum(waits.mean_s, _ENDLESS_S),
        var_s2=np.where(np.isfinite(waits.var_s2), waits.var_s2, 0.0),
    )


_ENDLESS_S = 1e30
