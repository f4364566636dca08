"""The steps of an online matcher's round, as functions of who is there. ``online`` says what for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compass_coordinator.matcher.problem import Floats
from compass_coordinator.matcher.result import REFUSED
from compass_coordinator.matcher.roster import Roster

_OVERDRAFT = 1e-9
"""Relative excess over a capacity that is rounding."""


def fit(demands: Floats, capacities: Floats) -> NDArray[np.bool_]:
    """(...,) whether (..., resources) demands fit, but for rounding."""
    return np.asarray((demands <= capacities * (1.0 + _OVERDRAFT)).all(axis=-1), dtype=np.bool_)


def total(amounts: Floats, choice: NDArray[np.int64]) -> float:
    """Sum of the chosen plans' (queries, plans) amounts."""
    served = np.flatnonzero(choice != REFUSED)
    return float(amounts[served, choice[served]].sum())


def demand_of(roster: Roster, choice: NDArray[np.int64]) -> Floats:
    """(resources,) demand of a choice."""
    held = np.flatnonzero(choice != REFUSED)
    demand: Floats = roster.demands[held, choice[held]].sum(axis=0)
    return demand


def best(worth: Floats, costs: Floats, tie: float) -> int:
    """The plan that is worth most; the cheapest of those that are as good but for a tie."""
    return int(np.where(worth >= worth.max() - tie, costs, np.inf).argmin())


def aged_values(roster: Roster, patience: int) -> Floats:
    """(queries, plans) values with weight and ageing."""
    ageing = 1.0 + np.minimum(roster.waited, patience) / patience
    aged: Floats = roster.values * (roster.weights * ageing)[:, np.newaxis]
    return aged


def overdue(
    roster: Roster, aged: Floats, capacities: Floats, prices: Floats, *, patience: int, share: float
) -> NDArray[np.int64]:
    """(queries,) the plans of those who go first, ``REFUSED`` for all others.

    Most refusals first, then by arrival, until the next one does not fit into the share of the capacities.
    The first one may take all there is.
    """
    choice = np.full(len(roster), REFUSED, dtype=np.int64)
    rows = np.flatnonzero(roster.waited >= patience)
    alone = (aged[rows] > 0) & fit(roster.demands[rows], capacities)
    rows = rows[alone.any(axis=1)]
    taken, room = np.zeros_like(capacities), capacities
    for row in rows[np.lexsort((roster.arrival[rows], -roster.waited[rows]))].tolist():
        fits = (aged[row] > 0) & fit(taken + roster.demands[row], room)
        if not fits.any():
            break
        reduced = np.where(fits, aged[row] - roster.demands[row] @ prices, -np.inf)
        choice[row] = best(reduced, roster.costs[row], 0.0)
        taken += roster.demands[row, choice[row]]
        room = share * capacities
    return choice


def shed(roster: Roster, choice: NDArray[np.int64], worth: Floats, capacities: Floats) -> NDArray[np.int64]:
    """Rows to drop from a choice until it fits, in this order: least worth for what they take too much of."""
    held = np.flatnonzero(choice != REFUSED)
    demand, value = roster.demands[held, choice[held]], worth[held, choice[held]]
    dropped = [held[:0]]
    while True:
        excess = demand.sum(axis=0) - capacities
        over = excess > _OVERDRAFT * capacities
        if not over.any():
            return np.concatenate(dropped)
        with np.errstate(over="ignore", divide="ignore"):
            burden = (demand[:, over] / excess[over]).sum(axis=1)
            order = np.argsort(np.where(burden > 0, value / burden, np.inf), kind="stable")
        freed = demand[order][:, over].cumsum(axis=0)
        short = int((freed < excess[over]).any(axis=1).sum())
        enough = min(short + 1, int((burden > 0).sum()))
        dropped.append(held[order[:enough]])
        stay = np.sort(order[enough:])
        held, demand, value = held[stay], demand[stay], value[stay]


def cheapened(roster: Roster, capacities: Floats, switching_share: float) -> NDArray[np.int64]:
    """(queries,) the choice in force, with moves to plans worth no less that save more than a switch costs.

    Largest saving first, as far as there is room.
    """
    choice: NDArray[np.int64] = roster.choice.copy()
    served = np.flatnonzero(choice != REFUSED)
    if not served.size:
        return choice
    value, cost = roster.values[served, choice[served]], roster.costs[served, choice[served]]
    saving = cost[:, np.newaxis] - roster.costs[served]
    worthwhile = saving > switching_share * np.abs(cost)[:, np.newaxis]
    saving = np.where(worthwhile & (roster.values[served] >= value[:, np.newaxis]), saving, -np.inf)
    most = saving.max(axis=1)
    used = demand_of(roster, choice)
    for index in np.argsort(-most, kind="stable")[: int((most > -np.inf).sum())].tolist():
        row = int(served[index])
        without = used - roster.demands[row, choice[row]]
        fits = fit(without + roster.demands[row], capacities)
        plan = int(np.where(fits, saving[index], -np.inf).argmax())
        if fits[plan] and saving[index, plan] > -np.inf:
            used = without + roster.demands[row, plan]
            choice[row] = plan
    return choice
