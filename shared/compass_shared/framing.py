"""Values to bytes and back, for the data plane: MessagePack with one extension for arrays.

An array travels as extension type 1 whose payload is MessagePack ``[dtype, shape]`` followed by the raw
little-endian bytes in C order. Decoding an array copies nothing: it is a read-only view of the payload.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, cast

import msgpack
import numpy as np

from compass_shared.errors import MessageError

if TYPE_CHECKING:
    from compass_shared.values import Array, Value

MAX_FRAME_BYTES = 32 * 1024 * 1024
"""Largest body on the data plane, requests and responses alike."""

_ARRAY = 1
_MAX_DIMENSIONS = 8
_DTYPES = frozenset(
    "|b1 |u1 |i1 <u2 <i2 <u4 <i4 <u8 <i8 <f2 <f4 <f8".split()  # noqa: SIM905  # reads as the table it is
)


def encode_value(value: Value) -> bytes:
    """Encode one value.

    Raises:
        MessageError: If it holds something that is not a value, or is larger than ``MAX_FRAME_BYTES``.
    """
    try:
        payload: bytes = msgpack.packb(value, default=_encode_other)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise MessageError(f"cannot be framed: {error}") from error
    if len(payload) > MAX_FRAME_BYTES:
        raise MessageError(f"a value of {len(payload)} bytes is larger than {MAX_FRAME_BYTES}")
    return payload


def decode_value(payload: bytes) -> Value:
    """Decode one value.

    Args:
        payload: Bytes from the wire; anything at all.

    Raises:
        MessageError: If they are too long or do not frame a value.
    """
    if len(payload) > MAX_FRAME_BYTES:
        raise MessageError(f"{len(payload)} bytes are more than {MAX_FRAME_BYTES}")
    try:
        return cast(
            "Value",
            msgpack.unpackb(
                payload,
                raw=False,
                ext_hook=_decode_extension,
                object_hook=_checked_map,
                timestamp=1,  # MessagePack's own extension, which bypasses the hook: a float is a value
            ),
        )
    except (
        ValueError,
        TypeError,
        RecursionError,
        OverflowError,
        msgpack.exceptions.UnpackException,
    ) as error:
        raise MessageError(f"not a framed value: {type(error).__name__}: {error}") from error


def framed_size(value: Value) -> int:
    """Bytes that a value takes on the data plane."""
    return len(encode_value(value))


def _encode_other(value: object) -> object:
    if isinstance(value, np.ndarray):
        return _encode_array(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple):
        return list(value)
    raise TypeError(f"{type(value).__name__} is not a value")


def _encode_array(array: Array) -> msgpack.ExtType:
    if sys.byteorder == "big" or array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    if array.dtype.str not in _DTYPES:
        raise TypeError(f"arrays of {array.dtype} are not values")
    if array.ndim > _MAX_DIMENSIONS:
        raise TypeError(f"arrays of {array.ndim} dimensions are not values, {_MAX_DIMENSIONS} is the most")
    head: bytes = msgpack.packb([array.dtype.str, list(array.shape)])
    return msgpack.ExtType(_ARRAY, head + np.ascontiguousarray(array).tobytes())


def _checked_map(items: dict[object, object]) -> dict[object, object]:
    if not all(isinstance(key, str) for key in items):
        raise ValueError("the keys of a map are text")
    return items


def _decode_extension(code: int, data: bytes) -> Array:
    if code != _ARRAY:
        raise ValueError(f"unknown extension type {code}")
    unpacker = msgpack.Unpacker(max_buffer_size=len(data))
    unpacker.feed(data)
    dtype, shape = _checked_head(unpacker.unpack())
    start = unpacker.tell()
    count = math.prod(shape)
    if len(data) - start != count * dtype.itemsize:
        raise ValueError(f"array of shape {shape} and {dtype} has {len(data) - start} bytes")
    return np.frombuffer(data, dtype, count, start).reshape(shape)


def _checked_head(head: object) -> tuple[np.dtype[np.generic], tuple[int, ...]]:
    match head:
        case [str(name), [*shape]] if name in _DTYPES and len(shape) <= _MAX_DIMENSIONS:
            sides = tuple(side for side in shape if type(side) is int and side >= 0)
            if len(sides) == len(shape):
                return np.dtype(name), sides
    raise ValueError("an array's head is [dtype, shape]")
