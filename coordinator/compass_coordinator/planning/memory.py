"""Which sites' memory could run out, so that what they host has to be chosen."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

from compass_shared.problem import Problem
from compass_shared.profile import SiteProfile
from compass_shared.query import Query


def limited_sites(problem: Problem) -> frozenset[str]:
    """Sites whose memory could run out.

    They can hold neither every variant that was measured there nor what all queries that can use them need
    there at most: of each operator one variant, the largest; of a divisible query every variant.
    """
    limited = {name for name, site in problem.sites.items() if math.isfinite(site.memory_bytes)}
    tables = _Tables(problem)
    held: dict[str, float] = {}
    for (site, pipeline), profile in problem.profiles.items():
        if site in limited:
            held[site] = held.get(site, 0.0) + tables.of(pipeline, profile).everything
    short = {site for site, total in held.items() if total > problem.sites[site].memory_bytes}
    needed: dict[str, float] = {}
    for query, site in _users(problem, short) if short else ():
        table = tables.of(query.pipeline, problem.profiles[site, query.pipeline])
        most = table.everything if query.divisible else table.one_of_each
        needed[site] = needed.get(site, 0.0) + most
    return frozenset(site for site, total in needed.items() if total > problem.sites[site].memory_bytes)


def may_run_at(problem: Problem, pipeline: str, variant: str, site: str) -> bool:
    """Whether placement constraints let any query run a variant at a site."""
    described = problem.pipelines.get(pipeline)
    if described is None:
        return True
    name, tier = variant.partition("[")[0], problem.sites[site].tier.value
    places = {place for op in described.operators if op.name == name for place in op.must_run_on}
    return not places or tier in places or "origin" in places


@dataclass(frozen=True, slots=True, kw_only=True)
class _Needed:
    """Bytes that a pipeline takes at a site."""

    everything: float
    one_of_each: float
    """The largest variant of every operator."""


@dataclass(slots=True)
class _Tables:
    """What pipelines take at sites, worked out once for all sites that share their measurements."""

    problem: Problem
    _known: dict[tuple[int, str, str], _Needed] = field(default_factory=dict)

    def of(self, pipeline: str, profile: SiteProfile) -> _Needed:
        """Of what may run at the site of a profile."""
        key = id(profile.operators), pipeline, self.problem.sites[profile.site].tier.value
        if key not in self._known:
            self._known[key] = self._needed(pipeline, profile)
        return self._known[key]

    def _needed(self, pipeline: str, profile: SiteProfile) -> _Needed:
        largest: dict[str, float] = {}
        sizes: Mapping[str, float] = {
            variant: found.memory_bytes
            for variant, found in profile.operators.items()
            if may_run_at(self.problem, pipeline, variant, profile.site)
        }
        for variant, size in sizes.items():
            operator = variant.partition("[")[0]
            largest[operator] = max(largest.get(operator, 0.0), size)
        return _Needed(everything=math.fsum(sizes.values()), one_of_each=math.fsum(largest.values()))


def _users(problem: Problem, sites: Collection[str]) -> Iterator[tuple[Query, str]]:
    """Queries with those of some sites that they can use."""
    leading: dict[str, list[str]] = {}
    for source, target in problem.links:
        if target in sites and (target, source) in problem.links:
            leading.setdefault(source, []).append(target)
    for query in problem.queries:
        allowed = problem.reachable.get(query.name)
        for site in dict.fromkeys((query.origin, *leading.get(query.origin, ()))):
            usable = site == query.origin or allowed is None or site in allowed
            if usable and site in sites and (site, query.pipeline) in problem.profiles:
                yield query, site
