"""The last step to exact prices where resources are many: the linear program over the undecided queries.

With as many resources as undecided queries the dual has a kink wherever one looks, and cooling on is slow.
The program is small then. Around prices m, with the reduced values rho_qp = v_qp - d_qp . m of the plans that
are nearly the best, and what the fixed queries leave of each resource,

    maximise    sum_qp rho_qp x_qp - sum_r (lower_r left_r + upper_r lacking_r)
    with        sum_p x_qp <= 1                                             for every q
                sum_qp d_qpr x_qp + left_r - lacking_r = rest_r             for every r
                x, left, lacking >= 0

has as its dual the prices m + delta in the box -lower <= delta <= upper in which the fixed queries may be
trusted to stay as they are (the boxstep method: Marsten, Hogan and Blankenship 1975). Where delta ends at the
border of the box, the next program is centred there; the box grows while no fixed query changes its mind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, sparse

from compass_coordinator.matcher.columns import Columns
from compass_coordinator.matcher.deadline import Deadline
from compass_coordinator.matcher.prices import LEAD, State, best_usage, cooled, draws, undecided
from compass_coordinator.matcher.problem import Bools, Floats

_BOX = 8.0
"""Temperatures by which prices may move at first, as a share of themselves."""
_SPARSE_BOX = 1024.0
"""The same where prices are cooled less far before: nearly everything at once."""
_GROWTH = 8.0
_PROGRAMS = 12
_MOST_COLUMNS = 20_000
_COLD_SPARSE = 3e-5
"""Where cooling ends if demands are sparse, as a share of a query's mean value."""
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Vertex:
    """Prices and the fractional choice of the queries that are undecided at them."""

    state: State
    """Which queries, and at which prices."""
    weights: tuple[Floats, ...]
    """(plans, queries) fractions, of each block."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Solved:
    prices: Floats
    weights: Floats
    """(columns of the program,)."""
    inside: bool
    """Whether no price ended at the border of its box."""


def finished(state: State, until: float, deadline: Deadline) -> Vertex:
    """Final prices, by the program if it is small, else by cooling to a temperature."""
    found = vertex(state, deadline) if state.few else None
    if found is not None:
        return found
    if state.patterns:
        # Colder, the kinks come too close; what is left undecided is settled by rounding.
        until = max(until, _COLD_SPARSE * state.queries.mean_value)
    cold = cooled(state, until, deadline)
    weights = [draws(columns.reduced(cold.prices), cold.temperature)[0] for columns in cold.blocks]
    return Vertex(state=cold, weights=tuple(weights))


def vertex(state: State, deadline: Deadline) -> Vertex | None:
    """An optimum of the linear program, from prices nearby; None if it is not found.

    Args:
        state: Nearly optimal prices.
        deadline: When to give up.
    """
    box = _SPARSE_BOX if state.patterns else _BOX
    for _ in range(_PROGRAMS):
        masks = tuple(_nearly_best(columns, state) for columns in state.blocks)
        if deadline.passed() or sum(int(mask.sum()) for mask in masks) > _MOST_COLUMNS:
            return None
        solved = _solved(state, masks, box)
        if solved is None:
            return None
        fixed = np.ones(len(state.queries), bool)
        fixed[state.places] = False
        rest = 1 - best_usage(state.queries, solved.prices, fixed)
        as_fixed = bool((np.abs(rest - state.rest) <= _ROUNDING).all())
        if solved.inside and as_fixed:
            return Vertex(state=state.at_vertex(solved.prices), weights=_spread(solved.weights, masks))
        box = box * _GROWTH if as_fixed else box / _GROWTH
        state = undecided(state.queries, solved.prices, state.temperature)
    return None


def _nearly_best(columns: Columns, state: State) -> Bools:
    if state.patterns:  # the box is large
        return np.asarray(columns.values > 0)
    reduced = columns.reduced(state.prices)
    best = np.maximum(reduced.max(axis=0, initial=0.0), 0.0)
    nearly: Bools = reduced >= best - LEAD * state.temperature
    return nearly


def _solved(state: State, masks: tuple[Bools, ...], box: float) -> _Solved | None:
    """One program."""
    rho, query, demand, start = [], [], [], 0
    for columns, mask in zip(state.blocks, masks, strict=True):
        plan, which = np.nonzero(mask)
        rho.append(columns.reduced(state.prices)[plan, which])
        query.append(start + which)
        demand.append(columns.sparse_amounts(plan, which))
        start += columns.queries
    resources, count = len(state.prices), sum(map(len, rho))
    width = box * state.temperature / state.queries.mean_value * state.prices + state.temperature
    lower, upper = np.minimum(width, state.prices), width
    # The solver's tolerances are absolute: margins count for 1, and resources for what is used of them.
    unit = LEAD * state.temperature
    of_query: Any = sparse.csr_array(
        (np.ones(count), (np.concatenate(query), np.arange(count))), (start, count)
    )
    nothing = sparse.csr_array((start, 2 * resources))
    each = sparse.eye_array(resources, format="csr")
    amounts: Any = sparse.vstack(demand).T
    used: Any = sparse.hstack([amounts, each, -each], format="csr")
    answer = optimize.linprog(
        -np.concatenate([*rho, -lower, -upper]) / unit,
        A_ub=sparse.hstack([of_query, nothing], format="csr"),
        b_ub=np.ones(start),
        A_eq=used,
        b_eq=state.rest,
        method="highs",
    )
    if answer.status != 0 or answer.x is None:
        return None
    delta = -np.asarray(answer.eqlin.marginals) * unit
    left, lacking = answer.x[count : count + resources], answer.x[count + resources :]
    outside = (lacking > _ROUNDING) | ((left > _ROUNDING) & (lower < state.prices))
    return _Solved(
        prices=np.maximum(state.prices + np.clip(delta, -lower, upper), 0.0),
        weights=np.asarray(answer.x[:count], np.float64),
        inside=not outside.any(),
    )


def _spread(weights: Floats, masks: tuple[Bools, ...]) -> tuple[Floats, ...]:
    spread, start = [], 0
    for mask in masks:
        block = np.zeros(mask.shape)
        end = start + int(mask.sum())
        block[mask] = weights[start:end]
        spread.append(block)
        start = end
    return tuple(spread)
