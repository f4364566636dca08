"""Search where accuracies are tabulated: exact when it ends by itself, bounded whenever it is stopped.

1. Configs that miss the accuracy SLO are out. The others are put in the order of their least score at any
   placement, latency aside: a bound that costs one pass over arrays.
2. In that order, block by block, each config gets its relaxation (``relaxation``): a better bound, and mostly
   a plan at or near it. Plans that would beat the best so far are evaluated by the book.
3. Configs whose bound is still below the best have their placements enumerated down to it (``labels``).
4. It ends when the next block's first bound is no less than the best: nothing better can follow.

The bound that is reported is the least of the best score, the next block's first bound, and what step 3 left
undecided. For chains step 3 leaves something only where labels ran out of room, for other DAGs also where
more than ``MAX_CHECKED`` placements of a block look better by the tables than they are; there the most
promising configs of each block are climbed from as well (``climbing``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from compass_coordinator.estimator import Floats, Indices
from compass_coordinator.planner.search.climbing import climb
from compass_coordinator.planner.search.configs import KnownConfigs
from compass_coordinator.planner.search.labels import placements_below
from compass_coordinator.planner.search.relaxation import Relaxed, complete, relax, total
from compass_coordinator.planner.search.result import Budget, Judge, Judged, SearchResult
from compass_coordinator.planner.search.tables import MEAN, SCORE, VAR, Tables
from compass_shared.problem import Z95

BLOCK = 512
PASS = 16_384
"""Configs handled at a time in step 1, so that its arrays stay in the cache."""
MAX_CHECKED = 500
CLIMBED = 6
NEAREST_BLOCKS = 8
"""Blocks that are searched for the nearest plan once none is left that serves."""


def search_known(judge: Judge, known: KnownConfigs, budget: Budget) -> Iterator[SearchResult]:
    """Yield the best plan so far after every block; the last one is proven unless the budget ended first."""
    yield from _Search(judge, known, budget).run()


@dataclass(slots=True, eq=False)
class _Search:
    judge: Judge
    known: KnownConfigs
    budget: Budget
    best: Judged | None = None
    undecided: float = math.inf
    """Least bound among configs that were looked at and not settled."""
    looked_at: int = 0
    trace: list[tuple[int, float]] = field(default_factory=list)

    def run(self) -> Iterator[SearchResult]:
        order, bounds = self._order()
        at = 0
        while at < len(order) and bounds[at] < self._score():
            if self._spent():
                yield self._result(bounds[at])
                return
            take = min(BLOCK, self.budget.evaluations - self.looked_at)
            self._look_at(order[at : at + take])
            at += take
            yield self._result(bounds[at] if at < len(order) else math.inf)
        if self._score() == math.inf:
            self._nearest()
        yield self._result(math.inf)

    @property
    def _tables(self) -> Tables:
        return self.judge.tables

    def _limits(self) -> tuple[float, float]:
        slo = self.judge.query.slo
        return slo.latency_p95_s, slo.cost_usd_per_1000 / 1000

    def _score(self) -> float:
        return self.best.score if self.best is not None and self.best.violation == 0 else math.inf

    def _spent(self) -> bool:
        return self.looked_at >= self.budget.evaluations or self.budget.out_of_time()

    def _order(self) -> tuple[Indices, Floats]:
        """Configs accurate enough, by their least score at any placement, with these scores."""
        rows = np.flatnonzero(self.known.accuracy >= self.judge.query.slo.accuracy)
        blocks = [rows[at : at + PASS] for at in range(0, len(rows), PASS)]
        found = [complete(self._tables, self.known.choices[block], {SCORE: 1.0}).least for block in blocks]
        bounds = np.concatenate(found) if found else np.zeros(0)
        order = np.argsort(bounds, kind="stable")
        order = order[np.isfinite(bounds[order])]
        return rows[order], bounds[order]

    def _look_at(self, rows: Indices) -> None:
        choices = self.known.choices[rows]
        relaxed = relax(self._tables, choices, *self._limits())
        self.looked_at += len(rows)
        for row in np.argsort(relaxed.score, kind="stable"):
            if relaxed.score[row] >= self._score():
                break
            self._try(rows[row], relaxed.placement[row])
        if not self._tables.exact:
            self._climb(rows, relaxed)
        open_ = np.flatnonzero(relaxed.bound < self._score() * (1 - 1e-9))
        if len(open_):
            self._settle(rows[open_], relaxed.take(open_))

    def _settle(self, rows: Indices, relaxed: Relaxed) -> None:
        """Enumerate what could still beat the best."""
        choices = self.known.choices[rows]
        leaves = placements_below(self._tables, choices, relaxed, *self._limits(), self._score())
        for count, (row, sites, score) in enumerate(zip(leaves.row, leaves.sites, leaves.score, strict=True)):
            if score >= self._score():
                break
            if count == MAX_CHECKED:
                self.undecided = min(self.undecided, float(score))
                break
            self._try(rows[row], sites)
        self.undecided = min(self.undecided, float(leaves.dropped.min()))

    def _climb(self, rows: Indices, relaxed: Relaxed) -> None:
        for row in np.argsort(relaxed.bound, kind="stable")[:CLIMBED]:
            if relaxed.bound[row] < self._score():
                choice, accuracy = self.known.choices[rows[row]], float(self.known.accuracy[rows[row]])
                starts = [relaxed.placement[row], *([] if self.best is None else [self.best.sites])]
                self._take(climb(self.judge, choice, accuracy, starts))

    def _try(self, row: int, sites: Indices) -> None:
        self._take(self.judge.judge(self.known.choices[row], sites, float(self.known.accuracy[row])))

    def _take(self, found: Judged | None) -> None:
        if found is not None and found.beats(self.best):
            self.best = found
            if found.violation == 0:
                self.trace.append((self.looked_at, found.score))

    def _nearest(self) -> None:
        """Nothing serves: look for what comes closest, the most accurate configs first."""
        slo = self.judge.query.slo
        order = np.argsort(-self.known.accuracy, kind="stable")[: NEAREST_BLOCKS * BLOCK]
        for at in range(0, len(order), BLOCK):
            rows = order[at : at + BLOCK]
            choices = self.known.choices[rows]
            sites = relax(self._tables, choices, *self._limits()).placement
            mean_s, var_s2 = (total(self._tables, choices, sites, channel) for channel in (MEAN, VAR))
            late = np.maximum(0.0, (mean_s + Z95 * np.sqrt(var_s2)) / slo.latency_p95_s - 1)
            short = np.maximum(0.0, slo.accuracy - self.known.accuracy[rows]) / max(slo.accuracy, 1e-9)
            for row in np.argsort(late + short, kind="stable")[:4]:
                if self._tables.placeable(choices[row], sites[row]):
                    self._try(rows[row], sites[row])

    def _result(self, following: float) -> SearchResult:
        bound = min(self._score(), self.undecided, float(following))
        return SearchResult(
            plan=None if self.best is None else self.best.plan,
            score=self._score(),
            violation=math.inf if self.best is None else self.best.violation,
            bound=bound,
            evaluations=self.looked_at,
            trace=tuple(self.trace),
            reason=self._reason(bound),
        )

    def _reason(self, bound: float) -> str | None:
        if self._score() < math.inf:
            return None
        if not len(self.known.accuracy):
            floors = " and ".join(f"{name} {least:g}" for name, least in self.judge.query.slo.metrics.items())
            reaches = f"reaches {floors}" if floors else "was measured"
            return f"the accuracy of no config of pipeline {self.judge.query.pipeline!r} {reaches}"
        best = float(self.known.accuracy.max())
        if best < self.judge.query.slo.accuracy:
            return f"the most accurate config reaches {best:.4g} against {self.judge.query.slo.accuracy:.4g}"
        if bound == math.inf:
            return "no config that is accurate enough can be placed within the latency, cost and capacities"
        return f"none found among the first {self.looked_at} configs; more of the budget may find one"
