"""A fleet's sites, links and queries as arrays: read once, so that nothing after it loops over objects."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compass_coordinator.estimator import Floats, Indices, waits_at
from compass_shared.problem import Problem, SiteLoad
from compass_shared.profile import SiteProfile
from compass_shared.query import Query
from compass_shared.site import Link, Tier, cores_resource, link_resource

TIERS = tuple(Tier)
NO_CAPS: Mapping[str, float] = {}
BLOCKED_S = 1e30
"""Stands for an endless wait: beyond every SLO, and still 0 when it is not visited (0 x inf is nan)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SiteTable:
    """Sites, in the order of the problem; arrays are ``(sites,)``."""

    names: tuple[str, ...]
    at: Mapping[str, int]
    tier: Indices
    """Index into ``TIERS``."""
    compute_s_usd: Floats
    egress_byte_usd: Floats
    wait_mean_s: Floats
    wait_var_s2: Floats

    @classmethod
    def of(cls, problem: Problem, loads: Mapping[str, SiteLoad]) -> SiteTable:
        """Sites of a problem, with the wait of one visit at the given loads."""
        sites = tuple(problem.sites.values())
        names = tuple(problem.sites)
        waits = waits_at(problem, names, loads)
        order = {tier: index for index, tier in enumerate(TIERS)}
        endless = ~np.isfinite(waits.mean_s[:, 0])
        return cls(
            names=names,
            at={name: index for index, name in enumerate(names)},
            tier=np.array([order[site.tier] for site in sites], dtype=np.int64),
            compute_s_usd=np.array([site.compute_s_usd for site in sites]),
            egress_byte_usd=np.array([site.prices.egress_byte_usd for site in sites]),
            wait_mean_s=np.where(endless, BLOCKED_S, waits.mean_s[:, 0]),
            wait_var_s2=np.where(endless, 0.0, waits.var_s2[:, 0]),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LinkTable:
    """Links, in the order of the problem; arrays are ``(links,)``."""

    at: Mapping[tuple[str, str], int]
    rtt_s: Floats
    rtt_var_s2: Floats
    byte_s: Floats
    """1 / bandwidth."""
    byte_rel_var: Floats
    """``(relative deviation / bandwidth)^2``."""

    @classmethod
    def of(cls, links: Mapping[tuple[str, str], Link]) -> LinkTable:
        """All links of a problem."""
        listed = tuple(links.values())
        byte_s = 1.0 / np.array([link.bandwidth_bps for link in listed])
        return cls(
            at={ends: index for index, ends in enumerate(links)},
            rtt_s=np.array([link.rtt_s for link in listed]),
            rtt_var_s2=np.array([link.rtt_var_s2 for link in listed]),
            byte_s=byte_s,
            byte_rel_var=(np.array([link.bandwidth_rel_sd for link in listed]) * byte_s) ** 2,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QueryTable:
    """Queries, in the order of the problem; arrays are ``(queries,)``."""

    rate_hz: Floats
    weight: Floats
    latency_p95_s: Floats
    accuracy: Floats
    cost_usd: Floats
    """Most that one request may cost."""
    divisible: NDArray[np.bool_]

    @classmethod
    def of(cls, queries: Sequence[Query]) -> QueryTable:
        """The numbers of some queries."""
        slos = [query.slo for query in queries]
        return cls(
            rate_hz=np.array([query.rate_hz for query in queries], dtype=np.float64),
            weight=np.array([query.weight for query in queries], dtype=np.float64),
            latency_p95_s=np.array([slo.latency_p95_s for slo in slos], dtype=np.float64),
            accuracy=np.array([slo.accuracy for slo in slos], dtype=np.float64),
            cost_usd=np.array([slo.cost_usd_per_1000 for slo in slos], dtype=np.float64) / 1000,
            divisible=np.array([query.divisible for query in queries], dtype=np.bool_),
        )

    def __len__(self) -> int:
        return len(self.rate_hz)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SpeedTable:
    """How fast the sites of one pipeline are; rows are sites, rows that were not profiled are ones."""

    classes: tuple[str, ...]
    slowdowns: Floats
    """(sites, classes)."""
    overhead_s: Floats
    """(sites,) constant time of every call."""

    @classmethod
    def of(cls, problem: Problem, sites: SiteTable, pipeline: str) -> SpeedTable:
        """Speeds of all sites that were profiled for a pipeline."""
        found = _profiles(problem, sites, pipeline)
        classes = tuple(sorted({name for profile in found.values() for name in profile.slowdowns}))
        slowdowns = np.ones((len(sites.names), len(classes) + 1))
        overhead_s = np.zeros(len(sites.names))
        rows = np.fromiter(found, dtype=np.int64, count=len(found))
        for column, name in enumerate(classes):
            slowdowns[rows, column] = [profile.slowdowns.get(name, 1.0) for profile in found.values()]
        overhead_s[rows] = [profile.overhead_s for profile in found.values()]
        return cls(classes=classes, slowdowns=slowdowns, overhead_s=overhead_s)

    def slowdown(self, speed_class: str, sites: Indices) -> Floats:
        """Slowdown of a class at some sites; 1 for classes that none of them lists."""
        column = self.classes.index(speed_class) if speed_class in self.classes else len(self.classes)
        return np.asarray(self.slowdowns[sites, column])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FleetTables:
    """Everything that coefficients are made of."""

    sites: SiteTable
    links: LinkTable
    queries: QueryTable
    speeds: Mapping[str, SpeedTable]
    """Pipeline -> speeds."""
    resources: tuple[str, ...]
    """Cores of every site, then every link."""
    capacities: Floats
    """(resources,) what may be handed out."""

    @classmethod
    def of(
        cls, problem: Problem, loads: Mapping[str, SiteLoad], caps: Mapping[str, float] = NO_CAPS
    ) -> FleetTables:
        """Read a problem; sites without a load have no wait, those in ``caps`` a lower cap than their own."""
        sites = SiteTable.of(problem, loads)
        used = {query.pipeline for query in problem.queries}
        links = tuple(problem.links.values())
        cores = [
            site.cores * min(site.utilisation_cap, caps.get(name, math.inf))
            for name, site in problem.sites.items()
        ]
        bandwidths = [link.bandwidth_bps * link.utilisation_cap for link in links]
        return cls(
            sites=sites,
            links=LinkTable.of(problem.links),
            queries=QueryTable.of(problem.queries),
            speeds={name: SpeedTable.of(problem, sites, name) for name in sorted(used)},
            resources=(
                *(cores_resource(name) for name in sites.names),
                *(link_resource(link.source, link.target) for link in links),
            ),
            capacities=np.array([*cores, *bandwidths], dtype=np.float64),
        )


def _profiles(problem: Problem, sites: SiteTable, pipeline: str) -> dict[int, SiteProfile]:
    """Row of every profiled site -> its profile."""
    return {
        row: problem.profiles[name, pipeline]
        for row, name in enumerate(sites.names)
        if (name, pipeline) in problem.profiles
    }
