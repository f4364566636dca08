"""Which of ImageNet's 1,000 classes say something about what is on a road."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

VEHICLES = {
    407: "ambulance",
    436: "station wagon",
    444: "tandem",
    468: "cab",
    511: "convertible",
    555: "fire engine",
    569: "garbage truck",
    573: "go-kart",
    609: "jeep",
    627: "limousine",
    654: "minibus",
    656: "minivan",
    661: "vintage car",
    665: "moped",
    670: "motor scooter",
    671: "mountain bike",
    675: "moving van",
    717: "pickup",
    734: "police van",
    751: "racing car",
    757: "camper",
    779: "school bus",
    803: "snowplough",
    817: "sports car",
    829: "tram",
    864: "tow truck",
    866: "tractor",
    867: "trailer truck",
    874: "trolleybus",
}
PARTS_OF_VEHICLES = (475, 479, 581)
"""Mirror, wheel, grille: a vehicle, whichever kind."""
ANIMALS = {
    "dog": range(151, 269),
    "cat": range(281, 286),
    "horse": range(339, 340),
    "cattle": range(345, 348),
    "sheep": range(348, 350),
}

_VEHICLES = np.array([*VEHICLES, *PARTS_OF_VEHICLES])
_NAMES = tuple(VEHICLES.values())


def evidence(probabilities: NDArray[np.floating], group: str) -> tuple[str, float]:
    """What a classifier says of something that a detector took to be of a group.

    Args:
        probabilities: ``(1000,)``.
        group: ``vehicle`` or ``animal``.

    Returns:
        The likeliest kind of that group, and the probability that it is of the group at all.
    """
    if group == "vehicle":
        best = _NAMES[int(probabilities[_VEHICLES[: len(_NAMES)]].argmax())]
        return best, float(probabilities[_VEHICLES].sum())
    sums = {
        name: float(probabilities[classes.start : classes.stop].sum()) for name, classes in ANIMALS.items()
    }
    return max(sums, key=lambda name: sums[name]), sum(sums.values())
