"""ONNX files from numpy arrays: just enough of the format to write a chain of layers.

An ONNX file is one Protocol Buffers message; the field numbers are those of ``onnx.proto``. Written by hand
so that deriving a model needs no package beyond numpy, and gives the same bytes with every version of any.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    Attribute = int | str | Sequence[int]

IR_VERSION = 8
OPSET = 13
FLOAT = 1
"""``TensorProto.FLOAT``."""
ATTRIBUTE_INT, ATTRIBUTE_STRING, ATTRIBUTE_INTS = 2, 3, 7


def model(
    *,
    nodes: Sequence[bytes],
    tensors: Mapping[str, NDArray[np.float32]],
    inputs: Mapping[str, Sequence[int | str]],
    outputs: Mapping[str, Sequence[int | str]],
    name: str,
) -> bytes:
    """A whole file.

    Args:
        nodes: Layers in order, from ``node``.
        tensors: Weights by name.
        inputs: Shape of every input of float32; a side that varies is given by a name.
        outputs: Likewise.
        name: Of the graph.
    """
    graph = b"".join(_bytes(1, one) for one in nodes) + _text(2, name)
    graph += b"".join(_bytes(5, _tensor(key, array)) for key, array in tensors.items())
    graph += b"".join(_bytes(11, _value(key, shape)) for key, shape in inputs.items())
    graph += b"".join(_bytes(12, _value(key, shape)) for key, shape in outputs.items())
    opset = _text(1, "") + _int(2, OPSET)
    return _int(1, IR_VERSION) + _text(2, "compass") + _bytes(7, graph) + _bytes(8, opset)


def node(operator: str, inputs: Sequence[str], output: str, **attributes: Attribute) -> bytes:
    """One layer, named after its output."""
    names = b"".join(_text(1, one) for one in inputs) + _text(2, output) + _text(3, output)
    return names + _text(4, operator) + b"".join(_bytes(5, _attribute(*one)) for one in attributes.items())


def _attribute(name: str, value: Attribute) -> bytes:
    if isinstance(value, int):
        return _text(1, name) + _int(3, value) + _int(20, ATTRIBUTE_INT)
    if isinstance(value, str):
        return _text(1, name) + _text(4, value) + _int(20, ATTRIBUTE_STRING)
    return _text(1, name) + b"".join(_int(8, one) for one in value) + _int(20, ATTRIBUTE_INTS)


def _tensor(name: str, array: NDArray[np.float32]) -> bytes:
    dims = b"".join(_int(1, side) for side in array.shape)
    return dims + _int(2, FLOAT) + _text(8, name) + _bytes(9, array.astype("<f4").tobytes())


def _value(name: str, shape: Sequence[int | str]) -> bytes:
    sides = b"".join(_bytes(1, _int(1, one) if isinstance(one, int) else _text(2, one)) for one in shape)
    return _text(1, name) + _bytes(2, _bytes(1, _int(1, FLOAT) + _bytes(2, sides)))


def _int(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more follow."""
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return struct.pack(f"{len(parts) + 1}B", *parts, value)
