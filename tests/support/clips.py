"""A tiny bundle with state: it counts the requests of a stream, and its inputs are clips.

request (number) -> double -> count (stateful) -> {"seen": 1.., "gap": ..., "value": ...}
"""

from __future__ import annotations

from pathlib import Path

CLIPS = {"a": 3, "b": 2, "c": 4}
"""Clip of the heldout split -> requests."""

_CODE = '''
from compass_shared.values import Example

CLIPS = {clips!r}


def double(inputs, knobs, model):
    if inputs["request"] < 0:
        raise ValueError("a negative number")
    return 2 * inputs["request"]


def count(inputs, knobs, model, state):
    state["seen"] = state.get("seen", 0) + knobs["step"]
    if inputs["double"] == 2 * 13:
        raise ValueError("unlucky")
    return {{"seen": state["seen"], "gap": state.gap, "value": inputs["double"]}}


def load(split, assets):
    return [
        Example(name, [float(index) for index in range(length)], list(range(1, length + 1)), "only")
        for name, length in CLIPS.items()
    ]


def score(outputs, truths):
    """Share of the requests that were answered with the right count; of all that it is told of."""
    assert len(outputs) == len(truths)
    right = [out is not None and out["seen"] == truth for out, truth in zip(outputs, truths)]
    return sum(right) / len(right)
'''

_PIPELINE = """
schema = 1
name = "counter"
version = "1.0.0"
output = "count"

[inputs]
function = ".counting:load"
splits = {{ heldout = {clips} }}
sequences = true

[metric]
name = "counted"
function = ".counting:score"

[[operators]]
name = "double"
inputs = ["request"]
runtime = "python"
function = ".counting:double"

[[operators]]
name = "count"
inputs = ["double"]
runtime = "python"
function = ".counting:count"
stateful = true
knobs = {{ step = [1, 10] }}
"""


def write_counter_bundle(folder: Path) -> Path:
    """Write the bundle into a new folder ``counter`` below ``folder``."""
    bundle = folder / "counter"
    bundle.mkdir(parents=True)
    (bundle / "pipeline.toml").write_text(_PIPELINE.format(clips=len(CLIPS)))
    (bundle / "counting.py").write_text(_CODE.format(clips=CLIPS))
    return bundle
