"""Better choices by moving two queries at once: one gives way, another makes more of it.

A choice falls short of the bound by the reduced value that its queries lose against their best plans, plus
what the unused rest of each resource is worth at its price. A pair of moves gains value only as far as it
turns unused rest into value, so only moves that lose less than that are worth a look: a few hundred.
"""

from __future__ import annotations

import numpy as np

from compass_coordinator.matcher.columns import OVERDRAFT
from compass_coordinator.matcher.deadline import Deadline
from compass_coordinator.matcher.problem import Floats, Ints
from compass_coordinator.matcher.result import REFUSED
from compass_coordinator.matcher.rounding import Workbench, at_plan

_MOVES = 600
_SCANS = 12
_TRIED = 300
"""Pairs tried in a scan."""
_WORTH = 1e-12
"""Least gain of a pair, as a share of the largest value."""


def exchange(bench: Workbench, prices: Floats, deadline: Deadline) -> None:
    """Make pairs of moves that together gain value, until a scan finds none."""
    for _ in range(_SCANS):
        if deadline.passed() or not _scan(bench, prices):
            return


def _scan(bench: Workbench, prices: Floats) -> bool:
    query, plan, gain = _moves(bench, prices)
    if len(query) < 2:
        return False
    change = bench.changes(query, plan)
    together = gain[:, np.newaxis] + gain
    possible = (together > _WORTH) & (query[:, np.newaxis] < query)
    slack = 1 + OVERDRAFT - bench.usage
    for resource in np.flatnonzero((change > slack).any(axis=0)):
        possible &= change[:, resource, np.newaxis] + change[:, resource] <= slack[resource]
    first, second = np.nonzero(possible)
    moved: set[int] = set()
    for pair in np.argsort(-together[first, second], kind="stable")[:_TRIED]:
        one, other = first[pair], second[pair]
        if query[one] in moved or query[other] in moved:
            continue
        if bench.fits(change[one] + change[other]):
            for entry in (one, other):
                bench.move(int(query[entry]), int(plan[entry]))
                moved.add(int(query[entry]))
    return bool(moved)


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
    order = np.argsort(loss[plan, query], kind="stable")[:_MOVES]
    plan, query = plan[order], query[order]
    gain = values[plan, query] - at_plan(values, now)[query]
    return query, np.where(plan == len(reduced) - 1, REFUSED, plan), gain
