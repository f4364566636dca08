"""Graphs under construction: enough to put a transformer down node by node, and write it as an ONNX file."""

from __future__ import annotations

from typing import Any

import numpy as np

from compass_shared import onnx_writer as onnx

OPSET = 17
IR_VERSION = 8


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
        self._inputs.append(onnx.value(name, shape, dtype))
        return name

    def output(self, name: str, value: str, dtype: str, shape: tuple[int | str, ...]) -> None:
        """Make a value of the graph an output of the model."""
        self._nodes.append(onnx.node("Identity", [value], [name]))
        self._outputs.append(onnx.value(name, shape, dtype))

    def constant(self, array: Any) -> str:
        """A constant tensor; the same array again is the same constant."""
        if id(array) not in self._constants:
            name = self._fresh("constant")
            self._constants[id(array)] = (array, name)
            self._tensors.append(onnx.tensor(name, np.asarray(array)))
        return self._constants[id(array)][1]

    def add(self, kind: str, *inputs: str, **attributes: int | float | list[int]) -> str:
        """A node with one output."""
        return self.split(kind, *inputs, outputs=1, **attributes)[0]

    def split(
        self, kind: str, *inputs: str, outputs: int, **attributes: int | float | list[int]
    ) -> list[str]:
        """A node with several outputs."""
        names = [self._fresh(kind) for _ in range(outputs)]
        self._nodes.append(onnx.node(kind, list(inputs), names, name="", **attributes))
        return names

    def to_bytes(self) -> bytes:
        """The whole file."""
        graph = onnx.graph(
            self._name,
            nodes=self._nodes,
            tensors=self._tensors,
            inputs=self._inputs,
            outputs=self._outputs,
        )
        # Not onnx.model: its order of fields is another, and the hashes of these files are known.
        opset = onnx.field(8, onnx.number(2, OPSET))
        return onnx.number(1, IR_VERSION) + opset + onnx.field(7, graph)

    def _fresh(self, kind: str) -> str:
        self._count += 1
        return f"{kind}_{self._count}"
