"""Blocks of alike templates: what no template of a block can give an instance is skipped for all, exactly.

The features of a block lie in a box. Coefficients are not negative, so the block's lowest corner bounds the
score, the latency and the cost of each of its templates from below, for many instances by one product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compass_coordinator.estimator import Floats, Indices
from compass_coordinator.planner.templates import Column, Quantity, Templates

SIZE = 32
"""Most templates of a block."""
PER_REGION = 16
"""Blocks of a region, whose common box is looked at first."""

_SCALES = {
    Quantity.WORK: 2.0,
    Quantity.CALLS: 0.002,
    Quantity.UP: 2e-7,
    Quantity.DOWN: 2e-7,
}
"""Seconds a unit of each takes somewhere: what makes templates alike. Only speed depends on it."""
_ACCURACY_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Boxes:
    """Runs of templates that stand next to each other, and the corners of the boxes they lie in."""

    starts: Indices
    """(boxes,) first member of each: a template, or in regions a block."""
    ends: Indices
    low_totals: Floats
    """(boxes, T)."""
    high_totals: Floats
    low_means: Floats
    """(k, boxes, F1)."""
    low_spreads: Floats
    """(k, boxes, F2)."""
    high_accuracy: Floats
    """(boxes,)."""

    @classmethod
    def of(cls, accuracy: Floats, totals: Floats, means: Floats, spreads: Floats, starts: Indices) -> Boxes:
        """Boxes of templates: blocks."""
        return cls(
            starts=starts,
            ends=np.append(starts[1:], len(accuracy))[: len(starts)],
            low_totals=_reduced(np.minimum, totals, starts, 0),
            high_totals=_reduced(np.maximum, totals, starts, 0),
            low_means=_reduced(np.minimum, means, starts, 1),
            low_spreads=_reduced(np.minimum, spreads, starts, 1),
            high_accuracy=_reduced(np.maximum, accuracy, starts, 0),
        )

    def regions(self) -> Boxes:
        """Boxes around neighbouring boxes."""
        starts = np.arange(0, len(self), PER_REGION)
        return Boxes(
            starts=starts,
            ends=np.minimum(starts + PER_REGION, len(self)),
            low_totals=_reduced(np.minimum, self.low_totals, starts, 0),
            high_totals=_reduced(np.maximum, self.high_totals, starts, 0),
            low_means=_reduced(np.minimum, self.low_means, starts, 1),
            low_spreads=_reduced(np.minimum, self.low_spreads, starts, 1),
            high_accuracy=_reduced(np.maximum, self.high_accuracy, starts, 0),
        )

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, rows: slice) -> Boxes:
        """Some neighbouring boxes."""
        return Boxes(
            starts=self.starts[rows],
            ends=self.ends[rows],
            low_totals=self.low_totals[rows],
            high_totals=self.high_totals[rows],
            low_means=self.low_means[:, rows],
            low_spreads=self.low_spreads[:, rows],
            high_accuracy=self.high_accuracy[rows],
        )


def block_order(templates: Templates, rows: Indices, size: int = SIZE) -> tuple[Indices, Indices]:
    """An order of some templates in which alike ones are neighbours, and where blocks start."""
    scales = [_scale(column) for column in templates.total_columns]
    positions = np.column_stack([templates.totals[rows] * scales, _ACCURACY_S * templates.accuracy[rows]])
    order, starts = split_by_median(positions, size)
    return rows[order], starts


def split_by_median(positions: Floats, size: int) -> tuple[Indices, Indices]:
    """Halve points across their widest side until no part has more than ``size``.

    Args:
        positions: (points, sides) float64.
        size: At least 1.

    Returns:
        An order of the points in which every part is contiguous, and where the parts start.
    """
    order = np.arange(len(positions))
    starts: list[int] = []
    open_parts = [(0, len(order))] if len(order) else []
    while open_parts:
        start, end = open_parts.pop()
        if end - start <= size:
            starts.append(start)
            continue
        part = order[start:end]
        inside = positions[part]
        side = int(np.argmax(np.ptp(inside, axis=0)))
        middle = (end - start) // 2
        order[start:end] = part[np.argpartition(inside[:, side], middle)]
        open_parts += [(start + middle, end), (start, start + middle)]
    return order, np.array(starts, dtype=np.int64)


def _scale(column: Column) -> float:
    return _SCALES[column.quantity] * (2.0 if column.role == 0 else 1.0)


def _reduced(ufunc: np.ufunc, array: Floats, starts: Indices, axis: int) -> NDArray[np.float64]:
    """Of each block; an array without templates stays one."""
    return np.asarray(ufunc.reduceat(array, starts, axis=axis)) if starts.size else array
