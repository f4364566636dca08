"""Which of ImageNet's 1,000 classes say something about what is on a road, and what they say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

KINDS = {
    "vehicle": {
        # From convertible to sports car; station wagon, cab.
        "car": (511, 609, 627, 656, 661, 717, 751, 817, 436, 468),
        "bus": (654, 779, 829, 874),
        "truck": (569, 675, 757, 803, 864, 866, 867),
        "emergency vehicle": (407, 555, 734),
        "two-wheeler": (444, 665, 670, 671),
    },
    "animal": {
        "dog": tuple(range(151, 269)),
        "cat": tuple(range(281, 286)),
        "horse": (339,),
        "cattle": (345, 346, 347),
        "sheep": (348, 349),
    },
}
"""Group -> kind -> classes."""
PARTS = {"vehicle": (475, 479, 581), "animal": ()}
"""Mirror, wheel and grille: of a vehicle, whichever its kind."""


def evidence(probabilities: NDArray[np.floating], group: str) -> tuple[str, float]:
    """What a classifier says of something that a detector took to be of a group.

    Args:
        probabilities: ``(1000,)``.
        group: ``vehicle`` or ``animal``.

    Returns:
        The likeliest kind of that group, and the probability that it is of the group at all.
    """
    sums = {kind: float(probabilities[list(classes)].sum()) for kind, classes in KINDS[group].items()}
    parts = float(probabilities[list(PARTS[group])].sum())
    return max(sums, key=lambda kind: sums[kind]), sum(sums.values()) + parts
