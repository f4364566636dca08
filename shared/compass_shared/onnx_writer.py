"""Writing ONNX files from numpy arrays, without the onnx package: for models that are made.

An ONNX file is one Protocol Buffers message, fields by number as in ``onnx.proto``. The parts below are
messages of their own, as bytes; ``model`` puts them together. The same parts make the same bytes with every
version of any library, which is what a model needs whose hash a pipeline names.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

Attribute: TypeAlias = int | float | str | Sequence[int]
Side: TypeAlias = int | str
"""Of a shape; a name stands for any length."""

ELEMENTS = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
    "float64": 11,
}
"""numpy's names of element types, and ONNX's numbers."""

_FLOAT, _INT, _STRING, _INTS = 1, 2, 3, 7
_VARINT, _BYTES, _FIXED32 = 0, 2, 5


def model(graph: bytes, *, opset: int, ir_version: int = 8, producer: str = "") -> bytes:
    """A whole file.

    Args:
        graph: From ``graph``.
        opset: Version of the operator set that its nodes are of.
        ir_version: Of the file format.
        producer: Who made it, for people.
    """
    head = number(1, ir_version) + (text(2, producer) if producer else b"")
    return head + field(7, graph) + field(8, text(1, "") + number(2, opset))


def graph(
    name: str,
    *,
    nodes: Sequence[bytes],
    tensors: Sequence[bytes],
    inputs: Sequence[bytes],
    outputs: Sequence[bytes],
) -> bytes:
    """A graph.

    Args:
        name: For people.
        nodes: In an order in which they can run, from ``node``.
        tensors: Constants, from ``tensor``.
        inputs: From ``value``.
        outputs: From ``value``.
    """
    parts = [field(1, one) for one in nodes] + [text(2, name)] + [field(5, one) for one in tensors]
    return b"".join(parts + [field(11, one) for one in inputs] + [field(12, one) for one in outputs])


def node(
    kind: str, inputs: Sequence[str], outputs: Sequence[str], *, name: str = "", **attributes: Attribute
) -> bytes:
    """One operator of a graph; values are known by name."""
    parts = [text(1, one) for one in inputs] + [text(2, one) for one in outputs]
    parts += [text(3, name)] if name else []
    return b"".join([*parts, text(4, kind), *(field(5, _attribute(*one)) for one in attributes.items())])


def tensor(name: str, array: np.ndarray[Any, Any]) -> bytes:
    """A constant.

    Raises:
        KeyError: If ONNX has no such element type (``ELEMENTS``).
    """
    sides = b"".join(number(1, side) for side in array.shape)
    raw = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return sides + number(2, ELEMENTS[array.dtype.name]) + text(8, name) + field(9, raw)


def value(name: str, shape: Sequence[Side], dtype: str = "float32") -> bytes:
    """Name, element type and shape of an input or output."""
    sides = [field(1, number(1, side) if isinstance(side, int) else text(2, side)) for side in shape]
    kind = number(1, ELEMENTS[dtype]) + field(2, b"".join(sides))
    return text(1, name) + field(2, field(1, kind))


def field(key: int, content: bytes) -> bytes:
    """A field of bytes."""
    return _varint(key << 3 | _BYTES) + _varint(len(content)) + content


def text(key: int, content: str) -> bytes:
    """A field of text."""
    return field(key, content.encode())


def number(key: int, content: int) -> bytes:
    """A field with a whole number; negative ones in two's complement."""
    return _varint(key << 3 | _VARINT) + _varint(content % (1 << 64))


def _attribute(name: str, content: Attribute) -> bytes:
    head = text(1, name)
    if isinstance(content, str):
        return head + text(4, content) + number(20, _STRING)
    if isinstance(content, float):
        return head + _varint(2 << 3 | _FIXED32) + struct.pack("<f", content) + number(20, _FLOAT)
    if isinstance(content, int):
        return head + number(3, content) + number(20, _INT)
    return head + b"".join(number(8, one) for one in content) + number(20, _INTS)


def _varint(content: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more follow."""
    out = bytearray()
    while content > 0x7F:
        out.append(content & 0x7F | 0x80)
        content >>= 7
    return bytes([*out, content])
