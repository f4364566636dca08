"""``[[sites]]`` of a fleet file: sites that figures describe, for planning a fleet on paper.

A table stands for one site, or with ``count`` for that many alike: ``phone-1``, ``phone-2``, ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import msgspec

from compass_shared.device_profile import DeviceProfile, find_device_profile
from compass_shared.errors import ConfigError
from compass_shared.figures import Count, NotNegative, Number, Positive, Share
from compass_shared.names import NAME_PATTERN, is_name
from compass_shared.site import Prices, Site, Tier, Units

MAX_SITES = 100_000


class PricesTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``prices`` of a site, in US dollars."""

    core_s_usd: NotNegative | None = None
    """One core for one second."""
    egress_byte_usd: NotNegative | None = None
    """One byte sent by this site to another."""
    energy_j_usd: NotNegative | None = None
    """One joule spent computing."""


class UnitsTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a pool is bought: the ``units`` of a site."""

    cores: Positive
    """That one unit brings."""
    usd_per_hour: NotNegative
    minimum: Number = 0
    maximum: Number


class SiteTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One ``[[sites]]`` table: a site, or ``count`` sites alike."""

    name: str
    tier: Tier
    count: Count | None = None
    """Makes ``name-1`` to ``name-count``."""
    profile: str | None = None
    """Device profile: speed, cores, prices, power and memory, where the table does not give them itself."""
    kind: str | None = None
    """Table of work in the profiles file. None: the file has measurements of a site of this very name."""
    cores: Positive | None = None
    """Operators at once. None: the device profile's; of a pool bought in units, as many as there may be."""
    utilisation_cap: Share | None = None
    """Share of the cores that plans may use; 0.7 unless the device profile says otherwise."""
    prices: PricesTable = PricesTable()
    power_w: NotNegative | None = None
    """Drawn by one busy core."""
    memory_bytes: Positive | None = None
    """Room for models; None: no limit."""
    units: UnitsTable | None = None
    slowdowns: dict[str, Positive] = {}
    """Speed class -> time here over time in the table of work; ``default`` for the classes not listed."""
    overhead_s: NotNegative = 0.0
    """Constant time of every operator call."""
    reach: tuple[str, ...] | None = None
    """Sites that queries from here may use, if not all that links lead to."""
    reach_some: dict[str, Count] = {}
    """Pattern -> how many of these sites each site of the table reaches: the first one the first few, the
    second one those from the second on, and so round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DescribedSite:
    """A site of a ``[[sites]]`` table; sites of one table share all but the ``Site``."""

    site: Site
    kind: str | None
    slowdowns: Mapping[str, float]
    """As in the table or its device profile; may hold ``default``."""
    overhead_s: float


def describe_sites(tables: Sequence[SiteTable]) -> list[DescribedSite]:
    """Make the sites of all tables.

    Raises:
        ConfigError: Naming the field.
    """
    if (total := sum(table.count or 1 for table in tables)) > MAX_SITES:
        raise ConfigError(f"{total:,} sites are more than {MAX_SITES:,}", field="sites")
    described: list[DescribedSite] = []
    for index, table in enumerate(tables):
        where = f"sites[{index}]"
        first = _described(table, field=where)
        for name in names_of(table):
            if not is_name(name):
                raise ConfigError(f"{name!r} must match {NAME_PATTERN}", field=f"{where}.name")
            described.append(replace(first, site=replace(first.site, name=name)))
    return described


def names_of(table: SiteTable) -> list[str]:
    """Names of the sites of a table."""
    if table.count is None:
        return [table.name]
    return [f"{table.name}-{number}" for number in range(1, table.count + 1)]


def _described(table: SiteTable, *, field: str) -> DescribedSite:
    profile = _profile(table, field)
    units = None
    if table.units is not None:
        units = Units(**msgspec.structs.asdict(table.units))
        if units.minimum > units.maximum:
            raise ConfigError(
                f"minimum {units.minimum} is above maximum {units.maximum}", field=f"{field}.units"
            )
    cores = table.cores
    if cores is None and units is not None:
        cores = units.maximum * units.cores
    if cores is None and profile is not None:
        cores = profile.cores.value
    if not cores:
        raise ConfigError("say how many cores it has, or name a device profile", field=f"{field}.cores")
    given = {name: price for name, price in msgspec.structs.asdict(table.prices).items() if price is not None}
    site = Site(
        name=table.name,
        tier=table.tier,
        cores=cores,
        utilisation_cap=table.utilisation_cap or (profile.utilisation_cap if profile else 0.7),
        prices=replace(profile.prices() if profile else Prices(), **given),
        power_w=_power_w(table, profile),
        memory_bytes=table.memory_bytes or (profile.memory_bytes.value if profile else float("inf")),
        units=units,
    )
    slowdowns = {**(profile.slowdowns() if profile else {}), **table.slowdowns}
    return DescribedSite(site=site, kind=table.kind, slowdowns=slowdowns, overhead_s=table.overhead_s)


def _profile(table: SiteTable, field: str) -> DeviceProfile | None:
    if table.profile is None:
        return None
    try:
        return find_device_profile(table.profile)
    except ConfigError as error:
        raise ConfigError(str(error), field=f"{field}.profile") from error


def _power_w(table: SiteTable, profile: DeviceProfile | None) -> float:
    """A device's energy is paid by its owner; a rent includes it."""
    if table.power_w is not None:
        return table.power_w
    return profile.power_w.value if profile and table.tier is Tier.DEVICE else 0.0
