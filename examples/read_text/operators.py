"""The five operators: prepare, detect, crop, orientation, recognise.

``prepare`` makes the photograph small enough for an uplink; everything after it sees only what was sent.
The models are PP-OCR's (see pipeline.toml): a detector of the DB family, a classifier that tells upright
from upside-down lines, and CTC recognisers.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from .regions import text_boxes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from compass_shared.values import KnobValue, Model, Value

    Inputs = Mapping[str, Value]
    Knobs = Mapping[str, KnobValue]
    Line = NDArray[np.uint8]

LINE_HEIGHT = 48
MAX_LINE_WIDTH = 640
CLASSIFIER_WIDTH = 192
UPRIGHT_LOG_ODDS = 2.0
"""Prior that a page is upright, about 7 to 1; keeps lines too poor to judge from turning a page."""
STRIDE = 32
"""Sides that the detectors take are multiples of this, in pixels."""
LINE_STRIDE = 8
DETECTOR_MEAN = np.array([0.406, 0.456, 0.485], np.float32)
DETECTOR_STD = np.array([0.225, 0.224, 0.229], np.float32)
MAX_PADDING = 0.1
"""Share of a batch that may be padding before a new batch is cheaper."""


def prepare(inputs: Inputs, knobs: Knobs, model: Model | None) -> bytes:  # noqa: ARG001
    """Resize by ``scale`` and encode as JPEG of ``quality``.

    Raises:
        ValueError: If the request is not an encoded image.
    """
    image = _opened(inputs["request"])
    scale = float(knobs["scale"])
    if scale != 1.0:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BILINEAR)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=int(knobs["quality"]))
    return encoded.getvalue()


def detect(inputs: Inputs, knobs: Knobs, model: Model | None) -> NDArray[np.float32]:
    """Find the lines of text.

    Returns:
        ``(lines, 4, 2) float32``: corners in pixels of the prepared image, see ``text_boxes``.
    """
    image = _opened(inputs["prepare"])
    scale = float(knobs["side"]) / max(image.size)
    width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    padded = np.zeros((_ceil_to(height, STRIDE), _ceil_to(width, STRIDE), 3), np.float32)
    padded[:height, :width] = (resized[:, :, ::-1] / np.float32(255) - DETECTOR_MEAN) / DETECTOR_STD
    probability = _run(model, padded.transpose(2, 0, 1)[None])[0, 0, :height, :width]
    boxes = text_boxes(probability)
    return boxes * np.array([image.width / width, image.height / height], np.float32)


def crop(inputs: Inputs, knobs: Knobs, model: Model | None) -> list[Line]:  # noqa: ARG001
    """Cut every line out and straighten it.

    Returns:
        One ``(48, width, 3) uint8`` RGB array per line; the width follows from the line's shape.
    """
    image = _opened(inputs["prepare"])
    boxes = np.asarray(inputs["detect"], np.float64)
    return [_straightened(image, box) for box in boxes]


def orientation(inputs: Inputs, knobs: Knobs, model: Model | None) -> list[Line]:
    """Turn the lines of a page that was photographed upside down.

    A page has one orientation, so its lines vote: the log-odds that the classifier gives each, weighted by
    the line's width, since short words tell it little, against the prior that a page is upright. An
    upside-down page is read from its last line up.
    """
    lines = _lines(inputs["crop"])
    if not knobs["enabled"] or not lines:
        return lines
    batch = np.zeros((len(lines), 3, LINE_HEIGHT, CLASSIFIER_WIDTH), np.float32)
    for row, line in zip(batch, lines, strict=True):
        width = min(line.shape[1], CLASSIFIER_WIDTH)
        image = Image.fromarray(line).resize((width, LINE_HEIGHT), Image.Resampling.BILINEAR)
        row[:, :, :width] = _normalised(np.asarray(image))
    upright, turned = np.clip(_run(model, batch), 0.01, 0.99).T
    widths = np.array([line.shape[1] for line in lines])
    vote = np.log(turned / upright) @ widths / widths.mean()
    return [_turned(line) for line in reversed(lines)] if vote > UPRIGHT_LOG_ODDS else lines


def recognise(inputs: Inputs, knobs: Knobs, model: Model | None) -> str:  # noqa: ARG001
    """Read the lines.

    Returns:
        Their text in reading order, joined by newlines; lines without text are left out.
    """
    lines = _lines(inputs["orientation"])
    texts = [""] * len(lines)
    for indices in batches([line.shape[1] for line in lines]):
        width = _ceil_to(max(lines[index].shape[1] for index in indices), LINE_STRIDE)
        batch = np.zeros((len(indices), 3, LINE_HEIGHT, width), np.float32)
        for row, index in zip(batch, indices, strict=True):
            row[:, :, : lines[index].shape[1]] = _normalised(lines[index])
        scores = _run(model, batch)
        characters = _dictionary(_present(model).assets["dictionary"], scores.shape[2])
        for index, line_scores in zip(indices, scores, strict=True):
            texts[index] = ctc_text(line_scores, characters).strip()
    return "\n".join(text for text in texts if text)


def batches(widths: Sequence[int]) -> list[list[int]]:
    """Group lines of similar width, so that little of what a model computes is padding.

    Args:
        widths: Width of every line in pixels.

    Returns:
        Indices into ``widths``; every index once.
    """
    groups: list[list[int]] = []
    content = 0
    for index in sorted(range(len(widths)), key=lambda index: -widths[index]):
        if groups:
            area = widths[groups[-1][0]] * (len(groups[-1]) + 1)
            if area - content - widths[index] <= MAX_PADDING * area:
                groups[-1].append(index)
                content += widths[index]
                continue
        groups.append([index])
        content = widths[index]
    return groups


def ctc_text(scores: NDArray[np.floating], characters: Sequence[str]) -> str:
    """Best path of a CTC output: drop repeats, then blanks.

    Args:
        scores: ``(steps, classes)``; class 0 is the blank.
        characters: Text of every class.
    """
    best = scores.argmax(axis=1)
    fresh = np.ones(best.size, bool)
    fresh[1:] = best[1:] != best[:-1]
    return "".join(characters[index] for index in best[fresh & (best != 0)])


@lru_cache(maxsize=8)
def _dictionary(path: Path, classes: int) -> tuple[str, ...]:
    """Text of every class: blank, the dictionary's lines, space."""
    # Not splitlines(): some of the characters are themselves line separators to Python.
    lines = [line.rstrip("\r") for line in path.read_bytes().decode("utf-8").rstrip("\r\n").split("\n")]
    if len(lines) + 2 != classes:
        raise ValueError(f"{path.name} has {len(lines)} characters, the model {classes - 2}")
    return ("", *lines, " ")


