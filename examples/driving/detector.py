"""Boxes from the raw outputs of a single-shot detector (SSD) on MobileNetV2, and of several tiles at once.

Anchors and decoding follow the published parameters of the detector (Liu et al., "SSD", ECCV 2016; the
300-pixel configuration of the TensorFlow object detection API): six grids, scales from 0.2 to 0.95, aspect
ratios 1, 2, 1/2, 3 and 1/3. Boxes are ``(left, top, right, bottom)`` everywhere.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.floating]

GRIDS = (19, 10, 5, 3, 2, 1)
MIN_SCALE, MAX_SCALE = 0.2, 0.95
LOWEST_SCALE = 0.1
"""Of the square anchors in the finest grid, which has three anchors a cell instead of six."""
ASPECT_RATIOS = (1.0, 2.0, 0.5, 3.0, 1 / 3)
CENTRE_VARIANCE, SIZE_VARIANCE = 0.1, 0.2
MAX_OVERLAP = 0.4
"""Of two boxes of one group that overlap more, as IoU, the better one stays."""
MAX_HELD = 0.8
"""Of a box that another of its group holds to a larger share than this, the better one stays."""
MAX_BOXES = 100
"""Of one picture; more would only take time."""
CUT_MARGIN = 0.02
"""A box this close to the inner side of a tile, in sides of the tile, is taken to be cut by it."""


class Boxes(NamedTuple):
    """What was found, best first."""

    box: NDArray[np.float32]
    """``(n, 4)``: left, top, right, bottom."""
    score: NDArray[np.float32]
    """``(n,)`` in [0, 1]."""
    group: NDArray[np.intp]
    """``(n,)``: index of the group of classes."""


@lru_cache(maxsize=1)
def anchors() -> NDArray[np.float64]:
    """``(1917, 4)``: centre x, centre y, width and height of every anchor, in sides of the picture."""
    scales = np.append(np.linspace(MIN_SCALE, MAX_SCALE, len(GRIDS)), 1.0)
    rows = []
    for index, grid in enumerate(GRIDS):
        centre = (np.arange(grid) + 0.5) / grid
        y, x = (axis.ravel() for axis in np.meshgrid(centre, centre, indexing="ij"))
        shapes = _shapes(float(scales[index]), float(scales[index + 1]), lowest=index == 0)
        cells = np.stack([x, y], axis=1)
        rows.append(np.concatenate([np.repeat(cells, len(shapes), 0), np.tile(shapes, (len(cells), 1))], 1))
    return np.concatenate(rows)


def decode(encodings: Floats, scores: Floats, groups: NDArray[np.intp], threshold: float) -> Boxes:
    """Boxes of one picture.

    Args:
        encodings: ``(1917, 4)``: y, x, height and width relative to the anchors.
        scores: ``(1917, classes)`` logits; class 0 is the background.
        groups: ``(classes,)``: index of the group of every class, negative for those of no interest.
        threshold: Least score.

    Returns:
        Boxes in sides of the picture, within it, before any that overlap are dropped.
    """
    wanted = np.flatnonzero(groups >= 0)
    logits = scores[:, wanted]
    best = logits.argmax(axis=1)
    score = 1 / (1 + np.exp(-logits[np.arange(len(best)), best].astype(np.float64)))
    keep = np.flatnonzero(score >= threshold)
    keep = keep[np.argsort(-score[keep], kind="stable")][:MAX_BOXES]
    anchor, code = anchors()[keep], encodings[keep].astype(np.float64)
    centre = anchor[:, :2] + CENTRE_VARIANCE * code[:, 1::-1] * anchor[:, 2:]
    half = anchor[:, 2:] * np.exp(SIZE_VARIANCE * code[:, :1:-1]) / 2
    box = np.clip(np.concatenate([centre - half, centre + half], axis=1), 0, 1)
    return Boxes(box.astype(np.float32), score[keep].astype(np.float32), groups[wanted][best[keep]])


def merged(parts: list[tuple[Boxes, tuple[float, float, float, float]]]) -> Boxes:
    """Boxes of several tiles as boxes of the frame.

    A tile cuts what reaches across its inner sides; such a piece gives way to a box that holds most of it,
    from a tile that shows the whole.

    Args:
        parts: Boxes of a tile in its own sides, with the tile's left, top, right and bottom in the frame's.
    """
    boxes, scores, groups, cut = [], [], [], []
    for found, (left, top, right, bottom) in parts:
        size = np.array([right - left, bottom - top] * 2)
        inner = np.array([left > 0, top > 0, right < 1, bottom < 1])
        near = np.concatenate([found.box[:, :2] < CUT_MARGIN, found.box[:, 2:] > 1 - CUT_MARGIN], axis=1)
        boxes.append(found.box * size + np.array([left, top, left, top]))
        cut.append((near & inner).any(axis=1))
        scores.append(found.score)
        groups.append(found.group)
    box, score = np.concatenate(boxes).astype(np.float32), np.concatenate(scores)
    group, is_cut = np.concatenate(groups), np.concatenate(cut)
    order = np.lexsort((-score, is_cut))
    keep = _kept(box[order], group[order], is_cut[order])
    keep = order[keep]
    keep = keep[np.argsort(-score[keep], kind="stable")]
    return Boxes(box[keep], score[keep], group[keep])


def iou(one: Floats, other: Floats) -> Floats:
    """Intersection over union of every pair of ``(n, 4)`` and ``(m, 4)`` boxes, ``(n, m)``."""
    both = _shared(one, other)
    union = area(one)[:, None] + area(other) - both
    return both / np.maximum(union, 1e-12)


def area(box: Floats) -> Floats:
    """``(n,)`` areas of ``(n, 4)`` boxes."""
    size = np.maximum(box[:, 2:] - box[:, :2], 0)
    product: Floats = size[:, 0] * size[:, 1]
    return product


def _shared(one: Floats, other: Floats) -> Floats:
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    size = np.maximum(high - low, 0)
    product: Floats = size[..., 0] * size[..., 1]
    return product


def _kept(box: Floats, group: NDArray[np.intp], cut: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Indices of boxes that no earlier one of their group covers."""
    overlap = iou(box, box)
    held = _shared(box, box) / np.maximum(area(box)[None, :], 1e-12)
    limit = np.where(cut, MAX_OVERLAP, MAX_HELD)
    covers = (group[:, None] == group) & ((overlap > MAX_OVERLAP) | (held > limit[None, :]))
    keep: list[int] = []
    for index in range(len(box)):
        if not covers[keep, index].any():
            keep.append(index)
    return np.array(keep, np.intp)


def _shapes(scale: float, next_scale: float, *, lowest: bool) -> NDArray[np.float64]:
    """``(anchors, 2)`` widths and heights of the anchors of a cell."""
    if lowest:
        pairs = [(LOWEST_SCALE, 1.0), (scale, 2.0), (scale, 0.5)]
    else:
        pairs = [(scale, ratio) for ratio in ASPECT_RATIOS] + [((scale * next_scale) ** 0.5, 1.0)]
    return np.array([(size * ratio**0.5, size / ratio**0.5) for size, ratio in pairs])
