"""Estimates of many plans at once: every config at every given placement, as arrays.

A ``PlanSpace`` holds what no load and no rate changes: per plan the work, bytes and cost of one request, and
per path through its segments the mean and variance of the time without waiting. Waits depend on the site
alone, so latency at any load is those figures plus visits x wait: a few passes over arrays. The definition is
in ``compass_shared.problem``; ``compass_shared.evaluate`` computes the same for one plan.

Shapes: n plans (placement-major, configs in the order of ``Pipeline.configs``), s sites, r resources, k
paths.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from compass_shared.pipeline import Config, Pipeline
from compass_shared.plan import Estimate, Placement, Plan
from compass_shared.problem import Z95, Problem, SiteLoad
from compass_shared.query import Query
from compass_shared.queueing import SiteMix

Floats: TypeAlias = NDArray[np.float64]
Indices: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PlanSpace:
    """Plans of one pipeline from one origin, and what one request costs under each."""

    pipeline: Pipeline
    origin: str
    sites: tuple[str, ...]
    resources: tuple[str, ...]
    configs: tuple[Config, ...]
    placements: tuple[Placement, ...]
    config_of: Indices
    """(n,) index into ``configs``."""
    placement_of: Indices
    """(n,) index into ``placements``."""
    accuracy: Floats
    """(n,), nan where the config is not in the accuracy table."""
    cost_usd: Floats
    """(n,) per request; nan, like all below, where a variant was not measured at its site."""
    usage: Floats
    """(n, r) of each resource per request: core seconds, bytes."""
    busy_s: Floats
    """(s, n) core seconds per request."""
    second_moment_s2: Floats
    """(s, n) sum of E[S^2] over the segments that visit the site."""
    metrics: Mapping[str, Floats]
    """Extra metric -> (n,), nan where it was not measured."""
    serial_s: Floats
    """(n,) longest mean time of an operator with state, over its site's utilisation cap; 0 without any."""
    path_mean_s: Floats
    """(k, n) without waiting; -inf where a plan has fewer paths."""
    path_var_s2: Floats
    """(k, n)."""
    path_visits: Floats
    """(k, s, n) segments of the path at each site."""

    def __len__(self) -> int:
        return len(self.accuracy)

    def take(self, rows: Indices) -> PlanSpace:
        """Only the plans of these rows, in their order."""
        return PlanSpace(
            pipeline=self.pipeline,
            origin=self.origin,
            sites=self.sites,
            resources=self.resources,
            configs=self.configs,
            placements=self.placements,
            config_of=self.config_of[rows],
            placement_of=self.placement_of[rows],
            accuracy=self.accuracy[rows],
            metrics={name: values[rows] for name, values in self.metrics.items()},
            serial_s=self.serial_s[rows],
            cost_usd=self.cost_usd[rows],
            usage=self.usage[rows],
            busy_s=self.busy_s[:, rows],
            second_moment_s2=self.second_moment_s2[:, rows],
            path_mean_s=self.path_mean_s[:, rows],
            path_var_s2=self.path_var_s2[:, rows],
            path_visits=self.path_visits[:, :, rows],
        )

    def plan(self, row: int, estimate: Estimate | None = None) -> Plan:
        """The plan of one row."""
        return Plan(
            config=self.configs[self.config_of[row]],
            placement=self.placements[self.placement_of[row]],
            estimate=estimate,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Waits:
    """Wait of one visit to each of some sites, the same for all plans (m = 1) or one per plan (m = n)."""

    mean_s: Floats
    """(s, m)."""
    var_s2: Floats
    """(s, m)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Estimates:
    """What the plans of a space are predicted to do for one query."""

    resources: tuple[str, ...]
    latency_mean_s: Floats
    """(n,), of the path whose p95 is the largest."""
    latency_var_s2: Floats
    latency_p95_s: Floats
    accuracy: Floats
    cost_usd_per_1000: Floats
    demand: Floats
    """(n, r) at the query's rate."""
    metrics: Mapping[str, Floats]
    """Extra metric -> (n,)."""
    serial: Floats
    """(n,) how busy the query keeps its busiest operator with state, as a share of what the site allows."""

    def take(self, rows: Indices) -> Estimates:
        """Only these rows, in their order."""
        return Estimates(
            resources=self.resources,
            latency_mean_s=self.latency_mean_s[rows],
            latency_var_s2=self.latency_var_s2[rows],
            latency_p95_s=self.latency_p95_s[rows],
            accuracy=self.accuracy[rows],
            cost_usd_per_1000=self.cost_usd_per_1000[rows],
            demand=self.demand[rows],
            metrics={name: values[rows] for name, values in self.metrics.items()},
            serial=self.serial[rows],
        )

    def row(self, row: int) -> Estimate:
        """One row as the estimate of a plan."""
        return Estimate(
            latency_mean_s=float(self.latency_mean_s[row]),
            latency_var_s2=float(self.latency_var_s2[row]),
            latency_p95_s=float(self.latency_p95_s[row]),
            accuracy=float(self.accuracy[row]),
            cost_usd_per_1000=float(self.cost_usd_per_1000[row]),
            demand={
                name: float(amount)
                for name, amount in zip(self.resources, self.demand[row], strict=True)
                if amount > 0
            },
            metrics={
                name: float(values[row]) for name, values in self.metrics.items() if np.isfinite(values[row])
            },
        )


def estimate(space: PlanSpace, query: Query, waits: Waits) -> Estimates:
    """Estimates of all plans of a space.

    Args:
        space: Plans of the query's pipeline from its origin.
        query: Gives the rate.
        waits: At ``space.sites``.
    """
    mean_s, var_s2, p95_s = latency(space, waits)
    return Estimates(
        resources=space.resources,
        latency_mean_s=mean_s,
        latency_var_s2=var_s2,
        latency_p95_s=p95_s,
        accuracy=space.accuracy,
        cost_usd_per_1000=1000 * space.cost_usd,
        demand=query.rate_hz * space.usage,
        metrics=space.metrics,
        serial=query.rate_hz * space.serial_s,
    )


def latency(space: PlanSpace, waits: Waits) -> tuple[Floats, Floats, Floats]:
    """Mean, variance and p95 of the worst path of every plan.

    Args:
        space: n plans, or a single one that is looked at under m different waits.
        waits: At ``space.sites``.

    Returns:
        Three arrays ``(max(n, m),)`` float64, in seconds and seconds squared.
    """
    mean_s = space.path_mean_s + _waiting(space.path_visits, waits.mean_s)
    var_s2 = space.path_var_s2 + _waiting(space.path_visits, waits.var_s2)
    p95_s = mean_s + Z95 * np.sqrt(var_s2)
    worst = np.argmax(p95_s, axis=0)[np.newaxis]
    return (
        np.take_along_axis(mean_s, worst, axis=0)[0],
        np.take_along_axis(var_s2, worst, axis=0)[0],
        np.take_along_axis(p95_s, worst, axis=0)[0],
    )


def waits_at(problem: Problem, sites: Sequence[str], loads: Mapping[str, SiteLoad]) -> Waits:
    """Waits at given loads; sites without a load have none.

    Returns:
        Arrays ``(sites, 1)``.
    """
    idle = SiteLoad(utilisation=0.0, residual_s=0.0)
    met = [loads.get(site, idle) for site in sites]
    return waits_of(
        np.array([[load.utilisation] for load in met]),
        np.array([[load.residual_s] for load in met]),
        _cores(problem, sites),
    )


def waits_joining(
    problem: Problem, sites: Sequence[str], mixes: Mapping[str, SiteMix], joining: PlanSpace, rate_hz: float
) -> Waits:
    """Waits when a query joins those already there, for each plan that it could bring.

    Args:
        problem: Knows the sites' cores.
        sites: Where to look; they need not be those of ``joining``.
        mixes: What the others bring; sites that are not listed are free.
        joining: The plans that could join.
        rate_hz: Requests per second that would run by the joining plan.

    Returns:
        Arrays ``(sites, plans of joining)``.
    """
    busy = np.array([[mixes[site].busy_cores if site in mixes else 0.0] for site in sites])
    second = np.array([[mixes[site].second_moment_s if site in mixes else 0.0] for site in sites])
    own = [joining.sites.index(site) if site in joining.sites else None for site in sites]
    none = np.zeros(len(joining))
    busy = busy + rate_hz * np.array([none if at is None else joining.busy_s[at] for at in own])
    second = second + rate_hz * np.array([none if at is None else joining.second_moment_s2[at] for at in own])
    cores = _cores(problem, sites)
    residual_s = np.divide(second, 2 * busy, out=np.zeros_like(busy), where=busy > 0)
    utilisation = np.divide(busy, cores, out=np.zeros_like(busy), where=cores > 0)
    return waits_of(utilisation, residual_s, cores)


def _waiting(visits: Floats, wait: Floats) -> Floats:
    """Visits x wait summed over sites, ``(k, s, n) x (s, m) -> (k, max(n, m))``; 0 x inf is 0."""
    shape = np.broadcast_shapes(visits.shape, wait.shape)
    each = np.multiply(visits, wait, out=np.zeros(shape), where=np.broadcast_to(visits > 0, shape))
    return np.asarray(each.sum(axis=1))


def waits_of(utilisation: Floats, residual_s: Floats, cores: Floats) -> Waits:
    """Sakasegawa's wait, elementwise over arrays ``(s, m)``; see ``compass_shared.queueing.wait_at``."""
    servers = np.maximum(1, np.floor(cores))
    exponent = np.sqrt(2 * (servers + 1)) - 1
    inside = (utilisation > 0) & (utilisation < 1)
    rho = np.where(inside, utilisation, 0.5)
    mean_s = rho**exponent / (servers * (1 - rho)) * residual_s
    var_s2 = mean_s**2 * (2 / rho - 1)
    outside = np.where(utilisation >= 1, np.inf, 0.0)
    return Waits(mean_s=np.where(inside, mean_s, outside), var_s2=np.where(inside, var_s2, outside))


def _cores(problem: Problem, sites: Sequence[str]) -> Floats:
    return np.array([[problem.sites[site].cores] for site in sites])
