"""A small real TensorFlow Lite model without TensorFlow: just enough FlatBuffers to write one."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias, Union

import numpy as np

FULLY_CONNECTED = 9
FULLY_CONNECTED_OPTIONS = 8
RELU = 1
SCHEMA_VERSION = 3

Table: TypeAlias = "Mapping[int, Node]"
Node: TypeAlias = Union[int, bytes, "Ints", "list[Table]", Table]
"""A field: a number, bytes (a string or raw data), numbers, tables, or a table."""


class Ints(NamedTuple):
    """A vector of int32."""

    numbers: Sequence[int]


def affine_relu_tflite(
    weights: Sequence[Sequence[float]],
    bias: Sequence[float],
    *,
    signature: bool = True,
    any_size: bool = False,
) -> bytes:
    """``y = relu(x @ weights + bias)`` for ``x`` of shape ``(1, len(weights))`` float32, resizable.

    Args:
        weights: ``(inputs, outputs)``.
        bias: ``(outputs,)``.
        signature: Whether ``x`` and ``y`` are names in a signature; else they are the tensors' own.
        any_size: Whether ``x`` has no size until it is given one: ``(1, 1)``, which cannot run, stands in.
    """
    matrix = np.array(weights, "<f4")
    names = (b"serving_x", b"serving_y") if signature else (b"x", b"y")
    tensors: list[Table] = [
        _tensor(names[0], (1, matrix.shape[0]), buffer=0)
        if not any_size
        else {**_tensor(names[0], (1, 1), buffer=0), 7: Ints([-1, -1])},
        _tensor(b"w", matrix.T.shape, buffer=1),
        _tensor(b"b", (matrix.shape[1],), buffer=2),
        _tensor(names[1], (1, matrix.shape[1]), buffer=0),
    ]
    operator: Table = {1: Ints([0, 1, 2]), 2: Ints([3]), 3: FULLY_CONNECTED_OPTIONS, 4: {0: RELU}}
    model: dict[int, Node] = {
        0: SCHEMA_VERSION,
        1: [{0: FULLY_CONNECTED, 2: 1, 3: FULLY_CONNECTED}],
        2: [{0: tensors, 1: Ints([0]), 2: Ints([3]), 3: [operator], 4: b"main"}],
        3: b"affine_relu",
        4: [{}, {0: matrix.T.tobytes()}, {0: np.array(bias, "<f4").tobytes()}],
    }
    if signature:
        model[7] = [{0: [{0: b"x", 1: 0}], 1: [{0: b"y", 1: 3}], 2: b"serving_default", 4: 0}]
    return _Writer().file(model, b"TFL3")


def _tensor(name: bytes, shape: Sequence[int], *, buffer: int) -> Table:
    return {0: Ints(shape), 2: buffer, 3: name}


class _Writer:
    """Writes parents before their children, so that every offset points forward as FlatBuffers wants."""

    def __init__(self) -> None:
        self._out = bytearray()

    def file(self, root: Table, identifier: bytes) -> bytes:
        self._out += bytes(4) + identifier
        self._point(0, root)
        return bytes(self._out)

    def _point(self, at: int, node: Node) -> None:
        """Write a node and store its offset at ``at``."""
        struct.pack_into("<I", self._out, at, self._write(node) - at)

    def _write(self, node: Node) -> int:
        if isinstance(node, bytes):
            self._pad(16, ahead=4)  # weights have to be aligned
            start = len(self._out)
            self._out += struct.pack("<I", len(node)) + node + b"\0"
            return start
        self._pad(4)
        if isinstance(node, Ints):
            start = len(self._out)
            self._out += struct.pack(f"<{len(node.numbers) + 1}i", len(node.numbers), *node.numbers)
            return start
        if isinstance(node, list):
            start = len(self._out)
            self._out += struct.pack("<I", len(node)) + bytes(4 * len(node))
            for index, child in enumerate(node):
                self._point(start + 4 * (index + 1), child)
            return start
        assert isinstance(node, Mapping)
        return self._table(node)

    def _table(self, table: Table) -> int:
        """A table of 4-byte fields; numbers are small, so that narrower ones read the same bytes."""
        slots = max(table, default=-1) + 1
        vtable = len(self._out)
        order = {slot: 4 * (place + 1) for place, slot in enumerate(sorted(table))}
        offsets = [order.get(slot, 0) for slot in range(slots)]
        self._out += struct.pack(f"<{slots + 2}H", 4 + 2 * slots, 4 * (len(table) + 1), *offsets)
        self._pad(4)
        start = len(self._out)
        self._out += struct.pack("<i", start - vtable) + bytes(4 * len(table))
        for slot, node in table.items():
            at = start + order[slot]
            if isinstance(node, int):
                struct.pack_into("<i", self._out, at, node)
            else:
                self._point(at, node)
        return start

    def _pad(self, alignment: int, *, ahead: int = 0) -> None:
        self._out += bytes(-(len(self._out) + ahead) % alignment)
