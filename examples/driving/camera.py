"""The camera above the dashboard: where a point of the road appears, and where a box stands on the road.

One calibrated camera for scenes and pipeline alike: a car knows its own. Boxes are in sides of the frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

WIDTH, HEIGHT = 640, 384
"""Of a frame, in pixels."""
FOCAL_PX = 460.0
HORIZON_PX = 150.0
"""Row of the horizon: the camera looks slightly down."""
ABOVE_ROAD_M = 1.3
LANE_HALF_M = 1.75
"""Half of the width of the lane that the camera is in the middle of."""
FRAME_S = 0.1
"""Time between two frames of a recording."""
FARTHEST_M = 200.0


def image_of(x_m: float, z_m: float) -> tuple[float, float, float]:
    """Column and row in pixels of a point of the road, and pixels a metre at that distance.

    Args:
        x_m: To the right of the camera.
        z_m: Ahead of it.
    """
    scale = FOCAL_PX / z_m
    return WIDTH / 2 + x_m * scale, HORIZON_PX + ABOVE_ROAD_M * scale, scale


def ground_of(boxes: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where boxes stand on the road.

    Args:
        boxes: ``(n, 4)``: left, top, right, bottom in sides of the frame.

    Returns:
        Metres to the right and metres ahead, ``(n,)`` each, of the middle of each lower edge. A box that the
        frame's lower edge cuts is nearer than that says.
    """
    below = np.maximum(boxes[:, 3] * HEIGHT - HORIZON_PX, FOCAL_PX * ABOVE_ROAD_M / FARTHEST_M)
    ahead = FOCAL_PX * ABOVE_ROAD_M / below
    column = (boxes[:, 0] + boxes[:, 2]) / 2 * WIDTH
    return (column - WIDTH / 2) * ahead / FOCAL_PX, ahead
