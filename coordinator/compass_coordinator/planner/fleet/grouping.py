"""Which query can use which sites in which role, grouped so that whole groups share their templates.

A *kind* is what operators cost on some machine, of those that the query may use there; sites of one kind
differ in speed. A *pattern* is a pipeline, the floors that queries set for its extra metrics, the kind of the
origin and the kinds of the remote sites that a plan uses at once; a template belongs to the pattern of
exactly the roles that it uses. An *instance* is one query with one choice of sites for a pattern.
Every plan of every query is therefore one template at one instance, and none is counted twice.

Templates of a pattern are found without looking at other patterns: whatever dominates a template makes calls
in no role that the template leaves free, so it uses a part of the template's roles, and plans with fewer
roles are in a pattern of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from compass_coordinator.estimator import Indices
from compass_coordinator.planner.fleet.tables import FleetTables
from compass_coordinator.planner.templates import Kind
from compass_coordinator.planner.usable import Operators, Usable
from compass_shared.problem import Problem
from compass_shared.profile import SiteProfile

Kinds: TypeAlias = tuple[int, ...]
"""Numbers of kinds: of an origin, then of remote sites."""
Floors: TypeAlias = tuple[tuple[str, float], ...]
"""Extra metrics with their least means, by name."""
Asked: TypeAlias = tuple[str, Floors]
"""Pipeline and floors: what the configs to choose from depend on."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """All instances of one pattern, sorted by query."""

    pipeline: str
    floors: Floors
    kinds: tuple[Kind, ...]
    """Of the roles: the origin, then the remote sites."""
    query: Indices
    """(instances,)."""
    sites: Indices
    """(instances, roles)."""
    up: Indices
    """(instances, roles - 1) link from the origin."""
    down: Indices
    """(instances, roles - 1) link to the origin."""

    def __len__(self) -> int:
        return len(self.query)

    def take(self, rows: Indices | slice) -> Group:
        """Some of the instances, in the given order."""
        return Group(
            pipeline=self.pipeline,
            floors=self.floors,
            kinds=self.kinds,
            query=self.query[rows],
            sites=self.sites[rows],
            up=self.up[rows],
            down=self.down[rows],
        )


def group_instances(problem: Problem, tables: FleetTables, max_remote: int) -> tuple[Group, ...]:
    """All instances of a problem's queries.

    Queries whose pipeline or origin is unknown, or was never profiled there, have none.

    Args:
        problem: The planning problem.
        tables: Of that problem.
        max_remote: Most remote sites that one plan may use.
    """
    kinds = _Kinds()
    places: dict[tuple[Asked, Kinds], list[_Place]] = {}
    for asked, shape, place in _places(problem, tables, kinds):
        places.setdefault((asked, shape), []).append(place)
    parts: dict[tuple[Asked, Kinds], list[Group]] = {}
    for (asked, shape), alike in places.items():
        whole = _at_all_sites(asked, alike)
        for chosen in _patterns(shape, max_remote):
            pattern = tuple(shape[role] for role in chosen)
            parts.setdefault((asked, pattern), []).append(_narrowed(whole, chosen, kinds.named(pattern)))
    return tuple(_joined(found) for found in parts.values())


_Standing: TypeAlias = tuple[str, Floors, str, tuple[str, ...] | None, float | None]
"""Pipeline, floors, origin, what may be reached (None: everything); the rate if the pipeline keeps state."""


@dataclass(frozen=True, slots=True)
class _Place:
    """An origin, the sites that queries of one pipeline can use from there, and these queries."""

    queries: list[int]
    sites: list[int]
    """The origin first."""
    up: list[int]
    down: list[int]


@dataclass(slots=True)
class _Kinds:
    """Numbers kinds in the order in which they are met; equal ones are one."""

    kinds: list[Kind] = field(default_factory=list)
    _by_identity: dict[tuple[int, float, float], int] = field(default_factory=dict)
    _by_key: dict[object, int] = field(default_factory=dict)

    def index(self, profile: SiteProfile, operators: Operators, *, origin: bool) -> int:
        """Number of a site's kind, by what may be used there; request sizes matter at an origin only."""
        mean, var = (profile.request_mean_bytes, profile.request_var_bytes2) if origin else (0.0, 0.0)
        identity = (id(operators), mean, var)
        if identity not in self._by_identity:
            kind = Kind(operators=operators, request_mean_bytes=mean, request_var_bytes2=var)
            number = self._by_key.setdefault(kind.key, len(self.kinds))
            if number == len(self.kinds):
                self.kinds.append(kind)
            self._by_identity[identity] = number
        return self._by_identity[identity]

    def named(self, indices: Sequence[int]) -> tuple[Kind, ...]:
        return tuple(self.kinds[index] for index in indices)


