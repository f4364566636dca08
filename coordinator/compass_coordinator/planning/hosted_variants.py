"""Which variants sites with little memory host, decided before the fleet is planned over what is hosted.

The set of variants and the plans depend on each other: a site that can hold one recogniser for all asks every
query for its plan over that one, which may be no query's first choice. In a small fleet all plans are offered
to the choice (``hosting``). In a large one it sees candidates, so it is repeated: choose what to host, find
the candidates of all queries over just that, and choose again among all, until nothing is gained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from compass_coordinator.estimator import Floats
from compass_coordinator.planner.fleet import FleetCandidates, FleetSpace, TemplateCache, candidates_of
from compass_coordinator.planner.fleet.space import Allowed
from compass_coordinator.planning.hosting import Hosting, host
from compass_coordinator.planning.hosting_case import Items
from compass_coordinator.planning.memory import limited_sites, may_run_at
from compass_coordinator.planning.offers import Offers, offers_of, offers_of_spaces
from compass_coordinator.planning.settling import Spaces
from compass_shared.pipeline import variant_key
from compass_shared.problem import Problem, SiteLoad
from compass_shared.profile import OperatorProfile

Variant: TypeAlias = tuple[str, str, str]
"""Site, pipeline, variant key."""
Variants: TypeAlias = frozenset[Variant]

MAX_ROUNDS = 3
MAX_PROPOSALS = 6
MAX_TOPPED_UP = 1000
"""Queries that are asked what they could use of the memory that is left."""
_GAIN = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class HostedFleet:
    """A problem in which sites offer only what they host."""

    problem: Problem
    hosted: Variants
    """At the sites whose memory is limited."""


def host_for_few(
    problem: Problem,
    spaces: Spaces,
    loads: Mapping[str, SiteLoad],
    *,
    hosted_now: Variants = frozenset(),
    loading: float = 0.0,
) -> HostedFleet:
    """Choose what the limited sites of a small fleet host, knowing all plans of all queries.

    Args:
        problem: The planning problem.
        spaces: Plans of every query.
        loads: To evaluate waiting at.
        hosted_now: What is loaded already.
        loading: Weight of queries that loading one variant has to be worth.
    """
    limited = limited_sites(problem)
    offers = offers_of_spaces(problem, spaces, loads, limited)
    capacities = np.array(list(problem.capacities().values()))
    hosting = _hosting(problem, limited, offers, capacities, hosted_now, loading)
    hosted = _hosted(problem, offers, hosting, limited, free=loading == 0)
    return HostedFleet(problem=_restricted(problem, limited, hosted), hosted=hosted)


def host_for_many(
    problem: Problem,
    loads: Mapping[str, SiteLoad],
    templates: TemplateCache,
    *,
    allowed: Allowed | None = None,
    hosted_now: Variants = frozenset(),
    loading: float = 0.0,
    max_remote: int = 2,
) -> HostedFleet:
    """Choose what the limited sites of a large fleet host, from candidates.

    The cheapest plans of different queries use different variants, so the candidates would not show that
    queries can agree. Proposals of what to host are therefore made first, one for each level of accuracy that
    is asked for, and the plans over each are candidates too.

    Args:
        problem: The planning problem.
        loads: To evaluate waiting at.
        templates: Built earlier; new ones are added.
        allowed: Placement policy; None for all placements.
        hosted_now: What is loaded already.
        loading: Weight of queries that loading one variant has to be worth.
        max_remote: Most remote sites that one plan may use.
    """
    limited = limited_sites(problem)

    def found(offered: Problem) -> FleetCandidates:
        space = FleetSpace.of(offered, loads, templates, max_remote=max_remote, allowed=allowed)
        return candidates_of(space)

    known = [found(problem)]
    known += [found(_restricted(problem, limited, proposal)) for proposal in _proposals(problem, limited)]
    best: tuple[Hosting, Variants] | None = None
    for _ in range(MAX_ROUNDS):
        offers = offers_of(known)
        hosting = _hosting(problem, limited, offers, known[0].capacities, hosted_now, loading)
        if best is not None and not _better(hosting, best[0]):
            break
        best = hosting, _hosted(problem, offers, hosting, limited, free=loading == 0)
        known.append(found(_restricted(problem, limited, best[1])))
    chosen = best[1] if best is not None else frozenset()
    return HostedFleet(problem=_restricted(problem, limited, chosen), hosted=chosen)


def _hosted(
    problem: Problem, offers: Offers, hosting: Hosting, limited: frozenset[str], *, free: bool
) -> Variants:
    there = zip(offers.items, hosting.hosted, strict=True)
    hosted = {label for label, is_there in there if is_there and label[0] in limited}
    return frozenset(_topped_up(problem, offers, hosted, limited) if free else hosted)


def _topped_up(
    problem: Problem, offers: Offers, hosted: set[Variant], limited: frozenset[str]
) -> set[Variant]:
    """Fill the memory that is left, where loading costs nothing: waits may make the second choice the better.

    Plan by plan, the weightier queries' first and of one query those that lack the fewest bytes: what they
    lack is added if it fits.
    """
    room = {site: problem.sites[site].memory_bytes for site in limited}
    for label in hosted:
        room[label[0]] -= _memory_bytes(problem, label)
    weights = np.where(np.isfinite(offers.values), offers.values, 0.0).max(axis=1, initial=0.0)
    topped = set(hosted)
    for query in np.argsort(-weights, kind="stable")[:MAX_TOPPED_UP]:
        plans = [
            {offers.items[item] for item in offers.uses[query, plan] if item >= 0}
            for plan in np.flatnonzero(np.isfinite(offers.values[query]))
        ]
        for used in sorted(
            plans, key=lambda used: sum(_memory_bytes(problem, each) for each in used - topped)
        ):
            lacking = {label for label in used - topped if label[0] in limited}
            needed: dict[str, float] = {}
            for label in lacking:
                needed[label[0]] = needed.get(label[0], 0.0) + _memory_bytes(problem, label)
            if all(amount <= room[site] for site, amount in needed.items()):
                topped |= lacking
                for site, amount in needed.items():
                    room[site] -= amount
    return topped


def _proposals(problem: Problem, limited: frozenset[str]) -> list[Variants]:
    """What each limited site could host for the sake of one level of accuracy.

    Of the configs that reach the level the one with the least work; its variants, those with the most work
    first, as long as the memory takes them.
    """
    levels = sorted({query.slo.accuracy for query in problem.queries})
    if len(levels) > MAX_PROPOSALS:
        levels = [levels[at] for at in np.linspace(0, len(levels) - 1, MAX_PROPOSALS).astype(int)]
    proposals = []
    for level in levels:
        hosted: set[Variant] = set()
        for site in limited:
            room = problem.sites[site].memory_bytes
            for variant in _variants_for(problem, site, level):
                memory = _memory_bytes(problem, variant)
                if memory <= room:
                    room -= memory
                    hosted.add(variant)
        proposals.append(frozenset(hosted))
    return list(dict.fromkeys(proposals))


def _variants_for(problem: Problem, site: str, level: float) -> list[Variant]:
    """Variants of the lightest configs at a site that reach a level of accuracy, most work first."""
    found: list[tuple[float, Variant]] = []
    for name, pipeline in problem.pipelines.items():
        profile, table = problem.profiles.get((site, name)), problem.accuracy.get(name)
        if profile is None or table is None:
            continue
        works = []
        for config in pipeline.configs():
            reached = table.configs.get(pipeline.config_key(config))
            keys = [variant_key(op.name, config.get(op.name, {})) for op in pipeline.operators]
            if (
                reached is not None
                and reached.mean >= level
                and all(key in profile.operators for key in keys)
            ):
                works.append((sum(profile.operators[key].mean_s for key in keys), keys))
        if works:
            keys = min(works)[1]
            found += [
                (-profile.operators[key].mean_s, (site, name, key))
                for key in keys
                if may_run_at(problem, name, key, site)
            ]
    return [variant for _, variant in sorted(found)]


def _better(one: Hosting, other: Hosting) -> bool:
    gain = (one.match.value - one.loading) - (other.match.value - other.loading)
    if abs(gain) > _GAIN * max(1.0, abs(other.match.value)):
        return gain > 0
    return one.match.cost < other.match.cost * (1 - _GAIN)


def _hosting(
    problem: Problem,
    limited: frozenset[str],
    offers: Offers,
    capacities: Floats,
    hosted_now: Variants,
    loading: float,
) -> Hosting:
    sites = sorted({site for site, _, _ in offers.items})
    index = {site: at for at, site in enumerate(sites)}
    there = np.array([label in hosted_now for label in offers.items], dtype=np.bool_)
    items = Items(
        site=np.array([index[site] for site, _, _ in offers.items], dtype=np.int64),
        memory_bytes=np.array([_memory_bytes(problem, label) for label in offers.items], dtype=np.float64),
        hosted=there,
        loading=np.where(
            there, 0.0, [loading if site in limited else 0.0 for site, _, _ in offers.items]
        ).astype(np.float64),
        site_memory_bytes=np.array(
            [problem.sites[site].memory_bytes if site in limited else np.inf for site in sites]
        ),
    )
    return host(offers.values, offers.demands, capacities[offers.columns], offers.uses, items, offers.costs)


def _memory_bytes(problem: Problem, item: Variant) -> float:
    site, pipeline, variant = item
    return problem.profiles[site, pipeline].operators[variant].memory_bytes


def _restricted(problem: Problem, limited: frozenset[str], hosted: Variants) -> Problem:
    """The same fleet where limited sites offer nothing but what they host.

    Sites that host the same go on sharing one mapping, so they stay of one kind.
    """
    shared: dict[tuple[int, frozenset[str]], dict[str, OperatorProfile]] = {}
    profiles = dict(problem.profiles)
    for (site, pipeline), profile in problem.profiles.items():
        if site not in limited:
            continue
        kept = frozenset(variant for at, name, variant in hosted if at == site and name == pipeline)
        key = id(profile.operators), kept
        if key not in shared:
            shared[key] = {name: found for name, found in profile.operators.items() if name in kept}
        profiles[site, pipeline] = replace(profile, operators=shared[key])
    return replace(problem, profiles=profiles)
