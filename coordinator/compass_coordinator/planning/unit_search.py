"""Whole numbers of units: the cheapest on which the matcher serves enough.

1. Round the fractional units of the relaxed problem up. While they do not suffice, buy where the match's own
   prices promise most value for the money.
2. Sell units, the dearest first, as long as what is left suffices.
3. Try neighbours (a unit less, a unit of another pool instead, a unit more), the one that could be cheapest
   first, until none can be cheaper than the best or the number of matches is used up.

Most numbers of units need no match: each evaluation of prices bounds the money of all numbers (a *cut*), the
prices of each match say which other numbers cannot reach the target either (a *shortage*), and fewer units of
every pool never serve more.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from compass_coordinator.matcher import REFUSED, MatchResult, match
from compass_coordinator.matcher.deadline import Deadline
from compass_coordinator.matcher.problem import Floats
from compass_coordinator.planning.unit_prices import Need, UnitPrices
from compass_shared.errors import PlanningError

Counts = NDArray[np.int64]

_SECONDS_PER_HOUR = 3600.0
_MAX_MATCHES = 64
_MAX_LOOKS = 4000
_MAX_NODES = 1000
_PROVED = 1e-6
"""Relative difference of money that is not worth a match."""
_ROUNDING = 1e-9
"""Relative difference of values that is rounding."""
_EAGERNESS = (1.0, 1.02, 1.2)
"""Factors of the value's price, tried until enough is served."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """What a match made of some numbers of units."""

    counts: Counts
    """(pools,)."""
    match: MatchResult
    enough: bool
    usd_per_hour: float
    """Units and running cost; infinite if not enough is served."""


