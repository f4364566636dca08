"""The matcher that is always on: queries come and go one at a time, and all are matched anew now and then.

Between rounds, ``Matcher.admit`` decides about one query alone. The prices of the last round say what its
demand is worth to the others (its *bid price*): it is served by the plan that leaves most of its value, if
that is not negative and what is left suffices. A resource that has emptied since the prices were made is
cheaper in proportion. Whoever is refused stays in the match and may be served by a later round.

A *round* (``Matcher.rematch``) matches everybody, warm from the prices. Three things enter its values:

- Weight: a query's values count ``weight`` times.
- Ageing: a query that was refused in k rounds in a row counts ``1 + min(k, patience) / patience`` times, so
  at most double. That decides between equals; it cannot outweigh everybody. So from ``patience`` refusals on
  a query is *overdue*: overdue queries are placed before the match, those with most refusals first, among
  equals those who came first. Together they get at most ``overdue_share`` of every capacity, but the first
  one is always placed. Hence nobody that fits on its own is refused in more than ``patience + n - 1`` rounds
  in a row, n the number of queries: who is overdue waits only for those before it, each round serves the
  first of them, and one that was served starts again behind.
- Switching: the plan in force counts ``1 + switching_share`` times, so a query loses it only to a gain of
  more than that. At equal value a query moves to a cheaper plan if that saves more than this share of its
  cost.

The choice in force is feasible at every moment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compass_coordinator.matcher import online_rounds as rounds
from compass_coordinator.matcher.lagrangian import match
from compass_coordinator.matcher.problem import Floats
from compass_coordinator.matcher.result import REFUSED
from compass_coordinator.matcher.roster import Roster
from compass_shared.errors import PlanningError

_EMPTY = 1e-9
"""Load below which a resource counts as unused."""
_TIE = 1e-9
"""Relative difference of values that is rounding."""


class Refusal(Enum):
    """Why a query was not served at once."""

    NO_PLAN = "no plan fits, even if it were alone"
    PRICE = "its demand is worth more to others"
    ROOM = "what is left does not suffice"


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What became of a query that was offered."""

    plan: int
    """The plan that serves it, or ``REFUSED``."""
    refusal: Refusal | None
    """Why not; None if it is served."""
    bid_price: float
    """What the demand of its best plan is worth, in units of value; infinite if it has no plan."""
    reduced_value: float
    """Weighted value of that plan less its bid price; -inf if it has no plan."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Round:
    """What a round changed and how good the result is."""

    moved: Mapping[str, int]
    """Queries whose plan changed and their plan now, ``REFUSED`` for none."""
    overdue: tuple[str, ...]
    """Queries that were placed ahead of the match because they had been refused too often."""
    served: int
    """Queries with a plan."""
    value: float
    """Sum of weighted values, without ageing and without bonus for plans in force."""
    cost: float
    bound: float
    """No choice has a larger value: ``prices @ capacities + sum over queries of max(0, max over plans of
    (weight * value - demands @ prices))``."""
    gap: float
    """``(bound - value) / bound``: what the round left, be it for switching, ageing or for want of search."""


class Matcher:
    """Keeps prices and plans while queries come and go. Deterministic for a seed; not thread-safe.

    Args:
        capacities: (resources,) float64, >= 0.
        switching_share: What a move must gain, as a share of the value of the plan in force.
        patience_rounds: Refusals in a row after which a query goes first.
        overdue_share: Share of every capacity for those who go first; the first one may exceed it.
        seed: For the match.

    Raises:
        PlanningError: If an argument is out of range.
    """

    def __init__(
        self,
        capacities: ArrayLike,
        *,
        switching_share: float = 0.05,
        patience_rounds: int = 20,
        overdue_share: float = 0.1,
        seed: int = 0,
    ) -> None:
        self._capacities = _capacities(capacities)
        if not 0 <= switching_share < np.inf or patience_rounds < 1 or not 0 <= overdue_share <= 1:
            raise PlanningError(
                "switching_share must be >= 0, patience_rounds >= 1 and overdue_share in [0, 1]"
            )
        self._switching_share = switching_share
        self._patience = patience_rounds
        self._overdue_share = overdue_share
        self._seed = seed
        self._roster = Roster(len(self._capacities))
        self._used = np.zeros(len(self._capacities))
        self._prices = np.zeros(len(self._capacities))
        self._load_when_priced = np.ones(len(self._capacities))

    def __len__(self) -> int:
        return len(self._roster)

    def __contains__(self, name: object) -> bool:
        return name in self._roster

    @property
    def capacities(self) -> Floats:
        """(resources,)."""
        return np.array(self._capacities)

    @property
    def used(self) -> Floats:
        """(resources,) demand of the plans in force, <= capacities."""
        return np.array(self._used)

    @property
    def prices(self) -> Floats:
        """(resources,) >= 0, value per unit of demand, of the last round."""
        return np.array(self._prices)

    @property
    def choices(self) -> dict[str, int]:
        """Plan in force of every query, ``REFUSED`` for none."""
        return dict(zip(self._roster, self._roster.choice.tolist(), strict=True))

    def choice(self, name: str) -> int:
        """Plan in force of one query, ``REFUSED`` for none.

        Raises:
            PlanningError: If there is no such query.
        """
        return int(self._roster.choice[self._roster.row(name)])

    def admit(
        self,
        name: str,
        values: ArrayLike,
        demands: ArrayLike,
        costs: ArrayLike | None = None,
        *,
        weight: float = 1.0,
    ) -> Admission:
        """Take a query in and serve it at once if its bid price and what is left allow it.

        Args:
            name: Any name that is not in the match.
            values: (plans,) float64, -inf for no such plan; only what is > 0 is chosen.
            demands: (plans, resources) float64, >= 0.
            costs: (plans,) float64; decides between plans that are equally good.
            weight: Fairness weight, > 0.

        Raises:
            PlanningError: If the input is malformed or the name is taken; nothing has changed then.
        """
        checked = _plans(values, demands, costs, len(self._capacities))
        if not 0 < weight < np.inf:
            raise PlanningError(f"weight of query {name!r} must be finite and > 0, got {weight}")
        row = self._roster.add(name, *checked, weight)
        return self._place(row)

    def withdraw(self, name: str) -> None:
        """Take a query out; its room is free at once.

        Raises:
            PlanningError: If there is no such query.
        """
        row = self._roster.row(name)
        self._free(np.array([row]))
        self._roster.remove(name)

    def set_capacities(self, capacities: ArrayLike) -> Mapping[str, int]:
        """Change what there is. Plans that no longer fit are dropped at once, least value per demand first.

        Whoever is dropped is offered what is left like a new query; the next round does better.

        Args:
            capacities: (resources,) float64, >= 0.

        Returns:
            Queries whose plan changed and their plan now, ``REFUSED`` for none.

        Raises:
            PlanningError: If the capacities are malformed; nothing has changed then.
        """
        changed = _capacities(capacities)
        if changed.shape != self._capacities.shape:
            raise PlanningError(
                f"there are {len(self._capacities)} resources; got capacities of {len(changed)}"
            )
        self._capacities = changed
        before = self._roster.choice.copy()
        dropped = rounds.shed(self._roster, self._roster.choice, self._aged(), changed)
        self._free(dropped)
        for row in dropped[::-1]:
            self._place(int(row))
        return self._moved(before)

    def rematch(self, *, time_limit_s: float | None = None) -> Round:
        """Match all queries anew, warm from the prices.

        Without overdue queries the values with ageing and bonus never sum to less than before.

        Args:
            time_limit_s: Of the match; None for as long as it takes.
        """
        roster, before = self._roster, self._roster.choice.copy()
        aged = self._aged()
        first = rounds.overdue(
            roster,
            aged,
            self._capacities,
            self._prices,
            patience=self._patience,
            share=self._overdue_share,
        )
        ahead = first != REFUSED
        roster.choice[ahead] = first[ahead]
        roster.choice[~ahead] = self._matched(ahead, aged, time_limit_s)[~ahead]
        roster.choice[:] = rounds.cheapened(roster, self._capacities, self._switching_share)
        roster.waited[:] = np.where(roster.choice != REFUSED, 0, roster.waited + 1)
        self._used = rounds.demand_of(roster, roster.choice)
        self._load_when_priced = np.maximum(self._load(), _EMPTY)
        return self._round(before, ahead)

    def _place(self, row: int) -> Admission:
        """Serve a refused query by what is left, if its bid price allows."""
        roster = self._roster
        demands = roster.demands[row]
        value = roster.weights[row] * roster.values[row]
        bids = demands @ (self._prices * np.minimum(1.0, self._load() / self._load_when_priced))
        reduced = np.where((value > 0) & rounds.fit(demands, self._capacities), value - bids, -np.inf)
        best = int(reduced.argmax())
        if reduced[best] == -np.inf:
            return _refused(Refusal.NO_PLAN, np.inf, -np.inf)
        fitting = np.where(rounds.fit(demands + self._used, self._capacities), reduced, -np.inf)
        if reduced[best] < -_TIE * value[best]:
            return _refused(Refusal.PRICE, float(bids[best]), float(reduced[best]))
        best = rounds.best(fitting, roster.costs[row], _TIE * value.max())
        if fitting[best] < -_TIE * value[best]:
            best = int(reduced.argmax())
            return _refused(Refusal.ROOM, float(bids[best]), float(reduced[best]))
        roster.choice[row] = best
        self._used += demands[best]
        return Admission(
            plan=best, refusal=None, bid_price=float(bids[best]), reduced_value=float(reduced[best])
        )

    def _load(self) -> Floats:
        """(resources,) how full, 0-1; a resource that is not there is full."""
        there = self._capacities > 0
        return np.divide(self._used, self._capacities, out=np.ones_like(self._used), where=there)

    def _free(self, rows: NDArray[np.int64]) -> None:
        """Refuse queries that may have a plan in force."""
        served = rows[self._roster.choice[rows] != REFUSED]
        demand = self._roster.demands[served, self._roster.choice[served]].sum(axis=0)
        self._used = np.maximum(self._used - demand, 0.0)
        self._roster.choice[rows] = REFUSED

    def _aged(self) -> Floats:
        return rounds.aged_values(self._roster, self._patience)

    def _matched(
        self, ahead: NDArray[np.bool_], aged: Floats, time_limit_s: float | None
    ) -> NDArray[np.int64]:
        """Choice of those not ahead: the match, or what fits of the plans in force if that is better."""
        roster = self._roster
        if not len(roster):
            return roster.choice
        kept = np.where(ahead, REFUSED, roster.choice)
        taken = rounds.demand_of(roster, np.where(ahead, roster.choice, REFUSED))
        left = np.maximum(self._capacities - taken, 0.0)
        held = np.flatnonzero(kept != REFUSED)
        offered = np.where(ahead[:, np.newaxis], -np.inf, aged)
        offered[held, kept[held]] *= 1.0 + self._switching_share
        result = match(
            offered,
            roster.demands,
            left,
            roster.costs,
            warm_prices=self._prices,
            time_limit_s=time_limit_s,
            seed=self._seed,
        )
        self._prices = np.array(result.prices, dtype=np.float64)
        kept[rounds.shed(roster, kept, offered, left)] = REFUSED
        old = (rounds.total(offered, kept), -rounds.total(roster.costs, kept))
        new = (rounds.total(offered, result.choice), -rounds.total(roster.costs, result.choice))
        return result.choice if new >= old else kept

    def _moved(self, before: NDArray[np.int64]) -> dict[str, int]:
        rows = np.flatnonzero(self._roster.choice != before)
        return {self._roster.name(row): int(self._roster.choice[row]) for row in rows.tolist()}

    def _round(self, before: NDArray[np.int64], ahead: NDArray[np.bool_]) -> Round:
        roster = self._roster
        values = roster.values * roster.weights[:, np.newaxis]
        value = rounds.total(values, roster.choice)
        most = np.maximum((values - roster.demands @ self._prices).max(axis=1, initial=0.0), 0.0)
        bound = float(self._prices @ self._capacities + most.sum())
        return Round(
            moved=self._moved(before),
            overdue=tuple(roster.name(row) for row in np.flatnonzero(ahead).tolist()),
            served=int((roster.choice != REFUSED).sum()),
            value=value,
            cost=rounds.total(roster.costs, roster.choice),
            bound=bound,
            gap=(bound - value) / bound if bound > 0 else 0.0,
        )


def _refused(refusal: Refusal, bid_price: float, reduced_value: float) -> Admission:
    return Admission(plan=REFUSED, refusal=refusal, bid_price=bid_price, reduced_value=reduced_value)


def _capacities(capacities: ArrayLike) -> Floats:
    floats = np.array(capacities, dtype=np.float64)
    if floats.ndim != 1 or not (np.isfinite(floats) & (floats >= 0)).all():
        raise PlanningError(f"capacities must be finite and >= 0, one a resource; got {floats}")
    return floats


def _plans(
    values: ArrayLike, demands: ArrayLike, costs: ArrayLike | None, resources: int
) -> tuple[Floats, Floats, Floats]:
    """Check the arrays of one query."""
    value = np.asarray(values, dtype=np.float64)
    demand = np.asarray(demands, dtype=np.float64)
    cost = np.zeros_like(value) if costs is None else np.asarray(costs, dtype=np.float64)
    expected = (value.size, resources)
    if value.ndim != 1 or demand.shape != expected or cost.shape != value.shape:
        raise PlanningError(
            f"values and costs of a query need shape (plans,), demands (plans, {resources}); "
            f"got {value.shape}, {cost.shape} and {demand.shape}"
        )
    there = ~np.isneginf(value)
    if not np.isfinite(value[there]).all():
        raise PlanningError("values must be finite, or -inf for no plan")
    if not (np.isfinite(demand[there]) & (demand[there] >= 0)).all() or not np.isfinite(cost[there]).all():
        raise PlanningError("demands must be finite and >= 0, and costs finite")
    if there.all():
        return value, demand, cost
    return value, np.where(there[:, np.newaxis], demand, 0.0), np.where(there, cost, 0.0)
