"""Divisible queries: each plan of a split one counts as a query of its own, at its fraction of the rate.

Whatever evaluates or checks plans needs to know no more than that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from compass_shared.plan import Plan, PlanShare
from compass_shared.problem import Problem
from compass_shared.query import Query

Split = Mapping[str, Sequence[PlanShare]]
"""Query name -> its plans."""


def part_name(query: str, index: int) -> str:
    """Name of one part of a split query; ``#`` is in no query's own name."""
    return f"{query}#{index}"


def whole_name(part: str) -> str:
    """The query that a part, or a query itself, belongs to."""
    return part.partition("#")[0]


def with_state_whole(problem: Problem) -> Problem:
    """A problem in which no query of a pipeline with state may be split, whatever the query says.

    The state is where the plan runs: parts on several plans would each see only some of the requests.
    """
    if not any(query.divisible and keeps_state(problem, query) for query in problem.queries):
        return problem
    return replace(problem, queries=tuple(whole_with_state(problem, query) for query in problem.queries))


def whole_with_state(problem: Problem, query: Query) -> Query:
    """The same for one query."""
    return replace(query, divisible=False) if query.divisible and keeps_state(problem, query) else query


def keeps_state(problem: Problem, query: Query) -> bool:
    """Whether any operator of a query's pipeline keeps something from request to request."""
    pipeline = problem.pipelines.get(query.pipeline)
    return pipeline is not None and pipeline.stateful


def in_parts(problem: Problem, plans: Mapping[str, Plan], split: Split) -> tuple[Problem, dict[str, Plan]]:
    """A problem in which every part of a split query is a query, with the plan of each.

    Args:
        problem: Queries whole.
        plans: Query name -> plan, of those that are not split.
        split: Plans of the others.

    Returns:
        The same problem and plans if nothing is split.
    """
    if not split:
        return problem, dict(plans)
    queries: list[Query] = []
    parts = dict(plans)
    reachable = dict(problem.reachable)
    for query in problem.queries:
        if query.name not in split:
            queries.append(query)
            continue
        for index, share in enumerate(split[query.name]):
            name = part_name(query.name, index)
            rate_hz, weight = query.rate_hz * share.fraction, query.weight * share.fraction
            queries.append(replace(query, name=name, rate_hz=rate_hz, weight=weight))
            parts[name] = share.plan
            if query.name in problem.reachable:
                reachable[name] = problem.reachable[query.name]
    return replace(problem, queries=tuple(queries), reachable=reachable), parts
