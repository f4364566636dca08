"""Values to bytes and back, for the data plane: MessagePack with one extension for arrays.

An array travels as extension type 1 whose payload is MessagePack ``[dtype, shape]`` followed by the raw
little-endian bytes in C order. Decoding an array copies nothing: it is a read-only view of the payload.

A frame is walked through before anything of it is built: a few bytes of MessagePack can ask for gigabytes
of lists. What may not be decoded is not encoded either.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, NamedTuple, cast

import msgpack
import numpy as np

from compass_shared.errors import MessageError

if TYPE_CHECKING:
    from compass_shared.values import Array, Value

MAX_FRAME_BYTES = 32 * 1024 * 1024
"""Largest body on the data plane, requests and responses alike."""
MAX_ITEMS = 100_000
"""Values in one frame, each key, number and piece of text counted; an array is one, whatever its size."""
MAX_DEPTH = 64
"""How deep lists and maps may lie in each other."""

_ARRAY = 1
_MAX_DIMENSIONS = 8
_MAX_HEAD_BYTES = 128
"""An array's head takes less: its dtype and eight sides."""
_DTYPES = frozenset(
    "|b1 |u1 |i1 <u2 <i2 <u4 <i4 <u8 <i8 <f2 <f4 <f8".split()  # noqa: SIM905  # reads as the table it is
)


def encode_value(value: Value) -> bytes:
    """Encode one value.

    Raises:
        MessageError: If it holds something that is not a value, or is larger than ``MAX_FRAME_BYTES``,
            ``MAX_ITEMS`` or ``MAX_DEPTH``.
    """
    try:
        payload: bytes = msgpack.packb(value, default=_encode_other)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise MessageError(f"cannot be framed: {error}") from error
    if len(payload) > MAX_FRAME_BYTES:
        raise MessageError(f"a value of {len(payload)} bytes is larger than {MAX_FRAME_BYTES}")
    try:
        check_bounds(payload)
    except ValueError as error:
        raise MessageError(f"cannot be framed: {error}") from error
    return payload


def decode_value(payload: bytes) -> Value:
    """Decode one value.

    Args:
        payload: Bytes from the wire; anything at all.

    Raises:
        MessageError: If they are too long, hold too much, or do not frame a value.
    """
    if len(payload) > MAX_FRAME_BYTES:
        raise MessageError(f"{len(payload)} bytes are more than {MAX_FRAME_BYTES}")
    try:
        check_bounds(payload)
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


class _Head(NamedTuple):
    """What the first byte of a MessagePack value tells of it."""

    size: int = 1
    """Bytes that it takes, those counted by its length field left out."""
    items: int = 0
    """Values that lie in it, where the first byte says so."""
    width: int = 0
    """Bytes of its length field."""
    times: int = 0
    """Values in it for each one of its length: 0 where that counts bytes, 1 in a list, 2 in a map."""


def _head_of(first: int) -> _Head:
    """One row of the specification's table of formats."""
    if 0x80 <= first <= 0x9F:
        return _Head(items=(first & 0x0F) * (2 if first < 0x90 else 1))
    if 0xA0 <= first <= 0xBF:
        return _Head(size=1 + (first & 0x1F))
    if first in _LENGTHS:
        width, times, extra = _LENGTHS[first]
        return _Head(size=1 + width + extra, width=width, times=times)
    return _Head(size=_SIZES.get(first, 1))


_LENGTHS = (
    {0xC4: (1, 0, 0), 0xC5: (2, 0, 0), 0xC6: (4, 0, 0)}  # bytes
    | {0xC7: (1, 0, 1), 0xC8: (2, 0, 1), 0xC9: (4, 0, 1)}  # extensions, with a byte for their type
    | {0xD9: (1, 0, 0), 0xDA: (2, 0, 0), 0xDB: (4, 0, 0)}  # text
    | {0xDC: (2, 1, 0), 0xDD: (4, 1, 0), 0xDE: (2, 2, 0), 0xDF: (4, 2, 0)}  # lists and maps
)
"""First byte -> width, times, extra bytes."""
_SIZES = (
    {0xCA: 5, 0xCB: 9, 0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9, 0xD0: 2, 0xD1: 3, 0xD2: 5, 0xD3: 9}  # numbers
    | {0xD4: 3, 0xD5: 4, 0xD6: 6, 0xD7: 10, 0xD8: 18}  # extensions of fixed size
)
_HEADS = [tuple(_head_of(first)) for first in range(256)]


def check_bounds(payload: bytes) -> None:
    """Walk over a frame without building anything of it.

    Raises:
        ValueError: If it holds too many values, or too deep. Whether it is MessagePack is not asked here.
    """
    at, left, end = 0, 1, len(payload)
    total, outer = 1, []
    while True:
        while left and at < end:
            left -= 1
            size, items, width, times = _HEADS[payload[at]]
            if width:
                length = int.from_bytes(payload[at + 1 : at + 1 + width], "big")
                items = times * length
                size += 0 if times else length
            at += size
            if items:
                total += items
                outer.append(left)
                left = items
                if total > MAX_ITEMS:
                    raise ValueError(f"more than {MAX_ITEMS} values in one frame; numbers belong in an array")
                if len(outer) > MAX_DEPTH:
                    raise ValueError(f"lists and maps lie more than {MAX_DEPTH} deep in each other")
        if not outer or at >= end:
            return
        left = outer.pop()


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
    unpacker = msgpack.Unpacker(max_buffer_size=_MAX_HEAD_BYTES, max_array_len=_MAX_DIMENSIONS)
    unpacker.feed(data[:_MAX_HEAD_BYTES])
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
