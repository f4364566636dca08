"""Control messages to bytes and back: MessagePack, validated, with limits before anything is decoded."""

from __future__ import annotations

import msgpack
import msgspec

from compass_shared import messages
from compass_shared.errors import MessageError
from compass_shared.framing import check_bounds
from compass_shared.topics import Kind

MAX_MESSAGE_BYTES = 128 * 1024
"""Largest control message; the payload cap of one large cloud broker."""

_MAX_ITEMS = 20_000
_MAX_STRING_BYTES = 64 * 1024

_TYPES: dict[Kind, type[messages.Message]] = {
    Kind.STATUS: messages.StatusMessage,
    Kind.HELLO: messages.HelloMessage,
    Kind.TELEMETRY: messages.TelemetryMessage,
    Kind.PROFILE: messages.ProfileMessage,
    Kind.PROBE: messages.ProbeMessage,
    Kind.SERVED: messages.ServedMessage,
    Kind.ACK: messages.AckMessage,
    Kind.QUERY: messages.QueryMessage,
    Kind.ASSIGNMENT: messages.AssignmentMessage,
    Kind.SHARE: messages.ShareMessage,
    Kind.PIPELINE: messages.PipelineMessage,
    Kind.COORDINATOR: messages.CoordinatorMessage,
}


def encode(message: messages.Message) -> bytes:
    """Encode one message.

    Raises:
        MessageError: If it cannot be encoded, or is larger than ``MAX_MESSAGE_BYTES``.
    """
    body = msgspec.to_builtins(message)
    try:
        payload: bytes = msgpack.packb({"schema": messages.SCHEMA, **body})
    except (ValueError, TypeError, OverflowError) as error:  # half a surrogate pair, an integer over 64 bits
        raise MessageError(f"{type(message).__name__} cannot be encoded: {error}") from error
    if len(payload) > MAX_MESSAGE_BYTES:
        raise MessageError(
            f"{type(message).__name__} takes {len(payload)} bytes, more than {MAX_MESSAGE_BYTES}"
        )
    return payload


def decode(kind: Kind, payload: bytes) -> messages.Message:
    """Decode and validate one message.

    Args:
        kind: What the topic says it is.
        payload: Bytes from the wire; anything at all.

    Returns:
        A message of the kind's own type.

    Raises:
        MessageError: If the payload is too long, not MessagePack, of a newer schema, or of another shape.
    """
    body = _unpack(payload)
    schema = body.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise MessageError(f"{kind.value}: the message carries no schema number")
    if schema > messages.SCHEMA:
        raise MessageError(f"{kind.value}: schema {schema} is newer than {messages.SCHEMA}, update Compass")
    try:
        return msgspec.convert(body, _TYPES[kind])
    except (msgspec.ValidationError, RecursionError) as error:
        raise MessageError(f"{kind.value}: {error}") from error


def _unpack(payload: bytes) -> dict[str, object]:
    if len(payload) > MAX_MESSAGE_BYTES:
        raise MessageError(f"{len(payload)} bytes are more than {MAX_MESSAGE_BYTES}")
    try:
        check_bounds(payload)
        body = msgpack.unpackb(
            payload,
            raw=False,
            strict_map_key=True,
            max_str_len=_MAX_STRING_BYTES,
            max_bin_len=_MAX_STRING_BYTES,
            max_array_len=_MAX_ITEMS,
            max_map_len=_MAX_ITEMS,
            max_ext_len=0,
        )
    # msgpack documents ValueError for bad data; a few inputs surface as TypeError or a subclass of Exception.
    except (
        ValueError,
        TypeError,
        RecursionError,
        OverflowError,
        msgpack.exceptions.UnpackException,
    ) as error:
        raise MessageError(f"not MessagePack: {type(error).__name__}: {error}") from error
    if not isinstance(body, dict) or not all(isinstance(key, str) for key in body):
        raise MessageError(f"expected a map with text keys, got {type(body).__name__}")
    return body
