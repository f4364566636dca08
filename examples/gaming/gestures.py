"""What a hand shows, from its 21 landmarks.

A finger is stretched if its tip is about as far from its knuckle as its joints are apart in all, and bent
if it is much nearer. That holds for any size, turn and mirror image of a hand.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]

LANDMARKS = 21
FINGERS = {"index": 5, "middle": 9, "ring": 13, "little": 17}
"""Finger -> its knuckle; the joints up to the tip are the next three landmarks."""
THUMB = 1
STRETCHED, BENT = 0.9, 0.78
"""Straightness from which a finger counts as stretched, and up to which it counts as bent."""
THUMB_OUT = 1.15
"""Least distance of a stretched thumb's tip from the little finger's knuckle, in lengths of the palm."""
OTHER = "other"

GESTURES = {
    frozenset[str](): "fist",
    frozenset({"thumb"}): "thumb",
    frozenset({"index"}): "point",
    frozenset({"index", "middle"}): "victory",
    frozenset({"index", "middle", "ring", "little", "thumb"}): "open",
}


def gesture(landmarks: Floats) -> str:
    """Name of what the hand shows: fist, thumb, point, victory, open or other.

    Args:
        landmarks: ``(21, 2 or 3)``, in any unit that is the same for all coordinates.
    """
    points = np.asarray(landmarks, np.float64)
    if points.ndim != 2 or len(points) != LANDMARKS:
        raise ValueError(f"a hand has {LANDMARKS} landmarks, got an array of {points.shape}")
    stretched = {"thumb"} if _thumb_out(points) else set[str]()
    for name, knuckle in FINGERS.items():
        straight = straightness(points[knuckle : knuckle + 4])
        if BENT < straight < STRETCHED:
            return OTHER
        if straight >= STRETCHED:
            stretched.add(name)
    return GESTURES.get(frozenset(stretched), OTHER)


def straightness(joints: NDArray[np.float64]) -> float:
    """Distance of the ends over the length of the chain, 1 if it is straight.

    Args:
        joints: ``(joints, dimensions)``, from the knuckle to the tip.
    """
    length = float(np.linalg.norm(np.diff(joints, axis=0), axis=1).sum())
    return float(np.linalg.norm(joints[-1] - joints[0])) / length if length > 0 else 0.0


def _thumb_out(points: NDArray[np.float64]) -> bool:
    palm = float(np.linalg.norm(points[9] - points[0]))
    away = float(np.linalg.norm(points[4] - points[17]))
    return straightness(points[THUMB : THUMB + 4]) >= STRETCHED and away >= THUMB_OUT * palm
