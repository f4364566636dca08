"""Placement policies: which placements a query may be given.

A policy is a plain function from a problem and one of its queries to placements. Compass itself uses
``anywhere``; the others are the baselines it is compared with, planned by the same planner and matcher. None
yields a placement that breaks an operator's placement constraint: what may not run where a baseline would put
it stays where it may.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

from compass_shared.evaluate import pipeline_of
from compass_shared.pipeline import REQUEST, Operator
from compass_shared.plan import Placement
from compass_shared.problem import Problem
from compass_shared.query import Query
from compass_shared.site import Tier

Policy: TypeAlias = Callable[[Problem, Query], Iterator[Placement]]
"""Yields every placement that a query may be given; looks at its pipeline, origin and usable sites alone."""


def anywhere(problem: Problem, query: Query) -> Iterator[Placement]:
    """Every operator at every site that the query can use and the operator may run at."""
    operators, usable = pipeline_of(problem, query).operators, problem.sites_for(query)
    yield from _each(
        operators,
        [[site for site in usable if problem.may_run(query, operator, site)] for operator in operators],
    )


def device_only(problem: Problem, query: Query) -> Iterator[Placement]:
    """Every operator at the origin; what may not run there, wherever it may."""
    operators = pipeline_of(problem, query).operators
    yield from _each(
        operators, [_at_or_else(problem, query, operator, query.origin) for operator in operators]
    )


def cloud_only(problem: Problem, query: Query) -> Iterator[Placement]:
    """Everything on one cloud site, the input sent as it is or as the origin's preparation leaves it.

    Preparation is what stands first in the pipeline and needs no model: ``python`` operators whose only
    input is the request (resizing, encoding for the uplink). What may not run on the cloud site stays at the
    origin, or wherever it may.
    """
    operators = pipeline_of(problem, query).operators
    first = {op.name for op in operators if op.runtime == "python" and op.inputs == (REQUEST,)}
    clouds = [site for site in problem.sites_for(query) if problem.sites[site].tier is Tier.CLOUD]
    for cloud in clouds:
        found: dict[tuple[str, ...], Placement] = {}
        for prepared in (frozenset[str](), first if cloud != query.origin else frozenset[str]()):
            sites = [
                _at_or_else(problem, query, op, query.origin if op.name in prepared else cloud)
                for op in operators
            ]
            found |= {tuple(placement.values()): placement for placement in _each(operators, sites)}
        yield from found.values()


def fixed(problem: Problem, query: Query) -> Iterator[Placement]:
    """The split that the pipeline's author declares (``[fixed_split]``): a tier for every operator.

    ``device`` stands for the origin, whatever its tier; ``edge`` and ``cloud`` for one site of that tier, any
    that the query can use. Only the tiers are fixed: config and site are still chosen for each query, which
    no split by hand does, so this baseline is a generous one. Nothing for pipelines that declare no split.
    A worker's own queries stay there as a whole where it can use no site of some tier.
    """
    pipeline = pipeline_of(problem, query)
    usable = problem.sites_for(query)
    tiers = sorted({tier for tier in pipeline.fixed_split.values() if tier != Tier.DEVICE.value})
    there = [[site for site in usable if problem.sites[site].tier.value == tier] for tier in tiers]
    if not all(there) and problem.sites[query.origin].tier is not Tier.DEVICE:
        yield from device_only(problem, query)
        return
    for sites in itertools.product(*there) if pipeline.fixed_split else ():
        site_of = {Tier.DEVICE.value: query.origin, **dict(zip(tiers, sites, strict=True))}
        placement = {op.name: site_of[pipeline.fixed_split[op.name]] for op in pipeline.operators}
        if all(problem.may_run(query, op, placement[op.name]) for op in pipeline.operators):
            yield placement


POLICIES: Mapping[str, Policy] = {
    "compass": anywhere,
    "device": device_only,
    "cloud": cloud_only,
    "fixed": fixed,
}


def _each(operators: Sequence[Operator], sites: Sequence[Sequence[str]]) -> Iterator[Placement]:
    """Every choice of one of its sites for each operator."""
    names = [operator.name for operator in operators]
    for chosen in itertools.product(*sites):
        yield dict(zip(names, chosen, strict=True))


def _at_or_else(problem: Problem, query: Query, operator: Operator, site: str) -> tuple[str, ...]:
    """A site; if the operator may not run there the origin, or else all sites where it may."""
    for wanted in (site, query.origin):
        if problem.may_run(query, operator, wanted):
            return (wanted,)
    return problem.sites_of(query, operator)
