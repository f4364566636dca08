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

from dataclasses import dataclass, replace

import numpy as np

from compass_coordinator.matcher.columns import OVERDRAFT, Columns, Queries
from compass_coordinator.matcher.deadline import Deadline
from compass_coordinator.matcher.problem import Bools, Floats, Ints

_COOLING = 0.25
"""From one temperature to the next."""
LEAD = 25.0
"""Temperatures by which a best plan must lead for its query to be fixed."""
_FEW = 500
"""Queries of which none is fixed."""
_MANY = 16
"""Resources beyond which there is a better way than cooling to the end, when few queries are undecided."""
_FEW_PER_RESOURCE, _FEW_BELOW = 4, 0.02
_PULL = 30.0
"""Temperatures that doubling a price costs half of, where queries are fixed on account of the prices."""
_STEPS, _FIRST_STEPS = 25, 40
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
        return replace(self, places=places, blocks=self.queries.blocks_of(places))

    @property
    def few(self) -> bool:
        """Whether so few queries are undecided that cooling on would be slow; see `vertex`."""
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
        return cls(
            queries=queries,
            places=places,
            blocks=queries.blocks_of(places),
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
    curvature: Floats


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


def undecided(queries: Queries, prices: Floats, temperature: float) -> State:
    """The state in which every query is fixed that is decided at these prices."""
    everyone = State.at(queries, np.arange(0), np.ones(len(prices)), prices, temperature)
    if len(queries) <= _FEW:
        return everyone.with_places(np.arange(len(queries)))
    rest, places = everyone.rest, [np.zeros(0, np.int64)]
    for where, columns in queries.blocks():
        reduced = columns.reduced(prices)
        near = leads(reduced) <= LEAD * temperature
        rest = rest - _used_by_best(columns, reduced, ~near)
        places.append(where.start + np.flatnonzero(near))
    if rest.min(initial=0.0) < -OVERDRAFT:
        return everyone.with_places(np.arange(len(queries)))
    near_places = np.concatenate(places)
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
    state = _settled(state, _FIRST_STEPS)
    while state.temperature > until and not deadline.passed():
        state = _fixed(state)
        if or_few and state.few:
            return state
        state = replace(state, temperature=max(until, state.temperature * _COOLING))
        state = _settled(state, _STEPS)
    return state


def _fixed(state: State) -> State:
    """Take the decided queries out, if they are many."""
    if len(state.places) <= _FEW:
        return state
    near, rest = [np.zeros(0, bool)], state.rest
    for columns in state.blocks:
        reduced = columns.reduced(state.prices)
        near.append(leads(reduced) <= LEAD * state.temperature)
        rest = rest - _used_by_best(columns, reduced, ~near[-1])
    places = state.places[np.concatenate(near)]
    if len(places) > 0.7 * len(state.places) or rest.min(initial=0.0) < -OVERDRAFT:
        return state
    return replace(state, rest=np.maximum(rest, 0.0), anchored=True).with_places(places)


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
        step = prices * _solved(
            point.curvature * np.outer(prices, prices), slack * prices, heat - prices * point.gradient
        )
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
        if promise <= _SETTLED * heat:
            break
    return replace(state, prices=prices, slack=slack)


def _evaluated(state: State, prices: Floats) -> _Point:
    value, gradient = float(prices @ state.rest), state.rest.copy()
    curvature = np.zeros((len(prices), len(prices)))
    for columns in state.blocks:
        weights, best = draws(columns.reduced(prices), state.temperature)
        usage, covariance = columns.moments(weights)
        value += best
        gradient -= usage
        curvature += covariance / state.temperature
    if state.anchored:
        away, pull = (prices - state.prices) / state.prices, _PULL * state.temperature
        value += pull * float(away @ away) / 2
        gradient += pull * away / state.prices
        curvature += np.diag(pull / state.prices**2)
    return _Point(value=value, gradient=gradient, curvature=curvature)


def draws(reduced: Floats, temperature: float) -> tuple[Floats, float]:
    """Probabilities (plans, queries) by reduced value, and the sum of the smooth maxima."""
    best = np.maximum(reduced.max(axis=0, initial=0.0), 0.0)
    weights = np.exp((reduced - best) / temperature)
    total = weights.sum(axis=0) + np.exp(-best / temperature)
    weights /= total
    return weights, float(best.sum() + temperature * np.log(total).sum())


def _solved(matrix: Floats, diagonal: Floats, right: Floats) -> Floats:
    """Solve (matrix + diagonal) x = right, regularised as little as it takes.

    Args:
        matrix: Positive semidefinite up to rounding.
        diagonal: > 0.
        right: Of the equations.
    """
    size = np.sqrt(np.maximum(matrix.diagonal(), 0.0) + diagonal)
    scaled, target, ridge = matrix / np.outer(size, size), right / size, _LEAST_RIDGE
    np.fill_diagonal(scaled, 1.0)
    for _ in range(_RIDGES):
        try:
            solution = np.asarray(np.linalg.solve(scaled + ridge * np.eye(len(right)), target), np.float64)
        except np.linalg.LinAlgError:
            solution = np.full_like(right, np.nan)
        if np.isfinite(solution).all() and solution @ target >= 0:
            return solution / size
        ridge *= 100
    return np.zeros_like(right)


def _room(numbers: Floats, step: Floats) -> float:
    """The largest share of a step, up to 1, that keeps positive numbers positive."""
    shrink = step < -_TO_BOUNDARY * numbers
    return float((_TO_BOUNDARY * numbers[shrink] / -step[shrink]).min(initial=1.0))
