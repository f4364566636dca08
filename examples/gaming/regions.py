"""Regions of interest: turned squares that are cut out of a frame, and the way back from the cut.

A region is four numbers: centre x, y, side, and the angle in radians by which the frame's upright has to be
turned clockwise to be the region's. They are pixels of the prepared frame. The rules that make a region of
a detection, or of the landmarks found last, are MediaPipe's published ones (Zhang et al., MediaPipe Hands,
2020; Bazarevsky et al., BlazePose, 2020): how much to widen it, how far to move it along the fingers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from .detection import Detection

Floats: TypeAlias = NDArray[np.float32]
Frame: TypeAlias = NDArray[np.uint8]

PALM_WRIST, PALM_MIDDLE = 0, 2
"""Key points of a palm."""
WRIST, INDEX_KNUCKLE, MIDDLE_KNUCKLE, RING_KNUCKLE = 0, 5, 9, 13
STEADY = (0, 1, 2, 3, 5, 6, 9, 10, 13, 14, 17, 18)
"""Landmarks of a hand that say where it is whatever its fingers do."""
PALM_SCALE, PALM_SHIFT = 2.6, 0.5
HAND_SCALE, HAND_SHIFT = 2.0, 0.1
BODY_SCALE = 1.25
BODY_CENTRE, BODY_TOP = 33, 34
"""Landmarks that the pose network adds for the next region: the hips' middle, and a point on the circle."""


def region(centre_x: float, centre_y: float, side: float, angle: float) -> Floats:
    """A region as an array, its angle in (-pi, pi]."""
    turned = -(math.remainder(-angle, math.tau))
    return np.array([centre_x, centre_y, side, turned], np.float32)


def fitted(frame: Frame, side: int) -> tuple[Frame, float, tuple[float, float]]:
    """Scale a frame into the middle of a black square.

    Returns:
        ``(side, side, 3) uint8``, the scale, and where the frame's corner is, in pixels of the square.
    """
    height, width = frame.shape[:2]
    scale = side / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    left, top = (side - size[0]) // 2, (side - size[1]) // 2
    square = np.zeros((side, side, 3), np.uint8)
    small = Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR)
    square[top : top + size[1], left : left + size[0]] = np.asarray(small)
    return square, scale, (float(left), float(top))


def palm_region(found: Detection) -> Floats:
    """Region of a hand whose palm was found; the detection is in pixels of the frame."""
    angle = upright_angle(found.points[PALM_WRIST], found.points[PALM_MIDDLE])
    side = float(max(found.box[2:]))
    x, y = moved(found.box[:2], angle, -PALM_SHIFT * side)
    return region(x, y, PALM_SCALE * side, angle)


def hand_region(landmarks: Floats) -> Floats:
    """Region of a hand in the next frame.

    Args:
        landmarks: ``(21, 2 or more)``, pixels of the frame.
    """
    points = landmarks[:, :2].astype(np.float64)
    knuckles = (points[INDEX_KNUCKLE] + points[RING_KNUCKLE]) / 4 + points[MIDDLE_KNUCKLE] / 2
    angle = upright_angle(points[WRIST], knuckles)
    along = _turned(points[list(STEADY)], -angle)
    low, high = along.min(axis=0), along.max(axis=0)
    side = float((high - low).max())
    centre = _turned(((low + high) / 2)[None], angle)[0]
    x, y = moved(centre, angle, -HAND_SHIFT * side)
    return region(x, y, HAND_SCALE * side, angle)


def body_region(centre: Floats, top: Floats) -> Floats:
    """Region of a body: a circle around the hips' middle that another point lies on."""
    radius = math.hypot(float(top[0] - centre[0]), float(top[1] - centre[1]))
    return region(float(centre[0]), float(centre[1]), BODY_SCALE * 2 * radius, upright_angle(centre, top))


def upright_angle(low: NDArray[np.floating], high: NDArray[np.floating]) -> float:
    """Angle by which upright has to be turned clockwise to point from ``low`` to ``high``."""
    return math.pi / 2 - math.atan2(float(low[1] - high[1]), float(high[0] - low[0]))


def moved(point: NDArray[np.floating], angle: float, down: float) -> tuple[float, float]:
    """A point moved down, as a region of that angle sees it."""
    return float(point[0]) - down * math.sin(angle), float(point[1]) + down * math.cos(angle)


def cut(frame: Frame, of: Floats, side: int) -> Frame:
    """Cut a region out, upright; what lies outside the frame is black.

    Returns:
        ``(side, side, 3) uint8``.
    """
    (a, b, c), (d, e, f) = (tuple(map(float, row)) for row in from_cut(of, side))
    image = Image.fromarray(frame).transform(
        (side, side), Image.Transform.AFFINE, (a, b, c, d, e, f), resample=Image.Resampling.BILINEAR
    )
    return np.asarray(image)


def from_cut(of: Floats, side: int) -> NDArray[np.float64]:
    """Affine map from pixels of a cut to those of the frame.

    Returns:
        ``(2, 3) float64``.
    """
    x, y, length, angle = (float(number) for number in of)
    step = length / side
    cos, sin = step * math.cos(angle), step * math.sin(angle)
    half = side / 2
    return np.array([[cos, -sin, x - half * (cos - sin)], [sin, cos, y - half * (sin + cos)]])


def placed(points: NDArray[np.floating], of: Floats, side: int) -> Floats:
    """Take landmarks from a cut back into the frame; depth, if they have it, is scaled alike.

    Args:
        points: ``(points, 2 or 3)``, pixels of the cut.
        of: The region that was cut out.
        side: Of the cut.
    """
    matrix = from_cut(of, side)
    back = points[:, :2] @ matrix[:, :2].T + matrix[:, 2]
    depth = points[:, 2:3] * (float(of[2]) / side)
    return np.hstack([back, depth]).astype(np.float32)


def alike(a: Floats, b: Floats) -> bool:
    """Whether two regions are of one thing: their centres are closer than half the smaller's side."""
    return math.hypot(float(a[0] - b[0]), float(a[1] - b[1])) < 0.5 * float(min(a[2], b[2]))


def _turned(points: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    cos, sin = math.cos(angle), math.sin(angle)
    turned: NDArray[np.float64] = points @ np.array([[cos, sin], [-sin, cos]])
    return turned
