"""Prices of the shared resources: the Lagrangian dual, solved by cooling.

With a price l_r on every resource each query picks its best plan alone, and

    D(l) = sum_r l_r + sum_q max(0, max_p (v_qp - d_qp . l)),    l >= 0

bounds every choice's value from above (capacities are 1 here, see `columns`). D is convex with a kink
wherever a query is undecided. At temperature t the maximum is replaced by its smooth upper bound

    t log(1 + sum_p exp((v_qp - d_qp . l) / t)),

whose gradient and Hessian are the mean and the covariance of the demand when queries draw their plans with
probability proportional to exp(./t). Newton's method finds the minimum in a few steps; then the temperature
falls and it starts from there. The bounds l >= 0 are kept by the interior-point method: slacks s with
s_r l_r = t. In the end the probabilities are the fractional solution of the linear program.

As the temperature falls, ever fewer queries are undecided: one whose best plan leads by many t is fixed, and
its demand is taken off the capacities, so that late steps cost next to nothing. While the temperature is
high, a sample of the queries is enough. Neither can harm unseen: at the final prices all queries are looked
at, and should one turn out to be fixed wrongly, cooling is done again from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from compass_coordinator.matcher.columns import OVERDRAFT, Columns, Queries, summed
from compass_coordinator.matcher.curvature import Curvature, Pattern, joined, solved, stretched, with_diagonal
from compass_coordinator.matcher.deadline import Deadline
from compass_coordinator.matcher.problem import Bools, Floats, Ints

_COOLING = 0.25
"""From one temperature to the next."""
LEAD = 25.0
"""Temperatures by which a best plan must lead for its query to be fixed."""
_RELEASES = 4
"""How often queries are released that overdraw a resource."""
_FEW = 500
"""Queries of which none is fixed."""
_MANY = 16
"""Resources beyond which there is a better way than cooling to the end, when few queries are undecided."""
_FEW_PER_RESOURCE, _FEW_BELOW, _FEW_PLANS = 4, 0.02, 4000
_PULL = 30.0
"""Temperatures that doubling a price costs half of, where queries are fixed on account of the prices."""
_STEPS, _FIRST_STEPS = 25, 40
_HOT = 0.2
"""Temperature of a cold start with sparse demands, as a share of a query's mean value."""
_REACH = 8.0
"""Temperatures by which a step may change what a plan costs, where the smooth dual is flat."""
_SPARSE_COOLING, _SPARSE_STEPS = 0.16, 8
_SETTLED = 0.1
"""Share of the temperature that a Newton step may still promise."""
_LEAST_RIDGE, _RIDGES = 1e-14, 8
_TO_BOUNDARY = 0.99
_SAMPLES = ((2048, 0.05), (32768, 0.001))
"""(queries, temperature down to which so many are enough, as a share of a query's mean value)."""
_SAMPLED_PER_RESOURCE = 200
_WARM = 0.003
"""Temperature at which a warm start begins, as a share of a query's mean value."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """A minimum of the smooth dual at a temperature."""

    queries: Queries
    places: Ints
    """Which of them are not fixed."""
    blocks: tuple[Columns, ...]
    """Those."""
    patterns: tuple[Pattern, ...]
    """Those again, if demands are sparse."""
    rest: Floats
    """(resources,) capacity that the fixed ones leave."""
    prices: Floats
    """(resources,) > 0."""
    slack: Floats
    """(resources,) > 0."""
    temperature: float
    anchored: bool = False
    """Whether the prices are drawn to where they were, because queries are fixed on their account."""

    def with_places(self, places: Ints) -> State:
        """The same with other queries that are not fixed."""
        blocks = self.queries.blocks_of(places)
        return replace(self, places=places, blocks=blocks, patterns=_patterns(blocks))

    @property
    def few(self) -> bool:
        """Whether so few queries are undecided that cooling on would be slow; see `vertex`."""
        if self.patterns:
            return self.temperature <= _FEW_BELOW * self.queries.mean_value and (
                sum(len(pattern.values) for pattern in self.patterns) <= _FEW_PLANS
            )
        warm = self.temperature <= _FEW_BELOW * self.queries.mean_value
        return warm and len(self.prices) > _MANY and len(self.places) <= _FEW_PER_RESOURCE * len(self.prices)

    def at_vertex(self, prices: Floats) -> State:
        """The same at prices that are optimal: each is 0, or its resource used up."""
        return replace(self, prices=prices, slack=np.where(prices > 0, 0.0, 1.0))

    def offering(self, queries: Queries) -> State:
        """The same with other values for the same queries."""
        return replace(self, queries=queries).with_places(self.places)

    @classmethod
    def at(cls, queries: Queries, places: Ints, rest: Floats, prices: Floats, temperature: float) -> State:
        """Some queries, the prices not settled yet."""
        # No slack is larger than a capacity.
        prices = np.maximum(prices, temperature)
        blocks = queries.blocks_of(places)
        return cls(
            queries=queries,
            places=places,
            blocks=blocks,
            patterns=_patterns(blocks),
            rest=rest,
            prices=prices,
            slack=temperature / prices,
            temperature=temperature,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Point:
    """The smooth dual at some prices."""

    value: float
    gradient: Floats
    curvature: Callable[[], Curvature]
    """Made when it is asked for."""


def priced(queries: Queries, warm: Floats | None, until: float, deadline: Deadline) -> State:
    """Prices of a problem, from nothing or from earlier ones.

    Args:
        queries: The problem.
        warm: (resources,) scaled prices to start from.
        until: Temperature to end at, as a share of a query's mean value.
        deadline: When to stop early.
    """
    count, resources = len(queries), queries.resource_count
    mean = queries.mean_value
    if warm is None:
        prices, heat = np.full(resources, count * mean / (2 * max(resources, 1))), 1.0
        if not queries.dense:
            prices, heat = _first_prices(queries), _HOT * mean
    else:
        prices, heat = warm, _WARM * mean
    everyone, sampled = np.arange(count), False
    for size, enough in _SAMPLES:
        if heat > enough * mean and count > 2 * size and size >= _SAMPLED_PER_RESOURCE * resources:
            share = np.full(resources, size / count)
            sample = State.at(queries, queries.sampled(size), share, prices, heat)
            state = cooled(sample, enough * mean, deadline)
            prices, heat, sampled = state.prices, state.temperature, True
    if sampled:
        start = undecided(queries, prices, heat)
    else:
        start = State.at(queries, everyone, np.ones(resources), prices, heat)
    return cooled(start, until * mean, deadline, or_few=True)


def _first_prices(queries: Queries) -> Floats:
    """(resources,) at which the plans that use a resource pay it half of a query's value, on average."""
    asked, asking = np.zeros(queries.resource_count), np.zeros(queries.resource_count)
    for _, columns in queries.blocks():
        if columns.resources is not None:
            asked += summed(columns.resources, columns.amounts, len(asked))
            asking += summed(columns.resources, (columns.amounts > 0).astype(np.float64), len(asking))
    prices: Floats = queries.mean_value * asking / (2 * np.maximum(asked, OVERDRAFT))
    return np.minimum(prices, len(queries) * queries.mean_value)


