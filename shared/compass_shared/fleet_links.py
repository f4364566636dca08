"""``[[links]]`` of a fleet file, and who reaches whom.

What a file says of several sites names them by a pattern (``phone-*``) or by their tier.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec

from compass_shared.errors import ConfigError
from compass_shared.figures import NotNegative, Positive, Share
from compass_shared.fleet_sites import SiteTable, names_of
from compass_shared.site import Link, Tier

MAX_LINKS = 2_000_000
"""Directed; more of them would take gigabytes."""

Links: TypeAlias = Mapping[tuple[str, str], Link]
"""(source, target) -> link."""


class LinkTable(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename={"source": "from", "target": "to"},
):
    """One ``[[links]]`` table: both directions between every site of ``from`` and every site of ``to``."""

    source: str
    """Where requests arise: a site, a pattern or a tier."""
    target: str
    rtt_s: NotNegative
    """Mean round trip of an empty call."""
    rtt_var_s2: NotNegative = 0.0
    up_bps: Positive
    """Bytes per second from ``from`` to ``to``."""
    down_bps: Positive
    """Bytes per second back."""
    rel_sd: NotNegative = 0.0
    """Relative standard deviation of both."""
    utilisation_cap: Share = 0.7

    def both_ways(self, source: str, target: str) -> Iterator[Link]:
        """The link between two sites and the one back."""
        for start, end, rate_bps in ((source, target, self.up_bps), (target, source, self.down_bps)):
            yield Link(
                source=start,
                target=end,
                rtt_s=self.rtt_s,
                rtt_var_s2=self.rtt_var_s2,
                bandwidth_bps=rate_bps,
                bandwidth_rel_sd=self.rel_sd,
                utilisation_cap=self.utilisation_cap,
            )


@dataclass(slots=True)
class Roster:
    """All sites of a fleet by name, to find those that a file speaks of."""

    tiers: Mapping[str, Tier]
    """Site -> tier, in the file's order."""
    _found: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def find(self, text: str, *, field: str) -> tuple[str, ...]:
        """Sites of that name, pattern (``phone-*``) or tier.

        Raises:
            ConfigError: If there are none, or a tier's name is that of a site as well.
        """
        if text not in self._found:
            self._found[text] = self._look_up(text, field)
        return self._found[text]

    def _look_up(self, text: str, field: str) -> tuple[str, ...]:
        of_tier = tuple(name for name, tier in self.tiers.items() if tier.value == text)
        if text in self.tiers:
            if set(of_tier) - {text}:
                raise ConfigError(
                    f"{text!r} is both a site and the tier of others: rename the site", field=field
                )
            return (text,)
        if text in {tier.value for tier in Tier}:
            found = of_tier
        elif text.endswith("*"):
            found = tuple(name for name in self.tiers if name.startswith(text[:-1]))
        else:
            found = ()
        if not found:
            raise ConfigError(
                f"no agent or site is called {text!r}; name one, a pattern such as 'phone-*', or a tier",
                field=field,
            )
        return found


@dataclass(frozen=True, slots=True)
class _Way:
    """A ``[[links]]`` table with the sites at its ends."""

    table: LinkTable
    sources: frozenset[str]
    targets: tuple[str, ...]
    targeted: frozenset[str]


def connect(
    sites: Sequence[SiteTable], links: Sequence[LinkTable], roster: Roster, origins: Sequence[str]
) -> tuple[dict[str, tuple[str, ...]], Links]:
    """Which sites the queries of each origin may use, and the links that lead there.

    Args:
        sites: ``[[sites]]`` tables; those that say nothing of reach reach all that links lead to.
        links: ``[[links]]`` tables; of several that join two sites the last one counts.
        roster: All sites.
        origins: Sites that queries arise at.

    Returns:
        Origin -> sites, for the origins that are of a ``[[sites]]`` table, and the links, both directions.

    Raises:
        ConfigError: Naming the field.
    """
    ways = [_way(table, roster, field=f"links[{index}]") for index, table in enumerate(links)]
    wanted = dict.fromkeys(origins)
    reach: dict[str, tuple[str, ...]] = {}
    for index, site in enumerate(sites):
        for position, name in enumerate(names_of(site)):
            if name in wanted:
                found = _reach(site, position, roster, _leading(ways, name), field=f"sites[{index}]")
                reach[name] = tuple(other for other in dict.fromkeys(found) if other != name)
    drawn: dict[tuple[str, str], Link] = {}
    for origin in wanted:
        leading = _leading(ways, origin)
        led_to = dict.fromkeys(name for way in leading for name in way.targets)
        targets = reach.get(origin, tuple(led_to))
        for target in targets:
            fitting = next((way.table for way in reversed(leading) if target in way.targeted), None)
            if fitting is not None and target != origin:
                drawn.update({(link.source, link.target): link for link in fitting.both_ways(origin, target)})
        if len(drawn) > MAX_LINKS:
            raise ConfigError(
                f"more than {MAX_LINKS:,} links: say with reach or reach_some what each site reaches",
                field="links",
            )
    return reach, drawn


def _way(table: LinkTable, roster: Roster, *, field: str) -> _Way:
    targets = roster.find(table.target, field=f"{field}.to")
    sources = frozenset(roster.find(table.source, field=f"{field}.from"))
    return _Way(table=table, sources=sources, targets=targets, targeted=frozenset(targets))


def _leading(ways: Sequence[_Way], origin: str) -> list[_Way]:
    return [way for way in ways if origin in way.sources]


def _reach(
    site: SiteTable, position: int, roster: Roster, leading: Sequence[_Way], *, field: str
) -> Iterator[str]:
    if site.reach is None and not site.reach_some:
        for way in leading:
            yield from way.targets
    for text in site.reach or ():
        yield from roster.find(text, field=f"{field}.reach")
    for text, each in site.reach_some.items():
        ring = roster.find(text, field=f"{field}.reach_some")
        if each > len(ring):
            raise ConfigError(f"{text!r} are {len(ring)} sites, not {each}", field=f"{field}.reach_some")
        yield from (ring[(position + step) % len(ring)] for step in range(each))
