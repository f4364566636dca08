"""Search where an accuracy is known only once it is measured, and measuring is what costs.

Latency, cost and demand of every config are known beforehand; accuracy alone is not. So each measurement goes
to the config that promises most: (what its best plan would save against the best plan so far) x (how likely a
surrogate thinks it accurate enough). Configs that no placement serves, or that would save nothing, are never
measured; an optimiser that sees the objective as a black box has to learn both from measurements. Until
something serves, the likeliest config goes first.

The configs to choose among are grown by local moves (one operator's variant changed) from the best measured
ones, from random ones, and from those that would be best if accuracy were a sum over operators
(``prospects``). There is no bound: an unmeasured config may be cheap and accurate, whatever was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from compass_coordinator.estimator import Floats, Indices
from compass_coordinator.planner.search.climbing import climb
from compass_coordinator.planner.search.labels import placements_below
from compass_coordinator.planner.search.prospects import prospects
from compass_coordinator.planner.search.relaxation import Relaxed, complete, relax
from compass_coordinator.planner.search.result import Budget, Judge, Judged, SearchResult
from compass_coordinator.planner.search.surrogate import Surrogate, Variances, first_variances, fit
from compass_coordinator.planner.search.tables import MEAN, SCORE, VAR, Tables
from compass_shared.errors import PlanningError
from compass_shared.pipeline import Config

MeasureAccuracy: TypeAlias = Callable[[Config], float]
"""Accuracy of a config, in [0, 1]; each call is an evaluation."""

FIRST = 12
"""Configs measured before the surrogate is asked, spread so that each variant is seen about equally often."""
STARTS, PARENTS, MOVES = 16, 6, 4
"""Random configs a pool starts with, configs that moves start from, and rounds of moves."""
MUTANTS = 8
"""Random variations of every start, once the pool without them held nothing."""
PRICED = 96
"""Configs that a round leaves; in the end their best placements are sought."""
WORTHS, MULTIPLIERS = np.geomspace(0.01, 100, 13), np.array([0.3, 1.0, 3.0])
"""Prices on accuracy and latency, relative to the best plan's, that prospects are sought at."""
PRICED_UP_TO = 1.25
"""Multiple of the best score up to which exact placements of a pool are sought."""
TRIES = 10
"""Pools without a config worth measuring after which the search ends."""
NO_BOUND = "no bound: an unmeasured config may be cheap and accurate"


def search_measuring(
    judge: Judge, accuracy: MeasureAccuracy, budget: Budget, seed: int
) -> Iterator[SearchResult]:
    """Yield the best plan so far after every measurement."""
    yield from _Search(judge, accuracy, budget, np.random.default_rng(seed)).run()


