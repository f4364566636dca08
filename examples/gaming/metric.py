"""PCK, the percentage of correct key points: landmarks that are near enough to where they belong.

A landmark of a hand is right within ``HAND_WITHIN`` lengths of the palm, one of the body within
``POSE_WITHIN`` lengths of the torso. Of photographed hands and bodies the truth itself is a network's word
(the heaviest variants on the sharp, whole photograph, see ``subjects``), so there PCK says how well a
config agrees with the best one, not with an annotator; drawn hands and the names of gestures are known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Frame: TypeAlias = Mapping[str, Any]
Floats: TypeAlias = NDArray[np.float64]

HAND_WITHIN = 0.2
POSE_WITHIN = 0.1
SAME_HAND = 1.0
"""Lengths of a palm within which, on average, the landmarks of one hand lie from those of the other."""
WRIST, MIDDLE_KNUCKLE = 0, 9


def score(outputs: Sequence[Frame | None], truths: Sequence[Frame]) -> float:
    """Mean of ``hand_pck`` and ``pose_pck``."""
    return (hand_pck(outputs, truths) + pose_pck(outputs, truths)) / 2


def hand_pck(outputs: Sequence[Frame | None], truths: Sequence[Frame]) -> float:
    """Share of the landmarks of hands that are right, over the frames of a clip that have or show a hand.

    Args:
        outputs: What the pipeline made of each frame; None of a frame that was lost.
        truths: As ``clips.load`` makes them.

    Returns:
        In [0, 1]. A hand that is missed counts as wrong, and so does one that is not there.
    """
    return _mean(outputs, truths, _hands_right)


def pose_pck(outputs: Sequence[Frame | None], truths: Sequence[Frame]) -> float:
    """Share of the body's landmarks in sight that are right; 0 in frames in which nobody was found."""
    return _mean(outputs, truths, _pose_right)


def gesture_accuracy(outputs: Sequence[Frame | None], truths: Sequence[Frame]) -> float:
    """Share of frames with a hand in which its gesture has its right name; what a gesture is, is known."""
    return _mean(outputs, truths, _gesture_right)


def _mean(
    outputs: Sequence[Frame | None],
    truths: Sequence[Frame],
    rate: Callable[[Frame | None, Frame], float | None],
) -> float:
    rated = [rate(output, truth) for output, truth in zip(outputs, truths, strict=True)]
    counted = [value for value in rated if value is not None]
    return sum(counted) / len(counted) if counted else 1.0


def _hands_right(output: Frame | None, truth: Frame) -> float | None:
    """Share of right landmarks; None if there is no hand and none was seen."""
    wanted = [np.asarray(hand, float) for hand in truth["hands"]]
    made = [] if output is None else [np.asarray(hand, float)[:, :2] for hand in output["hands"]]
    pairs, extra = matched(made, wanted)
    for optional in truth["optional"]:
        _, extra = matched(extra, [np.asarray(optional, float)])
    right = sum(
        float((np.linalg.norm(hand - true, axis=1) <= HAND_WITHIN * palm_length(true)).mean())
        for hand, true in pairs
    )
    count = len(wanted) + len(extra)
    return right / count if count else None


def _gesture_right(output: Frame | None, truth: Frame) -> float | None:
    if not truth["hands"]:
        return None
    if output is None:
        return 0.0
    made = [np.asarray(hand, float)[:, :2] for hand in output["hands"]]
    pairs, _ = matched(made, [np.asarray(truth["hands"][0], float)])
    if not pairs:
        return 0.0
    index = next(i for i, hand in enumerate(made) if hand is pairs[0][0])
    return float(output["gestures"][index] == truth["gestures"][0])


def _pose_right(output: Frame | None, truth: Frame) -> float | None:
    true = np.asarray(truth["pose"], float)
    seen = true[:, 2] > 0
    if not seen.any():
        return None
    if output is None or output["pose"] is None:
        return 0.0
    away = np.linalg.norm(np.asarray(output["pose"], float)[:, :2] - true[:, :2], axis=1)
    return float((away[seen] <= POSE_WITHIN * truth["torso"]).mean())


def matched(
    made: Sequence[Floats], wanted: Sequence[Floats]
) -> tuple[list[tuple[Floats, Floats]], list[Floats]]:
    """Pair hands that are one and the same, the nearest first.

    Returns:
        Pairs of a hand that was made and the wanted one, and the hands that were made beside them.
    """
    distances = sorted(
        (float(np.linalg.norm(hand - true, axis=1).mean()) / palm_length(true), i, j)
        for i, hand in enumerate(made)
        for j, true in enumerate(wanted)
    )
    pairs: dict[int, int] = {}
    for distance, i, j in distances:
        if distance <= SAME_HAND and i not in pairs and j not in pairs.values():
            pairs[i] = j
    return (
        [(made[i], wanted[j]) for i, j in pairs.items()],
        [hand for i, hand in enumerate(made) if i not in pairs],
    )


def palm_length(hand: Floats) -> float:
    """From the wrist to the middle finger's knuckle."""
    return max(float(np.linalg.norm(hand[MIDDLE_KNUCKLE] - hand[WRIST])), 1e-9)
