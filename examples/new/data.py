"""The inputs in inputs/ with what is known of them, and the metric."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from compass_agent.runtimes import open_runtime
from compass_shared.values import Example

from . import operators, settings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from compass_shared.values import KnobValue, Model, Value

INPUTS = Path(__file__).parent / "inputs"
FULL: Mapping[str, KnobValue] = {"scale": 1.0, "codec": "raw"}
"""Knobs under which nothing is lost."""


def load(split: str, assets: Mapping[str, Path]) -> list[Example]:
    """Every file of a split: one in four is held out, by the hash of its name."""
    names = sorted(path.relative_to(INPUTS).as_posix() for path in INPUTS.rglob("*") if path.is_file())
    chosen = [name for name in names if held_out(name) == (split == "heldout")]
    # Without labels the model's own answer to the whole input is the truth: only agreement is measured.
    model = None if settings.LABELLED else cast("Model", open_runtime("onnx").load(assets["model"]))
    return [_example(name, model) for name in chosen]


def held_out(name: str) -> bool:
    """Whether a file, named from inputs/, is kept for checking."""
    return hashlib.sha256(name.encode()).digest()[0] % 4 == 0


def score(output: Value, truth: Value) -> float:
    """1 for the right class, 0 for another; of other outputs 1 less the relative difference, at least 0."""
    if isinstance(truth, str):
        return float(output == truth)
    wanted, found = np.asarray(truth, np.float64), np.asarray(output, np.float64)
    if wanted.shape != found.shape:
        return 0.0
    size = float(np.linalg.norm(wanted)) or 1.0
    return max(0.0, 1 - float(np.linalg.norm(found - wanted)) / size)


def _example(name: str, model: Model | None) -> Example:
    value, folder = (INPUTS / name).read_bytes(), Path(name).parent.as_posix()
    truth: Value = folder
    if model is not None:
        prepared = operators.prepare({"request": value}, FULL, None)
        predicted = operators.predict({"prepare": prepared}, {}, model)
        truth = operators.decide({"predict": predicted}, {}, None)
    return Example(name, value, truth, folder)
