"""The computation that every runtime does in the contract suite, as plain Python."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WEIGHTS = ((1.0, -2.0, 0.5), (0.25, 1.0, -1.0))
BIAS = (0.0, 0.5, 1.0)


def affine_relu(x: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """``y = relu(x @ WEIGHTS + BIAS)`` for ``x`` of shape ``(n, 2)``."""
    if x.dtype != np.float32:
        raise TypeError(f"x is {x.dtype}, not float32")
    return {"y": np.maximum(x @ np.array(WEIGHTS, np.float32) + np.array(BIAS, np.float32), 0)}
