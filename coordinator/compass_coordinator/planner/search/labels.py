"""Label-setting: every placement of some configs that could still beat what is known, all configs at once.

A label is a config with sites for its first operators. Operators are added one by one; a label goes as soon
as no completion of it can be in time, within the cost limit and the capacities, and below the cutoff. The
tests use what the label has so far plus the least that the rest must add (``relaxation.complete``): in score
alone, in score with the config's multiplier on latency, in cost, and in mean and variance. Each is a
necessary condition, so what is left contains the best placement of every config that beats the cutoff.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from compass_coordinator.estimator import Floats, Indices
from compass_coordinator.planner.search.relaxation import Completion, Relaxed, Weights, complete, smallest
from compass_coordinator.planner.search.tables import CORES, COST, MEAN, SCORE, VAR, Tables
from compass_shared.problem import Z95

MAX_LABELS = 100_000
"""Labels kept at a time for a chain; beyond them the least promising go, and bound what the result misses."""
MAX_INEXACT_LABELS = 10_000
"""The same for other DAGs, of whose placements the tables know too little to be worth many."""

SLACK = 1 + 1e-9
"""On every limit, so that rounding never drops what the exact evaluation would accept."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Leaves:
    """Complete placements, cheapest first."""

    row: Indices
    """(m,) index of the config among the choices."""
    sites: Indices
    """(m, n)."""
    score: Floats
    """(m,) by the tables: the plan's own for a chain, at most that for any DAG."""
    dropped: Floats
    """(B,) least score that a placement dropped for want of room could have; inf where none was."""


def placements_below(
    tables: Tables, choices: Indices, relaxed: Relaxed, limit_s: float, cost_limit: float, cutoff: float
) -> Leaves:
    """Placements that score below a cutoff and keep every limit, as far as the tables can tell.

    Args:
        tables: The query's operators.
        choices: (B, n) variant of every operator.
        relaxed: Their multipliers.
        limit_s: Most p95 latency.
        cost_limit: Most US dollars a request.
        cutoff: Score to beat; inf to beat nothing.
    """
    return _Search(tables, choices, relaxed, limit_s, cost_limit, cutoff).run()


@dataclass(slots=True, eq=False)
class _Search:
    tables: Tables
    choices: Indices
    relaxed: Relaxed
    limit_s: float
    cost_limit: float
    cutoff: float
    row: Indices = field(init=False)
    sites: Indices = field(init=False)
    sums: Floats = field(init=False)
    """(m, 5): of each of ``_weights``, so far plus the least that the rest adds."""
    demand: Floats = field(init=False)
    """(m, demand channels) so far."""
    dropped: Floats = field(init=False)
    _weights: tuple[Weights, ...] = field(init=False)
    _rest: tuple[Completion, ...] = field(init=False)

    def __post_init__(self) -> None:
        m = self.relaxed.multiplier
        self._weights = (
            {SCORE: 1.0},
            {COST: 1.0},
            {MEAN: 1.0},
            {VAR: 1.0},
            {SCORE: np.ones_like(m), MEAN: m, VAR: m * self.relaxed.slope},
        )
        self._rest = tuple(complete(self.tables, self.choices, weights) for weights in self._weights)
        self.row = np.arange(len(self.choices))
        self.sites = np.zeros((len(self.row), 0), dtype=np.int64)
        self.sums = np.column_stack([rest.least for rest in self._rest])
        self.demand = np.zeros((len(self.row), len(self.tables.capacity)))
        self.dropped = np.full(len(self.row), np.inf)

    def run(self) -> Leaves:
        self._prune()
        for op in range(len(self.tables.parent)):
            self._grow(op)
            self._prune()
        order = np.argsort(self.sums[:, 0], kind="stable")
        return Leaves(
            row=self.row[order], sites=self.sites[order], score=self.sums[order, 0], dropped=self.dropped
        )

    def _grow(self, op: int) -> None:
        """Give every label every site for one more operator."""
        count = len(self.tables.sites)
        label = np.repeat(np.arange(len(self.row)), count)
        site = np.tile(np.arange(count), len(self.row))
        row, parent = self.row[label], self.tables.parent[op]
        standing = self.sites[label, parent] if parent >= 0 else np.zeros_like(label)
        sums = np.empty((len(label), len(self._rest)))
        for column, (weights, rest) in enumerate(zip(self._weights, self._rest, strict=True)):
            entering = rest.entering[op]
            added = rest.at[op][row, site]
            if entering is None:
                spared = smallest(rest.at[op])[row]
            else:
                spared = entering[row, standing]
                added = added + self._crossing(op, row, standing, site, weights)
            sums[:, column] = self.sums[label, column] - spared + added
        alive = self._alive(row, sums)
        label, site, row = label[alive], site[alive], row[alive]
        self.demand = self.demand[label] + self._demand(op, row, standing[alive], site)
        self.sites = np.column_stack([self.sites[label], site])
        self.row, self.sums = row, sums[alive]

    def _crossing(self, op: int, row: Indices, standing: Indices, site: Indices, weights: Weights) -> Floats:
        edge, variant = self.tables.edge[op], self.choices[row, self.tables.parent[op]]
        assert edge is not None
        found = np.zeros(len(row))
        for channel, weight in weights.items():
            scale = weight if isinstance(weight, float) else weight[row]
            found += scale * edge[channel][variant, standing, site]
        return found

    def _demand(self, op: int, row: Indices, standing: Indices, site: Indices) -> Floats:
        found = self.tables.node[op][CORES:, self.choices[row, op], site]
        edge = self.tables.edge[op]
        if edge is not None:
            variant = self.choices[row, self.tables.parent[op]]
            found = found + edge[CORES:, variant, standing, site]
        return np.asarray(found.T)

    def _alive(self, row: Indices, sums: Floats) -> Indices:
        score, cost, mean, var, priced = sums.T
        p95 = mean + Z95 * np.sqrt(np.maximum(var, 0.0))
        below = self.cutoff - 1e-12 * abs(self.cutoff) if np.isfinite(self.cutoff) else self.cutoff
        bound = priced - self.relaxed.multiplier[row] * self.relaxed.reach[row]
        return np.flatnonzero(
            np.isfinite(score)
            & (score < below)
            & (bound < below)
            & (p95 <= self.limit_s * SLACK)
            & (cost <= self.cost_limit * SLACK)
        )

    def _prune(self) -> None:
        alive = self._alive(self.row, self.sums)
        over = self.demand[alive] > self.tables.capacity * SLACK
        alive = alive[~over.any(axis=1)]
        room = MAX_LABELS if self.tables.exact else MAX_INEXACT_LABELS
        if len(alive) > room:
            bound = self._bound(alive)
            order = np.argpartition(bound, room)
            lost = order[room:]
            np.minimum.at(self.dropped, self.row[alive[lost]], bound[lost])
            alive = np.sort(alive[order[:room]])
        self.row, self.sites = self.row[alive], self.sites[alive]
        self.sums, self.demand = self.sums[alive], self.demand[alive]

    def _bound(self, labels: Indices) -> Floats:
        row = self.row[labels]
        priced = self.sums[labels, 4] - self.relaxed.multiplier[row] * self.relaxed.reach[row]
        return np.asarray(np.maximum(priced, self.sums[labels, 0]))
