"""What a model's signature says about how to feed it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from compass_agent.runtimes.base import Tensor
from compass_shared.errors import ConfigError

DEFAULT_SIDE = 224
"""Of pictures, where the model takes any size."""

_PICTURE_DIMENSIONS = 4
_CHANNELS = (1, 3)
_PICTURE_TYPES = ("float32", "uint8")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """How to feed a model."""

    batched: bool
    """Whether its first dimension is that of a batch: free, or 1."""
    whole_numbers: bool
    """Whether it takes uint8."""
    picture: bool
    """Whether its input looks like a picture's."""
    channels: int = 3
    channels_first: bool = True
    width: int = DEFAULT_SIDE
    height: int = DEFAULT_SIDE
    rank: int = 4
    """Dimensions of its input."""
    dtype: str = "float32"
    output: str = ""
    """Name of the output that is taken: the first that is a list of scores, else the first."""
    classes: int | None = None
    """Numbers in that output, where it is one list an input."""


def shape_of(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> ModelShape:
    """Read a model's signature.

    Args:
        inputs: Its inputs; there has to be one.
        outputs: Its outputs; the first is taken.

    Raises:
        ConfigError: If it has several inputs: what feeds them only its author knows.
    """
    if len(inputs) != 1:
        named = ", ".join(tensor.name for tensor in inputs) or "none"
        raise ConfigError(
            f"the model has {len(inputs)} inputs ({named}); compass new starts bundles for models with one. "
            "docs/bundles.md shows how to write the operators of others",
            field="--model",
        )
    tensor = inputs[0]
    batched = bool(tensor.shape) and tensor.shape[0] in {None, 1}
    output = next((one for one in outputs if _scores(one, batched=batched)), outputs[0])
    known = ModelShape(
        batched=batched,
        whole_numbers=tensor.dtype == "uint8",
        picture=False,
        rank=len(tensor.shape),
        dtype=tensor.dtype,
        output=output.name,
        classes=_scores(output, batched=batched),
    )
    if len(tensor.shape) != _PICTURE_DIMENSIONS or not batched or tensor.dtype not in _PICTURE_TYPES:
        return known
    _, second, third, fourth = tensor.shape
    if second in _CHANNELS and fourth not in _CHANNELS:
        channels, height, width, first = second, third, fourth, True
    elif fourth in _CHANNELS:
        channels, height, width, first = fourth, second, third, False
    else:
        return known
    assert channels is not None, "one of _CHANNELS"
    return replace(
        known,
        picture=True,
        channels=channels,
        channels_first=first,
        width=width or DEFAULT_SIDE,
        height=height or DEFAULT_SIDE,
    )


def _scores(output: Tensor, *, batched: bool) -> int | None:
    """How many scores an output has for an input; None if it is no list of numbers."""
    if not output.dtype.startswith("float"):
        return None
    rest = output.shape[1:] if batched else output.shape
    # Some networks end in a map of one pixel.
    return rest[0] if rest and all(side == 1 for side in rest[1:]) else None
