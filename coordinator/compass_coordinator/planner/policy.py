"""Placement policies: which placements a query may be given.

A policy is a plain function from a problem and one of its queries to placements. Compass itself uses
``anywhere``; the others are the baselines it is compared with, planned by the same planner and matcher.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

from compass_shared.evaluate import pipeline_of
from compass_shared.pipeline import REQUEST
from compass_shared.plan import Placement
from compass_shared.problem import Problem
from compass_shared.query import Query
from compass_shared.site import Tier

Policy: TypeAlias = Callable[[Problem, Query], Iterator[Placement]]
"""Yields every placement that a query may be given; looks at its pipeline, origin and usable sites alone."""


def anywhere(problem: Problem, query: Query) -> Iterator[Placement]:
    """Every operator at every site that the query can use."""
    names = [operator.name for operator in pipeline_of(problem, query).operators]
    for sites in itertools.product(problem.sites_for(query), repeat=len(names)):
        yield dict(zip(names, sites, strict=True))


def device_only(problem: Problem, query: Query) -> Iterator[Placement]:
    """Every operator at the origin."""
    yield {operator.name: query.origin for operator in pipeline_of(problem, query).operators}


def cloud_only(problem: Problem, query: Query) -> Iterator[Placement]:
    """Everything on one cloud site, the input sent as it is or as the origin's preparation leaves it.

    Preparation is what stands first in the pipeline and needs no model: ``python`` operators whose only
    input is the request (resizing, encoding for the uplink).
    """
    operators = pipeline_of(problem, query).operators
    first = {op.name for op in operators if op.runtime == "python" and op.inputs == (REQUEST,)}
    clouds = [site for site in problem.sites_for(query) if problem.sites[site].tier is Tier.CLOUD]
    for cloud in clouds:
        yield {operator.name: cloud for operator in operators}
        if first and cloud != query.origin:
            yield {op.name: query.origin if op.name in first else cloud for op in operators}


POLICIES: Mapping[str, Policy] = {"compass": anywhere, "device": device_only, "cloud": cloud_only}
