"""Settling chosen plans at the load that they cause together: repair what breaks, then serve more for less.

A matcher chooses at an assumed load. Here every decision is taken at the load that results, which makes room
on sites that are less busy than assumed (on a device with a single query nobody waits for another).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

from compass_coordinator.estimator import PlanSpace
from compass_coordinator.planning.joining import Choice, Choices, best_choice
from compass_shared.check import Violation, check_plan
from compass_shared.plan import Plan
from compass_shared.problem import Problem
from compass_shared.query import Query

MAX_PASSES = 4
"""Passes over all queries that look for something better; most fleets need two."""

Spaces: TypeAlias = Mapping[str, tuple[Query, PlanSpace]]
"""Query name -> query and the plans that could serve it."""


def settle(problem: Problem, spaces: Spaces, chosen: Choices) -> dict[str, Choice]:
    """Turn chosen plans into ones that hold at the resulting load, and improve them.

    Args:
        problem: The planning problem.
        spaces: For every query that could be served: its plans that are feasible when the fleet is idle.
        chosen: The matcher's choice.

    Returns:
        Choices that ``check_plan`` finds no fault with; worth no less than what is left after the repair.
    """
    settled = _repaired(problem, chosen)
    for _ in range(MAX_PASSES):
        improved = _cheapened(problem, spaces, _filled(problem, spaces, settled))
        if objective(improved) == objective(settled):
            return improved
        settled = improved
    return settled


def objective(chosen: Choices) -> tuple[float, float]:
    """What is maximised, in this order: weight served, then minus cost in USD per second."""
    return (
        math.fsum(choice.query.weight for choice in chosen.values()),
        -math.fsum(choice.cost_usd_per_s for choice in chosen.values()),
    )


def chosen_plans(chosen: Choices) -> dict[str, Plan]:
    """Chosen plans as ``check_plan`` takes them."""
    return {name: choice.plan() for name, choice in chosen.items()}


def _repaired(problem: Problem, chosen: Choices) -> dict[str, Choice]:
    """Drop the least weight that is involved in a violation, again and again, until there is none."""
    kept = dict(chosen)
    while violations := check_plan(problem, chosen_plans(kept)):
        involved = {name for violation in violations for name in _involved(violation, kept)}
        dropped = min(involved, key=lambda name: (kept[name].query.weight, -kept[name].cost_usd_per_s, name))
        del kept[dropped]
    return kept


def _involved(violation: Violation, chosen: Choices) -> set[str]:
    if violation.query is not None:
        return {violation.query}
    return {name for name, choice in chosen.items() if choice.demand().get(str(violation.resource), 0.0) > 0}


def _filled(problem: Problem, spaces: Spaces, chosen: Choices) -> dict[str, Choice]:
    """Serve queries that have no plan, weightiest first, moving or displacing one other if that pays."""
    filled = dict(chosen)
    waiting = [query for name, (query, _) in spaces.items() if name not in filled]
    for query in sorted(waiting, key=lambda query: (-query.weight, query.name)):
        joined = best_choice(problem, *spaces[query.name], filled)
        if joined is not None:
            filled[query.name] = joined
        else:
            filled = _room_made(problem, spaces, query, filled)
    return filled


def _room_made(
    problem: Problem, spaces: Spaces, query: Query, chosen: dict[str, Choice]
) -> dict[str, Choice]:
    """Admit a query by giving one other a different plan, or by displacing a lighter one."""
    best = chosen
    for name in chosen:
        others = {other: choice for other, choice in chosen.items() if other != name}
        joined = best_choice(problem, *spaces[query.name], others)
        if joined is None:
            continue
        arranged = {**others, query.name: joined}
        moved = best_choice(problem, *spaces[name], arranged)
        if moved is not None:
            arranged[name] = moved
        best = max(best, arranged, key=objective)
    return best


def _cheapened(problem: Problem, spaces: Spaces, chosen: dict[str, Choice]) -> dict[str, Choice]:
    """Give every query, the dearest first, the cheapest plan that the others' plans allow."""
    cheaper = dict(chosen)
    for name in sorted(chosen, key=lambda name: (-chosen[name].cost_usd_per_s, name)):
        others = {other: choice for other, choice in cheaper.items() if other != name}
        found = best_choice(problem, *spaces[name], others)
        if found is not None and found.cost_usd_per_s < cheaper[name].cost_usd_per_s:
            cheaper[name] = found
    return cheaper
