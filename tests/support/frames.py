"""A bundle of sequences without models: stateful operators, a stride, a fan-out, extra metrics, failures."""

from __future__ import annotations

from pathlib import Path

CLIPS, FRAMES = 6, 8
"""Of its split "profiling"."""
STRIDES = (1, 2, 4)

_PIPELINE = """
schema = 1
name = "clips"
version = "1.0.0"
output = "total"

[inputs]
function = ".data:load"
splits = {{ profiling = {clips}, short = 2 }}
sequences = true

[metric]
name = "right"
function = ".data:right"

[[extra_metrics]]
name = "lost"
function = ".data:present"

[[extra_metrics]]
name = "counted"
function = ".data:counted"
kind = "ratio"

[[operators]]
name = "find"
inputs = ["request"]
runtime = "python"
function = ".operators:find"
knobs = {{ stride = {strides} }}
stateful = true

[[operators]]
name = "square"
inputs = ["find"]
runtime = "python"
function = ".operators:square"
knobs = {{ fast = [true, false] }}
items = "find"
items_batch = 2

[[operators]]
name = "total"
inputs = ["find", "square"]
runtime = "python"
function = ".operators:total"
knobs = {{ mode = {modes} }}
stateful = true
"""

_OPERATORS = """
import time

import numpy as np


def find(inputs, knobs, model, state):
    frame = inputs["request"]
    place = state.get("place", -1) + 1 + state.gap
    state["place"] = place
    if place % knobs["stride"]:
        return None
    spin(2e-4)
    return [int(value) for value in frame if value]


def square(inputs, knobs, model):
    batch = inputs["find"]
    spin(1e-5 if knobs["fast"] else 4e-4 * len(batch))
    return [value * value for value in batch]


def total(inputs, knobs, model, state):
    if knobs["mode"] == "fails" and inputs["find"] is not None and 7 in inputs["find"]:
        raise ValueError("seven")
    if knobs["mode"] == "breaks":
        raise ValueError("always")
    if inputs["find"] is not None:
        state["last"] = sum(inputs["square"])
    return state.get("last", -1)


def spin(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
"""

_DATA = """
import numpy as np

from compass_shared.values import Example

CLIPS, FRAMES = {clips}, {frames}


def load(split, assets):
    count = CLIPS if split == "profiling" else 2
    return [clip(index) for index in range(count)]


def clip(index):
    rng = np.random.default_rng(index)
    frames = [rng.integers(0, 9, size=3 + index).astype(np.uint8) for _ in range(FRAMES)]
    truths = [int((frame.astype(int) ** 2).sum()) for frame in frames]
    return Example(f"clip-{{index}}", frames, truths, "even" if index % 2 == 0 else "odd")


def right(outputs, truths):
    assert len(outputs) == len(truths)
    return sum(output == truth for output, truth in zip(outputs, truths)) / len(truths)


def present(outputs, truths):
    return sum(output is not None for output in outputs) / len(outputs)


def counted(outputs, truths):
    return sum(min(output or 0, truth) for output, truth in zip(outputs, truths)), sum(truths)
"""


def write_frames_bundle(
    folder: Path,
    *,
    modes: tuple[str, ...] = ("all", "fails"),
    strides: tuple[int, ...] = STRIDES,
    clips: int = CLIPS,
) -> Path:
    """Write the bundle into the new folder ``clips`` below ``folder``."""
    bundle = folder / "clips"
    bundle.mkdir(parents=True)
    text = _PIPELINE.format(clips=clips, modes=list(modes), strides=list(strides))
    (bundle / "pipeline.toml").write_text(text)
    (bundle / "operators.py").write_text(_OPERATORS)
    (bundle / "data.py").write_text(_DATA.format(clips=clips, frames=FRAMES))
    return bundle
