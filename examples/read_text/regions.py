"""From a text probability map to boxes of lines in reading order.

The detectors are of the DB family (Liao et al., "Real-time scene text detection with differentiable
binarization", AAAI 2020): the map marks a shrunk core of every line, which is thresholded, labelled and
grown back. A page is a plane, so one angle is estimated for all of its lines; that keeps short lines, whose
own shape says little about their slope, straight, and makes the reading order a sort in the page's frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.floating]
    Integers = NDArray[np.intp]

PIXEL_THRESHOLD = 0.25
BOX_THRESHOLD = 0.45
GROWTH = 1.5
"""Area over perimeter times this is how far a core is grown (DB's unclip ratio)."""
MIN_CORE_PX = 2.0


class Runs(NamedTuple):
    """Horizontal stretches of marked pixels, in raster order; each ``(runs,) intp``."""

    row: Integers
    start: Integers
    stop: Integers
    """First column after the run."""


def text_boxes(probability: Floats) -> NDArray[np.float32]:
    """Boxes around the lines of text of one probability map.

    Args:
        probability: ``(height, width) float`` in [0, 1].

    Returns:
        ``(boxes, 4, 2) float32``: x and y, in pixels of the map, of the top-left, top-right, bottom-right
        and bottom-left corner of each line as seen upright, in reading order.
    """
    runs = find_runs(probability > PIXEL_THRESHOLD)
    if not runs.row.size:
        return np.zeros((0, 4, 2), np.float32)
    label = label_runs(runs)
    angle = _page_angle(runs, label)
    along, across = _unit_vectors(angle)
    left, right, top, bottom = _extents(runs, label, along, across)
    mean = _mean_probability(probability, runs, label)
    keep = (mean >= BOX_THRESHOLD) & (np.minimum(right - left, bottom - top) >= MIN_CORE_PX)
    left, right, top, bottom = (side[keep] for side in (left, right, top, bottom))
    width, height = right - left, bottom - top
    margin = GROWTH * width * height / (2 * (width + height))
    left, right, top, bottom = left - margin, right + margin, top - margin, bottom + margin
    order = reading_order(left, top, bottom)
    corners = ((left, top), (right, top), (right, bottom), (left, bottom))
    boxes = np.stack([u[:, None] * along + v[:, None] * across for u, v in corners], axis=1)
    return boxes[order].astype(np.float32)


def find_runs(mask: NDArray[np.bool_]) -> Runs:
    """All horizontal runs of a ``(height, width) bool`` mask."""
    height, width = mask.shape
    padded = np.zeros((height, width + 2), np.int8)
    padded[:, 1:-1] = mask
    change = np.diff(padded, axis=1).ravel()
    start, stop = np.flatnonzero(change == 1), np.flatnonzero(change == -1)
    return Runs(row=start // (width + 1), start=start % (width + 1), stop=stop % (width + 1))


def label_runs(runs: Runs) -> Integers:
    """Number the 4-connected components that the runs form.

    Returns:
        ``(runs,) intp``: component of each run, from 0 without gaps.
    """
    upper, lower = _touching(runs)
    parent = np.arange(runs.row.size)
    while True:
        root = np.minimum(parent[upper], parent[lower])
        merged = parent.copy()
        for side in (upper, lower):
            np.minimum.at(merged, parent[side], root)
        merged = merged[merged]
        if np.array_equal(merged, parent):
            return np.unique(parent, return_inverse=True)[1].reshape(-1)
        parent = merged


def reading_order(left: Floats, top: Floats, bottom: Floats) -> Integers:
    """Order boxes from top to bottom, and from left to right where they share a row.

    Args:
        left: ``(boxes,)`` along the lines.
        top: ``(boxes,)`` across the lines.
        bottom: ``(boxes,)``, below ``top``.
    """
    centre = (top + bottom) / 2
    row = np.zeros(centre.size, np.intp)
    last_centre, last_height, current = -np.inf, 0.0, -1
    for index in np.argsort(centre):
        height = bottom[index] - top[index]
        if centre[index] - last_centre > 0.5 * min(height, last_height):
            current += 1
            last_centre, last_height = centre[index], height
        row[index] = current
    return np.lexsort((left, row))


def _touching(runs: Runs) -> tuple[Integers, Integers]:
    """Pairs of runs of neighbouring rows that share a column."""
    # Runs of the row above touch when they start before this run stops and stop after it starts; with one
    # key for row and column both ends of that range are a binary search.
    pitch = int(runs.stop.max()) + 1
    starts, stops = runs.row * pitch + runs.start, runs.row * pitch + runs.stop
    first = np.searchsorted(stops, starts - pitch, side="right")
    last = np.searchsorted(starts, stops - pitch, side="left")
    count = np.maximum(last - first, 0)
    lower = np.repeat(np.arange(runs.row.size), count)
    offset = np.arange(lower.size) - np.repeat(np.cumsum(count) - count, count)
    return first[lower] + offset, lower


def _page_angle(runs: Runs, label: Integers) -> float:
    """Angle of the lines in radians: the main axis of all components' pixels about their own centres."""
    length = (runs.stop - runs.start).astype(np.float64)
    middle = (runs.start + runs.stop - 1) / 2
    area = np.bincount(label, length)
    x = middle - (np.bincount(label, length * middle) / area)[label]
    y = runs.row - (np.bincount(label, length * runs.row) / area)[label]
    xx = float(np.sum(length * (x * x + (length * length - 1) / 12)))
    yy, xy = float(np.sum(length * y * y)), float(np.sum(length * x * y))
    return 0.5 * float(np.arctan2(2 * xy, xx - yy)) if xx > yy else 0.0


def _unit_vectors(angle: float) -> tuple[Floats, Floats]:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([cos, sin]), np.array([-sin, cos])


def _extents(
    runs: Runs, label: Integers, along: Floats, across: Floats
) -> tuple[Floats, Floats, Floats, Floats]:
    """Left, right, top and bottom of every component in the frame of the page."""
    components = int(label.max()) + 1
    ends = [(x, runs.row + y) for x in (runs.start, runs.stop) for y in (0, 1)]
    sides = []
    for axis in (along, across):
        projected = np.stack([x * axis[0] + y * axis[1] for x, y in ends])
        low, high = np.full(components, np.inf), np.full(components, -np.inf)
        np.minimum.at(low, label, projected.min(axis=0))
        np.maximum.at(high, label, projected.max(axis=0))
        sides += [low, high]
    return sides[0], sides[1], sides[2], sides[3]


def _mean_probability(probability: Floats, runs: Runs, label: Integers) -> Floats:
    total = np.zeros((probability.shape[0], probability.shape[1] + 1))
    np.cumsum(probability, axis=1, out=total[:, 1:])
    weight = total[runs.row, runs.stop] - total[runs.row, runs.start]
    mean: Floats = np.bincount(label, weight) / np.bincount(label, runs.stop - runs.start)
    return mean