def undecided(queries: Queries, prices: Floats, temperature: float) -> State:
    """The state in which every query is fixed that is decided at these prices."""
    everyone = State.at(queries, np.arange(0), np.ones(len(prices)), prices, temperature)
    if len(queries) <= _FEW:
        return everyone.with_places(np.arange(len(queries)))
    near, rest = _near((columns for _, columns in queries.blocks()), prices, temperature, everyone.rest)
    if rest.min(initial=0.0) < -OVERDRAFT:
        return everyone.with_places(np.arange(len(queries)))
    near_places = np.flatnonzero(near)
    anchored = len(near_places) < len(queries)
    return replace(everyone, rest=np.maximum(rest, 0.0), anchored=anchored).with_places(near_places)


def best_usage(queries: Queries, prices: Floats, which: Bools) -> Floats:
    """(resources,) usage if these queries (queries,) run their best plans at the prices."""
    usage = np.zeros(len(prices))
    for where, columns in queries.blocks():
        usage += _used_by_best(columns, columns.reduced(prices), which[where])
    return usage


def leads(reduced: Floats) -> Floats:
    """(queries,) by how much the best plan, or none, leads the second best."""
    best: Floats = np.zeros(reduced.shape[1])
    second = np.full(reduced.shape[1], -np.inf)
    for plan in reduced:
        np.maximum(second, np.minimum(best, plan), out=second)
        np.maximum(best, plan, out=best)
    best -= second
    return best


