"""EfficientNet-lite 0, 1 and 2 as ONNX, derived from weights that were published for PyTorch.

The architecture is EfficientNet's (Tan and Le, "EfficientNet", ICML 2019) in its lite form: no squeeze and
excitation, ReLU6 for swish, stem and head of one size. How many blocks there are and how wide they are is
read off the weights; strides and sides are the published ones. Batch normalisation is folded into the
convolution before it, in float64, so that the bytes do not depend on the machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compass_shared import onnx_writer

from .torch_file import read_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Weights = Mapping[str, NDArray[np.generic]]

CLASSES = 1000
OPSET = 13
BATCH_NORM_EPSILON = 1e-3
STAGE_STRIDES = (1, 2, 2, 2, 1, 2, 1)
"""Stride of the first block of each stage; blocks of one stage have one width."""


def lite0(assets: Mapping[str, Path]) -> bytes:
    """EfficientNet-lite0 from ``assets["weights"]``; pictures of 224 x 224."""
    return _from_file(assets["weights"], 224)


def lite1(assets: Mapping[str, Path]) -> bytes:
    """EfficientNet-lite1 from ``assets["weights"]``; pictures of 240 x 240."""
    return _from_file(assets["weights"], 240)


def lite2(assets: Mapping[str, Path]) -> bytes:
    """EfficientNet-lite2 from ``assets["weights"]``; pictures of 260 x 260."""
    return _from_file(assets["weights"], 260)


def network(weights: Weights, side: int) -> bytes:
    """The network as an ONNX file.

    Args:
        weights: Tensors by their name in PyTorch.
        side: Of the pictures that it takes, in pixels.

    Returns:
        A model from ``image (n, 3, side, side) float32``, scaled to [-1, 1], to
        ``probabilities (n, 1000) float32``.
    """
    chain = _Chain(weights)
    chain.convolve("_conv_stem", "_bn0", stride=2)
    widths: list[int] = []
    stage = -1
    for block in range(_blocks(weights)):
        name = f"_blocks.{block}"
        width = weights[f"{name}._project_conv.weight"].shape[0]
        fresh = not widths or width != widths[-1]
        stage += fresh
        chain.block(name, stride=STAGE_STRIDES[stage] if fresh else 1, skip=not fresh)
        widths.append(width)
    chain.convolve("_conv_head", "_bn1")
    return chain.finished(side)


class _Chain:
    """Layers one after the other, as they are added."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._nodes: list[bytes] = []
        self._tensors: dict[str, NDArray[np.float32]] = {
            "zero": np.zeros((), np.float32),
            "six": np.full((), 6, np.float32),
        }
        self._last = "image"

    def block(self, name: str, *, stride: int, skip: bool) -> None:
        """Widen, filter every channel, narrow; where the shape allows it, add what came in."""
        entry = self._last
        if f"{name}._expand_conv.weight" in self._weights:
            self.convolve(f"{name}._expand_conv", f"{name}._bn0")
        self.convolve(f"{name}._depthwise_conv", f"{name}._bn1", stride=stride, depthwise=True)
        self.convolve(f"{name}._project_conv", f"{name}._bn2", relu=False)
        if skip:
            self._add("Add", [self._last, entry], f"{name}.sum")

    def convolve(
        self, name: str, norm: str, *, stride: int = 1, depthwise: bool = False, relu: bool = True
    ) -> None:
        """A convolution with its batch normalisation folded in, padded as TensorFlow's SAME is."""
        kernel, bias = folded(self._weights, name, norm)
        self._tensors[f"{name}.weight"], self._tensors[f"{name}.bias"] = kernel, bias
        self._add(
            "Conv",
            [self._last, f"{name}.weight", f"{name}.bias"],
            name,
            auto_pad="SAME_UPPER",
            group=kernel.shape[0] if depthwise else 1,
            kernel_shape=kernel.shape[2:],
            strides=(stride, stride),
        )
        if relu:
            self._add("Clip", [name, "zero", "six"], f"{name}.relu6")

    def finished(self, side: int) -> bytes:
        """Close with mean, linear layer and softmax."""
        for part in ("weight", "bias"):
            self._tensors[f"_fc.{part}"] = self._weights[f"_fc.{part}"].astype(np.float32)
        self._add("GlobalAveragePool", [self._last], "pooled")
        self._add("Flatten", ["pooled"], "features")
        self._add("Gemm", ["features", "_fc.weight", "_fc.bias"], "scores", transB=1)
        self._add("Softmax", ["scores"], "probabilities", axis=1)
        network = onnx_writer.graph(
            "efficientnet-lite",
            nodes=self._nodes,
            tensors=[onnx_writer.tensor(name, array) for name, array in self._tensors.items()],
            inputs=[onnx_writer.value("image", ("n", 3, side, side))],
            outputs=[onnx_writer.value("probabilities", ("n", CLASSES))],
        )
        return onnx_writer.model(network, opset=OPSET, producer="compass")

    def _add(
        self, operator: str, inputs: list[str], output: str, **attributes: onnx_writer.Attribute
    ) -> None:
        self._nodes.append(onnx_writer.node(operator, inputs, [output], name=output, **attributes))
        self._last = output


def folded(weights: Weights, name: str, norm: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Kernel and bias that do what a convolution and the batch normalisation after it did."""
    scale, shift, mean, variance = (
        weights[f"{norm}.{part}"].astype(np.float64)
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    factor = scale / np.sqrt(variance + BATCH_NORM_EPSILON)
    kernel = weights[f"{name}.weight"].astype(np.float64) * factor[:, None, None, None]
    return kernel.astype(np.float32), (shift - mean * factor).astype(np.float32)


def _blocks(weights: Weights) -> int:
    return 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("_blocks."))


def _from_file(path: Path, side: int) -> bytes:
    return network(read_tensors(path.read_bytes()), side)