def _opened(value: Value) -> Image.Image:
    if not isinstance(value, bytes):
        raise ValueError(f"expected an encoded image as bytes, got {type(value).__name__}")  # noqa: TRY004
    try:
        image = Image.open(io.BytesIO(value))
        # A phone stores how it was held beside the pixels.
        return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, EOFError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"the request is not an image that can be opened: {error}") from error


def _straightened(image: Image.Image, box: NDArray[np.float64]) -> Line:
    """Cut one box out in its own frame, then bring it to the height that the recognisers read."""
    top_left, top_right, _, bottom_left = box
    width = max(1.0, float(np.linalg.norm(top_right - top_left)))
    height = max(1.0, float(np.linalg.norm(bottom_left - top_left)))
    line_width = min(MAX_LINE_WIDTH, max(LINE_HEIGHT // 4, round(width * LINE_HEIGHT / height)))
    # Large text is cut out at a whole multiple of the final height first, or strokes would be skipped over.
    reduction = max(1, round(height / LINE_HEIGHT))
    size = (line_width * reduction, LINE_HEIGHT * reduction)
    (a, d), (b, e) = (top_right - top_left) / size[0], (bottom_left - top_left) / size[1]
    cut = image.transform(
        size,
        Image.Transform.AFFINE,
        (a, b, top_left[0], d, e, top_left[1]),
        resample=Image.Resampling.BICUBIC,
    )
    return np.asarray(cut.reduce(reduction) if reduction > 1 else cut)


def _turned(line: Line) -> Line:
    return np.ascontiguousarray(line[::-1, ::-1])


def _normalised(line: Line) -> NDArray[np.float32]:
    """``(height, width, 3) uint8`` RGB to ``(3, height, width) float32`` BGR in [-1, 1]."""
    channels: NDArray[np.float32] = line[:, :, ::-1].transpose(2, 0, 1) / np.float32(127.5)
    channels -= 1
    return channels


def _lines(value: Value) -> list[Line]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"expected a list of lines, got {type(value).__name__}")  # noqa: TRY004
    return [np.asarray(line, np.uint8) for line in value]


def _present(model: Model | None) -> Model:
    if model is None:
        raise ValueError("this operator needs a model; check its entry in pipeline.toml")
    return model


def _run(model: Model | None, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run a model of one input and one output."""
    model = _present(model)
    (output,) = model.run({model.input_names[0]: np.ascontiguousarray(batch)}).values()
    return np.asarray(output, np.float32)


def _ceil_to(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
