"""Three operators: prepare a picture for the link, run the model, decide."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from . import settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from compass_shared.values import KnobValue, Model, Value

    Inputs = Mapping[str, Value]
    Knobs = Mapping[str, KnobValue]


def prepare(inputs: Inputs, knobs: Knobs, model: Model | None) -> NDArray[np.uint8]:  # noqa: ARG001
    """Bring the picture to ``scale`` times what the model takes; the knob ``codec`` then writes it down.

    Raises:
        ValueError: If the request is not an encoded picture.
    """
    request = inputs["request"]
    if not isinstance(request, bytes):
        raise ValueError("a request is an encoded picture, as bytes")  # noqa: TRY004
    try:
        picture = ImageOps.exif_transpose(Image.open(io.BytesIO(request)))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"the request is not a picture that can be opened: {error}") from error
    scale = float(knobs["scale"])
    size = max(1, round(settings.WIDTH * scale)), max(1, round(settings.HEIGHT * scale))
    mode = "L" if settings.CHANNELS == 1 else "RGB"
    return np.asarray(picture.convert(mode).resize(size, Image.Resampling.BILINEAR))


def predict(inputs: Inputs, knobs: Knobs, model: Model | None) -> Value:  # noqa: ARG001
    """Run the model on the picture."""
    assert model is not None, "pipeline.toml names one"
    return run(np.asarray(inputs["prepare"], np.uint8), model)


def run(picture: NDArray[np.uint8], model: Model) -> NDArray[np.floating]:
    """What the model makes of ``(height, width, 3)`` or ``(height, width)`` pixels."""
    resized = Image.fromarray(picture).resize((settings.WIDTH, settings.HEIGHT), Image.Resampling.BILINEAR)
    pixels = np.asarray(resized).reshape(settings.HEIGHT, settings.WIDTH, settings.CHANNELS)
    if settings.BLUE_FIRST:
        pixels = pixels[:, :, ::-1]
    if not settings.WHOLE_NUMBERS:
        mean, std = np.array(settings.MEAN, np.float32), np.array(settings.STD, np.float32)
        pixels = (pixels.astype(np.float32) / 255 - mean) / std
    if settings.CHANNELS_FIRST:
        pixels = pixels.transpose(2, 0, 1)
    feed = pixels[None] if settings.BATCHED else pixels
    outputs = model.run({model.input_names[0]: np.ascontiguousarray(feed)})
    made = np.asarray(outputs[settings.OUTPUT], np.float32)
    return made[0] if settings.BATCHED else made


def decide(inputs: Inputs, knobs: Knobs, model: Model | None) -> Value:  # noqa: ARG001
    """The likeliest class; an output that is no list of classes is passed on."""
    scores = np.asarray(inputs["predict"])
    scores = scores.reshape(-1) if scores.size == max(scores.shape, default=0) else scores
    if scores.ndim != 1:
        return scores
    best = int(scores.argmax())
    return settings.LABELS[best] if settings.LABELS else str(best)