def _places(problem: Problem, tables: FleetTables, kinds: _Kinds) -> Iterator[tuple[Asked, Kinds, _Place]]:
    """Places with the queries that stand there; remote sites by kind, then name."""
    reach, usable = _Reach(problem), Usable(problem)
    site_at, link_at, profiles = tables.sites.at, tables.links.at, problem.profiles
    for (pipeline, floors, origin, allowed, _), queries in _standing(problem).items():
        own = profiles.get((origin, pipeline))
        if own is None or origin not in site_at or pipeline not in problem.pipelines:
            continue
        alike = problem.queries[queries[0]]
        remote = []
        for name in reach.of(origin, allowed):
            profile = profiles.get((name, pipeline))
            if profile is not None:
                there = usable.operators(alike, profile)
                remote.append((kinds.index(profile, there, origin=False), name))
        remote.sort()
        here = kinds.index(own, usable.operators(alike, own), origin=True)
        shape = (here, *(kind for kind, _ in remote))
        yield (
            (pipeline, floors),
            shape,
            _Place(
                queries=queries,
                sites=[site_at[origin], *(site_at[name] for _, name in remote)],
                up=[link_at[origin, name] for _, name in remote],
                down=[link_at[name, origin] for _, name in remote],
            ),
        )


def _standing(problem: Problem) -> dict[_Standing, list[int]]:
    """Queries by what decides on their places."""
    queries: dict[_Standing, list[int]] = {}
    reachable = problem.reachable
    with_state = {name for name, pipeline in problem.pipelines.items() if pipeline.stateful}
    for index, query in enumerate(problem.queries):
        metrics = query.slo.metrics
        floors = tuple(sorted(metrics.items())) if metrics else ()
        rate_hz = query.rate_hz if query.pipeline in with_state else None
        standing = query.pipeline, floors, query.origin, reachable.get(query.name), rate_hz
        queries.setdefault(standing, []).append(index)
    return queries


@dataclass(frozen=True, slots=True)
class _Reach:
    """Which known sites a site is linked with in both directions."""

    problem: Problem
    _neighbours: dict[str, list[str]] = field(default_factory=dict)

    def of(self, origin: str, allowed: tuple[str, ...] | None) -> Sequence[str]:
        """All of them, or those that are allowed, each once."""
        if allowed is None:
            return self._all().get(origin, ())
        links, sites = self.problem.links, self.problem.sites
        return [
            name
            for name in dict.fromkeys(allowed)
            if name != origin and name in sites and (origin, name) in links and (name, origin) in links
        ]

    def _all(self) -> dict[str, list[str]]:
        if not self._neighbours:
            links, sites = self.problem.links, self.problem.sites
            for source, target in links:
                if source != target and target in sites and (target, source) in links:
                    self._neighbours.setdefault(source, []).append(target)
        return self._neighbours


def _patterns(kinds: Sequence[int], max_remote: int) -> Iterator[tuple[int, ...]]:
    """Positions of the sites in each role: the origin, then remote ones in ascending order of their kinds."""
    remote = range(1, len(kinds))
    for count in range(min(max_remote, len(remote)) + 1):
        for chosen in itertools.permutations(remote, count):
            if all(kinds[one] <= kinds[two] for one, two in itertools.pairwise(chosen)):
                yield (0, *chosen)


def _at_all_sites(asked: Asked, places: Sequence[_Place]) -> Group:
    """Every query at some places of one shape, with all sites it can use."""
    counts = [len(place.queries) for place in places]
    expand = np.repeat(np.arange(len(places)), counts)
    chained = itertools.chain.from_iterable(place.queries for place in places)
    remote = len(places[0].up)
    return Group(
        pipeline=asked[0],
        floors=asked[1],
        kinds=(),
        query=np.fromiter(chained, np.int64, count=len(expand)),
        sites=np.array([place.sites for place in places], dtype=np.int64)[expand],
        up=np.array([place.up for place in places], dtype=np.int64).reshape(len(places), remote)[expand],
        down=np.array([place.down for place in places], dtype=np.int64).reshape(len(places), remote)[expand],
    )


def _narrowed(group: Group, chosen: Sequence[int], kinds: tuple[Kind, ...]) -> Group:
    """Only some of the sites, the origin first."""
    links = [position - 1 for position in chosen[1:]]
    return Group(
        pipeline=group.pipeline,
        floors=group.floors,
        kinds=kinds,
        query=group.query,
        sites=group.sites[:, chosen],
        up=group.up[:, links],
        down=group.down[:, links],
    )


def _joined(groups: Sequence[Group]) -> Group:
    """Groups of one pattern as one."""
    order = np.argsort(np.concatenate([group.query for group in groups]), kind="stable")
    return Group(
        pipeline=groups[0].pipeline,
        floors=groups[0].floors,
        kinds=groups[0].kinds,
        query=np.concatenate([group.query for group in groups])[order],
        sites=np.concatenate([group.sites for group in groups])[order],
        up=np.concatenate([group.up for group in groups])[order],
        down=np.concatenate([group.down for group in groups])[order],
    )
