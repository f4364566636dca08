"""The eight operators: prepare, faces, blur, detect, track, crop, classify, risk.

``prepare``, ``faces`` and ``blur`` see the camera's frame; everything after them sees faces only as a few
squares. Groups of what is looked for are numbered as in ``GROUPS``; boxes are in sides of the frame.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .detector import Boxes, decode, merged
from .faces import blurred, find_faces
from .kinds import evidence
from .tracking import LOOKS, Tracker
from .watch import Watch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from compass_shared.values import KnobValue, Model, State, Value

    Inputs = Mapping[str, Any]
    Knobs = Mapping[str, KnobValue]
    Frame = NDArray[np.uint8]

GROUPS = ("vehicle", "person", "animal")
GROUP_OF_LABEL = {
    "Bicycle": 0,
    "Vehicle": 0,
    "Car": 0,
    "Person": 1,
    "Dog": 2,
    "Cat": 2,
    "Cattle": 2,
}
DETECTOR_SIDE = 300
THRESHOLD = 0.3
TILES = {
    "whole": ((0.0, 0.0, 1.0, 1.0),),
    "2x2": (
        (0.0, 0.0, 0.58, 0.58),
        (0.42, 0.0, 1.0, 0.58),
        (0.0, 0.42, 0.58, 1.0),
        (0.42, 0.42, 1.0, 1.0),
    ),
}
FACE_SIDES = {"face-short": 128, "face-full": 192}
GREY_WIDTH = 320
CROP_SIDE = 260
CROP_MARGIN = 0.1
CLASSIFIER_SIDES = {"lite0": 224, "lite1": 240, "lite2": 260}


def prepare(inputs: Inputs, knobs: Knobs, model: Model | None) -> Frame:  # noqa: ARG001
    """Unpack the frame and make it ``width`` wide.

    Returns:
        ``(height, width, 3) uint8`` RGB.

    Raises:
        ValueError: If the request is no picture.
    """
    image = opened(inputs["request"])
    width = int(knobs["width"])
    if image.width != width:
        size = (width, max(1, round(image.height * width / image.width)))
        image = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(image)


def faces(inputs: Inputs, knobs: Knobs, model: Model | None) -> NDArray[np.float32]:
    """Find faces; see ``find_faces``."""
    return find_faces(opened(inputs["request"]), _present(model), FACE_SIDES[str(knobs["model"])])


def blur(inputs: Inputs, knobs: Knobs, model: Model | None) -> Frame:  # noqa: ARG001
    """The frame without faces; its codec is a knob."""
    return blurred(_frame(inputs["prepare"]), np.asarray(inputs["faces"], np.float64))


def detect(inputs: Inputs, knobs: Knobs, model: Model | None, state: State) -> Value:
    """Find vehicles, people and animals in every ``stride``-th frame.

    Returns:
        ``boxes``, ``scores`` and ``groups``; None for a frame that is not looked at.
    """
    due = state.get("due", 0) - max(0, state.gap)
    stride = int(knobs["stride"])
    state["due"] = due - 1 if due > 0 else stride - 1
    if due > 0:
        return None
    model = _present(model)
    image = Image.fromarray(_frame(inputs["blur"]))
    groups = _groups(model.assets["labels"])
    parts = []
    for tile in TILES[str(knobs["tiles"])]:
        left, top, right, bottom = tile
        box = (left * image.width, top * image.height, right * image.width, bottom * image.height)
        size = (DETECTOR_SIDE, DETECTOR_SIDE)
        pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR, box=box), np.float32)
        outputs = model.run({model.input_names[0]: pixels[None] / np.float32(127.5) - np.float32(1)}).values()
        code, scores = sorted((np.asarray(one)[0] for one in outputs), key=lambda one: one.shape[-1])
        parts.append((decode(code, scores, groups, THRESHOLD), tile))
    found = merged(parts)
    return {"boxes": found.box, "scores": found.score, "groups": found.group.astype(np.int32)}


def track(inputs: Inputs, knobs: Knobs, model: Model | None, state: State) -> Value:  # noqa: ARG001
    """Carry boxes from frame to frame.

    Returns:
        ``boxes``, ``scores``, ``groups`` and ``tracks`` (numbers that stay with a thing), and ``look``: which
        of them should be classified now.
    """
    tracker = state.setdefault("tracker", Tracker())
    found = inputs["detect"]
    detected = None
    if found is not None:
        boxes = np.asarray(found["boxes"], np.float32).reshape(-1, 4)
        scores, groups = np.asarray(found["scores"], np.float32), np.asarray(found["groups"], np.intp)
        detected = Boxes(boxes, scores, groups)
    present = tracker.advance(_grey(_frame(inputs["blur"])), detected, 1 + max(0, state.gap))
    fresh = detected is not None
    return {
        "boxes": np.array([one.box for one in present], np.float32).reshape(-1, 4).clip(0, 1),
        "scores": [one.score for one in present],
        "groups": [GROUPS[one.group] for one in present],
        "tracks": [one.number for one in present],
        "look": [fresh and one.looks <= LOOKS and GROUPS[one.group] != "person" for one in present],
    }


def crop(inputs: Inputs, knobs: Knobs, model: Model | None) -> list[Value]:  # noqa: ARG001
    """Cut out what is to be classified: a square around each box, with a margin.

    Returns:
        For each: ``track``, ``group`` and ``image``, ``(260, 260, 3) uint8``.
    """
    tracks = inputs["track"]
    image = Image.fromarray(_frame(inputs["blur"]))
    boxes = np.asarray(tracks["boxes"], np.float64) * np.tile(image.size, 2)
    return [
        {"track": number, "group": group, "image": _square(image, box)}
        for box, number, group, look in zip(
            boxes, tracks["tracks"], tracks["groups"], tracks["look"], strict=True
        )
        if look
    ]


def classify(inputs: Inputs, knobs: Knobs, model: Model | None) -> list[Value]:
    """Say of each crop which kind of its group it is.

    Returns:
        For each crop: ``track``, ``kind`` and ``support``, the probability that it is of its group at all.
    """
    model = _present(model)
    side = CLASSIFIER_SIDES[str(knobs["model"])]
    crops = inputs["crop"]
    batch = np.stack([_resized(one["image"], side) for one in crops])
    # 127 and 128 are what the networks were trained with.
    pixels = (batch.transpose(0, 3, 1, 2) - np.float32(127)) / np.float32(128)
    (probabilities,) = model.run({model.input_names[0]: np.ascontiguousarray(pixels)}).values()
    answers: list[Value] = []
    for one, row in zip(crops, probabilities, strict=True):
        kind, support = evidence(np.asarray(row), one["group"])
        answers.append({"track": one["track"], "kind": kind, "support": support})
    return answers


def risk(inputs: Inputs, knobs: Knobs, model: Model | None, state: State) -> Value:  # noqa: ARG001
    """Put it all together and warn; see ``Watch``.

    Returns:
        ``boxes`` with their ``groups``, ``kinds``, ``risks`` and ``tracks``, and the blurred ``faces``.
    """
    watch = state.setdefault("watch", Watch())
    seen = watch.advance(inputs["track"], inputs["classify"] or (), 1 + max(0, state.gap))
    return {**seen, "faces": np.asarray(inputs["faces"], np.float32).reshape(-1, 4)}


def opened(value: Value) -> Image.Image:
    """The request as a picture.

    Raises:
        ValueError: If it is none.
    """
    if isinstance(value, np.ndarray):
        return Image.fromarray(_frame(value))
    if not isinstance(value, bytes):
        raise ValueError(f"expected a frame as JPEG or array, got {type(value).__name__}")  # noqa: TRY004
    try:
        return Image.open(io.BytesIO(value)).convert("RGB")
    except (OSError, SyntaxError, EOFError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"the request is not a picture that can be opened: {error}") from error


@lru_cache(maxsize=2)
def _groups(path: Path) -> NDArray[np.intp]:
    """Group of each of the detector's classes; -1 for those of no interest."""
    labels = path.read_text(encoding="utf-8").splitlines()
    return np.array([GROUP_OF_LABEL.get(label, -1) for label in labels], np.intp)


