"""Small pieces of work that say how fast a machine is, one for each speed class that needs no bundle.

The networks are made here, with weights that are drawn: their time does not depend on what they compute.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from compass_agent.runtimes import open_runtime
from compass_shared import onnx_writer
from compass_shared.errors import BackendError

Work = Callable[[], object]
Array = npt.NDArray[np.generic]

REFERENCE_S: Mapping[str, float] = {"python": 3.2e-3, "onnx-fp32": 6.75e-3, "onnx-int8": 2.06e-3}
"""Speed class -> seconds that its kernel takes on the reference core of device_profiles/README.md.

Derived on 2026-11-24 from a virtual Xeon core of the same design (Emerald Rapids, 2.9 GHz by a chain of
additions, CPython 3.11, ONNX Runtime 1.32): 5.4, 5.7 and 1.74 ms, times 2.9 / 4.9 GHz, and twice that for the
networks, because they ran near the limit of vectors that are half as wide on the reference core (no AVX-512).
"""
KERNEL_REL_SD = 0.3
"""Of a slowdown by one kernel: other operators of its class differ, and the reference is derived."""

_SIDE, _CHANNELS, _LAYERS = 56, 64, 4
_FEWEST = 2
"""Runs of a kernel: the first is cold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTime:
    """What one kernel took on this machine."""

    seconds: float
    """CPU time of the fastest run: neighbours and cold caches only add."""
    runs: int


def kernels() -> dict[str, Work]:
    """Kernels that can run here: those of networks need ONNX Runtime."""
    found: dict[str, Work] = {"python": interpreted}
    try:
        runtime = open_runtime("onnx")
    except BackendError:
        return found
    feed = {"x": np.full((1, _CHANNELS, _SIDE, _SIDE), 0.5, np.float32)}
    with tempfile.TemporaryDirectory() as folder:
        for name, network in (("onnx-fp32", float_network()), ("onnx-int8", quantised_network())):
            path = Path(folder) / f"{name}.onnx"
            path.write_bytes(network)
            found[name] = partial(runtime.load(path).run, feed)
    return found


def time_kernels(
    works: Mapping[str, Work],
    *,
    budget_s: float,
    thread_time: Callable[[], float] = time.thread_time,
    wall_time: Callable[[], float] = time.perf_counter,
) -> dict[str, KernelTime]:
    """Run kernels in turn, each at least twice, until the time is up: a busy spell meets all of them."""
    end_s = wall_time() + budget_s
    taken: dict[str, list[float]] = {name: [] for name in works}
    while wall_time() < end_s or any(len(times) < _FEWEST for times in taken.values()):
        for name, work in works.items():
            taken[name].append(_timed(work, thread_time))
    return {name: KernelTime(seconds=min(times), runs=len(times)) for name, times in taken.items()}


def interpreted() -> int:
    """What an interpreter is busy with: loops, integers, strings, dictionaries, sorting."""
    words: dict[str, int] = {}
    state = 1
    for _ in range(12_000):
        state = (state * 1_103_515_245 + 12_345) % 2**31
        word = f"w{state % 997}"
        words[word] = words.get(word, 0) + len(word)
    ordered = sorted(words.items(), key=lambda item: (-item[1], item[0]))
    return sum(at * count for at, (_, count) in enumerate(ordered))


def _timed(work: Work, thread_time: Callable[[], float]) -> float:
    start_s = thread_time()
    work()
    return thread_time() - start_s


# --- networks -------------------------------------------------------------------------------------


def float_network() -> bytes:
    """Convolutions in fp32."""
    weights = _drawn((_CHANNELS, _CHANNELS, 3, 3)).astype(np.float32) / 1000
    nodes = [_convolution("Conv", [f"x{at or ''}", "w"], f"x{at + 1}") for at in range(_LAYERS)]
    return _model(nodes, [onnx_writer.tensor("w", weights)], f"x{_LAYERS}", "float32")


def quantised_network() -> bytes:
    """The same convolutions in int8, as quantised networks have them."""
    weights = (_drawn((_CHANNELS, _CHANNELS, 3, 3)) % 7 - 3).astype(np.int8)
    constants = [
        onnx_writer.tensor("w", weights),
        onnx_writer.tensor("s", np.array(0.02, np.float32)),
        onnx_writer.tensor("z", np.array(128, np.uint8)),
        onnx_writer.tensor("wz", np.array(0, np.int8)),
    ]
    nodes = [onnx_writer.node("QuantizeLinear", ["x", "s", "z"], ["x1"])]
    for at in range(1, _LAYERS + 1):
        inputs = [f"x{at}", "s", "z", "w", "s", "wz", "s", "z"]
        nodes.append(_convolution("QLinearConv", inputs, f"x{at + 1}"))
    return _model(nodes, constants, f"x{_LAYERS + 1}", "uint8")


def _drawn(shape: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.random.default_rng(0).integers(-100, 100, shape)


def _convolution(kind: str, inputs: Sequence[str], output: str) -> bytes:
    return onnx_writer.node(kind, inputs, [output], pads=(1, 1, 1, 1))


def _model(nodes: Sequence[bytes], constants: Sequence[bytes], output: str, dtype: str) -> bytes:
    shape = (1, _CHANNELS, _SIDE, _SIDE)
    network = onnx_writer.graph(
        "kernel",
        nodes=nodes,
        tensors=constants,
        inputs=[onnx_writer.value("x", shape)],
        outputs=[onnx_writer.value(output, shape, dtype)],
    )
    return onnx_writer.model(network, opset=13)