def cooled(state: State, until: float, deadline: Deadline, *, or_few: bool = False) -> State:
    """Follow the minimum of the smooth dual down to a temperature, fixing queries on the way.

    Args:
        state: Where to start.
        until: Where to end.
        deadline: When to stop in any case.
        or_few: End also where few queries are undecided.
    """
    sparse = bool(state.patterns)
    cooling = _SPARSE_COOLING if sparse else _COOLING
    state = _settled(state, _FIRST_STEPS)
    while state.temperature > until and not deadline.passed():
        state = _fixed(state)
        if or_few and state.few:
            return state
        state = replace(state, temperature=max(until, state.temperature * cooling))
        state = _settled(state, _SPARSE_STEPS if sparse else _STEPS)
    return state


def _fixed(state: State) -> State:
    """Take the decided queries out, if they are many."""
    if len(state.places) <= _FEW:
        return state
    near, rest = _near(state.blocks, state.prices, state.temperature, state.rest)
    places = state.places[near]
    if len(places) > 0.7 * len(state.places) or rest.min(initial=0.0) < -OVERDRAFT:
        return state
    return replace(state, rest=np.maximum(rest, 0.0), anchored=True).with_places(places)


def _near(
    blocks: Iterable[Columns], prices: Floats, temperature: float, rest: Floats
) -> tuple[Bools, Floats]:
    """(queries,) which are not decided, and what the others leave of the rest.

    Of sparse demands, those that are decided to overdraw a resource between them are not.
    """
    near, decided = [np.zeros(0, bool)], []
    for columns in blocks:
        reduced = columns.reduced(prices)
        near.append(leads(reduced) <= LEAD * temperature)
        rest = rest - _used_by_best(columns, reduced, ~near[-1])
        if columns.resources is not None and len(reduced):
            decided.append((columns, near[-1], reduced.argmax(axis=0), reduced.max(axis=0) > 0))
    for _ in range(_RELEASES):
        over = rest < -OVERDRAFT
        if not decided or not over.any():
            break
        for columns, some, plan, served in decided:
            asks = columns.priced_at(over.astype(np.float64), plan) > 0
            query = np.flatnonzero(asks & served & ~some)
            rest = rest + columns.usage(plan[query], query)
            some[query] = True
    return np.concatenate(near), rest


def _used_by_best(columns: Columns, reduced: Floats, which: Bools) -> Floats:
    """(resources,) usage if these queries run their best plans."""
    if not len(reduced):
        return np.zeros(columns.resource_count)
    plan = reduced.argmax(axis=0)
    query = np.flatnonzero(which & (reduced.max(axis=0) > 0))
    return columns.usage(plan[query], query)