def _frame(value: Value) -> Frame:
    frame = np.asarray(value)
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        raise ValueError(f"expected a frame of (height, width, 3) uint8, got {frame.dtype} {frame.shape}")
    return frame


def _grey(frame: Frame) -> NDArray[np.float32]:
    image = Image.fromarray(frame).convert("L")
    height = max(2, round(image.height * GREY_WIDTH / image.width))
    return np.asarray(image.resize((GREY_WIDTH, height), Image.Resampling.BILINEAR), np.float32)


def _square(image: Image.Image, box: NDArray[np.float64]) -> Frame:
    middle = (box[:2] + box[2:]) / 2
    half = max(1.0, float((box[2:] - box[:2]).max()) * (0.5 + CROP_MARGIN))
    left, top = (middle - half).tolist()
    size = (CROP_SIDE, CROP_SIDE)
    scale = 2 * half / CROP_SIDE
    # Beyond the frame it is black.
    cut = image.transform(
        size, Image.Transform.AFFINE, (scale, 0, left, 0, scale, top), resample=Image.Resampling.BILINEAR
    )
    return np.asarray(cut)


def _resized(value: Value, side: int) -> NDArray[np.float32]:
    image = Image.fromarray(_frame(value))
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(image, np.float32)


def _present(model: Model | None) -> Model:
    if model is None:
        raise ValueError("this operator needs a model; check its entry in pipeline.toml")
    return model
