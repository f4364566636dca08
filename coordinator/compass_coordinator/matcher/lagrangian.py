"""The matcher: near-optimal choices for up to millions of queries, with a bound that anyone can recompute.

Sets: queries Q, plans P_q of each, resources R. Variables: x_qp in {0, 1}, whether q runs by plan p; for a
divisible query in [0, 1], how much of it does.

    first   maximise sum_qp value_qp x_qp
    then    minimise sum_qp cost_qp x_qp

    with    sum_p x_qp <= 1                             for every q
            sum_qp demand_qpr x_qp <= capacity_r        for every r

1. `prices` of the resources, by the Lagrangian dual; they prove the bound.
2. `rounding`: every query takes its best plan at the prices, what is overdrawn is repaired, the rest filled.
3. `exchange` of plans between pairs of queries that are nearly undecided.
4. `local_search` around that, where there are few queries.
5. `splitting` of divisible queries.

Costs enter as a value so small that it decides only among plans that are worth the same. See docs/matcher.md.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from compass_coordinator.matcher.bounds import dual_bound, prices_of_closed
from compass_coordinator.matcher.columns import Queries
from compass_coordinator.matcher.deadline import Deadline
from compass_coordinator.matcher.exchange import exchange
from compass_coordinator.matcher.local_search import improve
from compass_coordinator.matcher.prices import State, cooled, priced, undecided
from compass_coordinator.matcher.problem import (
    Floats,
    Ints,
    MatchProblem,
    SparseDemands,
    checked,
    checked_divisible,
    checked_prices,
    checked_sparse,
)
from compass_coordinator.matcher.result import MatchResult, MatchStatus, Shares
from compass_coordinator.matcher.rounding import (
    Rounding,
    Workbench,
    closest,
    fill,
    fillable,
    repaired,
    rounded,
)
from compass_coordinator.matcher.splitting import Splits, split
from compass_coordinator.matcher.vertex import Vertex, finished

_BEFORE_TIES, _COLD = 1e-4, 1e-9
"""Temperatures, as shares of a query's mean value: down to which costs do not show, and of the end."""
_TIE = 1e-6
"""What the largest cost counts for, as a share of the largest value."""
_REHEATED, _REHEATS = 1e-2, 3
_NEAR = 2048
"""Queries with the smallest leads that may exchange plans."""
_SMALL = 500
"""Queries up to which all of them are searched."""
_TIED_GAP = 1e-5
"""A gap that may come from costs."""
_OPTIMAL = 1e-9
"""A gap that is rounding."""


def match(
    values: ArrayLike,
    demands: ArrayLike | SparseDemands,
    capacities: ArrayLike,
    costs: ArrayLike | None = None,
    *,
    divisible: ArrayLike | None = None,
    warm_prices: ArrayLike | None = None,
    time_limit_s: float | None = None,
    seed: int = 0,
) -> MatchResult:
    """Choose at most one plan a query: a large total value, then a small total cost.

    Args:
        values: (queries, plans) float64, -inf where a query has no such plan; only what is > 0 is chosen.
        demands: (queries, plans, resources) float64, >= 0; or the same as `SparseDemands`.
        capacities: (resources,) float64, >= 0, in the units of the demands.
        costs: (queries, plans) float64; None if they don't matter. Plans whose values differ by less than a
            millionth of the largest may be chosen by cost.
        divisible: (queries,) bool, which queries may be split over plans; None for none of them.
        warm_prices: (resources,) prices of a similar problem, to start from.
        time_limit_s: When to stop improving, while there is a gap; None for a modest amount of work, by which
            the result depends on nothing but the arguments.
        seed: Of the random choices of the local search.

    Returns:
        The choice, with prices, bound and gap. Neither value nor bound depends on the order of the queries.

    Raises:
        PlanningError: If the input is malformed.
    """
    deadline = Deadline.after(time_limit_s)
    problem = (
        checked_sparse(values, demands, capacities, costs)
        if isinstance(demands, SparseDemands)
        else checked(values, demands, capacities, costs)
    )
    queries = Queries.of(problem, checked_divisible(divisible, len(problem.values)))
    warm = None if warm_prices is None else queries.scaled(checked_prices(warm_prices, problem))
    if not queries.dense:
        return _matched_sparse(queries, warm, seed, deadline)
    warmer = priced(queries, warm, _BEFORE_TIES, deadline)
    final = finished(warmer, _COLD * queries.mean_value, deadline)
    prices, bound = _proof(final.state, deadline)
    if costs is not None:
        tied = warmer.offering(_with_ties(queries))
        final = finished(tied, _COLD * queries.mean_value, deadline)
    choice, splits = _chosen(final, bound, np.random.default_rng(seed), deadline)
    return _result(queries, choice, splits, prices, bound)


def _matched_sparse(queries: Queries, warm: Floats | None, seed: int, deadline: Deadline) -> MatchResult:
    """The same with value and cost at once: where many resources are scarce, cooling twice takes too long."""
    tied = _with_ties(queries)
    final = finished(priced(tied, warm, _BEFORE_TIES, deadline), _COLD * queries.mean_value, deadline)
    prices, bound = _proof(final.state, deadline)
    choice, splits = _chosen(final, bound, np.random.default_rng(seed), deadline)
    result = _result(queries, choice, splits, prices, bound)
    if tied.cost_weight and _OPTIMAL < result.gap <= _TIED_GAP:
        # What is missing may be the traces of the costs.
        start = priced(queries, queries.scaled(prices), _BEFORE_TIES, deadline)
        prices, bound = _proof(finished(start, _COLD * queries.mean_value, deadline).state, deadline)
        if bound < result.bound:
            return _result(queries, choice, splits, prices, bound)
    return result


