"""Local search: what prices leave open, decided by trying.

With tens of queries and as many scarce resources, rounding the fractional solution of the linear program
loses several per cent. From such a choice several walkers set out. At every step each of them gives one query
another plan, or none: the one change, of all there are, with the largest gain of

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

Value comes first. Then the same walk lowers the cost, by plans worth the same for the queries served.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from compass_coordinator.matcher.deadline import Deadline
from compass_coordinator.matcher.problem import Floats, Ints, MatchProblem
from compass_coordinator.matcher.result import REFUSED

Singles: TypeAlias = NDArray[np.float32]

_WALKERS = 16
_PRICED = (0.7, 0.95)
"""Range of m."""
_RESTS = ((2, 4), (3, 7), (4, 11))
"""Ranges of steps for which a changed query rests; walkers take turns."""
_RAISE, _LOWER = np.float32(1.3), np.float32(0.95)
"""What a step does to the weights of overdrawn resources, and to all if there are none."""
_LEAST_PRICE, _LEAST_WEIGHT = 0.05, 1e-3
"""As shares of the largest price: where weights begin and end at least."""
_NO_OPTION, _RESTING = np.float32(-1e9), np.float32(1e6)
"""Losses that no gain makes up: one may change a query too early before it takes what is no option."""
_NOISE = 1e-4
_ROUNDING, _SINGLE_ROUNDING = 1e-12, 2e-6
_CORE = 40_000
"""Amounts, of all plans in all resources, that a walk looks at; queries that are far from undecided stay."""
_ROUNDS = 4
"""Walks with cores of their own, if not all queries fit into one."""
_WORK, _STEP_WORK = 6e8, 5e4
"""Amounts to look at altogether, and how many of them a step costs beyond those that it looks at."""
_PLENTY = 100
"""Queries beyond which the work shrinks: the more there are, the less the prices leave open."""
_LEAST_STEPS = 64
_DEADLINE_STEPS = 32


def improve(
    problem: MatchProblem,
    choice: Ints,
    prices: Floats,
    bound: float,
    *,
    rng: np.random.Generator,
    deadline: Deadline,
) -> Ints:
    """Look for a better choice around a feasible one.

    Deterministic for the generator's state unless the deadline cuts it short, whatever the order of queries.

    Args:
        problem: Small: a dense copy of the queries that are undecided is made for every walker.
        choice: (queries,) feasible; ``REFUSED`` for none.
        prices: (resources,) >= 0, value per unit of demand.
        bound: No choice has a larger value: the search for value ends there.
        rng: Source of the walkers' differences.
        deadline: When to stop.

    Returns:
        (queries,) a feasible choice of no less value and, at equal value, of no more cost.
    """
    if not problem.values.size:
        return np.array(choice)
    space, costs, start = _space(problem, choice, prices)
    order = _canonical(space, costs, start)
    space, costs, start = space.take(order), costs[order], start[order]
    found = _searched(space, start, bound / space.scale, rng, deadline)
    found = _cheaper(space, costs, found, rng, deadline)
    improved = np.empty_like(choice)
    improved[order] = np.where(found == space.options - 1, REFUSED, found)
    return improved


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Space:
    """Queries and what they may be given; the last option is nothing."""

    worth: Floats
    """(queries, options); at most 1; -inf for what is no option."""
    amounts: Floats
    """(queries, options, resources) as shares of the capacities; 0 for what is no option."""
    limits: Floats
    """(resources,) what these queries may use."""
    prices: Floats
    """(resources,) worth of a whole capacity."""
    scale: float = 1.0
    """Value that is worth 1."""

    @property
    def options(self) -> int:
        return len(self.worth[0])

    def take(self, queries: Ints) -> _Space:
        """Some of the queries, with all of the limits."""
        return replace(self, worth=self.worth[queries], amounts=self.amounts[queries])

    def worth_of(self, choice: Ints) -> float:
        return float(self.worth[np.arange(len(choice)), choice].sum())

    def used(self, choice: Ints) -> Floats:
        """(resources,)."""
        usage: Floats = self.amounts[np.arange(len(choice)), choice].sum(axis=0)
        return usage

    def fits(self, choice: Ints) -> bool:
        return bool((self.used(choice) <= self.limits + _ROUNDING).all())


def _space(problem: MatchProblem, choice: Ints, prices: Floats) -> tuple[_Space, Floats, Ints]:
    """The space of a problem, the costs (queries, options), and the choice as options."""
    queries, plans, resources = problem.demands.shape
    capacities = problem.capacities
    start = np.where(choice == REFUSED, plans, choice)
    # Divided in place of a copy: infinite where nothing is to be had, nan for nothing of it.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        shares = problem.demands / capacities
    shares[problem.demands == 0] = 0.0
    usable = (problem.values > 0) & (shares <= 1 + _ROUNDING).all(axis=2)
    amounts = np.zeros((queries, plans + 1, resources))
    np.copyto(amounts[:, :plans], shares, where=usable[..., np.newaxis])
    scale = float(problem.values.max(where=usable, initial=0.0)) or 1.0
    worth = np.zeros((queries, plans + 1))
    worth[:, :plans] = np.where(usable, problem.values / scale, -np.inf)
    costs = np.zeros((queries, plans + 1))
    costs[:, :plans] = np.where(usable, problem.costs, 0.0)
    # What a choice has and should not have, such as a plan worth nothing, it loses here.
    start = np.where(np.isneginf(worth[np.arange(queries), start]), plans, start)
    space = _Space(
        worth=worth,
        amounts=amounts,
        limits=np.ones(resources),
        prices=prices * capacities / scale,
        scale=scale,
    )
    return space, costs, start


def _canonical(space: _Space, costs: Floats, start: Ints) -> Ints:
    """An order of the queries by what they are, so that the caller's does not matter."""
    queries = len(start)
    what = np.hstack(
        [space.worth, costs, start[:, np.newaxis].astype(np.float64), space.amounts.reshape(queries, -1)]
    )
    # Adding 0 makes -0 the same as 0.
    rows = what + 0.0
    return np.array(sorted(range(queries), key=lambda query: rows[query].tobytes()), dtype=np.int64)


