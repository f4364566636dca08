"""From prices to a choice that fits: round, repair what is overdrawn, fill what is left.

Only queries that are nearly undecided at the prices, and those that would fit into what is left, are ever
touched; they are a `Workbench`. All others keep the plan that the prices gave them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compass_coordinator.matcher.columns import OVERDRAFT, Columns, Queries, summed
from compass_coordinator.matcher.prices import State, leads
from compass_coordinator.matcher.problem import Bools, Floats, Ints
from compass_coordinator.matcher.result import REFUSED

_NEAR = 4096
"""Queries with the smallest leads that a repair may move."""
_CANDIDATES = 4096
"""Queries that a fill may serve better."""
_FILLED_AT_ONCE = 256
_NOT_DRAWN = -2
_ROUNDING = 1e-9
"""Share of a capacity."""
_GOLDEN = 0.6180339887498949


@dataclass(slots=True, kw_only=True, eq=False)
class Workbench:
    """Some queries with the plans they have so far, and what all queries use together."""

    places: Ints
    """Which queries."""
    columns: Columns
    """Those."""
    plan: Ints
    """Of each; changed in place."""
    usage: Floats
    """(resources,) of all queries; changed in place."""

    @classmethod
    def of(cls, queries: Queries, places: Ints, choice: Ints, usage: Floats) -> Workbench:
        """Copies: the choice is not touched."""
        return cls(
            places=places,
            columns=queries.columns(places),
            plan=choice[places],
            usage=usage.copy(),
        )

    def change(self, query: int, plan: int) -> Floats:
        """(resources,) what the usage grows by if a query gets another plan."""
        return self._demand(query, plan) - self._demand(query, int(self.plan[query]))

    def changes(self, query: Ints, plan: Ints) -> Floats:
        """(entries, resources) the same for many, each on its own."""
        return self._demands(query, plan) - self._demands(query, self.plan[query])

    def sparse_changes(self, query: Ints, plan: Ints) -> tuple[Ints, Floats]:
        """The same as resources and amounts, (entries, two for each slot); each resource counts once."""
        assert self.columns.resources is not None
        resources, amounts = [], []
        for plans, sign in ((plan, 1.0), (self.plan[query], -1.0)):
            resources.append(self.columns.resources[:, plans, query].T.astype(np.int64))
            amounts.append(
                np.where(plans >= 0, sign, 0.0)[:, np.newaxis] * self.columns.amounts[:, plans, query].T
            )
        slots = resources[0].shape[1]
        for left in range(slots):
            for right in range(slots):
                same = (amounts[0][:, left] > 0) & (resources[0][:, left] == resources[1][:, right])
                amounts[0][:, left] += np.where(same, amounts[1][:, right], 0.0)
                amounts[1][same, right] = 0.0
        return np.hstack(resources), np.hstack(amounts)

    def move(self, query: int, plan: int) -> None:
        """Give a query another plan."""
        self.usage += self.change(query, plan)
        self.plan[query] = plan

    def fits(self, change: Floats) -> bool:
        """Whether no resource that grows is overdrawn then."""
        return bool(((self.usage + change <= 1 + OVERDRAFT) | (change <= 0)).all())

    def overdrawn(self) -> Bools:
        """(resources,)."""
        return self.usage > 1 + OVERDRAFT

    def _demands(self, query: Ints, plan: Ints) -> Floats:
        amounts = np.zeros((len(query), len(self.usage)))
        served = plan >= 0
        amounts[served] = self.columns.dense_amounts(plan[served], query[served])
        return amounts

    def _demand(self, query: int, plan: int) -> Floats:
        if plan == REFUSED:
            return np.zeros(len(self.usage))
        amounts = self.columns.amounts[:, plan, query]
        if self.columns.resources is None:
            return amounts
        return summed(self.columns.resources[:, plan, query], amounts, len(self.usage))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rounding:
    """What queries choose at some prices, whether or not it fits."""

    choice: Ints
    """(queries,) in the order of the queries."""
    lead: Floats
    """(queries,) by how much each one's best plan leads."""
    usage: Floats
    """(resources,)."""
    fixed_rightly: bool
    """Whether every query that was fixed on the way is decided as it was then."""


def rounded(state: State, weights: tuple[Floats, ...]) -> Rounding:
    """The best plan of every query at the prices; undecided ones are drawn by weights, see `vertex`."""
    queries = state.queries
    drawn = np.full(len(queries), _NOT_DRAWN)
    start = 0
    for block in weights:
        drawn[state.places[start : start + block.shape[1]]] = _drawn(block, start)
        start += block.shape[1]
    choice, lead = drawn.copy(), np.full(len(queries), np.inf)
    usage, fixed = np.zeros(len(state.prices)), np.zeros(len(state.prices))
    for where, columns in queries.blocks():
        reduced = columns.reduced(state.prices)
        if not len(reduced):
            best = np.full(columns.queries, REFUSED)
        else:
            best = np.where(reduced.max(axis=0) > 0, reduced.argmax(axis=0), REFUSED)
        lead[where] = leads(reduced)
        settled = drawn[where] == _NOT_DRAWN
        choice[where] = np.where(settled, best, drawn[where])
        used = [columns.usage(choice[where][some], some) for some in _served(choice[where], settled)]
        fixed += used[0]
        usage += used[0] + used[1]
    return Rounding(
        choice=choice,
        lead=lead,
        usage=usage,
        fixed_rightly=bool((np.abs(1 - state.rest - fixed) <= _ROUNDING).all()),
    )


def _served(choice: Ints, settled: Bools) -> tuple[Ints, Ints]:
    """Queries with a plan, those that are settled and the others."""
    return np.flatnonzero((choice >= 0) & settled), np.flatnonzero((choice >= 0) & ~settled)


