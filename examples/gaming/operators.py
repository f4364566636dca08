"""The operators of the two branches: hand (palm, hand, gesture) and body (pose-detect, pose), joined by game.

Detectors are slow and need not look at every frame: with a ``stride`` of n they look at every n-th and make
None of the others, in which the landmark operators follow what they found in the frame before. That is the
state that they keep; after a move to another site they pick things up at the next detection.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import gestures
from .detection import PALM, POSE, Detection, Detector, detections
from .regions import (
    BODY_CENTRE,
    BODY_TOP,
    alike,
    body_region,
    cut,
    fitted,
    hand_region,
    palm_region,
    placed,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from compass_shared.values import KnobValue, Model, State, Value

    Inputs: TypeAlias = Mapping[str, Value]
    Knobs: TypeAlias = Mapping[str, KnobValue]

Floats: TypeAlias = NDArray[np.float32]
Frame: TypeAlias = NDArray[np.uint8]

MOST_HANDS = 2
HAND_SIDE, BODY_SIDE = 224, 256
"""Of what the landmark networks take, in pixels."""
PRESENT = 0.5
"""Least score at which a landmark network is believed that there is what it was given."""
BODY_LANDMARKS = 33
BODY_NUMBERS = 5
"""Of each landmark: x, y, z, and how sure it is that it can be seen and that it is there."""
POSE_LEAD = 1
"""Frames by which the pose detector is ahead of the palm detector: no frame but the first needs both."""
HELD = 2
"""Frames that a gesture has to last before it counts."""
ACTIONS = {"fist": "grab", "point": "aim", "open": "stop", "victory": "cast", "thumb": "accept"}


def prepare(inputs: Inputs, knobs: Knobs, model: Model | None) -> Frame:  # noqa: ARG001
    """Decode a frame and bring its longer side to ``side`` pixels; the codec then writes it down.

    Args:
        inputs: ``request``: an encoded image, or ``(height, width, 3) uint8``.
        knobs: ``side``.
        model: None.

    Raises:
        ValueError: If the request is not a picture.
    """
    side = int(knobs["side"])
    request = inputs["request"]
    image = _opened(request, side) if isinstance(request, bytes) else Image.fromarray(_frame(request))
    scale = side / max(image.size)
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(image.convert("RGB"))


def palm(inputs: Inputs, knobs: Knobs, model: Model | None, state: State) -> Floats | None:
    """Find palms in every ``stride``-th frame.

    Returns:
        ``(hands, 4) float32``: regions of at most two hands; None on frames that it does not look at.
    """
    if not due(state, int(knobs["stride"])):
        return None
    found = _found(_frame(inputs["prepare"]), PALM, model, low=0.0, most=MOST_HANDS)
    return _stacked([palm_region(hand) for hand in found])


def hand(inputs: Inputs, knobs: Knobs, model: Model | None, state: State) -> list[Floats]:  # noqa: ARG001
    """Landmarks of each hand, in regions that were detected or follow from the landmarks of the frame before.

    A fresh detection finds hands that are new; where a hand was being followed, its landmarks say better than
    its palm where it is.

    Returns:
        ``(21, 3) float32`` for each hand: x, y and depth, as shares of the frame's longer side.
    """
    frame = _frame(inputs["prepare"])
    regions: list[Floats] = list(state.get("regions", []))
    for fresh in _regions(inputs["palm"]):
        if len(regions) < MOST_HANDS and not any(alike(fresh, known) for known in regions):
            regions.append(fresh)
    hands: list[Floats] = []
    state["regions"] = []
    for of in regions:
        landmarks, score = _landmarks(frame, of, HAND_SIDE, model, numbers=3)
        following = hand_region(landmarks)
        if score >= PRESENT and not any(alike(following, known) for known in state["regions"]):
            hands.append(landmarks / np.float32(max(frame.shape)))
            state["regions"].append(following)
    return hands


def gesture(inputs: Inputs, knobs: Knobs, model: Model | None) -> list[str]:  # noqa: ARG001
    """Name what each hand shows."""
    return [gestures.gesture(np.asarray(landmarks, np.float32)) for landmarks in _list(inputs["hand"])]


def pose_detect(inputs: Inputs, knobs: Knobs, model: Model | None, state: State) -> Floats | None:
    """Find the person in every ``stride``-th frame.

    Returns:
        ``(bodies, 4) float32``: the region of the surest person, if any; None on frames that it does not
        look at.
    """
    if not due(state, int(knobs["stride"]), lead=POSE_LEAD):
        return None
    found = _found(_frame(inputs["prepare"]), POSE, model, low=-1.0, most=1)
    return _stacked([body_region(body.points[0], body.points[1]) for body in found])


def pose(inputs: Inputs, knobs: Knobs, model: Model | None, state: State) -> Floats | None:  # noqa: ARG001
    """Landmarks of the body, in the region that follows from the frame before, else in the detected one.

    Returns:
        ``(33, 3) float32``: x and y as shares of the frame's longer side, and how likely each can be seen;
        None if there is nobody.
    """
    frame = _frame(inputs["prepare"])
    known: Floats | None = state.pop("region", None)
    for of in ([] if known is None else [known]) + _regions(inputs["pose-detect"]):
        landmarks, score = _landmarks(frame, of, BODY_SIDE, model, numbers=BODY_NUMBERS)
        if score >= PRESENT:
            state["region"] = body_region(landmarks[BODY_CENTRE], landmarks[BODY_TOP])
            seen = 1 / (1 + np.exp(-landmarks[:BODY_LANDMARKS, 3:4]))
            return np.hstack([landmarks[:BODY_LANDMARKS, :2] / np.float32(max(frame.shape)), seen])
    return None


def game(inputs: Inputs, knobs: Knobs, model: Model | None, state: State) -> dict[str, Value]:  # noqa: ARG001
    """Join both branches to what the game acts on.

    Returns:
        ``hands``, ``gestures`` (one a hand), ``pose``, and ``action``: what the first hand's gesture
        triggers, in the frame in which it has lasted long enough, else an empty text.
    """
    named = [str(name) for name in _list(inputs["gesture"])]
    shown = named[0] if named else gestures.OTHER
    state["lasted"] = state["lasted"] + 1 if state.get("shown") == shown else 1
    state["shown"] = shown
    action = ACTIONS.get(shown, "") if state["lasted"] == HELD else ""
    return {"hands": inputs["hand"], "gestures": named, "pose": inputs["pose"], "action": action}


def due(state: State, stride: int, *, lead: int = 0) -> bool:
    """Whether a detector looks at this frame: at a stream's first, and then at every ``stride``-th.

    Args:
        state: Of the detector; frames that it never saw (``gap``) count as well.
        stride: Frames from one look to the next.
        lead: Frames by which the second look comes early.
    """
    waited = state.get("waited")
    waited = stride if waited is None else waited + max(0, 1 + state.gap)
    state["waited"] = waited if waited < stride else 0 if "looked" in state else min(lead, stride - 1)
    state["looked"] = True
    return waited >= stride


def _opened(encoded: bytes, side: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(encoded))
        # A JPEG that is to be made smaller is decoded at a fraction of its size.
        image.draft("RGB", (side, side))
        image.load()
    except (OSError, SyntaxError, EOFError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"the request is not an image that can be opened: {error}") from error
    return image


def _found(
    frame: Frame, detector: Detector, model: Model | None, *, low: float, most: int
) -> list[Detection]:
    """Run a detector; boxes and points in pixels of the frame.

    Args:
        frame: The prepared frame.
        detector: The network beside its weights.
        model: Its weights.
        low: What black is to the network; white is 1.
        most: Things wanted.
    """
    square, scale, corner = fitted(frame, detector.side)
    # By size, not by name: of the two outputs one has a number for each anchor, the other several.
    logits, offsets = sorted(_run(model, square, low), key=np.size)
    found = detections(offsets[0], logits[0, :, 0], detector, most=most)
    return [
        Detection(
            score=each.score,
            box=np.concatenate([(each.box[:2] * detector.side - corner), each.box[2:] * detector.side])
            / np.float32(scale),
            points=(each.points * detector.side - corner) / np.float32(scale),
        )
        for each in found
    ]


def _landmarks(
    frame: Frame, of: Floats, side: int, model: Model | None, *, numbers: int
) -> tuple[Floats, float]:
    """Run a landmark network on a region.

    Returns:
        ``(landmarks, numbers)`` with x, y and, of three numbers, depth in pixels of the frame; and its score.
    """
    outputs = _run(model, cut(frame, of, side), 0.0)
    raw = outputs[0].reshape(-1, numbers)
    score = float(outputs[1].reshape(-1)[0])
    back = placed(raw[:, :3], of, side)
    return np.hstack([back, raw[:, 3:]]), score


def _run(model: Model | None, square: Frame, low: float) -> list[Floats]:
    if model is None:
        raise ValueError("this operator needs a model; check its entry in pipeline.toml")
    pixels = square[None] * np.float32((1 - low) / 255) + np.float32(low)
    outputs = model.run({model.input_names[0]: pixels})
    return [np.asarray(outputs[name], np.float32) for name in sorted(outputs)]


def _frame(value: Value) -> Frame:
    frame = np.asarray(value)
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(f"a frame is (height, width, 3) uint8, got {frame.dtype} of {frame.shape}")
    return frame


def _regions(value: Value) -> list[Floats]:
    return [] if value is None else list(np.asarray(value, np.float32).reshape(-1, 4))


def _list(value: Value) -> list[Value]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"expected one value a hand, got {type(value).__name__}")  # noqa: TRY004
    return list(value)


def _stacked(regions: list[Floats]) -> Floats:
    return np.stack(regions) if regions else np.zeros((0, 4), np.float32)
