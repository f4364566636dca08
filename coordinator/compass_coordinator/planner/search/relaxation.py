"""Bounds on, and good placements for, the best plans of many configs at once.

For one config the cheapest placement within a latency limit is a shortest path with a side constraint. Three
steps make a bound of it, each a dynamic programme over the forest of ``Tables`` for all configs together:

1. *A linear constraint.* A plan in time has ``mean + z sqrt(var) <= limit``. Its variance lies between
   ``low``, the least of any placement, and ``high``, the most of any placement but no more than
   ``((limit - least mean) / z)^2``; there the square root is above its chord, so
   ``mean + slope var <= reach`` with ``slope = z / (sqrt low + sqrt high)`` and
   ``reach = limit - slope sqrt(low high)``.
2. *A multiplier.* ``score + m (mean + slope var - reach)`` at its least over placements bounds the score of
   every plan in time, for any ``m >= 0``. The best m is where the cheapest placement and the fastest one,
   drawn as lines over m, stop crossing below the minimum (Handler and Zang, Networks 1980).
3. *Rounding.* Every placement met on the way that is in time is a plan; the cheapest is kept. The chord lets
   plans pass that are not in time, so a few larger multipliers follow.

Shapes: B configs, n operators, S sites.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from compass_coordinator.estimator import Floats, Indices
from compass_coordinator.planner.search.tables import COST, MEAN, SCORE, VAR, Tables
from compass_shared.problem import Z95

STEPS = 6
"""Multipliers tried for each config after the cheapest and the fastest placement."""

ROUNDINGS = 5
"""Further multipliers tried for plans in time."""

Mask: TypeAlias = NDArray[np.bool_]
Weights: TypeAlias = Mapping[int, "float | Floats"]
"""Channel -> weight, one for all configs or one for each (B,)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Completion:
    """Least weighted sums of every operator's subtree in the forest."""

    at: tuple[Floats, ...]
    """Per operator (B, S): its own node and all below, if it stands at that site."""
    entering: tuple[Floats | None, ...]
    """Per operator (B, S): the same with its edge, if its parent stands there; None for a root."""
    least: Floats
    """(B,): of the whole forest."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Relaxed:
    """What is known of the best plan of each config."""

    bound: Floats
    """(B,) no plan of the config within the limits scores less; inf where none is within them."""
    score: Floats
    """(B,) of ``placement``; inf where no placement met was in time."""
    placement: Indices
    """(B, n) of sites; where none was in time, the fastest."""
    multiplier: Floats
    """(B,) that gave the bound."""
    slope: Floats
    """(B,) seconds per second squared."""
    reach: Floats
    """(B,) seconds."""

    def take(self, rows: Indices) -> Relaxed:
        """Only these configs, in their order."""
        return Relaxed(
            bound=self.bound[rows],
            score=self.score[rows],
            placement=self.placement[rows],
            multiplier=self.multiplier[rows],
            slope=self.slope[rows],
            reach=self.reach[rows],
        )


def relax(tables: Tables, choices: Indices, limit_s: float, cost_limit: float) -> Relaxed:
    """Bound the best plan of each config, and round.

    Args:
        tables: The query's operators.
        choices: (B, n) variant of every operator.
        limit_s: Most p95 latency.
        cost_limit: Most US dollars a request.
    """
    least_mean = complete(tables, choices, {MEAN: 1.0}).least
    low = np.sqrt(np.maximum(complete(tables, choices, {VAR: 1.0}).least, 0.0))
    least_cost = complete(tables, choices, {COST: 1.0}).least
    # A hair of slack, here and below, so that rounding never excludes a plan that is exactly in time.
    limit_s, cost_limit = limit_s * (1 + 1e-9), cost_limit * (1 + 1e-9)
    possible = (least_mean + Z95 * low <= limit_s) & (least_cost <= cost_limit)
    most = np.sqrt(np.maximum(-complete(tables, choices, {VAR: -1.0}).least, 0.0))
    high = np.minimum(np.where(possible, limit_s - np.where(possible, least_mean, 0.0), 0.0) / Z95, most)
    low = np.where(possible, low, 0.0)
    slope = np.divide(Z95, low + high, out=np.zeros_like(low), where=low + high > 0)
    reach = limit_s - slope * low * high
    search = _Duals(tables, choices, slope, reach, limit_s, cost_limit)
    bound, multiplier = search.run()
    return Relaxed(
        bound=np.where(possible, bound, np.inf),
        score=np.where(possible, search.best_score, np.inf),
        placement=search.best,
        multiplier=np.where(possible, multiplier, 0.0),
        slope=slope,
        reach=reach,
    )


def complete(tables: Tables, choices: Indices, weights: Weights) -> Completion:
    """Least weighted sums over placements, from the leaves of the forest to its roots."""
    n = len(tables.parent)
    at: list[Floats] = [np.zeros(0)] * n
    entering: list[Floats | None] = [None] * n
    least = np.zeros(len(choices))
    for op in range(n - 1, -1, -1):
        chosen = choices[:, op]
        here = np.where(tables.measured[op][chosen], mixed(tables.node[op], chosen, weights), np.inf)
        for child in range(op + 1, n):
            below = entering[child]
            if tables.parent[child] == op and below is not None:
                here = here + below
        at[op] = here
        edge = tables.edge[op]
        if edge is None:
            least = least + smallest(here)
        else:
            crossing = mixed(edge, choices[:, tables.parent[op]], weights)
            entering[op] = smallest(crossing + here[:, np.newaxis, :])
    return Completion(at=tuple(at), entering=tuple(entering), least=least)


def descend(tables: Tables, choices: Indices, weights: Weights, completion: Completion) -> Indices:
    """The placements (B, n) that attain a completion's least sums."""
    rows = np.arange(len(choices))
    sites = np.zeros(choices.shape, dtype=np.int64)
    for op, parent in enumerate(tables.parent):
        edge, cost = tables.edge[op], completion.at[op]
        if edge is not None:
            crossing = mixed(edge, choices[:, parent], weights)
            cost = cost + crossing[rows, sites[:, parent]]
        sites[:, op] = np.argmin(cost, axis=1)
    return sites