def _proof(state: State, deadline: Deadline) -> tuple[Floats, float]:
    """Unscaled prices and the bound they prove: of all plans, also those that do not fit alone."""
    queries = state.queries
    closed = prices_of_closed(queries.problem)
    states = [state]
    if queries.any_oversize:
        larger = replace(queries, oversize=True, scarce=None, at_hand=None, cost_weight=0.0)
        warm = larger.scaled(queries.unscaled(state.prices))
        every = priced(larger, warm, _BEFORE_TIES, deadline)
        states.append(finished(every, state.temperature, deadline).state)
    proofs = []
    for one in states:
        # A price that only the interior-point method keeps from 0 is 0.
        some = np.where(one.slack > one.prices / max(len(queries), 1), 0.0, one.prices)
        for prices in (some, one.prices) if one.patterns and (some != one.prices).any() else (some,):
            unscaled = one.queries.unscaled(prices) * (queries.problem.capacities > 0) + closed
            proofs.append((dual_bound(queries.problem, unscaled), unscaled))
    bound, best = min(proofs, key=lambda proof: proof[0])
    return best, bound


def _with_ties(queries: Queries) -> Queries:
    costs = queries.problem.costs[queries.problem.values > 0]
    largest = float(np.abs(costs).max(initial=0.0))
    return replace(queries, cost_weight=_TIE / largest) if largest > 0 else queries


def _chosen(
    vertex: Vertex, bound: float, rng: np.random.Generator, deadline: Deadline
) -> tuple[Ints, Splits]:
    """A choice that fits, (queries,) in their order, and the parts of those that are split."""
    vertex, rounding = _rounded(vertex, deadline)
    queries, prices = vertex.state.queries, vertex.state.prices
    choice, usage = repaired(queries, rounding, prices)
    places = np.union1d(closest(rounding.lead, _NEAR), fillable(queries, choice, usage))
    bench = Workbench.of(replace(queries, cost_weight=0.0), places, choice, usage)
    _polish(bench, prices, deadline)
    if queries.cost_weight:
        bench = replace(bench, columns=queries.columns(places))
        _polish(bench, prices, deadline)
    if len(queries) <= _SMALL:
        _improve(bench, queries, prices, bound, rng, deadline)
    divisible = np.zeros(len(places), bool)
    if queries.divisible is not None:
        divisible = queries.divisible[queries.order[places]]
    splits = split(bench, divisible, rounding.lead[places])
    choice[places] = bench.plan
    return choice, splits


def _polish(bench: Workbench, prices: Floats, deadline: Deadline) -> None:
    fill(bench)
    exchange(bench, prices, deadline)
    fill(bench)


def _rounded(vertex: Vertex, deadline: Deadline) -> tuple[Vertex, Rounding]:
    """What queries choose, at prices for which no query was fixed wrongly."""
    rounding = rounded(vertex.state, vertex.weights)
    for _ in range(0 if vertex.state.patterns else _REHEATS):
        if rounding.fixed_rightly or deadline.passed():
            break
        state = vertex.state
        hot = undecided(state.queries, state.prices, _REHEATED * state.queries.mean_value)
        vertex = finished(cooled(hot, hot.temperature, deadline), _COLD * state.queries.mean_value, deadline)
        rounding = rounded(vertex.state, vertex.weights)
    return vertex, rounding


def _improve(
    bench: Workbench,
    queries: Queries,
    prices: Floats,
    bound: float,
    rng: np.random.Generator,
    deadline: Deadline,
) -> None:
    """Search on among all queries: few enough to look at every one."""
    problem = queries.problem
    dense = problem if isinstance(problem, MatchProblem) else problem.dense()
    dense = replace(
        dense,
        values=dense.values[queries.order],
        demands=dense.demands[queries.order],
        costs=dense.costs[queries.order],
    )
    better = improve(dense, bench.plan, queries.unscaled(prices), bound, rng=rng, deadline=deadline)
    for query in np.flatnonzero(better != bench.plan):
        bench.move(int(query), int(better[query]))


def _result(queries: Queries, ordered: Ints, splits: Splits, prices: Floats, bound: float) -> MatchResult:
    problem, order = queries.problem, queries.order
    choice = np.empty(len(ordered), np.int64)
    choice[order] = ordered
    by_query = np.argsort(order[splits.place], kind="stable")
    shares = Shares(
        query=order[splits.place][by_query],
        plan=splits.plan[by_query],
        fraction=splits.fraction[by_query],
    )
    value = _total(problem.values, choice, shares)
    bound = max(bound, value)
    gap = (bound - value) / bound if bound > 0 else 0.0
    return MatchResult(
        choice=choice,
        shares=shares,
        value=value,
        cost=_total(problem.costs, choice, shares),
        prices=prices,
        bound=bound,
        gap=gap,
        status=MatchStatus.OPTIMAL if gap <= _OPTIMAL else MatchStatus.FEASIBLE,
    )


def _total(of_plans: Floats, choice: Ints, shares: Shares) -> float:
    served = np.flatnonzero(choice >= 0)
    parts = of_plans[shares.query, shares.plan] * shares.fraction
    return math.fsum([*of_plans[served, choice[served]].tolist(), *parts.tolist()])
