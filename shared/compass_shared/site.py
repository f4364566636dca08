"""Sites that run operators, and the links between them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum


class Tier(Enum):
    """How far from the user a site stands."""

    DEVICE = "device"
    EDGE = "edge"
    CLOUD = "cloud"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What using a site costs, in US dollars."""

    core_s_usd: float = 0.0
    """One core for one second."""
    egress_byte_usd: float = 0.0
    """One byte sent by this site to another."""
    energy_j_usd: float = 0.0
    """One joule spent computing (battery wear and electricity)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Units:
    """How a pool is bought: in equal units by the hour."""

    cores: float
    """That one unit brings."""
    usd_per_hour: float
    minimum: int = 0
    maximum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A place that can run operators."""

    name: str
    tier: Tier
    cores: float
    """Operators it can run at once; the physical capacity of its ``cores@NAME`` resource."""
    utilisation_cap: float = 0.7
    """Share of the capacity that the matcher may hand out; waiting is evaluated there."""
    prices: Prices = field(default_factory=Prices)
    power_w: float = 0.0
    """Power drawn by one busy core."""
    memory_bytes: float = math.inf
    """For models; every machine of a pool holds all variants that the pool hosts."""
    units: Units | None = None
    """None: its size is fixed."""

    @property
    def compute_s_usd(self) -> float:
        """Cost of one second of one busy core: rent and energy."""
        return self.prices.core_s_usd + self.power_w * self.prices.energy_j_usd


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """The measured, directed way from one site to another."""

    source: str
    target: str
    rtt_s: float
    """Mean round trip of an empty call, both ways together."""
    rtt_var_s2: float = 0.0
    bandwidth_bps: float
    """Bytes (not bits) per second in this direction."""
    bandwidth_rel_sd: float = 0.0
    """Relative standard deviation of the bandwidth estimate; shared by all transfers on the link."""
    utilisation_cap: float = 0.7


def cores_resource(site: str) -> str:
    """Name of a site's compute resource; its unit is busy cores."""
    return f"cores@{site}"


def link_resource(source: str, target: str) -> str:
    """Name of a link's resource; its unit is bytes per second."""
    return f"link@{source}>{target}"


def memory_resource(site: str) -> str:
    """Name of a site's memory for models; its unit is bytes. A set-up, not a demand: no matcher sees it."""
    return f"memory@{site}"


def transfer_time_s(size_bytes: float, link: Link) -> float:
    """Mean time to move one payload one way, queueing excluded.

    Args:
        size_bytes: Encoded payload, >= 0.
        link: Directed link.

    Returns:
        Half a round trip plus the payload's time on the wire, in seconds.

    Raises:
        ValueError: If ``size_bytes`` is negative.
    """
    if size_bytes < 0:
        raise ValueError(f"size_bytes must be >= 0, got {size_bytes}")
    return link.rtt_s / 2 + size_bytes / link.bandwidth_bps
