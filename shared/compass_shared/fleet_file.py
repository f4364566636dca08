"""``fleet.toml``: the sites of a fleet, the links between them and the queries to serve.

Queries are listed, or drawn from a published grid with a seed: one per device and latency level, with the
accuracy, cost, rate and weight levels dealt out by the seed, so that nobody chose them one by one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from compass_shared.errors import ConfigError
from compass_shared.names import is_name
from compass_shared.query import Query, Slo, check_query
from compass_shared.site import Tier
from compass_shared.toml_file import convert, line_of, read_toml

SCHEMA = 1


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


class QueryTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One ``[[queries]]`` table."""

    name: str
    origin: str
    pipeline: str
    rate_hz: float
    slo: SloTable
    weight: float = 1.0


class GridTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The ``[query_grid]`` table; all level lists have the same length."""

    seed: int
    pipeline: str
    origins: tuple[str, ...]
    latency_p95_s: tuple[float, ...]
    accuracy: tuple[float, ...]
    cost_usd_per_1000: tuple[float, ...]
    rate_hz: tuple[float, ...]
    weight: tuple[float, ...]


class FleetDocument(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    schema: int
    name: str
    agents: tuple[AgentTable, ...]
    queries: tuple[QueryTable, ...] = ()
    query_grid: GridTable | None = None


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """A validated fleet with its queries drawn."""

    name: str
    agents: tuple[AgentTable, ...]
    queries: tuple[Query, ...]


def load_fleet(path: Path) -> Fleet:
    """Load a fleet file.

    Raises:
        ConfigError: Naming file, field and line.
    """
    tables, text = read_toml(path)
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
        raise ConfigError(f"{document.name!r} must match [a-z0-9-]{{1,64}}", field="name")
    agents = {agent.name for agent in document.agents}
    for index, agent in enumerate(document.agents):
        if not is_name(agent.name):
            raise ConfigError(f"{agent.name!r} must match [a-z0-9-]{{1,64}}", field=f"agents[{index}].name")
        if sum(other.name == agent.name for other in document.agents) > 1:
            raise ConfigError(f"two agents are called {agent.name!r}", field=f"agents[{index}].name")
        _check_agent(agent, field=f"agents[{index}]")
    queries = [_query(table, agents, field=f"queries[{i}]") for i, table in enumerate(document.queries)]
    if document.query_grid is not None:
        queries.extend(draw_grid(document.query_grid, agents))
    names = [query.name for query in queries]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        listed = [table.name for table in document.queries]
        field = f"queries[{listed.index(twice[0])}].name" if twice[0] in listed else "query_grid.origins"
        raise ConfigError(f"two queries are called {twice[0]!r}", field=field)
    return Fleet(name=document.name, agents=document.agents, queries=tuple(queries))


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


def draw_grid(grid: GridTable, agents: set[str]) -> list[Query]:
    """Draw the queries of a grid: the same seed gives the same queries on every machine.

    Raises:
        ConfigError: If level lists differ in length or an origin is unknown.
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
    for origin in grid.origins:
        if origin not in agents:
            raise ConfigError(f"no agent is called {origin!r}", field="query_grid.origins")
    rng = random.Random(grid.seed)  # noqa: S311  # a published draw, not a secret
    queries = []
    for origin in grid.origins:
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
            queries.append(_query(table, agents, field="query_grid"))
    return queries


def scaled(queries: Sequence[Query], factor: float) -> tuple[Query, ...]:
    """The same queries at ``factor`` times their rates."""
    return tuple(replace(query, rate_hz=query.rate_hz * factor) for query in queries)


def _shuffled(values: Sequence[float], rng: random.Random) -> list[float]:
    return rng.sample(list(values), len(values))


def _query(table: QueryTable, agents: set[str], *, field: str) -> Query:
    if not is_name(table.name):
        raise ConfigError(f"{table.name!r} must match [a-z0-9-]{{1,64}}", field=f"{field}.name")
    if table.origin not in agents:
        raise ConfigError(f"no agent is called {table.origin!r}", field=f"{field}.origin")
    if not is_name(table.pipeline):
        raise ConfigError(f"{table.pipeline!r} must match [a-z0-9-]{{1,64}}", field=f"{field}.pipeline")
    query = Query(
        name=table.name,
        origin=table.origin,
        pipeline=table.pipeline,
        rate_hz=table.rate_hz,
        weight=table.weight,
        slo=Slo(
            latency_p95_s=table.slo.latency_p95_s,
            accuracy=table.slo.accuracy,
            cost_usd_per_1000=table.slo.cost_usd_per_1000,
        ),
    )
    return check_query(query, field=field)
