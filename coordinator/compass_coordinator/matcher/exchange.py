"""Better choices by moving two queries at once: one makes more of what another gives up.

A choice falls short of the bound by the reduced value that its queries lose against their best plans, plus
what the unused rest of each resource is worth at its price. A pair of moves gains value only as far as it
turns unused rest into value, so only moves that lose less than that are worth a look, and few do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from compass_coordinator.matcher.columns import OVERDRAFT
from compass_coordinator.matcher.deadline import Deadline
from compass_coordinator.matcher.problem import Floats, Ints
from compass_coordinator.matcher.result import REFUSED
from compass_coordinator.matcher.rounding import Workbench, at_plan

_LEAST_MOVES, _MOVES_PER_RESOURCE, _MOST_MOVES = 1000, 8, 4000
_SCANS, _MANY_SCANS, _MANY = 12, 2, 1500
"""How often at most, and for more queries than so many."""
_WORTH = 1e-12
"""Least gain of a pair, as a share of the largest value."""


def exchange(bench: Workbench, prices: Floats, deadline: Deadline) -> None:
    """Make pairs of moves that together gain value, until a scan finds none."""
    sparse = bench.columns.resources is not None
    scan = _scan_sparse if sparse else _scan
    times = _MANY_SCANS if sparse and len(bench.plan) > _MANY else _SCANS
    for _ in range(times):
        if deadline.passed() or not scan(bench, prices):
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


def _scan_sparse(bench: Workbench, prices: Floats) -> bool:
    """The same where each move changes the usage of few of many resources."""
    query, plan, gain = _moves(bench, prices)
    resource, change = bench.sparse_changes(query, plan)
    by_resource = _Releasing.of(resource, change, len(prices))
    moved, added = np.zeros(len(bench.plan), bool), np.zeros(len(prices))
    slack = 1 + OVERDRAFT - bench.usage
    for one in np.argsort(-gain, kind="stable"):
        if gain[one] <= 0:
            break
        if moved[query[one]] or not len(change[one]):
            continue
        where, more = resource[one], change[one]
        lacking = more - slack[where]
        lacking[more <= 0] = -np.inf
        if lacking.max() <= 0:
            continue
        others = by_resource.of_resource(int(where[lacking.argmax()]))
        others = others[(gain[others] > _WORTH - gain[one]) & ~moved[query[others]]]
        others = others[query[others] != query[one]]
        if not len(others):
            continue
        asks = more != 0
        added[where[asks]] = more[asks]
        places, changes = resource[others], change[others]
        together = changes + added[places]
        added[where[asks]] = 0.0
        fits = ((together <= slack[places]) | (together <= 0) | (changes == 0)).all(axis=1)
        for lacked in where[lacking > 0]:
            fits &= ((places == lacked) & (changes < 0)).any(axis=1)
        if fits.any():
            other = others[fits][gain[others[fits]].argmax()]
            for entry in (other, one):
                bench.move(int(query[entry]), int(plan[entry]))
                moved[query[entry]] = True
            slack = 1 + OVERDRAFT - bench.usage
    return bool(moved.any())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Releasing:
    """Which moves release some of a resource."""

    moves: Ints
    start: Ints
    """(resources + 1,) of each one's moves."""

    @classmethod
    def of(cls, resource: Ints, change: Floats, count: int) -> _Releasing:
        """Of moves: (moves, entries) each."""
        move, entry = np.nonzero(change < 0)
        where = resource[move, entry]
        order = np.argsort(where, kind="stable")
        return cls(moves=move[order], start=np.searchsorted(where[order], np.arange(count + 1)))

    def of_resource(self, resource: int) -> Ints:
        """Ascending."""
        return self.moves[self.start[resource] : self.start[resource + 1]]


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