def _drawn(weights: Floats, start: int) -> Ints:
    """Draw plans so evenly that among queries that are alike each plan gets its share."""
    level = ((start + np.arange(weights.shape[1])) * _GOLDEN + 0.5) % 1.0
    plan = (np.cumsum(weights, axis=0) <= level).sum(axis=0)
    return np.where(plan < len(weights), plan, REFUSED)


def repaired(queries: Queries, rounding: Rounding, prices: Floats) -> tuple[Ints, Floats]:
    """Move queries to smaller plans, or to none, until nothing is overdrawn.

    Returns:
        The choice and its usage.
    """
    choice, usage, near = rounding.choice.copy(), rounding.usage, _NEAR
    while True:
        places = closest(rounding.lead, near)
        bench = Workbench.of(queries, places, choice, usage)
        _repair(bench, prices)
        choice[places], usage = bench.plan, bench.usage
        if not bench.overdrawn().any() or near >= len(choice):
            return choice, usage
        near *= 8


def closest(lead: Floats, count: int) -> Ints:
    """The queries with the smallest leads, ascending."""
    if count >= len(lead):
        return np.arange(len(lead))
    return np.sort(np.argpartition(lead, count - 1)[:count])


def _repair(bench: Workbench, prices: Floats) -> None:
    """In the order of least loss of reduced value per relief of what is overdrawn."""
    reduced = np.vstack([bench.columns.reduced(prices), np.zeros(len(bench.plan))])
    only_drop = False
    while (over := bench.overdrawn()).any():
        weights = np.vstack([bench.columns.priced(over.astype(np.float64)), np.zeros(len(bench.plan))])
        weights[~np.isfinite(reduced)] = np.inf
        if only_drop:
            weights[:-1] = np.inf
        with np.errstate(invalid="ignore", divide="ignore"):
            relief = at_plan(weights, bench.plan) - weights
            ratio = np.where(relief > 0, (at_plan(reduced, bench.plan) - reduced) / relief, np.inf)
        target = ratio.argmin(axis=0)
        ratio = ratio.min(axis=0)
        moved = False
        for query in np.argsort(ratio, kind="stable"):
            if ratio[query] == np.inf:
                break
            plan = int(target[query]) if target[query] < len(reduced) - 1 else REFUSED
            change = bench.change(query, plan)
            if change[over].min() < 0 and bench.fits(change):
                bench.move(query, plan)
                moved = True
                over = bench.overdrawn()
                if not over.any():
                    return
        if not moved and only_drop:
            return
        only_drop = not moved


def fillable(queries: Queries, choice: Ints, usage: Floats) -> Ints:
    """Queries that could have a better plan within what is left, the most promising ones."""
    places, gains = [np.zeros(0, np.int64)], [np.zeros(0)]
    for where, columns in queries.blocks():
        gain = columns.values - at_plan(columns.values, choice[where])
        gain[~_fitting(columns, choice[where], usage)] = 0.0
        best = gain.max(axis=0, initial=0.0)
        found = np.flatnonzero(best > 0)
        places.append(where.start + found)
        gains.append(best[found])
    all_places, all_gains = np.concatenate(places), np.concatenate(gains)
    return all_places[np.argsort(-all_gains, kind="stable")[:_CANDIDATES]]


def fill(bench: Workbench) -> None:
    """Give queries better plans while they fit, the largest gain per share of what is left first."""
    values = bench.columns.values
    while True:
        gain = values - at_plan(values, bench.plan)
        plan, query = np.nonzero((gain > 0) & _fitting(bench.columns, bench.plan, bench.usage))
        if not len(plan):
            return
        scarcity = 1 / np.maximum(1 + OVERDRAFT - bench.usage, OVERDRAFT)
        asked = bench.columns.priced(scarcity)
        share = (asked - at_plan(asked, bench.plan))[plan, query]
        merit = gain[plan, query] / np.maximum(share, OVERDRAFT)
        moved = False
        for entry in np.argsort(-merit, kind="stable")[:_FILLED_AT_ONCE]:
            moved |= _upgrade(bench, int(query[entry]), int(plan[entry]))
        if not moved:  # what seemed to fit did not, by rounding
            return


def _upgrade(bench: Workbench, query: int, plan: int) -> bool:
    values, now = bench.columns.values[:, query], int(bench.plan[query])
    if values[plan] <= (values[now] if now >= 0 else 0.0) or not bench.fits(bench.change(query, plan)):
        return False
    bench.move(query, plan)
    return True


def _fitting(columns: Columns, choice: Ints, usage: Floats) -> Bools:
    """(plans, queries) whether a query alone could change to a plan."""
    fitting = np.ones(columns.values.shape, bool)
    slack = 1 + OVERDRAFT - usage
    for slot, amounts in enumerate(columns.amounts):
        if columns.resources is None:
            change, left = amounts - at_plan(amounts, choice), slack[slot]
        else:
            resource = columns.resources[slot]
            change, left = amounts.copy(), slack[resource]
            for other, released in zip(columns.resources, columns.amounts, strict=True):
                same = resource == at_plan(other, choice)
                change -= np.where(same, at_plan(released, choice), 0.0)
        fitting &= (change <= left) | (change <= 0)
    return fitting


def at_plan(of_plans: NDArray[Any], choice: Ints) -> NDArray[Any]:
    """(queries,) what belongs to each one's plan, 0 for none."""
    if not len(of_plans):
        return np.zeros(len(choice), of_plans.dtype)
    return np.where(choice >= 0, of_plans[choice, np.arange(len(choice))], 0)
