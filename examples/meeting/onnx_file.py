"""Writing ONNX files: just enough of the format to put a transformer down, without the onnx package.

A model is a protobuf message: fields of a number and either a varint or bytes with their length. The same
graph makes the same bytes on every machine, which is what a model that is *made* needs for its hash.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

OPSET = 17
IR_VERSION = 8
DTYPES = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "int64": 7, "float16": 10}
"""Numpy's names of element types, and ONNX's numbers."""

_INT, _FLOAT, _INTS = 2, 1, 7
_VARINT, _FIXED32, _BYTES = 0, 5, 2


class Graph:
    """A graph under construction: names stand for values."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[bytes] = []
        self._tensors: list[bytes] = []
        self._constants: dict[int, tuple[Any, str]] = {}
        """By identity; holding the array keeps its identity its own."""
        self._inputs: list[bytes] = []
        self._outputs: list[bytes] = []
        self._count = 0

    def input(self, name: str, dtype: str, shape: tuple[int | str, ...]) -> str:
        """An input of the model; sides with a name may be of any length."""
        self._inputs.append(_value(name, dtype, shape))
        return name

    def output(self, name: str, value: str, dtype: str, shape: tuple[int | str, ...]) -> None:
        """Make a value of the graph an output of the model."""
        self._nodes.append(_node("Identity", [value], [name], {}))
        self._outputs.append(_value(name, dtype, shape))

    def constant(self, array: Any) -> str:
        """A constant tensor; the same array again is the same constant."""
        if id(array) not in self._constants:
            name = self._fresh("constant")
            self._constants[id(array)] = (array, name)
            self._tensors.append(_tensor(name, np.asarray(array)))
        return self._constants[id(array)][1]

    def add(self, kind: str, *inputs: str, **attributes: int | float | list[int]) -> str:
        """A node with one output."""
        return self.split(kind, *inputs, outputs=1, **attributes)[0]

    def split(
        self, kind: str, *inputs: str, outputs: int, **attributes: int | float | list[int]
    ) -> list[str]:
        """A node with several outputs."""
        names = [self._fresh(kind) for _ in range(outputs)]
        self._nodes.append(_node(kind, list(inputs), names, attributes))
        return names

    def to_bytes(self) -> bytes:
        """The whole file."""
        parts = [
            *(_bytes(1, node) for node in self._nodes),
            _bytes(2, self._name.encode()),
            *(_bytes(5, tensor) for tensor in self._tensors),
            *(_bytes(11, value) for value in self._inputs),
            *(_bytes(12, value) for value in self._outputs),
        ]
        return _number(1, IR_VERSION) + _bytes(8, _number(2, OPSET)) + _bytes(7, b"".join(parts))

    def _fresh(self, kind: str) -> str:
        self._count += 1
        return f"{kind}_{self._count}"


def _node(kind: str, inputs: list[str], outputs: list[str], attributes: dict[str, Any]) -> bytes:
    return b"".join(
        [
            *(_bytes(1, name.encode()) for name in inputs),
            *(_bytes(2, name.encode()) for name in outputs),
            _bytes(4, kind.encode()),
            *(_bytes(5, _attribute(name, value)) for name, value in attributes.items()),
        ]
    )


def _attribute(name: str, value: int | float | list[int]) -> bytes:
    head = _bytes(1, name.encode())
    if isinstance(value, list):
        return head + b"".join(_number(8, item) for item in value) + _number(20, _INTS)
    if isinstance(value, float):
        return head + _key(2, _FIXED32) + struct.pack("<f", value) + _number(20, _FLOAT)
    return head + _number(3, value) + _number(20, _INT)


def _tensor(name: str, array: np.ndarray[Any, Any]) -> bytes:
    dims = b"".join(_number(1, side) for side in array.shape)
    raw = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
    return dims + _number(2, DTYPES[array.dtype.name]) + _bytes(8, name.encode()) + _bytes(9, raw)


def _value(name: str, dtype: str, shape: tuple[int | str, ...]) -> bytes:
    sides = [_number(1, side) if isinstance(side, int) else _bytes(2, side.encode()) for side in shape]
    dims = b"".join(_bytes(1, side) for side in sides)
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, _number(1, DTYPES[dtype]) + _bytes(2, dims)))


def _bytes(field: int, value: bytes) -> bytes:
    return _key(field, _BYTES) + _varint(len(value)) + value


def _number(field: int, value: int) -> bytes:
    return _key(field, _VARINT) + _varint(value % (1 << 64))  # negative numbers in two's complement


def _key(field: int, wire: int) -> bytes:
    return _varint(field << 3 | wire)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])
