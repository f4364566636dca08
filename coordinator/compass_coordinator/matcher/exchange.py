"""Better choices by moving two queries at once: one makes more of what another gives up.

A choice falls short of the bound by the reduced value that its queries lose against their best plans, plus
what the unused rest of each resource is worth at its price. A pair of moves gains value only as far as it
turns unused rest into value, so only moves that lose less than that are worth a look, and few do.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from compass_coordinator.matcher.columns import OVERDRAFT
from compass_coordinator.matcher.deadline import Deadline
from compass_coordinator.matcher.problem import Floats, Ints
from compass_coordinator.matcher.result import REFUSED
from compass_coordinator.matcher.rounding import Workbench, at_plan

_LEAST_MOVES, _MOVES_PER_RESOURCE, _MOST_MOVES = 1000, 8, 4000
_SCANS = 12
_WORTH = 1e-12
"""Least gain of a pair, as a share of the largest value."""


def exchange(bench: Workbench, prices: Floats, deadline: Deadline) -> None:
    """Make pairs of moves that together gain value, until a scan finds none."""
    for _ in range(_SCANS):
        if deadline.passed() or not _scan(bench, prices):
            return


def _scan(bench: Workbench, prices: Floats) -> bool:
    """For each move that gains but does not fit, the best one that makes room for it."""
    query, plan, gain = _moves(bench, prices)
    change = bench.changes(query, plan)
    moved = np.zeros(len(bench.plan), bool)

    @cache
    def releasing(resource: int) -> Ints:
        return np.flatnonzero(change[:, resource] < 0)

    for one in np.argsort(-gain, kind="stable"):
        if gain[one] <= 0:
            break
        slack = 1 + OVERDRAFT - bench.usage
        lacking = change[one] - slack
        if moved[query[one]] or not len(slack) or lacking.max() <= 0:
            continue
        others = releasing(int(lacking.argmax()))
        others = others[(gain[others] > _WORTH - gain[one]) & ~moved[query[others]]]
        together = change[one] + change[others]
        fits = ((together <= slack) | (together <= 0)).all(axis=1) & (query[others] != query[one])
        if fits.any():
            other = others[fits][gain[others[fits]].argmax()]
            for entry in (other, one):
                bench.move(int(query[entry]), int(plan[entry]))
                moved[query[entry]] = True
    return bool(moved.any())


def _moves(bench: Workbench, prices: Floats) -> tuple[Ints, Ints, Floats]:
    """Query, new plan and gain of value of the moves that lose least reduced value."""
    nothing = np.zeros(len(bench.plan))
    reduced = np.vstack([bench.columns.reduced(prices), nothing])
    values = np.vstack([bench.columns.values, nothing])
    now = np.where(bench.plan == REFUSED, len(reduced) - 1, bench.plan)
    loss = at_plan(reduced, now) - reduced
    loss[now, np.arange(len(now))] = np.inf
    most = float(prices @ np.maximum(1 - bench.usage, 0.0))
    plan, query = np.nonzero(loss <= most)
    count = min(max(_LEAST_MOVES, _MOVES_PER_RESOURCE * len(prices)), _MOST_MOVES)
    order = np.argsort(loss[plan, query], kind="stable")[:count]
    plan, query = plan[order], query[order]
    gain = values[plan, query] - at_plan(values, now)[query]
    return query, np.where(plan == len(reduced) - 1, REFUSED, plan), gain
