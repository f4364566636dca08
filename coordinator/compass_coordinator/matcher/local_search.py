"""Local search: what prices leave open, decided by trying.

With tens of queries and as many scarce resources, rounding the fractional solution of the linear program
loses several per cent. `walkers` set out from such a choice. Where there are too many queries for them, they
see a few, for which another plan is nearly as good at the prices.

Value comes first. Then the same walk lowers the cost, by plans worth the same for the queries served.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from compass_coordinator.matcher.deadline import Deadline
from compass_coordinator.matcher.problem import Floats, Ints, MatchProblem
from compass_coordinator.matcher.result import REFUSED
from compass_coordinator.matcher.walkers import ROUNDING, Space, walked

_TIE = 1e-4
"""Losses of worth below which queries are as undecided as each other."""
_TIES = 1e-6
"""What the difference of the largest and the least cost is worth while walkers look for value."""
_CORE = 40_000
"""Amounts, of all plans in all resources, that a walk looks at; queries that are far from undecided stay."""
_ROUNDS = 4
"""Walks with cores of their own, if not all queries fit into one."""
_WORK, _COST_WORK = 5e8, 1e8
"""Amounts to look at altogether, for value and then for cost, if there is a time limit."""
_MODEST = 0.1
"""Share of that without a time limit: planning matches dozens of times."""
_PLENTY = 100
"""Queries beyond which the work shrinks: the more there are, the less the prices leave open."""


def improve(
    problem: MatchProblem,
    choice: Ints,
    prices: Floats,
    bound: float,
    *,
    rng: np.random.Generator,
    deadline: Deadline,
) -> Ints:
    """Look for a better choice around a feasible one.

    Deterministic for the generator's state unless the deadline cuts it short, whatever the order of queries.
    With a deadline it searches longer, until then.

    Args:
        problem: Small: a dense copy of the queries that are undecided is made for every walker.
        choice: (queries,) feasible; ``REFUSED`` for none.
        prices: (resources,) >= 0, value per unit of demand.
        bound: No choice has a larger value: the search for value ends there.
        rng: Source of the walkers' differences.
        deadline: When to stop.

    Returns:
        (queries,) a feasible choice of no less value and, at equal value, of no more cost.
    """
    if not problem.values.size:
        return np.array(choice)
    space, costs, start = _space(problem, choice, prices)
    order = _canonical(space, costs, start)
    space, costs, start = space.take(order), costs[order], start[order]
    effort = 1.0 if deadline.limited else _MODEST
    found = _searched(space, start, bound / space.scale, effort * _WORK, rng, deadline)
    found = _cheaper(space, costs, found, effort * _COST_WORK, rng, deadline)
    improved = np.empty_like(choice)
    improved[order] = np.where(found == space.options - 1, REFUSED, found)
    return improved


def _space(problem: MatchProblem, choice: Ints, prices: Floats) -> tuple[Space, Floats, Ints]:
    """The space of a problem, the costs (queries, options), and the choice as options."""
    queries, plans, resources = problem.demands.shape
    capacities = problem.capacities
    start = np.where(choice == REFUSED, plans, choice)
    # Divided in place of a copy: infinite where nothing is to be had, nan for nothing of it.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        shares = problem.demands / capacities
    shares[problem.demands == 0] = 0.0
    usable = (problem.values > 0) & (shares <= 1 + ROUNDING).all(axis=2)
    amounts = np.zeros((queries, plans + 1, resources))
    np.copyto(amounts[:, :plans], shares, where=usable[..., np.newaxis])
    scale = float(problem.values.max(where=usable, initial=0.0)) or 1.0
    worth = np.zeros((queries, plans + 1))
    worth[:, :plans] = np.where(usable, problem.values / scale, -np.inf)
    costs = np.zeros((queries, plans + 1))
    costs[:, :plans] = np.where(usable, problem.costs, 0.0)
    least = float(costs.min(initial=0.0))
    # What a choice has and should not have, such as a plan worth nothing, it loses here.
    start = np.where(np.isneginf(worth[np.arange(queries), start]), plans, start)
    space = Space(
        worth=worth,
        amounts=amounts,
        limits=np.ones(resources),
        prices=prices * capacities / scale,
        ties=_TIES * (costs - least) / (float(costs.max(initial=0.0)) - least or 1.0),
        scale=scale,
    )
    return space, costs, start


def _canonical(space: Space, costs: Floats, start: Ints) -> Ints:
    """An order of the queries by what they are, so that the caller's does not matter."""
    queries = len(start)
    what = np.hstack(
        [space.worth, costs, start[:, np.newaxis].astype(np.float64), space.amounts.reshape(queries, -1)]
    )
    # Adding 0 makes -0 the same as 0.
    rows = what + 0.0
    return np.array(sorted(range(queries), key=lambda query: rows[query].tobytes()), dtype=np.int64)


def _cheaper(
    space: Space, costs: Floats, choice: Ints, work: float, rng: np.random.Generator, deadline: Deadline
) -> Ints:
    """Lower the cost of a choice by other plans of the same worth."""
    queries = np.arange(len(choice))
    same = space.worth == space.worth[queries, choice][:, np.newaxis]
    saving = np.where(same, costs[queries, choice][:, np.newaxis] - costs, -np.inf)
    scale = float(np.abs(saving).max(where=same, initial=0.0))
    if not (saving > ROUNDING * scale).any():
        return choice
    # Prices in value say nothing about costs.
    prices = np.zeros_like(space.prices)
    ties = np.zeros_like(space.ties)
    by_cost = replace(space, worth=saving / scale, prices=prices, ties=ties, scale=scale)
    return _searched(by_cost, choice, float(by_cost.worth.max(axis=1).sum()), work, rng, deadline)


def _searched(
    space: Space, start: Ints, bound: float, work: float, rng: np.random.Generator, deadline: Deadline
) -> Ints:
    """The best choice found by walks among the queries that are most undecided."""
    queries = len(start)
    work *= min(1.0, _PLENTY / queries)
    size = max(1, _CORE // max(1, space.amounts[0].size))
    open_ = np.flatnonzero((space.worth > -np.inf).sum(axis=1) > 1)
    rounds = 1 if len(open_) <= size else _ROUNDS
    choice = start
    for _ in range(rounds):
        missing = bound - space.worth_of(choice)
        if missing <= ROUNDING * queries or deadline.passed() or not open_.size:
            break
        core = open_ if rounds == 1 else np.sort(_undecided(space.take(open_), open_, choice, size, rng))
        part = space.take(core)
        left = space.limits - space.used(choice) + part.used(choice[core])
        part = replace(part, limits=left)
        choice = choice.copy()
        choice[core] = walked(part, choice[core], missing, work / rounds, rng, deadline)
    return choice


def _undecided(space: Space, queries: Ints, choice: Ints, size: int, rng: np.random.Generator) -> Ints:
    """Those of the queries for which an option that they do not have is nearly the best at the prices."""
    reduced = space.worth - space.amounts @ space.prices
    loss = reduced.max(axis=1, keepdims=True) - reduced
    loss[np.arange(len(queries)), choice[queries]] = np.inf
    least = (loss.min(axis=1) + _TIE) * np.exp(0.5 * rng.standard_normal(len(queries)))
    return queries[np.argsort(least, kind="stable")[:size]]