def smallest(array: Floats) -> Floats:
    """Minimum over the last axis; far faster than numpy's own where that axis has a handful of entries."""
    return np.asarray(reduce(np.minimum, np.moveaxis(array, -1, 0)))


def total(tables: Tables, choices: Indices, sites: Indices, channel: int) -> Floats:
    """One channel's sum (B,) over the nodes and edges of given placements."""
    found = np.zeros(len(choices))
    for op, parent in enumerate(tables.parent):
        found += tables.node[op][channel][choices[:, op], sites[:, op]]
        edge = tables.edge[op]
        if edge is not None:
            found += edge[channel][choices[:, parent], sites[:, parent], sites[:, op]]
    return found


def mixed(table: Floats, chosen: Indices, weights: Weights) -> Floats:
    """Weighted sum of channels of a node or edge table, at the chosen variants: (B, S) or (B, S, S)."""
    if all(isinstance(weight, float) for weight in weights.values()):
        whole = np.sum([weight * table[channel] for channel, weight in weights.items()], axis=0)
        return np.asarray(whole[chosen])
    found = np.zeros((len(chosen), *table.shape[2:]))
    for channel, weight in weights.items():
        picked = table[channel][chosen]
        found += picked * np.reshape(weight, (-1, *[1] * (picked.ndim - 1)))
    return found


@dataclass(slots=True, eq=False)
class _Duals:
    """Closing in on each config's multiplier from both sides."""

    tables: Tables
    choices: Indices
    slope: Floats
    reach: Floats
    limit_s: float
    cost_limit: float
    best: Indices = field(init=False)
    """(B, n): the cheapest placement in time; the fastest where none is."""
    best_score: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.best = np.zeros_like(self.choices)
        self.best_score = np.full(len(self.choices), np.inf)

    def run(self) -> tuple[Floats, Floats]:
        """Bounds (B,) and the multipliers (B,) that gave them; leaves the best placements behind."""
        none, one = np.zeros(len(self.choices)), np.ones(len(self.choices))
        _, fast_score, fast_late, _ = self._solve(none, one)
        bound, cheap_score, cheap_late, _ = self._solve(one, none)
        bound, multiplier = np.where(fast_late > 1e-9 * self.reach, np.inf, bound), none
        for _ in range(STEPS):
            # Where the two lines score + m late meet; nothing is left to gain once either is level.
            open_ = (cheap_late > 0) & (fast_late <= 0) & (fast_score > cheap_score) & np.isfinite(bound)
            if not open_.any():
                break
            gain = np.where(open_, cheap_late - fast_late, 1.0)
            m = np.where(open_, np.divide(fast_score - cheap_score, gain), multiplier)
            value, score, late, _ = self._solve(one, m)
            better = open_ & (value > bound)
            bound, multiplier = np.where(better, value, bound), np.where(better, m, multiplier)
            met = open_ & (value >= (cheap_score + m * cheap_late) * (1 - 1e-12))
            over = open_ & (late > 0)
            cheap_score, cheap_late = np.where(over, score, cheap_score), np.where(over, late, cheap_late)
            fast_score = np.where(open_ & ~over, score, fast_score)
            fast_late = np.where(open_ & ~over, late, fast_late)
            cheap_late = np.where(met, 0.0, cheap_late)
        self._round(multiplier)
        return bound, multiplier

    def _round(self, multiplier: Floats) -> None:
        """Close in on the least multiplier whose placement is in time, for each config."""
        one, low, high = np.ones_like(multiplier), multiplier, np.full_like(multiplier, np.inf)
        if not multiplier.any():
            return
        for _ in range(ROUNDINGS):
            m = np.where(np.isfinite(high), np.sqrt(low * np.where(np.isfinite(high), high, 1.0)), 2 * low)
            in_time = self._solve(one, m)[3]
            low, high = np.where(in_time, low, m), np.where(in_time, m, high)

    def _solve(self, scores: Floats, m: Floats) -> tuple[Floats, Floats, Floats, Mask]:
        """Least of ``scores x score + m x late``; score, lateness of the placement there, whether in time."""
        late_weight = np.where(scores > 0, m, 1.0)
        weights: Weights = {SCORE: scores, MEAN: late_weight, VAR: late_weight * self.slope}
        found = complete(self.tables, self.choices, weights)
        sites = descend(self.tables, self.choices, weights, found)
        score, mean, var, cost = (
            total(self.tables, self.choices, sites, channel) for channel in (SCORE, MEAN, VAR, COST)
        )
        placed = np.isfinite(found.least)
        in_time = mean + Z95 * np.sqrt(var) <= self.limit_s
        better = placed & in_time & (cost <= self.cost_limit) & (score < self.best_score)
        fastest = (scores == 0) & np.isinf(self.best_score)
        self.best = np.where((better | fastest)[:, np.newaxis], sites, self.best)
        self.best_score = np.where(better, score, self.best_score)
        late = np.where(placed, mean + self.slope * var - self.reach, 1.0)
        return found.least - m * self.reach, score, late, in_time
