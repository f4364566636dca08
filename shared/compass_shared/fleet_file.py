"""``fleet.toml``: the sites of a fleet, the links between them and the queries to serve.

Sites are agents, real or emulated (``[[agents]]``), or described by figures (``[[sites]]``). Queries are
listed, one for each site of a pattern, or drawn from a published grid with a seed: one per device and latency
level, with the accuracy, cost, rate and weight levels dealt out by the seed, so that nobody chose them.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from compass_shared.errors import ConfigError
from compass_shared.fleet_links import Links, LinkTable, Roster, connect
from compass_shared.fleet_sites import DescribedSite, SiteTable, describe_sites
from compass_shared.names import NAME_PATTERN, is_name
from compass_shared.query import Query, Slo, check_query
from compass_shared.site import Tier
from compass_shared.toml_file import convert, line_of, read_toml

SCHEMA = 1
MAX_FILE_BYTES = 64 * 1024 * 1024
MAX_QUERIES = 1_000_000


class ShapeTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the demo shapes an agent's traffic to one tier: a link of its device profile, or figures."""

    link: str | None = None
    """Name of a link in the agent's device profile; the figures below are then not given."""
    delay_s: float = 0.0
    """One way, added to the real one."""
    up_bps: float | None = None
    """Bytes per second; None leaves it as it is."""
    down_bps: float | None = None


class AgentTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One ``[[agents]]`` table: an agent or a worker."""

    name: str
    tier: Tier
    profile: str
    """Device profile: prices and power; also the speed if ``emulate``."""
    emulate: bool = False
    cores: float | None = None
    """Operators at once, if not the profile's."""
    utilisation_cap: float | None = None
    shape: dict[str, ShapeTable] = {}
    """Tier of the worker -> shape of the way there."""


class SloTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``slo`` of a query."""

    latency_p95_s: float
    accuracy: float
    cost_usd_per_1000: float
    metrics: dict[str, float] = {}
    """Extra metric of the pipeline -> its least mean."""


class QueryTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One ``[[queries]]`` table: a query, or one for each site of a pattern or tier."""

    name: str
    """Of several queries: what all their names begin with, ``NAME-1`` of ``phone-1`` and so on."""
    origin: str
    """A site, a pattern such as ``phone-*``, or a tier."""
    pipeline: str
    rate_hz: float
    slo: SloTable
    weight: float = 1.0
    divisible: bool = False
    """Its requests may be split over several plans, or served in part."""


class GridTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[query_grid]`` table; all level lists have the same length."""

    seed: int
    pipeline: str
    origins: tuple[str, ...]
    """Sites, patterns or tiers."""
    latency_p95_s: tuple[float, ...]
    accuracy: tuple[float, ...]
    cost_usd_per_1000: tuple[float, ...]
    rate_hz: tuple[float, ...]
    weight: tuple[float, ...]


class FleetDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    schema: int
    name: str
    agents: tuple[AgentTable, ...] = ()
    sites: tuple[SiteTable, ...] = ()
    links: tuple[LinkTable, ...] = ()
    """Between sites of this file; they take the place of measured ones."""
    queries: tuple[QueryTable, ...] = ()
    query_grid: GridTable | None = None


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """A validated fleet with its queries drawn."""

    name: str
    agents: tuple[AgentTable, ...]
    queries: tuple[Query, ...]
    sites: tuple[DescribedSite, ...] = ()
    links: Links = {}
    """Of ``[[links]]``, from origins of queries to what they may use, and back."""
    reach: Mapping[str, tuple[str, ...]] = {}
    """Origin -> the only sites that its queries may use besides it; agents are not listed."""


def load_fleet(path: Path) -> Fleet:
    """Load a fleet file.

    Raises:
        ConfigError: Naming file, field and line.
    """
    tables, text = read_toml(path, limit_bytes=MAX_FILE_BYTES)
    document = convert(tables, FleetDocument, file=path, text=text)
    try:
        return fleet_from(document)
    except ConfigError as error:
        line = line_of(text, error.field) if error.field else None
        raise ConfigError(error.problem, file=path, field=error.field, line=line) from error


def fleet_from(document: FleetDocument) -> Fleet:
    """Validate a document and draw its query grid.

    Raises:
        ConfigError: Naming the field.
    """
    if document.schema != SCHEMA:
        raise ConfigError(f"schema {document.schema} is not {SCHEMA}, the one known here", field="schema")
    if not is_name(document.name):
        raise ConfigError(f"{document.name!r} must match {NAME_PATTERN}", field="name")
    for index, agent in enumerate(document.agents):
        if not is_name(agent.name):
            raise ConfigError(f"{agent.name!r} must match {NAME_PATTERN}", field=f"agents[{index}].name")
        _check_agent(agent, field=f"agents[{index}]")
    sites = describe_sites(document.sites)
    roster = _roster(document, sites)
    queries = _queries(document, roster)
    reach, links = connect(
        document.sites, document.links, roster, list(dict.fromkeys(query.origin for query in queries))
    )
    return Fleet(
        name=document.name,
        agents=document.agents,
        queries=tuple(queries),
        sites=tuple(sites),
        links=links,
        reach=reach,
    )


def _roster(document: FleetDocument, sites: Sequence[DescribedSite]) -> Roster:
    """All sites by name; two of one name are refused where one of them stands."""
    tiers = {agent.name: agent.tier for agent in document.agents}
    tiers.update({described.site.name: described.site.tier for described in sites})
    names = [agent.name for agent in document.agents]
    if twice := _twice(names):
        raise ConfigError(f"two agents are called {twice!r}", field=f"agents[{names.index(twice)}].name")
    if len(tiers) < len(names) + len(sites):
        twice = _twice([*names, *(described.site.name for described in sites)])
        listed = [table.name for table in document.sites]
        where = f"[{listed.index(twice)}].name" if twice in listed else ""
        raise ConfigError(f"two sites are called {twice!r}", field=f"sites{where}")
    return Roster(tiers)


def _twice(names: Sequence[str]) -> str | None:
    """The first name in alphabetical order that is there more than once."""
    return min((name for name, count in Counter(names).items() if count > 1), default=None)


def _queries(document: FleetDocument, roster: Roster) -> list[Query]:
    queries: list[Query] = []
    for index, table in enumerate(document.queries):
        queries.extend(_listed(table, roster, field=f"queries[{index}]"))
        _check_count(len(queries), field="queries")
    if (grid := document.query_grid) is not None:
        origins = [name for text in grid.origins for name in roster.find(text, field="query_grid.origins")]
        _check_count(len(queries) + len(origins) * len(grid.latency_p95_s), field="query_grid")
        queries.extend(draw_grid(grid, origins))
    if twice := _twice([query.name for query in queries]):
        listed = [table.name for table in document.queries]
        field = f"queries[{listed.index(twice)}].name" if twice in listed else "query_grid.origins"
        if document.query_grid is None and twice not in listed:
            field = "queries"
        raise ConfigError(f"two queries are called {twice!r}", field=field)
    return queries


def _check_count(count: int, *, field: str) -> None:
    if count > MAX_QUERIES:
        raise ConfigError(f"{count:,} queries are more than {MAX_QUERIES:,}", field=field)


def _check_agent(agent: AgentTable, *, field: str) -> None:
    if unknown := set(agent.shape) - {tier.value for tier in Tier}:
        raise ConfigError(f"{sorted(unknown)[0]!r} is not a tier", field=f"{field}.shape")
    if agent.cores is not None and not 1 <= agent.cores < float("inf"):  # also refuses NaN
        raise ConfigError(f"{agent.cores} must be at least 1", field=f"{field}.cores")
    if agent.utilisation_cap is not None and not 0 < agent.utilisation_cap < 1:
        raise ConfigError(
            f"{agent.utilisation_cap} must lie between 0 and 1", field=f"{field}.utilisation_cap"
        )
    for tier, shape in agent.shape.items():
        where = f"{field}.shape.{tier}"
        if not 0 <= shape.delay_s < float("inf"):
            raise ConfigError(f"{shape.delay_s} must not be negative", field=f"{where}.delay_s")
        for name, rate_bps in (("up_bps", shape.up_bps), ("down_bps", shape.down_bps)):
            if rate_bps is not None and not 0 < rate_bps < float("inf"):
                raise ConfigError(f"{rate_bps} must be a positive number", field=f"{where}.{name}")


def draw_grid(grid: GridTable, origins: Sequence[str]) -> list[Query]:
    """Draw the queries of a grid: the same seed gives the same queries on every machine.

    Args:
        grid: Levels and seed.
        origins: The sites that it names.

    Raises:
        ConfigError: If level lists differ in length or a level makes no sense.
    """
    levels = len(grid.latency_p95_s)
    lists = {
        "accuracy": grid.accuracy,
        "cost_usd_per_1000": grid.cost_usd_per_1000,
        "rate_hz": grid.rate_hz,
        "weight": grid.weight,
    }
    for field, values in lists.items():
        if len(values) != levels:
            raise ConfigError(f"needs {levels} values, as latency_p95_s", field=f"query_grid.{field}")
    rng = random.Random(grid.seed)  # noqa: S311  # a published draw, not a secret
    queries = []
    for origin in origins:
        deal = {field: _shuffled(values, rng) for field, values in lists.items()}
        for level, latency_s in enumerate(grid.latency_p95_s):
            table = QueryTable(
                name=f"{origin}-{level + 1}",
                origin=origin,
                pipeline=grid.pipeline,
                rate_hz=deal["rate_hz"][level],
                weight=deal["weight"][level],
                slo=SloTable(
                    latency_p95_s=latency_s,
                    accuracy=deal["accuracy"][level],
                    cost_usd_per_1000=deal["cost_usd_per_1000"][level],
                ),
            )
            queries.append(_query(table, field="query_grid"))
    return queries


def scaled(queries: Sequence[Query], factor: float) -> tuple[Query, ...]:
    """The same queries at ``factor`` times their rates."""
    return tuple(replace(query, rate_hz=query.rate_hz * factor) for query in queries)


def _shuffled(values: Sequence[float], rng: random.Random) -> list[float]:
    return rng.sample(list(values), len(values))


def _listed(table: QueryTable, roster: Roster, *, field: str) -> list[Query]:
    """The queries of one table: every origin has its own, alike but for the name."""
    origins = roster.find(table.origin, field=f"{field}.origin")
    if origins == (table.origin,):
        return [_query(table, field=field)]
    alike = _query(table, field=field)
    shared = len(table.origin) - 1 if table.origin.endswith("*") else 0
    queries = [replace(alike, name=f"{table.name}-{origin[shared:]}", origin=origin) for origin in origins]
    for query in queries:
        if not is_name(query.name):
            raise ConfigError(f"{query.name!r} must match {NAME_PATTERN}", field=f"{field}.name")
    return queries


def _query(table: QueryTable, *, field: str) -> Query:
    for name in ("name", "pipeline"):
        if not is_name(text := getattr(table, name)):
            raise ConfigError(f"{text!r} must match {NAME_PATTERN}", field=f"{field}.{name}")
    query = Query(
        name=table.name,
        origin=table.origin,
        pipeline=table.pipeline,
        rate_hz=table.rate_hz,
        weight=table.weight,
        divisible=table.divisible,
        slo=Slo(
            latency_p95_s=table.slo.latency_p95_s,
            accuracy=table.slo.accuracy,
            cost_usd_per_1000=table.slo.cost_usd_per_1000,
            metrics=table.slo.metrics,
        ),
    )
    return check_query(query, field=field)
