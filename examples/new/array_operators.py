"""Three operators: prepare an array for the link, run the model, decide."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from . import settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from compass_shared.values import KnobValue, Model, Value

    Inputs = Mapping[str, Value]
    Knobs = Mapping[str, KnobValue]


def prepare(inputs: Inputs, knobs: Knobs, model: Model | None) -> NDArray[np.generic]:  # noqa: ARG001
    """Read the array; the knob ``codec`` then writes it down.

    Raises:
        ValueError: If the request is not the bytes of a .npy file.
    """
    request = inputs["request"]
    if not isinstance(request, bytes):
        raise ValueError("a request is the content of a .npy file, as bytes")  # noqa: TRY004
    array: NDArray[np.generic] = np.load(io.BytesIO(request), allow_pickle=False)
    return array


def predict(inputs: Inputs, knobs: Knobs, model: Model | None) -> Value:  # noqa: ARG001
    """Run the model on the array."""
    assert model is not None, "pipeline.toml names one"
    return run(np.asarray(inputs["prepare"]), model)


def run(array: NDArray[np.generic], model: Model) -> NDArray[np.generic]:
    """What the model makes of an array, with or without a dimension for the batch."""
    feed = array.astype(settings.DTYPE, copy=False)
    if settings.BATCHED and feed.ndim < settings.RANK:
        feed = feed[None]
    made = np.asarray(model.run({model.input_names[0]: np.ascontiguousarray(feed)})[settings.OUTPUT])
    return made[0] if settings.BATCHED else made


def decide(inputs: Inputs, knobs: Knobs, model: Model | None) -> Value:  # noqa: ARG001
    """The likeliest class; an output that is no list of classes is passed on."""
    scores = np.asarray(inputs["predict"])
    scores = scores.reshape(-1) if scores.size == max(scores.shape, default=0) else scores
    if scores.ndim != 1:
        return scores
    best = int(scores.argmax())
    return settings.LABELS[best] if settings.LABELS else str(best)