def _cheaper(
    space: _Space, costs: Floats, choice: Ints, rng: np.random.Generator, deadline: Deadline
) -> Ints:
    """Lower the cost of a choice by other plans of the same worth."""
    queries = np.arange(len(choice))
    same = space.worth == space.worth[queries, choice][:, np.newaxis]
    saving = np.where(same, costs[queries, choice][:, np.newaxis] - costs, -np.inf)
    scale = float(np.abs(saving).max(where=same, initial=0.0))
    if not (saving > _ROUNDING * scale).any():
        return choice
    # Prices in value say nothing about costs.
    prices = np.zeros_like(space.prices)
    by_cost = replace(space, worth=saving / scale, prices=prices, scale=scale)
    return _searched(by_cost, choice, float(by_cost.worth.max(axis=1).sum()), rng, deadline)


def _searched(space: _Space, start: Ints, bound: float, rng: np.random.Generator, deadline: Deadline) -> Ints:
    """The best choice found by walks among the queries that are most undecided."""
    queries = len(start)
    work = _WORK * min(1.0, _PLENTY / queries)
    size = max(1, _CORE // max(1, space.amounts[0].size))
    open_ = np.flatnonzero((space.worth > -np.inf).sum(axis=1) > 1)
    rounds = 1 if len(open_) <= size else _ROUNDS
    choice = start
    for _ in range(rounds):
        missing = bound - space.worth_of(choice)
        if missing <= _ROUNDING * queries or deadline.passed() or not open_.size:
            break
        core = open_ if rounds == 1 else np.sort(_undecided(space.take(open_), open_, choice, size, rng))
        part = space.take(core)
        left = space.limits - space.used(choice) + part.used(choice[core])
        part = replace(part, limits=left)
        choice = choice.copy()
        choice[core] = _walked(part, choice[core], missing, work / rounds, rng, deadline)
    return choice


def _undecided(space: _Space, queries: Ints, choice: Ints, size: int, rng: np.random.Generator) -> Ints:
    """Those of the queries for which an option that they do not have is nearly the best at the prices."""
    reduced = space.worth - space.amounts @ space.prices
    loss = reduced.max(axis=1, keepdims=True) - reduced
    loss[np.arange(len(queries)), choice[queries]] = np.inf
    least = (loss.min(axis=1) + _NOISE) * np.exp(0.5 * rng.standard_normal(len(queries)))
    return queries[np.argsort(least, kind="stable")[:size]]


def _walked(
    space: _Space, start: Ints, missing: float, work: float, rng: np.random.Generator, deadline: Deadline
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
    walkers = _Walkers(space, start, rng)
    patience = _LEAST_STEPS + 8 * space.worth.size
    steps = int(work / (_WALKERS * space.amounts.size + _STEP_WORK))
    best, most, idle = start, space.worth_of(start), 0
    enough = most + missing - _ROUNDING * len(start)
    for step in range(max(steps, _LEAST_STEPS)):
        if idle > patience or most >= enough or (step % _DEADLINE_STEPS == 0 and deadline.passed()):
            break
        seen = walkers.step(step, most)
        idle += 1
        if seen is not None and space.fits(seen) and space.worth_of(seen) > most + _ROUNDING:
            best, most, idle = seen, space.worth_of(seen), 0
    return best


class _Walkers:
    """Walks through one space, all in step: w walkers, p options, q queries, r resources."""

    def __init__(self, space: _Space, start: Ints, rng: np.random.Generator) -> None:
        self._space = space
        queries, options, resources = space.amounts.shape
        dearest = float(space.prices.max(initial=0.0)) or 1.0
        at_least = np.maximum(space.prices, _LEAST_PRICE * dearest)
        self._least_weight = np.float32(_LEAST_WEIGHT * dearest)
        priced = space.amounts @ (at_least if space.prices.any() else space.prices)
        share = rng.uniform(*_PRICED, _WALKERS)[:, np.newaxis, np.newaxis]
        worth = np.where(np.isneginf(space.worth), _NO_OPTION, space.worth).T
        noise = 1 + _NOISE * rng.standard_normal((_WALKERS, options, queries))
        self._worth = np.ascontiguousarray(worth, np.float32)
        """(p, q)."""
        self._drawn = (worth * noise - share * priced.T).astype(np.float32)
        """(w, p, q) worth less prices, as each walker sees it."""
        self._amounts = np.ascontiguousarray(space.amounts.transpose(1, 2, 0), np.float32)
        """(p, r, q)."""
        self._choice = np.repeat(start[np.newaxis], _WALKERS, axis=0)
        """(w, q)."""
        self._total = np.full(_WALKERS, space.worth_of(start))
        """(w,) worth of the choice."""
        self._usage = np.repeat(space.used(start)[np.newaxis], _WALKERS, axis=0)
        """(w, r)."""
        own = self._amounts[start, :, np.arange(queries)].T
        self._own = np.repeat(own[np.newaxis], _WALKERS, axis=0)
        """(w, r, q) what each query has."""
        self._weights = np.repeat(at_least[np.newaxis].astype(np.float32), _WALKERS, axis=0)
        """(w, r)."""
        low, high = np.array([_RESTS[walker % len(_RESTS)] for walker in range(_WALKERS)]).T
        self._rests = low + rng.integers(1 << 30, size=(997, _WALKERS)) % (high - low + 1)
        """(steps, w) for how long the query rests that is changed then; over and over."""
        self._rested = np.zeros((_WALKERS, queries), np.int64)
        """(w, q) the step after which it may change again."""
        self._raised = np.empty((_WALKERS, options, resources, queries), np.float32)
        self._charged = np.empty((_WALKERS, options, 1, queries), np.float32)
        self._each = np.arange(_WALKERS)
        self._cell = self._each[:, np.newaxis] * (options * queries) + np.arange(queries)

    def step(self, step: int, most: float) -> Ints | None:
        """Move every walker; the best choice next to one of them, if it seems to fit and is worth more."""
        room = self._own + (self._space.limits - self._usage).astype(np.float32)[:, :, np.newaxis]
        np.maximum(self._amounts, room[:, np.newaxis], out=self._raised)
        np.matmul(self._weights[:, np.newaxis, np.newaxis], self._raised, out=self._charged)
        charged = self._charged[:, :, 0]
        seen = self._seen(charged, np.matmul(self._weights[:, np.newaxis], room), most)
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

    def _seen(self, charged: Singles, uncharged: Singles, most: float) -> Ints | None:
        """The best choice that is one change from a walker's and charges nothing."""
        slight = _SINGLE_ROUNDING * self._weights.max(axis=1, initial=0.0)[:, np.newaxis, np.newaxis]
        own = self._worth[self._choice, np.arange(self._worth.shape[1])]
        gains = np.where(charged <= uncharged + slight, self._worth, _NO_OPTION) - own[:, np.newaxis]
        flat = gains.reshape(len(gains), -1)
        change = flat.argmax(axis=1)
        totals = self._total + flat[self._each, change]
        walker = int(totals.argmax())
        if totals[walker] <= most + _ROUNDING:
            return None
        option, query = divmod(int(change[walker]), self._worth.shape[1])
        seen: Ints = self._choice[walker].copy()
        seen[query] = option
        return seen

    def _change(self, query: Ints, option: Ints) -> None:
        """Give each walker's query an option: (w,) each."""
        amounts, worth = self._space.amounts, self._space.worth
        before = self._choice[self._each, query]
        self._usage += amounts[query, option] - amounts[query, before]
        self._total += worth[query, option] - worth[query, before]
        self._own[self._each, :, query] = self._amounts[option, :, query]
        self._choice[self._each, query] = option

    def _weigh(self) -> None:
        over = self._usage > self._space.limits + _ROUNDING
        clear = ~over.any(axis=1, keepdims=True)
        self._weights *= np.where(over, _RAISE, np.where(clear, _LOWER, np.float32(1)))
        np.maximum(self._weights, self._least_weight, out=self._weights)
