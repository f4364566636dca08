"""Clips: inputs that are several requests of one stream, and what operators make of each of them.

A clip is kept as the frames of its requests, one after the other; where a request was lost (an operator
failed) there is none. So a clip may be larger than any single frame, and the size of each request is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias, cast

import msgpack

from compass_shared.errors import MessageError
from compass_shared.framing import decode_value, encode_value
from compass_shared.pipeline import Pipeline
from compass_shared.values import Example, Value

Frame: TypeAlias = "bytes | None"
"""An encoded value; None where the request was lost."""


class Lost:
    """What stands in a clip for a request that was lost."""


LOST: Final = Lost()

Request: TypeAlias = "Value | Lost"


def is_sequence(pipeline: Pipeline) -> bool:
    """Whether the pipeline's inputs are clips."""
    return pipeline.inputs is not None and pipeline.inputs.sequences


def requests_of(pipeline: Pipeline, example: Example) -> Sequence[Value]:
    """The values of an input's requests: of a clip several, else the input's own."""
    return cast("Sequence[Value]", example.value) if is_sequence(pipeline) else (example.value,)


def pack_frames(frames: Sequence[Frame]) -> bytes:
    """A clip's frames as one payload."""
    packed: bytes = msgpack.packb(list(frames))
    return packed


def unpack_frames(payload: bytes) -> list[Frame]:
    """The frames of a payload.

    Raises:
        MessageError: If it is none.
    """
    try:
        found = msgpack.unpackb(payload)
    except (ValueError, msgpack.exceptions.UnpackException) as error:
        raise MessageError(f"not a clip: {error}") from error
    if not isinstance(found, list) or not all(frame is None or isinstance(frame, bytes) for frame in found):
        raise MessageError("not a clip: a list of frames is expected")
    return found


def encode_clip(values: Sequence[Value]) -> bytes:
    """A clip of values as one payload.

    Raises:
        MessageError: If one of them cannot be framed.
    """
    return pack_frames([encode_value(value) for value in values])


def decode_clip(payload: bytes) -> list[Request]:
    """What is in a clip, ``LOST`` where there is nothing.

    Raises:
        MessageError: If it is not a clip.
    """
    return [LOST if frame is None else decode_value(frame) for frame in unpack_frames(payload)]
