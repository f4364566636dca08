"""A small real ONNX model without the onnx package."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compass_shared import onnx_writer

Weights = Sequence[Sequence[float]]


def affine_relu_onnx(weights: Weights, bias: Sequence[float]) -> bytes:
    """``y = relu(x @ weights + bias)`` for ``x`` of shape ``(n, len(weights))`` float32."""
    graph = onnx_writer.graph(
        "affine_relu",
        nodes=[
            onnx_writer.node("Gemm", ["x", "w", "b"], ["affine"]),
            onnx_writer.node("Relu", ["affine"], ["y"]),
        ],
        tensors=[
            onnx_writer.tensor("w", np.array(weights, np.float32)),
            onnx_writer.tensor("b", np.array(bias, np.float32)),
        ],
        inputs=[onnx_writer.value("x", ("n", len(weights)))],
        outputs=[onnx_writer.value("y", ("n", len(bias)))],
    )
    return onnx_writer.model(graph, opset=13, ir_version=7)
