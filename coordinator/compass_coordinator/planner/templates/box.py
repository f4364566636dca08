"""Dominance for a group of similar queries: over the box that their coefficients lie in.

A plan that is slower than another one for some conceivable query may be faster for every query of a group
whose slowdowns and links lie close together. Then it need not be looked at for any of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from compass_coordinator.estimator import Floats, Indices
from compass_coordinator.planner.dominance import Also, Mask, undominated
from compass_coordinator.planner.templates.columns import Column, Quantity
from compass_coordinator.planner.templates.templates import Templates
from compass_shared.errors import PlanningError
from compass_shared.problem import Z95

_MOST_LOOSE = 5
_SECONDS = (Quantity.WORK, Quantity.CALLS)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Range:
    """Coefficients of some columns, each anywhere between two bounds."""

    low: Floats
    """(columns,) >= 0."""
    high: Floats
    """(columns,) >= ``low``."""

    @classmethod
    def over(cls, coefficients: Floats) -> Range:
        """The smallest that holds the coefficients of all queries, (queries, columns) with >= 1 query."""
        return cls(low=coefficients.min(axis=0), high=coefficients.max(axis=0))

    def take(self, columns: Sequence[int]) -> Range:
        """Only these columns."""
        return Range(low=self.low[list(columns)], high=self.high[list(columns)])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Box:
    """What the queries of a group multiply a plan's columns with."""

    mean: Range
    """Of ``Templates.path_columns`` in a path's mean latency: slowdown, overhead_s, wait and round trip,
    1 / bandwidth; 0 where a column does not count."""
    var: Range
    """Of ``Templates.path_columns`` in a path's variance."""
    seconds: Range
    """Of ``Templates.total_columns`` in core seconds at the column's role: slowdown for WORK, overhead_s for
    CALLS. Bytes are compared as they are, their coefficients are not read."""


def prune_for_box(
    templates: Templates,
    box: Box,
    *,
    accuracy_levels: Sequence[float] | None = None,
    latency_p95_s: float | None = None,
) -> Indices:
    """Templates that can be the best plan of some query of a group.

    A template goes if another one is no worse in accuracy, in core seconds at every role, in bytes up and
    down at every role, and if each of its paths has no more mean and no more variance than some path of
    the one that goes, all for every coefficient in the box. Cost combines seconds and bytes with non-negative
    prices, and demand is seconds and bytes times the rate: no query of the group loses, whatever its prices
    and its rate.

    Args:
        templates: n plans; a role stands for the same coefficients throughout.
        box: Coefficients of the group's queries.
        accuracy_levels: All accuracies that the queries ask for: plans then differ in accuracy only by which
            of these they meet, and go if they meet none. None: more is better.
        latency_p95_s: The longest latency that a query of the group allows; plans that exceed it even with
            the lowest coefficients go. None: any.

    Returns:
        Indices of the templates to keep, ascending.

    Raises:
        PlanningError: If the box has other columns than the templates, or a bound that makes no sense.
    """
    _check(templates, box)
    level = _levels(templates.accuracy, accuracy_levels)
    possible = np.isfinite(level)
    if latency_p95_s is not None:
        possible &= _least_p95_s(templates, box) <= latency_p95_s * (1 + 1e-9)
    rows = np.flatnonzero(possible)
    paths, totals = templates.paths[:, rows], templates.totals[rows]
    forms = list(_totals(templates.total_columns, box.seconds))
    columns = [-level[rows, np.newaxis]]
    columns += [totals[:, own] @ _every_corner(bounds).T for own, bounds in forms]
    columns += [(paths @ _some_corners(bounds).T).max(axis=0) for bounds in (box.mean, box.var)]
    return rows[undominated(np.hstack(columns), also=_no_more(paths, [box.mean, box.var]))]


