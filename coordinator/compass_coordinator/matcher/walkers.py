"""Walks through the choices of a small match.

Several walkers start at a choice. At every step each of them gives one query another plan, or none: the one
change, of all there are, with the largest gain of

    worth_qp - m (prices . amounts_qp) - sum_r weight_r max(0, usage_r - limit_r)

so that walkers pass through choices that overdraw resources (strategic oscillation: Glover; Hanafi and
Freville 1998). The weights of overdrawn resources grow until it no longer pays, and all shrink where
everything fits, so that a walker keeps crossing the border, where the best choices are. A query that was
changed rests for a few steps (tabu). The walkers differ in m, in how long queries rest, and in some noise.

A step looks at every plan of every query for every walker in two passes over one array: with room_qr for
what is free if q gave up its plan, the overdraft after a change is

    max(0, amount_qpr - room_qr) = max(amount_qpr, room_qr) - room_qr,

and the last term is the same for all plans of q. The same numbers show which changes would fit: the best of
them, of all walkers, is what the search may find, though no walker goes there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from compass_coordinator.matcher.deadline import Deadline
from compass_coordinator.matcher.problem import Floats, Ints

Singles: TypeAlias = NDArray[np.float32]

_WALKERS = 16
_PRICED = (0.5, 0.95)
"""Range of m."""
_RESTS = ((2, 4), (3, 7), (4, 11))
"""Ranges of steps for which a changed query rests; walkers take turns."""
_SPEED = (0.05, 0.35)
"""Range of the logarithm by which a step raises the weights of overdrawn resources."""
_LOWERED = 0.2
"""Of that, by how much it lowers all weights if nothing is overdrawn."""
_LEAST_PRICE, _LEAST_WEIGHT, _MOST_WEIGHT = 0.05, 1e-3, 1e3
"""As shares of the largest price: where weights begin at least, and where they end."""
_NO_OPTION, _RESTING = np.float32(-1e9), np.float32(1e6)
"""Losses that no gain makes up: one may change a query too early before it takes what is no option."""
_NOISE = (1e-4, 3e-2)
"""Range of a walker's relative errors about what plans are worth."""
ROUNDING, _SINGLE_ROUNDING = 1e-12, 2e-6
_LEAST_STEPS = 32
_PATIENCE, _RESTARTS, _FEW = 4, 8, 64
"""Steps without success, by number of plans, after which walkers set out anew; how often they do at most, and
for how many pairs of query and resource once."""
_SHAKEN = 0.5
"""The largest share of queries that are given something at random then."""
_STEP_WORK = 5e4
"""What a step takes beside looking at amounts, in amounts."""
_DEADLINE_STEPS = 32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Space:
    """Queries and what they may be given; the last option is nothing."""

    worth: Floats
    """(queries, options); at most 1; -inf for what is no option."""
    amounts: Floats
    """(queries, options, resources) as shares of the capacities; 0 for what is no option."""
    limits: Floats
    """(resources,) what these queries may use."""
    prices: Floats
    """(resources,) worth of a whole capacity."""
    ties: Floats
    """(queries, options) >= 0, tiny: of choices of equal worth, the one with the least of this is best."""
    scale: float = 1.0
    """Value that is worth 1."""

    @property
    def options(self) -> int:
        """Plans and nothing."""
        return len(self.worth[0])

    def take(self, queries: Ints) -> Space:
        """Some of the queries, with all of the limits."""
        return replace(
            self, worth=self.worth[queries], amounts=self.amounts[queries], ties=self.ties[queries]
        )

    def worth_of(self, choice: Ints) -> float:
        """Of (queries,) options."""
        return float(self.worth[np.arange(len(choice)), choice].sum())

    def merit_of(self, choice: Ints) -> float:
        """Of (queries,) options: worth less ties."""
        return self.worth_of(choice) - float(self.ties[np.arange(len(choice)), choice].sum())

    def used(self, choice: Ints) -> Floats:
        """(resources,) what a choice uses."""
        usage: Floats = self.amounts[np.arange(len(choice)), choice].sum(axis=0)
        return usage

    def fits(self, choice: Ints) -> bool:
        """Whether nothing is overdrawn, but for rounding."""
        return bool((self.used(choice) <= self.limits + ROUNDING).all())


