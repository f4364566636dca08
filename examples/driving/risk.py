"""When something on the road is a risk: in our way, and close or soon to be."""

from __future__ import annotations

from .camera import FRAME_S, LANE_HALF_M

CLOSE_M = 8.0
SOON_S = 2.0
"""Time to contact at the present closing speed."""
MARGIN_M = {"vehicle": 0.3, "person": 0.9, "animal": 0.9}
"""How far beside the lane something still counts as in our way; who is on foot may step into it."""


def is_risk(group: str, x_m: float, z_m: float, closing_m: float) -> bool:
    """Whether to warn.

    Args:
        group: ``vehicle``, ``person`` or ``animal``.
        x_m: Of its middle, to the right of the camera.
        z_m: Ahead of the camera.
        closing_m: How much nearer it comes in one frame; negative if it draws away.
    """
    in_our_way = abs(x_m) < LANE_HALF_M + MARGIN_M[group]
    soon = closing_m > 0 and z_m / closing_m * FRAME_S < SOON_S
    return bool(in_our_way and (z_m < CLOSE_M or soon))
