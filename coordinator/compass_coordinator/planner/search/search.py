"""Searching a configuration space that is too large to enumerate, for one query."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from compass_coordinator.planner.search.configs import known_configs
from compass_coordinator.planner.search.measuring import MeasureAccuracy, search_measuring
from compass_coordinator.planner.search.result import Budget, Judge, SearchResult
from compass_coordinator.planner.search.tables import build_tables
from compass_coordinator.planner.search.tabulated import search_known
from compass_shared.errors import PlanningError
from compass_shared.problem import Problem
from compass_shared.query import Query

NO_PRICES: Mapping[str, float] = {}


def search_plan(
    problem: Problem,
    query: Query,
    *,
    accuracy: MeasureAccuracy | None = None,
    prices: Mapping[str, float] = NO_PRICES,
    budget: Budget | None = None,
    seed: int = 0,
) -> SearchResult:
    """The plan of least score that meets a query's SLO, as far as a budget reaches.

    Args:
        problem: Sites, links, profiles, capacities, and the loads at which waiting is evaluated.
        query: Gives pipeline, origin, rate and SLO.
        accuracy: Measures a config's accuracy, at some expense; None to choose among the problem's table.
        prices: Resource -> US dollars per unit of demand, >= 0: a matcher's shadow prices. Without them the
            score is the plan's cost alone.
        budget: Evaluations and time; unlimited evaluations and time unless given.
        seed: Of the random choices; used only where accuracy is measured.

    Returns:
        The best plan found, or the nearest; with a bound where accuracy is tabulated.

    Raises:
        PlanningError: If the origin or pipeline is unknown, a price is negative, or a measured accuracy is
            not a number in [0, 1].
    """
    *_, last = improving_plans(problem, query, accuracy=accuracy, prices=prices, budget=budget, seed=seed)
    return last


def improving_plans(
    problem: Problem,
    query: Query,
    *,
    accuracy: MeasureAccuracy | None = None,
    prices: Mapping[str, float] = NO_PRICES,
    budget: Budget | None = None,
    seed: int = 0,
) -> Iterator[SearchResult]:
    """The same, step by step: yields what is best so far until the budget or the space ends."""
    for name, price in prices.items():
        if not 0 <= price < math.inf:
            raise PlanningError(f"the price of {name} is {price}; it must be finite and >= 0")
    if accuracy is not None and query.slo.metrics:
        raise PlanningError(
            f"query {query.name!r} sets floors for extra metrics, which a search that measures accuracies "
            "does not know: plan it from a table"
        )
    budget = Budget() if budget is None else budget
    tables = build_tables(problem, query, prices)
    if not tables.sites:
        yield _nowhere(query, bounded=accuracy is None)
        return
    judge = Judge(problem=problem, query=query, tables=tables, prices=prices)
    if accuracy is None:
        yield from search_known(judge, known_configs(tables, problem.accuracy_for(query)), budget)
    else:
        yield from search_measuring(judge, accuracy, budget, seed)


def _nowhere(query: Query, *, bounded: bool) -> SearchResult:
    return SearchResult(
        plan=None,
        score=math.inf,
        violation=math.inf,
        bound=math.inf if bounded else None,
        evaluations=0,
        trace=(),
        reason=f"every site that query {query.name!r} may use is overloaded",
    )