def _settled(state: State, steps: int) -> State:
    """Minimise the smooth dual at the state's temperature."""
    heat, prices, slack = state.temperature, state.prices, state.slack
    if not len(prices):
        return state
    point = _evaluated(state, prices)
    for _ in range(steps):
        # One Newton step of: gradient = slack, slack * prices = heat; in relative changes of the prices.
        residual = heat - prices * point.gradient
        damping = slack * prices
        if state.patterns:
            typical = np.max([pattern.typical for pattern in state.patterns], axis=0)
            damping = damping + np.abs(residual) * typical * prices / (_REACH * heat)
        step = prices * _solved(stretched(point.curvature(), prices), damping, residual)
        slack_step = heat / prices - slack - slack / prices * step
        promise = float(step @ (heat / prices - point.gradient))
        slack = slack + _room(slack, slack_step) * slack_step
        length = _room(prices, step)
        before = point.value - heat * float(np.log(prices).sum())
        for _ in range(30):
            trial = prices + length * step
            point = _evaluated(state, trial)
            after = point.value - heat * float(np.log(trial).sum())
            if after <= before + 1e-12 * abs(before):
                break
            length /= 4
        prices = trial
        if promise <= _SETTLED * heat * max(1.0, len(prices) / _MANY):
            break
    return replace(state, prices=prices, slack=slack)


def _patterns(blocks: tuple[Columns, ...]) -> tuple[Pattern, ...]:
    return tuple(Pattern.of(columns) for columns in blocks if columns.resources is not None)


def _evaluated(state: State, prices: Floats) -> _Point:
    value, usage, curvature = (_summed_sparse if state.patterns else _summed_dense)(state, prices)
    value, gradient = value + float(prices @ state.rest), state.rest - usage
    if not state.anchored:
        return _Point(value=value, gradient=gradient, curvature=curvature)
    away, pull = (prices - state.prices) / state.prices, _PULL * state.temperature
    value += pull * float(away @ away) / 2
    gradient += pull * away / state.prices
    return _Point(
        value=value, gradient=gradient, curvature=lambda: with_diagonal(curvature(), pull / state.prices**2)
    )


def _summed_dense(state: State, prices: Floats) -> tuple[float, Floats, Callable[[], Curvature]]:
    value, usage, curvature = 0.0, np.zeros(len(prices)), np.zeros((len(prices), len(prices)))
    for columns in state.blocks:
        weights, best = draws(columns.reduced(prices), state.temperature)
        mean, covariance = columns.moments(weights)
        value += best
        usage += mean
        curvature += covariance / state.temperature
    return value, usage, lambda: curvature


def _summed_sparse(state: State, prices: Floats) -> tuple[float, Floats, Callable[[], Curvature]]:
    value, usage, weights = 0.0, np.zeros(len(prices)), []
    for pattern in state.patterns:
        best, mean, drawn = pattern.evaluated(prices, state.temperature)
        value += best
        usage += mean
        weights.append(drawn)

    def curvature() -> Curvature:
        parts = [part.covariance(drawn) for part, drawn in zip(state.patterns, weights, strict=True)]
        return joined(parts, 1 / state.temperature)

    return value, usage, curvature


def draws(reduced: Floats, temperature: float) -> tuple[Floats, float]:
    """Probabilities (plans, queries) by reduced value, and the sum of the smooth maxima."""
    best = np.maximum(reduced.max(axis=0, initial=0.0), 0.0)
    weights = np.exp((reduced - best) / temperature)
    total = weights.sum(axis=0) + np.exp(-best / temperature)
    weights /= total
    return weights, float(best.sum() + temperature * np.log(total).sum())


def _solved(matrix: Curvature, diagonal: Floats, right: Floats) -> Floats:
    """Solve (matrix + diagonal) x = right, regularised as little as it takes.

    Args:
        matrix: Positive semidefinite up to rounding.
        diagonal: > 0.
        right: Of the equations.
    """
    ridge = _LEAST_RIDGE
    for _ in range(_RIDGES):
        solution = solved(matrix, diagonal, right, ridge)
        if np.isfinite(solution).all() and solution @ right >= 0:
            return solution
        ridge *= 100
    return np.zeros_like(right)


def _room(numbers: Floats, step: Floats) -> float:
    """The largest share of a step, up to 1, that keeps positive numbers positive."""
    shrink = step < -_TO_BOUNDARY * numbers
    return float((_TO_BOUNDARY * numbers[shrink] / -step[shrink]).min(initial=1.0))
