"""The best plan of every query at given prices, over all templates, found without evaluating most of them.

A *direction* is what plans are compared by: cost and demand at some prices, ``score = cost_weight * cost +
prices @ demand`` of one request. A block of templates has a score that none of its templates can undercut,
and a latency, cost and accuracy that none can better. Each instance first visits the regions of blocks that
promise most, then those that still promise better than what its query has found. What is found is therefore
exactly the best over all templates, in every direction that is looked at in full.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from compass_coordinator.estimator import Floats, Indices
from compass_coordinator.planner.fleet.blocks import Boxes
from compass_coordinator.planner.fleet.coefficients import Coefficients, Features
from compass_coordinator.planner.fleet.evaluate import serves

Bools: TypeAlias = NDArray[np.bool_]

NONE = -1
_PIECE = 512
"""Instances whose bounds are in work at a time."""
ROUNDING = 1e-9
"""Relative: bounds are loosened by more than sums of a few dozen terms can differ by."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Directions:
    """Several ways to compare plans."""

    cost_weight: Floats
    """(directions,)."""
    prices: Floats
    """(directions, resources) >= 0, per core second or byte."""
    deep: int
    """So many, from the first, are looked at in full; the others not over several remote sites at once."""

    def __len__(self) -> int:
        return len(self.cost_weight)

    def first(self, count: int) -> Directions:
        """The first of them."""
        return Directions(
            cost_weight=self.cost_weight[:count],
            prices=self.prices[:count],
            deep=min(self.deep, count),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Best:
    """The best plan found so far of each query in each direction; filled in place."""

    score: Floats
    """(queries, directions) of one request; inf where no plan serves the query."""
    group: Indices
    """(queries, directions) that the plan's instance belongs to; ``NONE`` where there is no plan."""
    instance: Indices
    """(queries, directions) number in its group."""
    row: Indices
    """(queries, directions) template."""

    @classmethod
    def none(cls, queries: int, directions: int) -> Best:
        """Nothing found yet."""
        shape = (queries, directions)
        return cls(
            score=np.full(shape, np.inf),
            group=np.full(shape, NONE, dtype=np.int64),
            instance=np.full(shape, NONE, dtype=np.int64),
            row=np.full(shape, NONE, dtype=np.int64),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Search:
    """A search among instances of one group.

    Arrays of bounds and scores have instances last: numpy reduces fast over any axis but that.
    """

    features: Features
    coefficients: Coefficients
    queries: Indices
    """(instances,)."""
    weights: Floats
    """(directions, instances, T) score per unit of each total."""
    group: int
    first: int
    """Number of the first instance in the group."""
    best: Best

    @classmethod
    def of(
        cls,
        features: Features,
        coefficients: Coefficients,
        queries: Indices,
        directions: Directions,
        *,
        group: int,
        first: int,
        best: Best,
    ) -> Search:
        """Prepare a search that improves ``best`` in place, in the first of its directions."""
        resources = coefficients.resources.take(features.slot_of, axis=1)
        weights = np.empty((len(directions), *resources.shape))
        for way, prices in enumerate(directions.prices):
            np.multiply(prices.take(resources), coefficients.work, out=weights[way])
            weights[way] += directions.cost_weight[way] * coefficients.cost_usd
        return cls(
            features=features,
            coefficients=coefficients,
            queries=queries,
            weights=weights,
            group=group,
            first=first,
            best=best,
        )

    def run(self) -> None:
        """Visit regions and their blocks until no instance can improve its query in any direction."""
        if len(self.features.regions) == 1:
            self._visit(np.ones((1, len(self.queries)), dtype=np.bool_))
            return
        everyone = np.arange(len(self.queries))
        shape = (len(self.features.regions), len(everyone))
        promising, hopeful = np.zeros(shape, dtype=np.bool_), np.zeros(shape, dtype=np.bool_)
        for bounds in self._pieces(everyone):
            promising[:, bounds.members] = self._most_promising(bounds)
            hopeful[:, bounds.members] = self._improving(bounds)
        self._visit(promising)
        left = hopeful & ~promising
        for bounds in self._pieces(np.flatnonzero(left.any(axis=0))):
            left[:, bounds.members] &= self._improving(bounds)
        self._visit(left)

    def _pieces(self, members: Indices) -> Iterator[_Bounds]:
        """Bounds of all regions for some instances at a time, so that they stay in the cache."""
        for start in range(0, len(members), _PIECE):
            yield self._bounds(members[start : start + _PIECE], self.features.regions)

    def _bounds(self, members: Indices, boxes: Boxes) -> _Bounds:
        weights = self.weights.take(members, axis=1)
        low = boxes.low_totals @ weights.reshape(-1, weights.shape[2]).T
        return _Bounds(
            members=members,
            possible=_possible(boxes, self.coefficients.take(members)),
            low=low.reshape(len(boxes), len(weights), len(members)),
            known=self._known(members),
        )

    def _known(self, members: Indices) -> Floats:
        """What to undercut, ``(directions, members)``."""
        known = self.best.score.take(self.queries.take(members), axis=0)
        return np.ascontiguousarray(known[:, : len(self.weights)].T)

    @staticmethod
    def _most_promising(bounds: _Bounds) -> Bools:
        """The region with the lowest bound in each direction, if that is below what the query has."""
        low = np.where(bounds.possible[:, np.newaxis], bounds.low, np.inf)
        lowest = low.min(axis=0)
        first = (low == lowest) & (lowest < bounds.known)
        return np.asarray(first.any(axis=1))

    @staticmethod
    def _improving(bounds: _Bounds) -> Bools:
        """Regions that promise something better in some direction."""
        return np.asarray(bounds.hopeful().any(axis=1))

    def _visit(self, wanted: Bools) -> None:
        blocks, regions = self.features.blocks, self.features.regions
        for region in np.flatnonzero(wanted.any(axis=1)):
            inside = slice(regions.starts[region], regions.ends[region])
            bounds = self._bounds(np.flatnonzero(wanted[region]), blocks.take(inside))
            hopeful = self._improving(bounds)
            # Blocks that promise something to many come first: what they find spares visits to the others.
            for block in np.argsort(-hopeful.sum(axis=1), kind="stable"):
                member = np.flatnonzero(hopeful[block])
                if member.size:
                    low = bounds.low[block].take(member, axis=1)
                    self._visit_block(int(inside.start + block), bounds.members.take(member), low)

    def _visit_block(self, block: int, members: Indices, low: Floats) -> None:
        """Evaluate a block's templates where they can still improve something."""
        known = self._known(members)
        hopeful = low < known
        some = np.flatnonzero(hopeful.any(axis=0))
        served = serves(self.features, self.coefficients, members.take(some), block)
        useful = np.flatnonzero(served.any(axis=1))
        way, at = np.nonzero(hopeful.take(some, axis=1) & served.any(axis=0))
        if not way.size:
            return
        rows = self.features.blocks.starts[block] + useful
        member = some.take(at)
        flat = self.weights.reshape(-1, self.weights.shape[2])
        weights = flat.take(way * self.weights.shape[1] + members.take(member), axis=0)
        scores = self.features.totals.take(rows, axis=0) @ weights.T
        scores = np.where(served.take(useful, axis=0).take(at, axis=1), scores, np.inf)
        better = np.flatnonzero(scores.min(axis=0) < known[way, member])
        row = scores.take(better, axis=1).argmin(axis=0)
        self._report(members[member[better]], way[better], scores[row, better], rows[row])

    def _report(self, member: Indices, way: Indices, score: Floats, row: Indices) -> None:
        """Hand over what was found; several members may belong to one query."""
        query, best = self.queries[member], self.best
        np.minimum.at(best.score, (query, way), score)
        won = score == best.score[query, way]
        at = query[won], way[won]
        # Of equal scores of one query the last instance wins; all three arrays agree on it.
        best.group[at] = self.group
        best.instance[at] = self.first + member[won]
        best.row[at] = row[won]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Bounds:
    """What some boxes can give some instances at best."""

    members: Indices
    possible: Bools
    """(boxes, members) whether some template may serve."""
    low: Floats
    """(boxes, directions, members) what no score can undercut."""
    known: Floats
    """(directions, members) what to undercut."""

    def hopeful(self) -> Bools:
        """Where something better may be, ``(boxes, directions, members)``."""
        return np.asarray((self.low < self.known) & self.possible[:, np.newaxis])


def _possible(boxes: Boxes, coefficients: Coefficients) -> Bools:
    """Boxes that may serve an instance, ``(boxes, instances)``."""
    loose = 1 + ROUNDING
    possible = boxes.high_accuracy[:, np.newaxis] >= coefficients.accuracy
    possible &= boxes.low_totals @ coefficients.cost_usd.T <= loose * coefficients.max_cost_usd
    for means, spreads in zip(boxes.low_means, boxes.low_spreads, strict=True):
        slack_s = loose * coefficients.latency_p95_s - means @ coefficients.mean_s.T
        possible &= slack_s >= 0
        np.multiply(slack_s, slack_s, out=slack_s)
        possible &= slack_s >= spreads @ coefficients.var_s2.T
    return np.asarray(possible)
