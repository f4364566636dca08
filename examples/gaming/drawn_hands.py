"""Hands that are drawn: a skeleton with a known gesture, clad in spheres and lit from one side.

A photograph shows one gesture and nobody has marked its joints. A drawn hand shows any, and its landmarks
are known without a network. The picture is a height field: what is highest at a pixel is seen there, and
its slope gives the shade. That is crude, and enough for networks that were trained on photographs and
rendered hands.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

SHOWN = {
    "fist": (),
    "thumb": ("thumb",),
    "point": ("index",),
    "victory": ("index", "middle"),
    "open": ("thumb", "index", "middle", "ring", "little"),
}
"""Gesture -> the fingers that are stretched."""

# Unit: a palm, from the wrist to the middle finger's knuckle. x to the thumb's side, y up, z to the viewer.
_THUMB_OUT = ((0.27, 0.18, 0.10), (0.50, 0.42, 0.15), (0.72, 0.62, 0.15), (0.92, 0.80, 0.15))
_THUMB_IN = ((0.25, 0.20, 0.20), (0.42, 0.50, 0.35), (0.25, 0.72, 0.50), (0.00, 0.72, 0.55))
_FINGERS = {
    "index": ((0.28, 0.95), 0.20, (0.42, 0.25, 0.20)),
    "middle": ((0.05, 1.00), 0.03, (0.47, 0.29, 0.22)),
    "ring": ((-0.17, 0.93), -0.15, (0.43, 0.27, 0.21)),
    "little": ((-0.37, 0.82), -0.31, (0.33, 0.20, 0.18)),
}
"""Finger -> place of its knuckle, lean to the thumb's side in radians, lengths of its bones."""
_BENDS = (75.0, 100.0, 55.0)
"""Of the joints of a bent finger, in degrees."""
_RADII = (
    *(0.20, 0.17, 0.15, 0.12, 0.095),
    *(0.135, 0.115, 0.10, 0.085),
    *(0.14, 0.12, 0.105, 0.088),
    *(0.13, 0.11, 0.10, 0.083),
    *(0.12, 0.10, 0.085, 0.072),
)
_PALM = ((0, 5), (0, 9), (0, 13), (0, 17), (5, 9), (9, 13), (13, 17), (1, 5), (1, 9))
_PALM_RADII = (0.20, 0.16)
_FOREARM = 1.3
_SPHERES = 40
_LIGHT = np.array([-0.36, -0.57, 0.74])
_MARGIN = ((1.1, 2.1), (1.25, 1.3))
"""Left and above, right and below of the wrist, in palms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HandPicture:
    """A hand without its background."""

    pixels: NDArray[np.uint8]
    """``(height, width, 4)``: RGB and how much of it covers what is behind."""
    landmarks: Floats
    """``(21, 2)``, pixels."""
    gesture: str


def skeleton(gesture: str) -> Floats:
    """Joints of a hand that shows a gesture.

    Returns:
        ``(21, 3) float64`` in palms, in the usual order: wrist, thumb, index to little finger.
    """
    stretched = SHOWN[gesture]
    joints: list[tuple[float, float, float]] = [(0.0, 0.0, 0.0)]
    joints += _THUMB_OUT if "thumb" in stretched else _THUMB_IN
    for name, (knuckle, lean, bones) in _FINGERS.items():
        bends = (0.0, 0.0, 0.0) if name in stretched else _BENDS
        joint = np.array([*knuckle, 0.0])
        joints.append((*knuckle, 0.0))
        for length, bend in zip(bones, np.radians(np.cumsum(bends)), strict=True):
            flat = length * np.cos(bend)
            joint += [flat * np.sin(lean), flat * np.cos(lean), length * np.sin(bend)]
            joints.append((float(joint[0]), float(joint[1]), float(joint[2])))
    return np.array(joints)


def draw(gesture: str, *, palm_px: int, skin: tuple[int, int, int], seed: int) -> HandPicture:
    """Draw a right hand, its inside to the viewer.

    Args:
        gesture: A name in ``SHOWN``.
        palm_px: Length of the palm in pixels.
        skin: RGB where the light falls straight on it.
        seed: Of the skin's unevenness.
    """
    joints = skeleton(gesture) * palm_px
    (left, above), (right, below) = _MARGIN
    size = (round((above + below) * palm_px), round((left + right) * palm_px))
    origin = np.array([left, above]) * palm_px
    heights = np.full(size, -np.inf)
    for centre, radius in _spheres(joints, palm_px):
        _raise(heights, origin + centre[:2] * [1, -1], centre[2], radius)
    covered = np.isfinite(heights)
    smooth = blurred(np.where(covered, heights, 0.0), 0.012 * palm_px)
    down, across = np.gradient(smooth)
    normals = np.stack([-across, -down, np.ones(size)], axis=-1)
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    shade = 0.45 + 0.6 * np.clip(normals @ _LIGHT, 0, 1)
    shade += 0.15 * blurred(np.random.default_rng(seed).standard_normal(size), 3.0)
    colours = np.array(skin) * shade[:, :, None]
    alpha = 255 * blurred(covered.astype(np.float64), 1.0)
    pixels = np.dstack([np.clip(colours, 0, 255), alpha]).astype(np.uint8)
    return HandPicture(pixels=pixels, landmarks=origin + joints[:, :2] * [1, -1], gesture=gesture)


def blurred(field: Floats, deviation: float) -> Floats:
    """A two-dimensional field smoothed by a Gaussian, 0 outside."""
    reach = int(3 * deviation) + 1
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    weights /= weights.sum()
    for axis in (0, 1):
        field = np.apply_along_axis(np.convolve, axis, field, weights, "same")
    return field


def _spheres(joints: Floats, palm_px: int) -> list[tuple[Floats, float]]:
    """Centre and radius, pixels, of all that the hand is made of."""
    chains = [range(5), *(range(knuckle, knuckle + 4) for knuckle in (5, 9, 13, 17))]
    bones = [(a, b, _RADII[a], _RADII[b]) for chain in chains for a, b in pairwise(chain)]
    bones += [(a, b, *_PALM_RADII) for a, b in _PALM]
    steps = np.linspace(0, 1, _SPHERES)
    spheres = [
        ((1 - t) * joints[a] + t * joints[b], float((1 - t) * thick + t * thin) * palm_px)
        for a, b, thick, thin in bones
        for t in steps
    ]
    forearm = [
        (np.array([0, -t * _FOREARM, -0.02]) * palm_px, float(0.24 + 0.05 * t) * palm_px) for t in steps
    ]
    return spheres + forearm


def _raise(heights: Floats, centre: Floats, height: float, radius: float) -> None:
    """Let a sphere stand out of the field where it is the highest."""
    low = np.clip(np.floor(centre - radius).astype(int), 0, None)
    high = np.ceil(centre + radius).astype(int) + 1
    part = heights[low[1] : high[1], low[0] : high[0]]
    rows, columns = np.ogrid[low[1] : low[1] + part.shape[0], low[0] : low[0] + part.shape[1]]
    inside = radius**2 - (columns - centre[0]) ** 2 - (rows - centre[1]) ** 2
    top = np.where(inside > 0, height + np.sqrt(np.maximum(inside, 0)), -np.inf)
    np.maximum(part, top, out=part)
