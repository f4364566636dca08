"""How good the answers to a clip are: boxes first, then flags, kinds and covered faces.

Every function takes the outputs and the truths of a clip, frame by frame. A frame without an answer counts as
one in which nothing was seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .detector import area, iou

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

MIN_IOU = 0.5
MIN_COVER = 0.5
"""Share of a face that has to be blurred."""


class Pairing(NamedTuple):
    """One frame: what was found and what is there."""

    found: Any
    truth: Any
    pairs: list[tuple[int, int]]
    """Indices of a box that was found and the true one that it fits."""


def boxes_f1(outputs: Sequence[object], truths: Sequence[object]) -> float:
    """F1 of boxes: of the right group, at an IoU of at least 0.5; counted over the clip's frames."""
    hits = found = there = 0
    for frame in _frames(outputs, truths):
        hits += len(frame.pairs)
        found += len(frame.found["groups"])
        there += len(frame.truth["groups"])
    return 2 * hits / (found + there) if found + there else 1.0


def risk_accuracy(outputs: Sequence[object], truths: Sequence[object]) -> tuple[float, float]:
    """Flags that are right, of all things there and all false alarms.

    What was not found is not flagged; a flag on nothing is wrong. Frames without known risks do not count.
    """
    right = total = 0
    for frame in _frames(outputs, truths):
        risks = frame.truth["risks"]
        if not len(risks):
            continue
        flags = [False] * len(risks)
        for mine, true in frame.pairs:
            flags[true] = bool(frame.found["risks"][mine])
        paired = {mine for mine, _ in frame.pairs}
        alarms = sum(bool(flag) for mine, flag in enumerate(frame.found["risks"]) if mine not in paired)
        right += sum(flag == risk for flag, risk in zip(flags, risks, strict=True))
        total += len(risks) + alarms
    return right, total


def kind_accuracy(outputs: Sequence[object], truths: Sequence[object]) -> tuple[float, float]:
    """Kinds that are right, of the vehicles and animals that were found."""
    right = total = 0
    for frame in _frames(outputs, truths):
        for mine, true in frame.pairs:
            if frame.truth["groups"][true] != "person":
                right += frame.found["kinds"][mine] == frame.truth["kinds"][true]
                total += 1
    return right, total


def faces_covered(outputs: Sequence[object], truths: Sequence[object]) -> tuple[float, float]:
    """Faces at least half of which is blurred, of the faces there."""
    covered = total = 0
    for frame in _frames(outputs, truths):
        faces = np.asarray(frame.truth["faces"], np.float64).reshape(-1, 4)
        found = np.asarray(frame.found["faces"], np.float64).reshape(-1, 4)
        total += len(faces)
        if len(found):
            low = np.maximum(faces[:, None, :2], found[None, :, :2])
            high = np.minimum(faces[:, None, 2:], found[None, :, 2:])
            share = np.prod(np.maximum(high - low, 0), axis=2) / np.maximum(area(faces)[:, None], 1e-12)
            covered += int((share.max(axis=1) >= MIN_COVER).sum())
    return covered, total


_NOTHING = {"boxes": np.zeros((0, 4)), "groups": [], "kinds": [], "risks": [], "faces": np.zeros((0, 4))}


def _frames(outputs: Sequence[object], truths: Sequence[object]) -> Iterator[Pairing]:
    for output, truth in zip(outputs, truths, strict=True):
        found: Any = output if isinstance(output, dict) else _NOTHING
        yield Pairing(found, truth, _pairs(found, truth))


def _pairs(found: Any, truth: Any) -> list[tuple[int, int]]:
    """Pairs of one group, those that overlap most first, each box at most once."""
    overlap = _overlap(found["boxes"], truth["boxes"])
    same = np.array(found["groups"], object)[:, None] == np.array(truth["groups"], object)[None, :]
    overlap = np.where(same, overlap, 0.0) if overlap.size else overlap
    pairs: list[tuple[int, int]] = []
    while overlap.size and overlap.max() >= MIN_IOU:
        mine, true = np.unravel_index(overlap.argmax(), overlap.shape)
        pairs.append((int(mine), int(true)))
        overlap[mine, :] = overlap[:, true] = 0
    return pairs


def _overlap(one: object, other: object) -> NDArray[np.floating]:
    boxes = (np.asarray(value, np.float64).reshape(-1, 4) for value in (one, other))
    return iou(*boxes)