class UnitSearch:
    """The search and all it has learnt so far. Deterministic for a seed, but for the deadline."""

    def __init__(self, need: Need, *, seed: int, deadline: Deadline) -> None:
        self._need = need
        self._seed = seed
        self._deadline = deadline
        self._matches = 0
        self._warm: Floats | None = None
        self._seen: dict[tuple[int, ...], Outcome] = {}
        self._short: list[Counts] = []
        """Numbers of units that did not suffice."""
        self._worth: list[Floats] = []
        """(pools,) value that one more unit adds at most, of each match."""
        self._missing: list[float] = []
        """What ``worth @ counts`` has to reach."""
        self._value_price = 0.0
        self._best: Outcome | None = None

    def all_units(self) -> Outcome:
        """As many units as there may be."""
        return self._try(self._need.maximum)

    def run(self, priced: UnitPrices) -> Outcome:
        """The cheapest numbers found, starting from prices; all units have to be enough."""
        need = self._need
        self._value_price = priced.value_price or self._price_of_service(priced)
        rounded = np.ceil(priced.counts - _PROVED).astype(np.int64)
        best = min(self.all_units(), self._grow(rounded), key=_money)
        start = self._cheapest_whole(priced)[0]
        if self._least(start, priced) < best.usd_per_hour * (1 - _PROVED):
            best = min(best, self._grow(start), key=_money)
        best = self._shrink(best, priced)
        return self._explore(best, [start, np.clip(rounded, need.minimum, need.maximum)], priced)

    def least_money(self, priced: UnitPrices) -> float:
        """USD per hour that no whole numbers of units undercut, by all cuts and shortages."""
        return self._cheapest_whole(priced)[1]

    def _try(self, counts: Counts) -> Outcome:
        key = tuple(counts.tolist())
        if key not in self._seen:
            self._seen[key] = self._evaluated(counts)
        return self._seen[key]

    def _evaluated(self, counts: Counts) -> Outcome:
        need = self._need
        result = self._match(need.values, counts, need.running / _SECONDS_PER_HOUR)
        self._learn(result.prices)
        enough = self._suffices(result.choice, result.value)
        if not enough:
            self._short.append(counts)
            return Outcome(counts=counts, match=result, enough=False, usd_per_hour=np.inf)
        if need.running.any():
            result = self._thriftier(counts, result)
        money = float(need.unit_price @ counts) + _SECONDS_PER_HOUR * result.cost
        return Outcome(counts=counts, match=result, enough=True, usd_per_hour=money)

    def _match(self, values: Floats, counts: Counts, costs: Floats) -> MatchResult:
        self._matches += 1
        need = self._need
        result = match(
            values,
            need.demands,
            need.capacity_of(counts),
            costs,
            warm_prices=self._warm if values is need.values else None,
            # Whether anything is enough is not for the clock to say.
            time_limit_s=self._deadline.left_s() if self._matches > 1 else None,
            seed=self._seed,
        )
        if values is need.values:
            self._warm = np.asarray(result.prices)
        return result

    def _suffices(self, choice: NDArray[np.int64], value: float) -> bool:
        if self._need.everything:
            return not ((choice == REFUSED) & (self._need.values > 0).any(axis=1)).any()
        return value >= self._need.target * (1 - _ROUNDING)

    def _learn(self, prices: Floats) -> None:
        """Keep what every numbers of units must be worth at these prices to reach the target."""
        need = self._need
        most = (need.values - need.demands @ prices).max(axis=1, initial=0.0)
        target = need.target
        if need.everything:
            target = float(np.maximum(need.values.max(axis=1, initial=0.0), 0.0).sum())
        self._worth.append(need.unit_capacity @ prices)
        self._missing.append(target * (1 - _ROUNDING) - float(most.sum() + prices @ need.capacities))

    def _thriftier(self, counts: Counts, served: MatchResult) -> MatchResult:
        """The same units with less running cost, if serving by worth minus running cost gives that."""
        need = self._need
        best = self._trimmed(served)
        for eager in _EAGERNESS if self._value_price > 0 else ():
            gross = np.where(need.values > 0, 1.0, -np.inf) if need.everything else need.values
            offered = eager * self._value_price * gross - need.running
            choice = self._match(offered, counts, need.running).choice
            found = self._trimmed(self._with_choice(served, choice))
            if self._suffices(found.choice, found.value):
                return found if found.cost < best.cost else best
        return best

    def _trimmed(self, served: MatchResult) -> MatchResult:
        """Without the queries that are not needed for the target, the dearest for their value first."""
        need = self._need
        if need.everything:
            return served
        choice = served.choice.copy()
        rows = np.flatnonzero(choice != REFUSED)
        value, money = need.values[rows, choice[rows]], need.running[rows, choice[rows]]
        spare = served.value - need.target
        for index in np.argsort(-money / value, kind="stable").tolist():
            if money[index] > 0 and value[index] <= spare:
                choice[rows[index]] = REFUSED
                spare -= value[index]
        return self._with_choice(served, choice)

    def _with_choice(self, served: MatchResult, choice: NDArray[np.int64]) -> MatchResult:
        need = self._need
        rows = np.flatnonzero(choice != REFUSED)
        value = float(need.values[rows, choice[rows]].sum())
        return replace(
            served,
            choice=choice,
            value=value,
            cost=float(need.running[rows, choice[rows]].sum()) / _SECONDS_PER_HOUR,
            gap=(served.bound - value) / served.bound if served.bound > 0 else 0.0,
        )

    def _price_of_service(self, priced: UnitPrices) -> float:
        """What makes serving worthwhile for everybody at these prices, twice over."""
        need = self._need
        money = np.where(need.values > 0, need.running + need.demands @ priced.prices, np.inf).min(
            axis=1, initial=np.inf
        )
        return 2.0 * float(money[np.isfinite(money)].max(initial=0.0))

    def _grow(self, counts: Counts) -> Outcome:
        """Buy until it suffices."""
        need, least = self._need, 1
        counts = np.clip(counts, need.minimum, need.maximum)
        outcome = self._try(counts)
        while not outcome.enough:
            if self._spent():
                return self.all_units()
            counts = self._more(counts, need.target - outcome.match.value, least)
            outcome = self._try(counts)
            least *= 2
        return outcome

    def _more(self, counts: Counts, lacking: float, least: int) -> Counts:
        """More of the pool whose units promise most value for the money, at the prices of the last match."""
        need = self._need
        room = need.maximum - counts
        promise = np.where(room > 0, self._worth[-1], 0.0)
        if not (promise > 0).any() or lacking <= 0:
            return np.asarray(counts + np.minimum(room, least))
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            per_usd = np.where(promise > 0, np.minimum(promise, lacking) / need.unit_price, -np.inf)
            pool = int(per_usd.argmax())
            wanted = max(least, int(min(np.ceil(lacking / promise[pool]), room[pool])))
        more = np.array(counts)
        more[pool] += min(wanted, int(room[pool]))
        return more

    def _shrink(self, best: Outcome, priced: UnitPrices) -> Outcome:
        """Sell until every pool is needed."""
        need = self._need
        for pool in np.argsort(-need.unit_price, kind="stable").tolist():
            while best.counts[pool] > need.minimum[pool] and not self._spent():
                counts = best.counts.copy()
                counts[pool] -= 1
                if self._hopeless(counts, best, priced):
                    break
                outcome = self._try(counts)
                if outcome.usd_per_hour >= best.usd_per_hour:
                    break
                best = outcome
        return best

    def _explore(self, best: Outcome, starts: list[Counts], priced: UnitPrices) -> Outcome:
        """Neighbours of neighbours, the one that could be cheapest first."""
        queue: list[tuple[float, tuple[int, ...]]] = []
        met: set[tuple[int, ...]] = set()

        def meet(counts: Counts) -> None:
            key = tuple(counts.tolist())
            if key not in met:
                met.add(key)
                heapq.heappush(queue, (self._least(counts, priced), key))

        for counts in [best.counts, *starts]:
            meet(counts)
        looks = 0
        while queue and looks < _MAX_LOOKS and not self._spent():
            least, key = heapq.heappop(queue)
            looks += 1
            if least >= best.usd_per_hour * (1 - _PROVED) and key != tuple(best.counts.tolist()):
                continue
            counts = np.array(key, dtype=np.int64)
            if key in self._seen or not self._hopeless(counts, best, priced):
                best = min(best, self._try(counts), key=_money)
            for neighbour in self._neighbours(counts):
                meet(neighbour)
        return best

    def _neighbours(self, counts: Counts) -> Iterator[Counts]:
        need, pools = self._need, len(counts)
        steps = np.concatenate([np.eye(pools, dtype=np.int64), np.zeros((1, pools), dtype=np.int64)])
        for more in steps:
            for less in steps:
                neighbour = counts + more - less
                if (neighbour >= need.minimum).all() and (neighbour <= need.maximum).all():
                    yield neighbour

    def _hopeless(self, counts: Counts, best: Outcome, priced: UnitPrices) -> bool:
        """Whether they need no match: too dear, proved short, or no more than others that were short."""
        return (
            self._least(counts, priced) >= best.usd_per_hour * (1 - _PROVED)
            or any(
                worth @ counts < missing for worth, missing in zip(self._worth, self._missing, strict=True)
            )
            or any((counts <= short).all() for short in self._short)
        )

    def _least(self, counts: Counts, priced: UnitPrices) -> float:
        """USD per hour that these units come to at least."""
        money = float(self._need.unit_price @ counts)
        return max(money, priced.least(counts)) if (self._need.running >= 0).all() else priced.least(counts)

    def _spent(self) -> bool:
        return self._matches >= _MAX_MATCHES or self._deadline.passed()

    def _cheapest_whole(self, priced: UnitPrices) -> tuple[Counts, float]:
        """Whole numbers that cuts and shortages allow for the least money, and that money.

        Variables: the numbers of units, then the money, in shares of the bound.
        """
        need, pools = self._need, len(self._need.unit_price)
        if not pools:
            return need.minimum, priced.bound
        unit = max(abs(priced.bound), float(np.abs(need.unit_price).max()), 1e-300)
        cuts = np.hstack([priced.slopes / unit, -np.ones((len(priced.slopes), 1))])
        worth = np.array(self._worth)
        scale = np.maximum(np.abs(worth).max(axis=1), 1e-300)[:, np.newaxis]
        shortages = np.hstack([-worth / scale, np.zeros((len(worth), 1))])
        answer = optimize.milp(
            np.append(np.zeros(pools), 1.0),
            integrality=np.append(np.ones(pools), 0.0),
            bounds=optimize.Bounds(np.append(need.minimum, -np.inf), np.append(need.maximum, np.inf)),
            constraints=optimize.LinearConstraint(
                np.vstack([cuts, shortages]),
                -np.inf,
                np.concatenate([-priced.constants / unit, -np.array(self._missing) / scale[:, 0]]),
            ),
            options={"mip_rel_gap": _PROVED, "node_limit": _MAX_NODES},
        )
        if answer.x is None:
            if answer.status not in (1, 2, 4):
                raise PlanningError(f"no whole numbers of units could be found: {answer.message}")
            return np.ceil(priced.counts).astype(np.int64), priced.bound
        money = priced.bound if answer.mip_dual_bound is None else float(answer.mip_dual_bound) * unit
        return np.rint(answer.x[:pools]).astype(np.int64), money - _PROVED * abs(money)


def _money(outcome: Outcome) -> float:
    return outcome.usd_per_hour
