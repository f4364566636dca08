"""Single-shot detectors: anchors, what a network says about each of them, and one box for each thing found.

The palm and pose detectors of MediaPipe are SSD networks whose anchors all have the same size, so an anchor
is only a place. Their published parameters (strides of the layers, two anchors for each layer and place)
are what ``PALM`` and ``POSE`` are made of. Places and lengths are shares of the network's
square input.

References:
    Liu et al., SSD: Single Shot MultiBox Detector, ECCV 2016.
    Bazarevsky et al., BlazeFace: Sub-millisecond Neural Face Detection on Mobile GPUs, 2019 (blended boxes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]

ANCHORS_PER_LAYER = 2
MAX_LOGIT = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Detector:
    """What is known about a detection network beside its weights."""

    side: int
    """Of its square input, in pixels."""
    anchors: Floats
    """``(anchors, 2)``: places."""
    least_score: float = 0.5
    overlap: float = 0.3
    """Boxes that share more than this (intersection over union) are of one thing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """One thing found."""

    score: float
    box: Floats
    """Centre x, y, width, height."""
    points: Floats
    """``(points, 2)``: key points."""


def anchors(side: int, strides: Sequence[int]) -> Floats:
    """Places of all anchors, in the order of the network's outputs.

    Args:
        side: Of the network's input, in pixels.
        strides: Of the layers, in pixels; neighbours that are alike share one grid.

    Returns:
        ``(anchors, 2) float32``: x, y.
    """
    places: list[Floats] = []
    for stride in dict.fromkeys(strides):
        cells = -(-side // stride)
        ticks = (np.arange(cells, dtype=np.float32) + 0.5) / cells
        grid = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
        places.append(np.repeat(grid, ANCHORS_PER_LAYER * strides.count(stride), axis=0))
    return np.concatenate(places)


PALM = Detector(side=192, anchors=anchors(192, (8, 16, 16, 16)))
POSE = Detector(side=224, anchors=anchors(224, (8, 16, 32, 32, 32)))


def detections(offsets: Floats, logits: Floats, detector: Detector, *, most: int) -> list[Detection]:
    """Turn what a network says into the things found, the surest first.

    Boxes of one thing are blended, each with the weight of its score, rather than all but the best dropped:
    from frame to frame that jitters less.

    Args:
        offsets: ``(anchors, 4 + 2 * points)``: box and key points from the anchor, in pixels of the input.
        logits: ``(anchors,)``: how sure it is of each.
        detector: The network.
        most: Things wanted.
    """
    scores = 1 / (1 + np.exp(-np.clip(logits, -MAX_LOGIT, MAX_LOGIT)))
    kept = np.flatnonzero(scores >= detector.least_score)
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    scores = scores[kept]
    values = offsets[kept] / np.float32(detector.side)
    places = detector.anchors[kept]
    values[:, :2] += places
    values[:, 4:] += np.tile(places, (values.shape[1] - 4) // 2)
    found: list[Detection] = []
    while len(scores) and len(found) < most:
        same = overlaps(values[0, :4], values[:, :4]) > detector.overlap
        same[0] = True
        blended = np.average(values[same], axis=0, weights=scores[same]).astype(np.float32)
        found.append(
            Detection(score=float(scores[0]), box=blended[:4], points=blended[4:].reshape(-1, 2)),
        )
        values, scores = values[~same], scores[~same]
    return found


def overlaps(box: Floats, others: Floats) -> Floats:
    """Intersection over union of one box with others.

    Args:
        box: ``(4,)``: centre x, y, width, height.
        others: ``(boxes, 4)``.
    """
    half, other_halves = box[2:] / 2, others[:, 2:] / 2
    low = np.maximum(box[:2] - half, others[:, :2] - other_halves)
    high = np.minimum(box[:2] + half, others[:, :2] + other_halves)
    shared = np.clip(high - low, 0, None).prod(axis=1)
    total = box[2:].prod() + others[:, 2:].prod(axis=1) - shared
    ratio: Floats = shared / np.maximum(total, np.float32(1e-12))
    return ratio
