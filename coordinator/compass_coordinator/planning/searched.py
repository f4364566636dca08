"""Plans of queries that have more of them than can be enumerated: found by search, at several prices.

What the matcher will find scarce is not known yet, so each query is searched for its cheapest plan and for
plans that spare each class of shared resources. Each search is exact if it ends by itself; its bound says
how much cheaper a plan could be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from compass_coordinator.estimator import PlanSpace
from compass_coordinator.listed_plans import distinct_plans, space_of
from compass_coordinator.planner.refusal import Binding, Refusal
from compass_coordinator.planner.search import Budget, SearchResult, search_plan
from compass_coordinator.planner.unplaceable import below_floors
from compass_shared.problem import Problem
from compass_shared.query import Query
from compass_shared.site import Tier, cores_resource, link_resource

MAX_ENUMERATED = 3_000_000
"""Plans of one query; spaces with more are searched."""
MAX_CONFIGS = 200_000
"""Configs that one search looks at."""


def plan_count(problem: Problem, query: Query) -> int:
    """How many plans a query has anywhere; 0 if it cannot be planned."""
    pipeline = problem.pipelines.get(query.pipeline)
    if pipeline is None or query.origin not in problem.sites:
        return 0
    usable = problem.sites_for(query)
    if not any(operator.must_run_on for operator in pipeline.operators):
        return int(pipeline.config_count() * len(usable) ** len(pipeline.operators))
    return pipeline.config_count() * math.prod(
        sum(problem.may_run(query, operator, site) for site in usable) for operator in pipeline.operators
    )


def is_searched(problem: Problem, query: Query) -> bool:
    """Whether a query has more plans than can be enumerated."""
    return plan_count(problem, query) > MAX_ENUMERATED


def searched_space(problem: Problem, query: Query) -> tuple[PlanSpace | Refusal, SearchResult]:
    """What searches find on an idle fleet, or why there is nothing; and how the first one ended."""
    first = search_plan(problem, query, budget=Budget(evaluations=MAX_CONFIGS))
    if (refusal := below_floors(problem, query)) is not None:
        return refusal, first
    if first.plan is None or not first.serves:
        detail = first.reason or "no plan that meets its SLO was found"
        return Refusal(query=query.name, binding=Binding.LATENCY, detail=detail, nearest=first.plan), first
    found = [first.plan]
    for prices in _prices(problem, query, first):
        result = search_plan(problem, query, prices=prices, budget=Budget(evaluations=MAX_CONFIGS))
        if result.plan is not None and result.serves:
            found.append(result.plan)
    return space_of(problem, query, distinct_plans(found)), first


def _prices(problem: Problem, query: Query, first: SearchResult) -> Iterator[Mapping[str, float]]:
    """Prices at which one class of resources is dear: using it all would cost 100 times the cheapest plan."""
    usd = 100 * max(first.score, 1e-9)
    capacities = problem.capacities()
    sites = problem.sites_for(query)
    for tier in Tier:
        there = [site for site in sites if problem.sites[site].tier is tier]
        if there:
            yield {cores_resource(site): usd / max(capacities[cores_resource(site)], 1e-12) for site in there}
    links = [
        link_resource(*ends)
        for site in sites
        if site != query.origin
        for ends in ((query.origin, site), (site, query.origin))
    ]
    if links:
        yield {link: usd / max(capacities[link], 1e-12) for link in links}