def _check(templates: Templates, box: Box) -> None:
    for name, bounds, columns in (
        ("mean", box.mean, templates.path_columns),
        ("var", box.var, templates.path_columns),
        ("seconds", box.seconds, templates.total_columns),
    ):
        if bounds.low.shape != (len(columns),) or bounds.high.shape != (len(columns),):
            raise PlanningError(
                f"box.{name} has bounds of {bounds.low.shape} and {bounds.high.shape}: "
                f"it takes one for each of the {len(columns)} columns of the templates"
            )
        if not ((bounds.low >= 0) & (bounds.low <= bounds.high) & (bounds.high < np.inf)).all():
            raise PlanningError(f"box.{name}: bounds are finite and not negative, and low is at most high")


def _levels(accuracy: Floats, asked: Sequence[float] | None) -> Floats:
    """How good an accuracy is; -inf if it is of no use."""
    if asked is None:
        return accuracy
    met = np.searchsorted(np.unique(np.asarray(asked, dtype=np.float64)), accuracy, side="right")
    return np.where(met > 0, met, -np.inf)


def _least_p95_s(templates: Templates, box: Box) -> Floats:
    mean_s, var_s2 = templates.paths @ box.mean.low, templates.paths @ box.var.low
    return np.asarray((mean_s + Z95 * np.sqrt(var_s2)).max(axis=0))


def _totals(columns: Sequence[Column], seconds: Range) -> Iterator[tuple[list[int], Range]]:
    """Columns that make up core seconds at each role, then each column of bytes alone."""
    for role in sorted({column.role for column in columns}):
        own = [at for at, column in enumerate(columns) if column.role == role and column.quantity in _SECONDS]
        yield own, seconds.take(own)
    for at, column in enumerate(columns):
        if column.quantity not in _SECONDS:
            yield [at], Range(low=np.ones(1), high=np.ones(1))


def _every_corner(bounds: Range) -> Floats:
    """(corners, columns): what is no more at each of these is no more in the whole box."""
    if np.count_nonzero(bounds.high > bounds.low) > _MOST_LOOSE:
        # No more in every single column is more than is needed, and enough.
        return np.diag((bounds.high > 0).astype(np.float64))
    sides = [sorted({low, high}) for low, high in zip(bounds.low, bounds.high, strict=True)]
    return np.array(list(itertools.product(*sides)))


def _some_corners(bounds: Range) -> Floats:
    """(corners, columns): what is more at any of these is more somewhere in the box."""
    loose = np.flatnonzero(bounds.high > bounds.low)
    corners = np.tile(bounds.low, (len(loose) + 1, 1))
    corners[np.arange(len(loose)), loose] = bounds.high[loose]
    return np.vstack([corners, bounds.high])


def _no_more(paths: Floats, boxes: Sequence[Range]) -> Also:
    """Whether each path of one plan has no more than some path of another, in every box wherever in it.

    With d the other's features less the one's, the least of ``coefficients @ d`` over a box takes the low
    bound where d is positive and the high one where it is negative: ``low @ d - (high - low) @ max(0, -d)``.
    """
    lows = [paths @ bounds.low for bounds in boxes]
    widths = [bounds.high - bounds.low for bounds in boxes]
    spreads = [paths[:, :, width > 0] * width[width > 0] for width in widths]

    def path_holds(one: int, other: int, better: Indices, worse: Indices) -> Mask:
        every = np.ones(len(better), dtype=np.bool_)
        for low, spread in zip(lows, spreads, strict=True):
            left = np.flatnonzero(every)
            own, others = spread[one][better[left]], spread[other][worse[left]]
            lost = np.maximum(own - others, 0).sum(axis=1)
            every[left] = low[other][worse[left]] - low[one][better[left]] >= lost
        return every

    def holds(better: Indices, worse: Indices) -> Mask:
        every = np.ones(len(better), dtype=np.bool_)
        for one in range(len(paths)):
            some = np.zeros(len(better), dtype=np.bool_)
            for other in range(len(paths)):
                left = np.flatnonzero(every & ~some)
                some[left] = path_holds(one, other, better[left], worse[left])
            every &= some
        return every

    return holds