def walked(
    space: Space, start: Ints, missing: float, work: float, rng: np.random.Generator, deadline: Deadline
) -> Ints:
    """The best choice that walkers come by.

    Args:
        space: Where they walk.
        start: (queries,) feasible.
        missing: More cannot be gained.
        work: Amounts to look at.
        rng: Source of the walkers' differences.
        deadline: When to stop.
    """
    walkers = _Walkers(space, np.repeat(start[np.newaxis], _WALKERS, axis=0), rng)
    patience = max(_LEAST_STEPS, _PATIENCE * space.worth.size)
    steps = int(work / (_WALKERS * space.amounts.size + _STEP_WORK))
    most_restarts = min(_RESTARTS, len(start) * len(space.limits) // _FEW)
    best, idle, restarts = start, 0, 0
    most, merit = space.worth_of(best), space.merit_of(best)
    enough = most + missing - ROUNDING * len(start)
    for step in range(max(steps, _LEAST_STEPS)):
        if most >= enough or (step % _DEADLINE_STEPS == 0 and deadline.passed()):
            break
        if idle > patience:
            if restarts == most_restarts:
                break
            idle, restarts = 0, restarts + 1
            walkers = _Walkers(space, _shaken(space, best, rng), rng)
        seen = walkers.step(step, merit)
        idle += 1
        if seen is None or not space.fits(seen) or space.merit_of(seen) <= merit + ROUNDING:
            continue
        if space.worth_of(seen) >= most - ROUNDING:
            best, idle = seen, 0
            most, merit = max(most, space.worth_of(seen)), space.merit_of(seen)
    return best


def _shaken(space: Space, choice: Ints, rng: np.random.Generator) -> Ints:
    """(walkers, queries) the choice, with a share of the queries at random."""
    drawn = rng.random((_WALKERS, *space.worth.shape))
    anything = np.where(np.isneginf(space.worth), -1.0, drawn).argmax(axis=2)
    shaken = rng.random(anything.shape) < rng.uniform(0.0, _SHAKEN, (_WALKERS, 1))
    return np.where(shaken, anything, choice)


def _drawn(scale: tuple[float, float], rng: np.random.Generator) -> Floats:
    """(walkers, 1) log-uniform numbers of a range."""
    low, high = scale
    return np.asarray(low * (high / low) ** rng.random((_WALKERS, 1)))


class _Walkers:
    """Walks through one space, all in step: w walkers, p options, q queries, r resources."""

    def __init__(self, space: Space, starts: Ints, rng: np.random.Generator) -> None:
        self._space = space
        queries, options, resources = space.amounts.shape
        dearest = float(space.prices.max(initial=0.0)) or 1.0
        at_least = np.maximum(space.prices, _LEAST_PRICE * dearest)
        self._weight_range = np.float32(_LEAST_WEIGHT * dearest), np.float32(_MOST_WEIGHT * dearest)
        priced = space.amounts @ (at_least if space.prices.any() else space.prices)
        share = rng.uniform(*_PRICED, _WALKERS)[:, np.newaxis, np.newaxis]
        worth = np.where(np.isneginf(space.worth), _NO_OPTION, space.worth - space.ties).T
        noise = _drawn(_NOISE, rng)[:, :, np.newaxis] * rng.standard_normal((_WALKERS, options, queries))
        self._merits = space.worth - space.ties
        """(q, p)."""
        self._worth = np.ascontiguousarray(worth, np.float32)
        """(p, q)."""
        self._drawn = (worth * (1 + noise) - share * priced.T).astype(np.float32)
        """(w, p, q) worth less prices, as each walker sees it."""
        self._amounts = np.ascontiguousarray(space.amounts.transpose(1, 2, 0), np.float32)
        """(p, r, q)."""
        self._choice = starts.copy()
        """(w, q)."""
        self._total = np.array([space.merit_of(start) for start in starts])
        """(w,) merit of the choice."""
        self._usage = np.stack([space.used(start) for start in starts])
        """(w, r)."""
        self._own = np.stack([self._amounts[start, :, np.arange(queries)].T for start in starts])
        """(w, r, q) what each query has."""
        self._weights = np.repeat(at_least[np.newaxis].astype(np.float32), _WALKERS, axis=0)
        """(w, r)."""
        speed = _drawn(_SPEED, rng)
        self._raise = np.exp(speed).astype(np.float32)
        self._lower = np.exp(-_LOWERED * speed).astype(np.float32)
        """(w, 1) what a step does to the weights of overdrawn resources, and to all if there are none."""
        low, high = np.array([_RESTS[walker % len(_RESTS)] for walker in range(_WALKERS)]).T
        self._rests = low + rng.integers(1 << 30, size=(997, _WALKERS)) % (high - low + 1)
        """(steps, w) for how long the query rests that is changed then; over and over."""
        self._rested = np.zeros((_WALKERS, queries), np.int64)
        """(w, q) the step after which it may change again."""
        self._raised = np.empty((_WALKERS, options, resources, queries), np.float32)
        self._charged = np.empty((_WALKERS, options, 1, queries), np.float32)
        self._each = np.arange(_WALKERS)
        self._cell = self._each[:, np.newaxis] * (options * queries) + np.arange(queries)

    def step(self, step: int, merit: float) -> Ints | None:
        """Move every walker; the best choice next to one of them, if it seems to fit and is worth more."""
        room = self._own + (self._space.limits - self._usage).astype(np.float32)[:, :, np.newaxis]
        np.maximum(self._amounts, room[:, np.newaxis], out=self._raised)
        # All factors are finite; some BLAS kernels read past the end of a row and raise flags for that.
        with np.errstate(invalid="ignore", over="ignore"):
            np.matmul(self._weights[:, np.newaxis, np.newaxis], self._raised, out=self._charged)
            uncharged = np.matmul(self._weights[:, np.newaxis], room)
        charged = self._charged[:, :, 0]
        seen = self._seen(charged, uncharged, merit)
        gains = self._drawn - charged
        queries = gains.shape[2]
        present = self._cell + self._choice * queries
        gains -= gains.reshape(-1)[present][:, np.newaxis]
        gains -= np.where(self._rested > step, _RESTING, np.float32(0))[:, np.newaxis]
        gains.reshape(-1)[present] = -np.inf
        option, query = np.divmod(gains.reshape(len(gains), -1).argmax(axis=1), queries)
        self._change(query, option)
        self._rested[self._each, query] = step + 1 + self._rests[step % len(self._rests)]
        self._weigh()
        return seen

    def _seen(self, charged: Singles, uncharged: Singles, merit: float) -> Ints | None:
        """The best choice that is one change from a walker's and charges nothing."""
        slight = _SINGLE_ROUNDING * self._weights.max(axis=1, initial=0.0)[:, np.newaxis, np.newaxis]
        own = self._worth[self._choice, np.arange(self._worth.shape[1])]
        gains = np.where(charged <= uncharged + slight, self._worth, _NO_OPTION) - own[:, np.newaxis]
        flat = gains.reshape(len(gains), -1)
        change = flat.argmax(axis=1)
        totals = self._total + flat[self._each, change]
        walker = int(totals.argmax())
        if totals[walker] <= merit + ROUNDING:
            return None
        option, query = divmod(int(change[walker]), self._worth.shape[1])
        seen: Ints = self._choice[walker].copy()
        seen[query] = option
        return seen

    def _change(self, query: Ints, option: Ints) -> None:
        """Give each walker's query an option: (w,) each."""
        amounts, merits = self._space.amounts, self._merits
        before = self._choice[self._each, query]
        self._usage += amounts[query, option] - amounts[query, before]
        self._total += merits[query, option] - merits[query, before]
        self._own[self._each, :, query] = self._amounts[option, :, query]
        self._choice[self._each, query] = option

    def _weigh(self) -> None:
        over = self._usage > self._space.limits + ROUNDING
        clear = ~over.any(axis=1, keepdims=True)
        self._weights *= np.where(over, self._raise, np.where(clear, self._lower, np.float32(1)))
        np.clip(self._weights, *self._weight_range, out=self._weights)