@dataclass(slots=True, eq=False)
class _Search:
    judge: Judge
    accuracy: MeasureAccuracy
    budget: Budget
    rng: np.random.Generator
    best: Judged | None = None
    seen: dict[tuple[int, ...], float] = field(default_factory=dict)
    """Config -> accuracy, in the order of measuring."""
    hopeless: set[tuple[int, ...]] = field(default_factory=set)
    """Configs that no placement runs within the other limits for less than the best plan."""
    trace: list[tuple[int, float]] = field(default_factory=list)
    exchange: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Multiplier, slope and reach of the best config's relaxation."""
    optimism: float = 1.0
    """What scores were, over what they were guessed to be, when last looked at."""
    idle: int = 0
    """Pools since the last measurement."""
    variances: Variances = field(init=False)

    def run(self) -> Iterator[SearchResult]:
        self.variances = first_variances(len(self._tables.counts))
        yield self._result()
        for choice in self._first():
            if self._spent():
                return
            if self._measure(choice):
                yield self._result()
        while not self._spent() and self.idle < TRIES and not self._exhausted():
            choice = self._most_promising()
            if choice is not None and self._measure(choice):
                self.idle = 0
                yield self._result()
            else:
                self.idle += 1

    @property
    def _tables(self) -> Tables:
        return self.judge.tables

    def _limits(self) -> tuple[float, float]:
        slo = self.judge.query.slo
        return slo.latency_p95_s, slo.cost_usd_per_1000 / 1000

    def _score(self) -> float:
        return self.best.score if self.best is not None and self.best.violation == 0 else math.inf

    def _spent(self) -> bool:
        return len(self.seen) >= self.budget.evaluations or self.budget.out_of_time()

    def _exhausted(self) -> bool:
        return len(self.seen) + len(self.hopeless) >= self._tables.pipeline.config_count()

    def _first(self) -> Indices:
        """A Latin design, each config moved until some placement could serve it."""
        counts = self._tables.counts
        columns = [self.rng.permutation(np.arange(FIRST) % count) for count in counts]
        design = np.stack(columns, axis=1)
        for _ in range(4 * len(counts)):
            poor = np.flatnonzero(~np.isfinite(relax(self._tables, design, *self._limits()).bound))
            if not len(poor):
                break
            operator = self.rng.integers(len(counts), size=len(poor))
            design[poor, operator] = self.rng.integers(np.array(counts)[operator])
        return design

    def _measure(self, choice: Indices) -> bool:
        """Measure one config if a placement may serve it and it is new."""
        key = tuple(choice.tolist())
        if key in self.seen or key in self.hopeless:
            return False
        relaxed = relax(self._tables, choice[np.newaxis], *self._limits())
        sites = self._placed(choice, relaxed)
        if sites is None:
            self.hopeless.add(key)
            return False
        accuracy = float(self.accuracy(self._tables.config(choice)))
        if not 0 <= accuracy <= 1:
            raise PlanningError(f"a measured accuracy is {accuracy}; it must lie in [0, 1]")
        self.seen[key] = accuracy
        found = self.judge.judge(choice, sites, accuracy)
        if found.beats(self.best):
            self.best = found
            self.exchange = float(relaxed.multiplier[0]), float(relaxed.slope[0]), float(relaxed.reach[0])
            if found.violation == 0:
                self.trace.append((len(self.seen), found.score))
        return True

    def _placed(self, choice: Indices, relaxed: Relaxed) -> Indices | None:
        """The cheapest placement that keeps latency, cost and capacities and beats the best plan."""
        if not relaxed.bound[0] < self._score():
            return None
        leaves = placements_below(self._tables, choice[np.newaxis], relaxed, *self._limits(), self._score())
        # Accuracy aside: what the rest of the SLO makes of the placement.
        for sites in leaves.sites[:100]:
            if self.judge.judge(choice, sites, 1.0).violation == 0:
                return np.asarray(sites)
        if self._tables.exact:
            return None
        climbed = climb(self.judge, choice, 1.0, [relaxed.placement[0]])
        found = climbed is not None and climbed.violation == 0 and climbed.score < self._score()
        return climbed.sites if climbed is not None and found else None

    def _most_promising(self) -> Indices | None:
        """Grow a pool by local moves and take the config that promises most."""
        choices, accuracy = np.array(list(self.seen), dtype=np.int64), np.array(list(self.seen.values()))
        if not len(choices):
            return None
        model = fit(self._tables.counts, choices, accuracy, self.variances)
        self.variances = model.variances
        pool = np.concatenate(
            [
                choices[-PARENTS:],
                self._parents(choices, accuracy),
                self._prospects(model),
                self._random(STARTS),
            ]
        )
        if self.idle:
            pool = np.concatenate([pool, self._mutants(pool)])
        top, likely = self._ranked(pool, model)
        for _ in range(MOVES):
            top, likely = self._ranked(np.concatenate([top, self._moved(top[:PARENTS])]), model)
        return self._priced(top, likely)

    def _prospects(self, model: Surrogate) -> Indices:
        """Configs that would be best if single variants were all, over a grid of what accuracy is worth."""
        m, slope, _ = self.exchange
        scale = abs(self.best.score) if self.best is not None else 0.0
        worth, multiplier = np.meshgrid(scale / model.scale * WORTHS, m * MULTIPLIERS)
        return np.unique(
            prospects(self._tables, model.effects(), worth.ravel(), multiplier.ravel(), slope), axis=0
        )

    def _priced(self, top: Indices, likely: Floats) -> Indices | None:
        """The one that promises most once the best placements are known, if any promises anything."""
        relaxed = relax(self._tables, top, *self._limits())
        score = np.where(np.isfinite(relaxed.score), relaxed.score, relaxed.bound)
        if math.isfinite(self._score()):
            cutoff = PRICED_UP_TO * self._score()
            leaves = placements_below(self._tables, top, relaxed, *self._limits(), cutoff)
            score = np.minimum(leaves.dropped, cutoff)
            np.minimum.at(score, leaves.row, leaves.score)
            guess = np.maximum(self._guess(top), 1e-3 * cutoff)
            self.optimism = float(np.median(score / guess)) if len(top) else 1.0
        merit = self._merit(likely, score)
        self.hopeless.update(tuple(row) for row in top[~(score < self._score())].tolist())
        return np.asarray(top[np.argmax(merit)]) if np.isfinite(merit).any() else None

    def _guess(self, choices: Indices) -> Floats:
        """Scores (B,) of configs' best plans, with the multiplier on latency of the best plan so far."""
        m, slope, reach = self.exchange
        floor = complete(self._tables, choices, {SCORE: 1.0}).least
        priced = complete(self._tables, choices, {SCORE: 1.0, MEAN: m, VAR: m * slope}).least - m * reach
        return np.maximum(floor, priced)

    def _parents(self, choices: Indices, accuracy: Floats) -> Indices:
        """Measured configs that are accurate enough and cheap, or else the most accurate."""
        cheap = complete(self._tables, choices, {SCORE: 1.0}).least
        enough = accuracy >= self.judge.query.slo.accuracy
        return choices[np.lexsort((-accuracy, np.where(enough, cheap, np.inf)))[:PARENTS]]

    def _random(self, count: int) -> Indices:
        return self.rng.integers(np.array(self._tables.counts), size=(count, len(self._tables.counts)))

    def _mutants(self, parents: Indices) -> Indices:
        """Configs that differ from a parent in a few operators, about three each."""
        mutants = np.repeat(parents, MUTANTS, axis=0)
        random = self._random(len(mutants))
        return np.where(self.rng.random(mutants.shape) < 3 / mutants.shape[1], random, mutants)

    def _moved(self, parents: Indices) -> Indices:
        """Every config that differs from a parent in one operator."""
        moved = []
        for operator, count in enumerate(self._tables.counts):
            for variant in range(count):
                changed = parents.copy()
                changed[:, operator] = variant
                moved.append(changed)
        return np.concatenate(moved)

    def _ranked(self, pool: Indices, model: Surrogate) -> tuple[Indices, Floats]:
        """Those of a pool that look best before they are placed, and the logarithms of their chances."""
        pool = np.unique(pool, axis=0)
        new = [tuple(row) not in self.seen and tuple(row) not in self.hopeless for row in pool.tolist()]
        pool = pool[np.array(new, dtype=np.bool_)]
        fastest_s = complete(self._tables, pool, {MEAN: 1.0}).least
        pool = pool[fastest_s <= self._limits()[0]]
        likely = self._log_likely(pool, model)
        score = self.optimism * self._guess(pool)
        # Guesses err: what looks a little too dear may save something, unless that has just proved wrong.
        merit = self._merit(likely, score, least=0.0 if self.idle else 1e-3)
        order = np.argsort(-merit, kind="stable")[:PRICED]
        return pool[order], likely[order]

    def _log_likely(self, pool: Indices, model: Surrogate) -> Floats:
        """Logarithm of the chance that each config is accurate enough."""
        mean, spread = model.predict(pool)
        return _log_normal_cdf((mean - self.judge.query.slo.accuracy) / spread)

    def _merit(self, log_likely: Floats, score: Floats, least: float = 0.0) -> Floats:
        """Logarithm of the expected saving; while nothing serves, of the chance to serve.

        Savings below a ``least`` share of the best score count as that.
        """
        saving = np.where(np.isfinite(score), 1.0, 0.0)
        if math.isfinite(self._score()):
            saving = np.maximum(self._score() - score, least * self._score())
        return log_likely + np.log(saving, out=np.full_like(saving, -np.inf), where=saving > 0)

    def _result(self) -> SearchResult:
        serves = math.isfinite(self._score())
        reason = NO_BOUND if serves else f"none found in {len(self.seen)} measurements; {NO_BOUND}"
        return SearchResult(
            plan=None if self.best is None else self.best.plan,
            score=self._score(),
            violation=math.inf if self.best is None else self.best.violation,
            bound=None,
            evaluations=len(self.seen),
            trace=tuple(self.trace),
            reason=reason,
        )


def _log_normal_cdf(z: Floats) -> Floats:
    """Logarithm of the standard normal distribution function, to a few per cent, far tails included.

    Source: W. Page, Approximations to the Cumulative Normal Function, Applied Statistics 1977:
    ``1 / (1 + exp(-2y))`` with ``y = sqrt(2 / pi) (z + 0.044715 z^3)``; below -3 the tail's own expansion.
    """
    y = math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)
    near = -np.logaddexp(0.0, -2 * y)
    far = np.minimum(z, -3.0)
    tail = -0.5 * far**2 - np.log(-far * math.sqrt(2 * math.pi)) - 1 / far**2
    return np.asarray(np.where(z < -3, tail, near))
