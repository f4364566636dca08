"""Painting for the scenes: the road itself, and cars in other colours."""

from __future__ import annotations

import numpy as np
from PIL import Image

from .camera import ABOVE_ROAD_M, FOCAL_PX, HEIGHT, HORIZON_PX, LANE_HALF_M, WIDTH

ROAD_RIGHT_M = 2.6
ROAD_LEFT_M = -3 * LANE_HALF_M - 0.5
LINE_M = 0.12
DASH_M = 3.0
"""Length of a dash of the line between the lanes, and of the gap after it."""
ASPHALT, PAINT = 92.0, 205.0
MOTTLE = 4.0
"""Standard deviation of the ground's own grain, of 255."""
GRAINS_A_M = 16
VERGES = ((84, 104, 58), (124, 112, 88), (106, 118, 80))
"""Colours of what lies beside the road."""


def painted_road(travelled_m: float, *, seed: int) -> Image.Image:
    """A frame whose lower part is the road ahead; the part above the horizon is black.

    Args:
        travelled_m: How far the camera came since the clip began; the dashes and the grain move with it.
        seed: Of the grain and the verge's colour: one a clip.
    """
    rows = np.arange(round(HORIZON_PX) + 1, HEIGHT, dtype=np.float64)
    z = FOCAL_PX * ABOVE_ROAD_M / (rows - HORIZON_PX)
    x = (np.arange(WIDTH) - WIDTH / 2)[None, :] * z[:, None] / FOCAL_PX
    along = z[:, None] + travelled_m
    colour = np.empty((*x.shape, 3))
    colour[...] = VERGES[seed % len(VERGES)]
    colour[(x > ROAD_LEFT_M) & (x < ROAD_RIGHT_M)] = ASPHALT
    wide = np.maximum(LINE_M, z[:, None] / FOCAL_PX)  # no line is thinner than a pixel
    dashed = (np.abs(x + LANE_HALF_M) < wide) & (along % (2 * DASH_M) < DASH_M)
    solid = np.abs(x - LANE_HALF_M) < wide
    colour[dashed | solid] = PAINT
    grain = np.random.default_rng(seed).normal(0, MOTTLE, (256, 256))
    # Grain lies on the ground; far away it averages out.
    cells = grain[(along * GRAINS_A_M).astype(int) % 256, (x * GRAINS_A_M).astype(int) % 256]
    colour += (cells * np.minimum(1, 12 / z[:, None]))[..., None]
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    frame[round(HORIZON_PX) + 1 :] = np.clip(colour, 0, 255).astype(np.uint8)
    return Image.fromarray(frame)


def tinted(image: Image.Image, tint: tuple[float, float, float]) -> Image.Image:
    """The RGBA image with its colours multiplied, channel by channel."""
    pixels = np.asarray(image, np.float32) * np.array([*tint, 1.0], np.float32)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGBA")
