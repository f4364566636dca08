"""Following boxes from frame to frame: by what they look like, and by what a detector says now and then.

Between detections a track's box is looked for around its last place, at three sizes, by normalised
cross-correlation with what the box held in the last frame. At a detection the boxes are shared out to tracks
greedily by IoU within a group. New tracks need a better score than old ones need to go on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from .detector import Boxes, iou

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

MIN_IOU = 0.3
START_SCORE = 0.45
MAX_MISSES = 2
"""Detections in a row that a track may be without before it ends."""
LOOKS = 2
"""How often a track is classified: at its first detections."""
PATCH = 20
"""Side of what is compared, in samples, whatever the box's size."""
REACH = 6
"""How far around a box it is looked for, in such samples."""
SCALES = (0.95, 1.0, 1.05)
MIN_LIKENESS = 0.5
"""Correlation under which what was found is not believed and the box goes on as it did."""


@dataclass(slots=True)
class Track:
    """One thing that is followed."""

    number: int
    group: int
    box: Floats
    """Left, top, right, bottom in sides of the frame."""
    score: float
    """Of its last detection."""
    step: Floats = field(default_factory=lambda: np.zeros(4))
    """How far each side moved in the last frame."""
    misses: int = 0
    looks: int = 0


@dataclass(slots=True)
class Tracker:
    """All tracks of one stream."""

    tracks: list[Track] = field(default_factory=list)
    grey: NDArray[np.float32] | None = None
    """The last frame."""
    started: int = 0

    def advance(self, grey: NDArray[np.float32], found: Boxes | None, frames: int = 1) -> list[Track]:
        """Take in the next frame.

        Args:
            grey: ``(height, width)``.
            found: What was detected in it; None if nobody looked.
            frames: How many frames later it is than the last one.

        Returns:
            The tracks that are in it.
        """
        for track in self.tracks:
            self._follow(track, grey, frames)
        self.grey = grey
        if found is not None:
            self._update(found)
        self.tracks = [one for one in self.tracks if one.misses <= MAX_MISSES and _in_frame(one.box)]
        return [one for one in self.tracks if one.misses == 0]

    def _follow(self, track: Track, grey: NDArray[np.float32], frames: int) -> None:
        expected = track.box + frames * track.step
        if self.grey is not None:
            seen = located(self.grey, grey, track.box, expected)
            if seen is not None:
                track.step = 0.5 * track.step + 0.5 * (seen - track.box) / frames
                track.box = seen
                return
        track.box = expected

    def _update(self, found: Boxes) -> None:
        pairs = matched(
            [track.box for track in self.tracks],
            [track.group for track in self.tracks],
            found.box,
            found.group,
        )
        for index, track in enumerate(self.tracks):
            if index in pairs:
                track.box = found.box[pairs[index]].astype(np.float64)
                track.score, track.misses = float(found.score[pairs[index]]), 0
                track.looks += 1
            else:
                track.misses += 1
        taken = set(pairs.values())
        for index in range(len(found.box)):
            if index not in taken and found.score[index] >= START_SCORE:
                box, score = found.box[index].astype(np.float64), float(found.score[index])
                self.tracks.append(Track(self.started, int(found.group[index]), box, score, looks=1))
                self.started += 1


def matched(
    tracks: Sequence[Floats], groups: Sequence[int], boxes: NDArray[np.floating], box_groups: NDArray[np.intp]
) -> dict[int, int]:
    """Track -> box, the pairs of most overlap first, each at most once, within groups."""
    if not len(tracks) or not len(boxes):
        return {}
    overlap = iou(np.stack(tracks), boxes) * (np.array(groups)[:, None] == box_groups[None, :])
    pairs: dict[int, int] = {}
    for flat in np.argsort(-overlap, axis=None, kind="stable").tolist():
        track, box = divmod(flat, len(boxes))
        if overlap[track, box] < MIN_IOU:
            break
        if track not in pairs and box not in pairs.values():
            pairs[track] = box
    return pairs


def located(
    before: NDArray[np.float32], now: NDArray[np.float32], box: Floats, expected: Floats
) -> Floats | None:
    """Where what a box held in one frame is in the next.

    Args:
        before: ``(height, width)`` grey.
        now: Likewise, of any size.
        box: In ``before``, in sides of the frame.
        expected: Where to look in ``now``.

    Returns:
        Its box, or None if nothing there looks like it.
    """
    patch = normalised(sampled(before, box, PATCH))
    side = PATCH + 2 * REACH
    best, place = MIN_LIKENESS, None
    for scale in SCALES:
        wanted = grown(expected, scale)
        around = sampled(now, grown(wanted, side / PATCH), side)
        windows = np.lib.stride_tricks.sliding_window_view(around, (PATCH, PATCH))
        mean = windows.mean(axis=(2, 3))
        spread = np.sqrt(np.maximum((windows * windows).mean(axis=(2, 3)) - mean * mean, 1e-9))
        likeness = np.einsum("ijkl,kl->ij", windows, patch, optimize=True) / patch.size / spread
        row, column = (int(at) for at in np.unravel_index(likeness.argmax(), likeness.shape))
        if likeness[row, column] > best:
            best = float(likeness[row, column])
            size = (wanted[2:] - wanted[:2]) / PATCH
            place = wanted + np.tile(np.array([column - REACH, row - REACH]) * size, 2)
    return place


def sampled(grey: NDArray[np.float32], box: Floats, side: int) -> NDArray[np.float32]:
    """``(side, side)`` samples of a box; beyond the frame its edge goes on."""
    height, width = grey.shape
    steps = (np.arange(side) + 0.5) / side
    x = ((box[0] + steps * (box[2] - box[0])) * width - 0.5).clip(0, width - 1.001)
    y = ((box[1] + steps * (box[3] - box[1])) * height - 0.5).clip(0, height - 1.001)
    column, row = x.astype(int), y.astype(int)
    across, down = (x - column).astype(np.float32), (y - row).astype(np.float32)[:, None]
    upper, lower = grey[row], grey[row + 1]
    top = upper[:, column] * (1 - across) + upper[:, column + 1] * across
    bottom = lower[:, column] * (1 - across) + lower[:, column + 1] * across
    blend: NDArray[np.float32] = top * (1 - down) + bottom * down
    return blend


def normalised(patch: NDArray[np.float32]) -> NDArray[np.float32]:
    """Without its mean, of unit spread."""
    centred: NDArray[np.float32] = patch - patch.mean()
    centred /= np.float32(max(float(centred.std()), 1e-3))
    return centred


def grown(box: Floats, factor: float) -> Floats:
    """The box made larger about its middle."""
    middle, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 * factor
    return np.concatenate([middle - half, middle + half])


def _in_frame(box: Floats) -> bool:
    """Whether at least half of each side is within the frame."""
    size = np.maximum(box[2:] - box[:2], 1e-6)
    return bool(((box[2:].clip(0, 1) - box[:2].clip(0, 1)) >= 0.5 * size).all())
