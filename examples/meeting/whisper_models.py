"""Whisper as ONNX models, made of weights in CTranslate2's file format.

No registry carries Whisper as ONNX; two carry its half-precision weights for CTranslate2. The networks are
written down here as published (Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision",
2022; a pre-norm transformer), in two files each: the encoder, which also prepares what the decoder attends
to, and the decoder with a cache of keys and values. With ``int8`` the matrices of all linear layers are whole
numbers, one scale an output, and what they are multiplied with is quantised as it comes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .onnx_file import Graph

if TYPE_CHECKING:
    from numpy.typing import NDArray

Weights: TypeAlias = Mapping[str, "NDArray[Any]"]

INT8_LIMIT = 63
"""Seven bits: without VNNI x86 adds pairs of products in 16 bits, which eight bits could overflow."""
HEAD_SIZE = 64
MELS = 80
EPSILON = 1e-5
MASKED = np.float32(-1e9)

_FORMAT = 6
_TYPES = {0: "<f4", 1: "i1", 2: "<i2", 3: "<i4", 4: "<f2"}


def encoder(assets: Mapping[str, Path]) -> bytes:
    """The encoder in single precision."""
    return _encoder(read_weights(assets), int8=False)


def encoder_int8(assets: Mapping[str, Path]) -> bytes:
    """The encoder with linear layers in whole numbers."""
    return _encoder(read_weights(assets), int8=True)


def decoder(assets: Mapping[str, Path]) -> bytes:
    """The decoder in single precision."""
    return _decoder(read_weights(assets), int8=False)


def decoder_int8(assets: Mapping[str, Path]) -> bytes:
    """The decoder with linear layers in whole numbers."""
    return _decoder(read_weights(assets), int8=True)


def read_weights(assets: Mapping[str, Path]) -> Weights:
    """Read a CTranslate2 model.

    Args:
        assets: ``weights``, or the parts that it was cut into, ``weights-1`` and so on; others are not read.

    Raises:
        ValueError: If it is of another format or damaged.
    """
    parts = sorted(name for name in assets if name.startswith("weights"))
    data = b"".join(assets[name].read_bytes() for name in parts)
    try:
        return _Reader(data).weights()
    except (struct.error, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"a damaged CTranslate2 model: {error}") from error


class _Reader:
    """Goes through a CTranslate2 file: numbers are little-endian, text ends with a zero."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def weights(self) -> Weights:
        version, _, _, count = self._number("I"), self._text(), self._number("I"), self._number("I")
        if version != _FORMAT:
            raise ValueError(f"a CTranslate2 model of format {version}, not {_FORMAT}")
        return dict(self._tensor() for _ in range(count))

    def _tensor(self) -> tuple[str, NDArray[Any]]:
        name = self._text()
        shape = [self._number("I") for _ in range(self._number("B"))]
        dtype, size = np.dtype(_TYPES[self._number("B")]), self._number("I")
        array = np.frombuffer(self._data, dtype, size // dtype.itemsize, self._at)
        self._at += size
        return name, array.reshape(shape)

    def _text(self) -> str:
        size = self._number("H")
        self._at += size
        return self._data[self._at - size : self._at - 1].decode()

    def _number(self, form: str) -> int:
        value: int = struct.unpack_from(f"<{form}", self._data, self._at)[0]
        self._at += struct.calcsize(f"<{form}")
        return value


def _encoder(weights: Weights, *, int8: bool) -> bytes:
    net = _Network(Graph("whisper_encoder"), weights, int8=int8)
    graph = net.graph
    width = len(weights["encoder/conv1/bias"])
    x = graph.input("mel", "float32", (1, MELS, "frames"))
    x = net.gelu(net.convolution(x, "encoder/conv1", stride=1))
    x = graph.add("Transpose", net.gelu(net.convolution(x, "encoder/conv2", stride=2)), perm=[0, 2, 1])
    length = graph.add("Gather", graph.add("Shape", x), graph.constant(np.array([1])), axis=0)
    x = graph.add("Add", x, net.positions("encoder", graph.constant(np.array([0])), length))
    for layer in range(layer_count(weights, "encoder")):
        name = f"encoder/layer_{layer}"
        inside = net.norm(x, f"{name}/self_attention/layer_norm")
        q, k, v = graph.split(
            "Split", net.linear(inside, f"{name}/self_attention/linear_0"), outputs=3, axis=2
        )
        seen = net.attention(net.heads(q), net.keys(k), net.heads(v), mask=None)
        x = graph.add("Add", x, net.linear(seen, f"{name}/self_attention/linear_1"))
        x = net.feed_forward(x, name)
    x = net.norm(x, "encoder/layer_norm")
    for layer in range(layer_count(weights, "decoder")):
        made = net.linear(x, f"decoder/layer_{layer}/attention/linear_1")
        k, v = graph.split("Split", made, outputs=2, axis=2)
        graph.output(
            f"seen_key_{layer}", net.keys(k), "float32", (1, width // HEAD_SIZE, HEAD_SIZE, "length")
        )
        graph.output(
            f"seen_value_{layer}", net.heads(v), "float32", (1, width // HEAD_SIZE, "length", HEAD_SIZE)
        )
    return graph.to_bytes()


def _decoder(weights: Weights, *, int8: bool) -> bytes:
    net = _Network(Graph("whisper_decoder"), weights, int8=int8)
    graph = net.graph
    table = weights["decoder/embeddings/weight"]
    heads = table.shape[1] // HEAD_SIZE
    past_shape: tuple[int | str, ...] = ("batch", heads, "past", HEAD_SIZE)
    ids = graph.input("ids", "int64", ("batch", "new"))
    layers = range(layer_count(weights, "decoder"))
    past = [
        (
            graph.input(f"key_{layer}", "float32", past_shape),
            graph.input(f"value_{layer}", "float32", past_shape),
            graph.input(f"seen_key_{layer}", "float32", (1, heads, HEAD_SIZE, "length")),
            graph.input(f"seen_value_{layer}", "float32", (1, heads, "length", HEAD_SIZE)),
        )
        for layer in layers
    ]
    start = graph.add("Gather", graph.add("Shape", past[0][0]), graph.constant(np.array([2])), axis=0)
    new = graph.add("Gather", graph.add("Shape", ids), graph.constant(np.array([1])), axis=0)
    end = graph.add("Add", start, new)
    mask = net.causal_mask(start, end)
    x = graph.add("Cast", graph.add("Gather", graph.constant(table), ids, axis=0), to=1)
    x = graph.add("Add", x, net.positions("decoder", start, end))
    for layer in layers:
        name, (key, value, seen_key, seen_value) = f"decoder/layer_{layer}", past[layer]
        inside = net.norm(x, f"{name}/self_attention/layer_norm")
        q, k, v = graph.split(
            "Split", net.linear(inside, f"{name}/self_attention/linear_0"), outputs=3, axis=2
        )
        key = graph.add("Concat", key, net.heads(k), axis=2)
        value = graph.add("Concat", value, net.heads(v), axis=2)
        graph.output(f"next_key_{layer}", key, "float32", ("batch", heads, "all", HEAD_SIZE))
        graph.output(f"next_value_{layer}", value, "float32", ("batch", heads, "all", HEAD_SIZE))
        turned = graph.add("Transpose", key, perm=[0, 1, 3, 2])
        said = net.attention(net.heads(q), turned, value, mask=mask)
        x = graph.add("Add", x, net.linear(said, f"{name}/self_attention/linear_1"))
        query = net.linear(net.norm(x, f"{name}/attention/layer_norm"), f"{name}/attention/linear_0")
        heard = net.attention(net.heads(query), seen_key, seen_value, mask=None)
        x = graph.add("Add", x, net.linear(heard, f"{name}/attention/linear_2"))
        x = net.feed_forward(x, name)
    last = graph.add("Gather", x, graph.constant(np.array(-1)), axis=1)
    scores = net.times(net.norm(last, "decoder/layer_norm"), table)
    graph.output("scores", scores, "float32", ("batch", table.shape[0]))
    return graph.to_bytes()


def layer_count(weights: Weights, part: str) -> int:
    """How many layers the ``encoder`` or ``decoder`` has."""
    found = (re.match(rf"{part}/layer_(\d+)/", name) for name in weights)
    return len({match[1] for match in found if match})


class _Network:
    """The blocks that both halves are made of."""

    def __init__(self, graph: Graph, weights: Weights, *, int8: bool) -> None:
        self.graph = graph
        self._weights = weights
        self._int8 = int8

    def convolution(self, x: str, name: str, *, stride: int) -> str:
        kernel, bias = self._single(f"{name}/weight"), self._single(f"{name}/bias")
        return self.graph.add("Conv", x, kernel, bias, kernel_shape=[3], pads=[1, 1], strides=[stride])

    def norm(self, x: str, name: str) -> str:
        scale, shift = self._single(f"{name}/gamma"), self._single(f"{name}/beta")
        return self.graph.add("LayerNormalization", x, scale, shift, axis=-1, epsilon=EPSILON)

    def linear(self, x: str, name: str) -> str:
        product = self.times(x, self._weights[f"{name}/weight"])
        return self.graph.add("Add", product, self._single(f"{name}/bias"))

    def times(self, x: str, matrix: NDArray[Any]) -> str:
        """``x @ matrix.T``."""
        if not self._int8:
            single = self.graph.add("Cast", self.graph.constant(matrix), to=1)
            return self.graph.add("MatMul", x, self.graph.add("Transpose", single, perm=[1, 0]))
        whole, scale = quantised(matrix)
        rounded, x_scale, zero = self.graph.split("DynamicQuantizeLinear", x, outputs=3)
        product = self.graph.add("MatMulInteger", rounded, self.graph.constant(whole), zero)
        scales = self.graph.add("Mul", x_scale, self.graph.constant(scale))
        return self.graph.add("Mul", self.graph.add("Cast", product, to=1), scales)

    def gelu(self, x: str) -> str:
        graph = self.graph
        bent = graph.add("Erf", graph.add("Div", x, graph.constant(np.float32(np.sqrt(2)))))
        bent = graph.add("Mul", x, graph.add("Add", bent, graph.constant(np.float32(1))))
        return graph.add("Mul", bent, graph.constant(np.float32(0.5)))

    def feed_forward(self, x: str, name: str) -> str:
        inside = self.linear(self.norm(x, f"{name}/ffn/layer_norm"), f"{name}/ffn/linear_0")
        return self.graph.add("Add", x, self.linear(self.gelu(inside), f"{name}/ffn/linear_1"))

    def heads(self, x: str) -> str:
        """``(batch, length, width)`` to ``(batch, heads, length, HEAD_SIZE)``."""
        return self.graph.add("Transpose", self._by_head(x), perm=[0, 2, 1, 3])

    def keys(self, x: str) -> str:
        """``(batch, length, width)`` to ``(batch, heads, HEAD_SIZE, length)``."""
        return self.graph.add("Transpose", self._by_head(x), perm=[0, 2, 3, 1])

    def attention(self, query: str, key: str, value: str, *, mask: str | None) -> str:
        graph = self.graph
        query = graph.add("Mul", query, graph.constant(np.float32(HEAD_SIZE**-0.5)))
        scores = graph.add("MatMul", query, key)
        if mask is not None:
            scores = graph.add("Add", scores, mask)
        mixed = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), value)
        together = graph.constant(np.array([0, 0, -1]))
        return graph.add("Reshape", graph.add("Transpose", mixed, perm=[0, 2, 1, 3]), together)

    def positions(self, part: str, start: str, end: str) -> str:
        table = self._single(f"{part}/position_encodings/encodings")
        return self.graph.add("Slice", table, start, end)

    def causal_mask(self, start: str, end: str) -> str:
        """``(new, all)``: 0 where a token may look, ``MASKED`` at those after it."""
        graph = self.graph
        zero, one = graph.constant(np.int64(0)), graph.constant(np.int64(1))
        first, last = graph.add("Squeeze", start), graph.add("Squeeze", end)
        row = graph.add("Unsqueeze", graph.add("Range", first, last, one), graph.constant(np.array([1])))
        column = graph.add("Unsqueeze", graph.add("Range", zero, last, one), graph.constant(np.array([0])))
        later = graph.add("Greater", column, row)
        return graph.add("Where", later, graph.constant(MASKED), graph.constant(np.float32(0)))

    def _by_head(self, x: str) -> str:
        return self.graph.add("Reshape", x, self.graph.constant(np.array([0, 0, -1, HEAD_SIZE])))

    def _single(self, name: str) -> str:
        """A weight in single precision; kept in half in the file."""
        return self.graph.add("Cast", self.graph.constant(self._weights[name]), to=1)


def quantised(matrix: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Whole numbers and scales of a ``(outputs, inputs)`` matrix, one scale an output.

    Returns:
        ``(inputs, outputs) int8`` within ``INT8_LIMIT`` and ``(outputs,) float32``: their product is the
        matrix, transposed, but for rounding.
    """
    single = matrix.astype(np.float32)
    scale = np.maximum(np.abs(single).max(axis=1), np.float32(1e-12)) / np.float32(INT8_LIMIT)
    whole = np.rint(single / scale[:, None]).astype(np.int8)
    return np.ascontiguousarray(whole.T), scale
