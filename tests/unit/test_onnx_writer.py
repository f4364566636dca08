"""Models that are written by hand, opened by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compass_agent.runtimes.onnx import OnnxRuntime
from compass_shared import onnx_writer as ow


def ran(folder: Path, graph: bytes, **feed: np.ndarray) -> dict[str, np.ndarray]:
    file = folder / "model.onnx"
    file.write_bytes(ow.model(graph, opset=13, producer="a test"))
    return OnnxRuntime().load(file).run(feed)


def test_attributes_of_every_kind(tmp_path: Path) -> None:
    graph = ow.graph(
        "attributes",
        nodes=[
            ow.node("LeakyRelu", ["x"], ["leaky"], alpha=0.25),
            ow.node("Transpose", ["leaky"], ["turned"], name="turn", perm=[1, 0]),
            ow.node("Softmax", ["turned"], ["y"], axis=-1),
            ow.node("DepthToSpace", ["blocks"], ["z"], blocksize=2, mode="CRD"),
        ],
        tensors=[],
        inputs=[ow.value("x", ("n", 2)), ow.value("blocks", (1, 4, 1, 1))],
        outputs=[ow.value("y", (2, "n")), ow.value("z", (1, 1, 2, 2))],
    )
    x = np.array([[1, -2], [3, 4], [0, 1]], np.float32)
    out = ran(tmp_path, graph, x=x, blocks=np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1))
    turned = np.where(x < 0, x / 4, x).T
    wanted = np.exp(turned) / np.exp(turned).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(out["y"], wanted, rtol=1e-6)
    np.testing.assert_array_equal(out["z"][0, 0], [[0, 1], [2, 3]])


@pytest.mark.parametrize("dtype", sorted(ow.ELEMENTS))
def test_constants_of_every_type(tmp_path: Path, dtype: str) -> None:
    constant = np.arange(300).reshape(3, 100).astype(dtype)
    graph = ow.graph(
        "constants",
        nodes=[ow.node("Identity", ["c"], ["y"])],
        tensors=[ow.tensor("c", constant)],
        inputs=[],
        outputs=[ow.value("y", (3, 100), dtype)],
    )
    found = ran(tmp_path, graph)["y"]
    assert found.dtype == constant.dtype
    np.testing.assert_array_equal(found, constant)


def test_the_same_parts_make_the_same_bytes() -> None:
    array = np.ones((2, 3), ">f4")
    assert ow.tensor("a", array) == ow.tensor("a", np.asfortranarray(array.astype("<f4")))


def test_a_type_that_onnx_lacks_is_refused() -> None:
    with pytest.raises(KeyError):
        ow.tensor("a", np.array(["text"]))
