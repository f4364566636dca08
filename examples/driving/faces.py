"""Faces: found by BlazeFace in several squares of the frame, then made unrecognisable.

Anchors and decoding follow the published parameters of BlazeFace (Bazarevsky et al., 2019): anchors are
points of one or two grids, boxes are relative to them, and the input's side is their unit.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .camera import HEIGHT, HORIZON_PX
from .detector import iou

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from compass_shared.values import Model

GRIDS = {128: ((16, 2), (8, 6)), 192: ((48, 1),)}
"""Side of the model's input -> (cells a side, anchors a cell) of its grids."""
THRESHOLD = 0.5
MAX_OVERLAP = 0.3
BAND = 2 / 3
"""Heads are near the horizon: a row of squares there, this high in heights of the frame, finds small ones."""
MARGIN = 0.15
"""How far beyond a face is blurred, in sides of its box."""
BLOCKS = 6
"""A blurred face has this many squares across."""


def find_faces(image: Image.Image, model: Model, side: int) -> NDArray[np.float32]:
    """Boxes of faces.

    Args:
        image: The frame, at least as wide as high.
        model: BlazeFace.
        side: Of its input, in pixels.

    Returns:
        ``(n, 4)``: left, top, right, bottom in sides of the frame.
    """
    found, scores = [np.zeros((0, 4))], [np.zeros(0)]
    for left, top, length in squares(*image.size):
        place = (left, top, left + length, top + length)
        square = image.resize((side, side), Image.Resampling.BILINEAR, box=place)
        pixels = np.asarray(square, np.float32)[None] / np.float32(127.5) - np.float32(1)
        outputs = model.run({model.input_names[0]: pixels}).values()
        code, logit = sorted((np.asarray(one)[0] for one in outputs), key=lambda one: -one.shape[-1])
        box, score = decoded(code, logit[:, 0], side)
        found.append((box * length + np.tile((left, top), 2)) / np.tile(image.size, 2))
        scores.append(score)
    boxes = _without_repeats(np.concatenate(found), np.concatenate(scores))
    return boxes.clip(0, 1).astype(np.float32)


def squares(width: int, height: int) -> list[tuple[float, float, float]]:
    """Left, top and side of the squares of a frame that are looked at, in its pixels."""
    whole = min(width, height)
    small = BAND * whole
    top = max(0.0, min(height - small, height * HORIZON_PX / HEIGHT - small / 2))
    steps = max(1, math.ceil(width / small))
    band = [((width - small) * step / max(1, steps - 1), top, small) for step in range(steps)]
    return [(left, 0.0, float(whole)) for left in sorted({0.0, float(width - whole)})] + band


def blurred(frame: NDArray[np.uint8], boxes: NDArray[np.floating]) -> NDArray[np.uint8]:
    """The frame with every box made of a few large squares.

    Args:
        frame: ``(height, width, 3)``.
        boxes: ``(n, 4)`` in sides of the frame.
    """
    if not len(boxes):
        return frame
    image = Image.fromarray(frame)
    size = boxes[:, 2:] - boxes[:, :2]
    wide = np.concatenate([boxes[:, :2] - MARGIN * size, boxes[:, 2:] + MARGIN * size], axis=1)
    for box in (wide.clip(0, 1) * np.tile(image.size, 2)).tolist():
        left, top, right, bottom = (int(box[0]), int(box[1]), int(np.ceil(box[2])), int(np.ceil(box[3])))
        part = image.crop((left, top, right, bottom))
        coarse = part.resize((BLOCKS, BLOCKS), Image.Resampling.BOX)
        image.paste(coarse.resize(part.size, Image.Resampling.NEAREST), (left, top))
    return np.asarray(image)


def decoded(
    code: NDArray[np.floating], logit: NDArray[np.floating], side: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Boxes in sides of the square and their scores, of one run.

    Args:
        code: ``(anchors, 16)``: centre, size and six points of the face, in pixels of the input.
        logit: ``(anchors,)``.
        side: Of the input.
    """
    score = 1 / (1 + np.exp(-logit.astype(np.float64).clip(-100, 100)))
    keep = score >= THRESHOLD
    centre = _anchors(side)[keep] + code[keep, :2] / side
    half = code[keep, 2:4] / side / 2
    return np.concatenate([centre - half, centre + half], axis=1), score[keep]


@lru_cache(maxsize=2)
def _anchors(side: int) -> NDArray[np.float64]:
    """``(anchors, 2)``: x and y of every anchor, in sides of the square."""
    grids = []
    for cells, each in GRIDS[side]:
        centre = (np.arange(cells) + 0.5) / cells
        y, x = np.meshgrid(centre, centre, indexing="ij")
        grids.append(np.repeat(np.stack([x.ravel(), y.ravel()], axis=1), each, axis=0))
    return np.concatenate(grids)


def _without_repeats(boxes: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    keep: list[int] = []
    overlap = iou(boxes, boxes)
    for index in np.argsort(-scores, kind="stable").tolist():
        if not (overlap[keep, index] > MAX_OVERLAP).any():
            keep.append(index)
    return boxes[keep]
