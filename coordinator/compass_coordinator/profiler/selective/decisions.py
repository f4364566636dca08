"""Which plan each query would get, and what could still change that.

With latency and cost known, accuracy is all that is left to find out: a query takes the cheapest config that
is accurate enough, at the placement that runs it within the query's other limits. So a query is a row of
costs and one threshold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from compass_coordinator.profiler.selective.operator_times import OperatorTimes
from compass_coordinator.profiler.selective.score_model import Belief
from compass_coordinator.profiler.selective.space import Floats, Indices

TOLERANCE = 0.01
"""A plan that costs at most so much more than the best one is as good."""
SAMPLES = 64
MOST_SAMPLES = 4096
RESOLVED = 20
"""Draws of single queries that the smallest share of interest is made of."""
CHUNK = 32
REFUSED = -1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decisions:
    """Queries that wait for accuracies."""

    costs: Floats
    """(queries, configs) of the cheapest placement within latency and cost limits; inf where there is
    none."""
    needed: Floats
    """(queries,) accuracy that each asks for."""
    weights: Floats
    """(queries,) of equal sum to their number."""

    def __len__(self) -> int:
        return len(self.needed)

    def chosen(self, accuracy: Floats) -> Indices:
        """(queries,) the cheapest config that is accurate enough, or ``REFUSED``."""
        return _Sorted.of(self).chosen(accuracy)


Decide: TypeAlias = Callable[[OperatorTimes], Decisions]
"""Queries in the light of what operators take."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stakes:
    """How likely decisions are wrong, and because of whom."""

    wrong: float
    """Expected share of queries (by weight) whose choice is not the best, or misses its accuracy."""
    blame: Floats
    """(configs,) expected share of queries that are decided wrongly for not knowing this config."""
    chosen: Indices
    """(queries,) what is chosen as things stand."""


def stakes(
    decisions: Decisions,
    belief: Belief,
    low: Floats,
    high: Floats,
    rng: np.random.Generator,
    *,
    draws: int = SAMPLES,
) -> Stakes:
    """Draw accuracies from what is believed and see whose choice was wrong.

    A wrong choice is blamed on the chosen config where that turns out too inaccurate, else on the cheaper one
    that turns out accurate enough.

    Args:
        decisions: Queries.
        belief: Of the accuracies.
        low: (configs,) what they are certainly not below.
        high: (configs,) nor above.
        rng: Draws them, in opposite pairs.
        draws: How many, an even number; see ``draws_for``.
    """
    table = _Sorted.of(decisions)
    chosen = table.chosen(np.clip(belief.mean, low, high))
    paid = table.paid(chosen)
    share = decisions.weights / decisions.weights.sum() / draws
    blame, wrong = np.zeros(len(belief.mean)), 0.0
    for accuracy in _draws(belief, rng, draws):
        possible = np.clip(accuracy, low, high)
        best = table.chosen(possible)
        short = (chosen >= 0) & (possible[chosen] < decisions.needed)
        dear = ~short & (best >= 0) & (table.paid(best) * (1 + TOLERANCE) < paid)
        wrong += float(share @ (short | dear))
        np.add.at(blame, chosen[short], share[short])
        np.add.at(blame, best[dear], share[dear])
    return Stakes(wrong=wrong, blame=blame, chosen=chosen)


def draws_for(decisions: Decisions, delta: float) -> int:
    """Draws that tell a share of ``delta`` from none: the more, the fewer queries there are."""
    wanted = RESOLVED / (delta * max(1, len(decisions)))
    return 2 * int(np.clip(np.ceil(wanted / 2), SAMPLES // 2, MOST_SAMPLES // 2))


def _draws(belief: Belief, rng: np.random.Generator, draws: int) -> Floats:
    """(draws, configs) accuracies."""
    open_ = np.flatnonzero(belief.spread > 0)
    covariance = belief.covariance[np.ix_(open_, open_)]
    covariance[np.diag_indices(len(open_))] *= 1 + 1e-6
    root = _root(covariance)
    half = rng.standard_normal((draws // 2, len(open_))) @ root.T
    drawn = np.tile(belief.mean, (draws, 1))
    drawn[:, open_] += np.concatenate([half, -half])
    return drawn


def _root(covariance: Floats) -> Floats:
    """A square root; where rounding left a covariance indefinite, of the nearest one that is not."""
    try:
        return np.asarray(np.linalg.cholesky(covariance))
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(covariance)
        return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sorted:
    """Each query's configs by cost."""

    decisions: Decisions
    order: Indices
    """(queries, configs), cheapest first; those it cannot use are cut off where no query can."""
    usable: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

    @staticmethod
    def of(decisions: Decisions) -> _Sorted:
        usable = np.isfinite(decisions.costs)
        longest = int(usable.sum(axis=1).max(initial=0))
        order = np.argsort(decisions.costs, axis=1, kind="stable")[:, :longest]
        return _Sorted(decisions=decisions, order=order, usable=np.take_along_axis(usable, order, axis=1))

    def chosen(self, accuracy: Floats) -> Indices:
        if not self.order.size:
            return np.full(len(self.decisions), REFUSED)
        found = np.full(len(self.decisions), REFUSED)
        rows = np.arange(len(found))
        # Most queries find theirs among the cheapest.
        for start in range(0, self.order.shape[1], CHUNK):
            part = slice(start, start + CHUNK)
            order = self.order[rows, part]
            serves = (accuracy[order] >= self.decisions.needed[rows, np.newaxis]) & self.usable[rows, part]
            first = serves.argmax(axis=1)
            served = serves[np.arange(len(rows)), first]
            found[rows[served]] = order[served, first[served]]
            rows = rows[~served]
            if not len(rows):
                break
        return found

    def paid(self, chosen: Indices) -> Floats:
        """(queries,) cost of what was chosen, inf where that is nothing."""
        return np.where(chosen >= 0, self.decisions.costs[np.arange(len(chosen)), chosen], np.inf)
