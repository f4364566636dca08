"""A small real ONNX model without the onnx package: just enough protobuf to write one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Weights = Sequence[Sequence[float]]

FLOAT = 1
OPSET = 13
IR_VERSION = 7


def affine_relu_onnx(weights: Weights, bias: Sequence[float]) -> bytes:
    """``y = relu(x @ weights + bias)`` for ``x`` of shape ``(n, len(weights))`` float32."""
    graph = (
        _field(1, _node("Gemm", ["x", "w", "b"], "affine"))
        + _field(1, _node("Relu", ["affine"], "y"))
        + _field(2, b"affine_relu")
        + _field(5, _tensor("w", np.array(weights, "<f4")))
        + _field(5, _tensor("b", np.array(bias, "<f4")))
        + _field(11, _value_info("x", ["n", len(weights)]))
        + _field(12, _value_info("y", ["n", len(bias)]))
    )
    return _field(1, IR_VERSION) + _field(8, _field(2, OPSET)) + _field(7, graph)


def _node(kind: str, inputs: Sequence[str], output: str) -> bytes:
    names = b"".join(_field(1, name.encode()) for name in inputs)
    return names + _field(2, output.encode()) + _field(4, kind.encode())


def _tensor(name: str, array: np.ndarray) -> bytes:
    dims = b"".join(_field(1, side) for side in array.shape)
    return dims + _field(2, FLOAT) + _field(8, name.encode()) + _field(9, array.tobytes())


def _value_info(name: str, shape: Sequence[int | str]) -> bytes:
    dims = b"".join(
        _field(1, _field(1, side) if isinstance(side, int) else _field(2, side.encode())) for side in shape
    )
    tensor_type = _field(1, FLOAT) + _field(2, dims)
    return _field(1, name.encode()) + _field(2, _field(1, tensor_type))


def _field(number: int, value: int | bytes) -> bytes:
    """One protobuf field: a varint, or bytes with their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])
