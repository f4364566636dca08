"""A tiny real bundle for tests: three operators, two ONNX models of 130 bytes, examples and a metric.

request (n, 2) float32 -> scale -> classify (ONNX) -> label -> {"labels": [...], "total": ...}
                             └──────────────────────────┘
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from compass_shared.pipeline_file import load_pipeline
from compass_shared.profile import Accuracy, AccuracyTable
from compass_shared.profile_file import save_accuracy
from support.computations import BIAS, WEIGHTS
from support.onnx_bytes import affine_relu_onnx

MODELS = {"plain": WEIGHTS, "steep": ((10.0, -20.0, 5.0), (2.5, 10.0, -10.0))}
LABELS = "low\nmiddle\nhigh\n"
ACCURACY = {"plain": 0.8, "steep": 0.95}
"""What the accuracy table says of configs with each model."""

OPERATORS = '''
import numpy as np


def scale(inputs, knobs, model):
    """Refuses what is not an array, as a real operator refuses what is not an image."""
    request = inputs["request"]
    if not isinstance(request, np.ndarray) or request.ndim != 2:
        raise ValueError("not an array of rows")
    return request * np.float32(knobs["factor"])


def classify(inputs, knobs, model):
    return model.run({"x": inputs["scale"]})["y"]


def label(inputs, knobs, model):
    names = ["low", "middle", "high"]
    return {
        "labels": [names[index] for index in inputs["classify"].argmax(axis=1)],
        "total": float(inputs["scale"].sum()),
    }
'''

DATA = """
import numpy as np
from compass_shared.values import Example

COUNTS = {"profiling": 4, "heldout": 2}


def load(split, assets):
    names = assets["labels"].read_text().split()
    rng = np.random.default_rng(len(split))
    return [
        Example(f"{split}-{index}", rng.normal(size=(3, 2)).astype(np.float32), names, "only")
        for index in range(COUNTS[split])
    ]


def score(output, truth):
    return float(set(output["labels"]) <= set(truth))
"""

PIPELINE = """
schema = 1
name = "{name}"
version = "1.0.0"
output = "label"

[inputs]
function = ".data:load"
splits = {{ profiling = 4, heldout = 2 }}
assets = {{ labels = "labels" }}

[metric]
name = "known_labels"
function = ".data:score"

[[operators]]
name = "scale"
inputs = ["request"]
runtime = "python"
function = ".operators:scale"
knobs = {{ factor = [1.0, 2.0] }}

[[operators]]
name = "classify"
inputs = ["scale"]
runtime = "onnx"
function = ".operators:classify"
model_knob = "model"
knobs = {{ model = ["plain", "steep"] }}
speed_class = "onnx-fp32"

[[operators]]
name = "label"
inputs = ["scale", "classify"]
runtime = "python"
function = ".operators:label"

[models.labels]
uri = "file:labels.txt"
sha256 = "{labels}"

[models.plain]
uri = "file:plain.onnx"
sha256 = "{plain}"
assets = {{ labels = "labels" }}

[models.steep]
uri = "file:steep.onnx"
sha256 = "{steep}"
"""


def write_tiny_bundle(folder: Path, *, name: str = "tiny") -> Path:
    """Write the bundle into a new folder ``name`` below ``folder``; its models lie beside pipeline.toml."""
    bundle = folder / name
    bundle.mkdir(parents=True)
    files = {"labels": LABELS.encode()} | {
        model: affine_relu_onnx(weights, BIAS) for model, weights in MODELS.items()
    }
    for model, content in files.items():
        suffix = "txt" if model == "labels" else "onnx"
        (bundle / f"{model}.{suffix}").write_bytes(content)
    hashes = {model: hashlib.sha256(content).hexdigest() for model, content in files.items()}
    (bundle / "pipeline.toml").write_text(PIPELINE.format(name=name, **hashes))
    (bundle / "operators.py").write_text(OPERATORS)
    (bundle / "data.py").write_text(DATA)
    return bundle


def tiny_accuracy(bundle: Path) -> AccuracyTable:
    """An accuracy table of the bundle in which the model alone decides; see ``ACCURACY``."""
    pipeline = load_pipeline(bundle)
    return AccuracyTable(
        pipeline=pipeline.name,
        metric="known_labels",
        split="profiling",
        configs={
            pipeline.config_key(config): Accuracy(
                mean=ACCURACY[str(config["classify"]["model"])], standard_error=0.01, count=4
            )
            for config in pipeline.configs()
        },
        provenance={"models": {name: ref.sha256 for name, ref in pipeline.models.items()}},
    )


def write_tiny_accuracy(bundle: Path) -> Path:
    """Write that table where a bundle keeps its own."""
    path = bundle / "profile" / "accuracy.json"
    path.parent.mkdir(exist_ok=True)
    save_accuracy(path, tiny_accuracy(bundle))
    return path
