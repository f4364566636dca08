"""What is measured: operator variants of read-text, and networks of both model formats, as plain calls."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common import READ_TEXT
from compass_agent.bundles import load_bundle
from compass_agent.inputs import load_examples
from compass_agent.models import ModelStore
from compass_agent.operators import OperatorHost
from compass_agent.runtimes import LoadedModel, Runtime, open_runtime
from compass_shared.model_cache import ModelCache, default_cache_dir
from compass_shared.model_ref import ModelRef, model_refs_from
from compass_shared.pipeline import REQUEST, Knobs, variant_key
from compass_shared.toml_file import read_toml

if TYPE_CHECKING:
    from compass_shared.values import Array, Value

MODELS = Path(__file__).with_name("models.toml")
UPSTREAM: Mapping[str, Knobs] = {
    "prepare": {"scale": 1.0, "quality": 90},
    "detect": {"model": "det-small", "side": 480},
    "crop": {},
    "orientation": {"enabled": True},
}
"""What makes the inputs of the operators behind it."""
SPECTROGRAM_SAMPLES = (8_000, 16_000, 32_000, 64_000, 128_000)
EMBEDDING_WINDOWS = (1, 2, 3, 5, 8, 16)
HEADS = {"alexa": 16, "jarvis": 16, "mycroft": 16, "timer": 34, "weather": 22}
"""Network -> embeddings that it looks at."""
IMAGES = {
    "face-detection": 128,
    "face": 192,
    "iris": 64,
    "hand-lite": 224,
    "hand-full": 224,
    "palm-lite": 192,
    "pose": 224,
}
"""Network -> side of the image that it takes."""
CLASSES = {"onnx": "onnx-fp32", "tflite": "tflite-fp32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One variant with its inputs."""

    variant: str
    speed_class: str
    calls: Sequence[Callable[[], object]]
    """One per input."""


def model_store() -> ModelStore:
    """The machine's own model cache."""
    return ModelStore(ModelCache(default_cache_dir(os.environ)))


def read_text(
    pages: int, *, threads: int, replaced: Mapping[str, Path], only_models: bool = False
) -> Iterator[Subject]:
    """The variants of read-text, every operator on what the config ``UPSTREAM`` gives it.

    Args:
        pages: How many inputs.
        threads: Threads of one model run.
        replaced: SHA-256 of a model -> file to run in its place.
        only_models: Leave out what runs no model.
    """
    store = model_store()
    bundle = load_bundle(READ_TEXT)
    host = OperatorHost([bundle], store, open_runtime=lambda name: _Opened(name, threads, replaced))
    pipeline = bundle.pipeline
    examples = load_examples(bundle, "profiling", store)
    made: list[dict[str, Value]] = [
        {REQUEST: example.value} for example in examples[:: len(examples) // pages]
    ]
    for values in made[:pages]:
        for name, knobs in UPSTREAM.items():
            values[name] = host.bind(pipeline.name, name, knobs)(values)
    for operator in pipeline.operators:
        for knobs in operator.variants():
            bound = host.bind(pipeline.name, operator.name, knobs)
            if only_models and bound.model is None:
                continue
            inputs = [{name: values[name] for name in operator.inputs} for values in made[:pages]]
            yield Subject(
                variant=variant_key(operator.name, knobs),
                # A variant without its model does what Python does.
                speed_class=operator.speed_class if bound.model else "python",
                calls=[partial(bound, given) for given in inputs],
            )


def networks(form: str, *, threads: int) -> Iterator[Subject]:
    """The wake-word networks in one format, ``onnx`` or ``tflite``, at several sizes of input."""
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for samples in SPECTROGRAM_SAMPLES:
        shapes[variant_key("spectrogram", {"samples": samples})] = ("spectrogram", (1, samples))
    for windows in EMBEDDING_WINDOWS:
        shapes[variant_key("embedding", {"windows": windows})] = ("embedding", (windows, 76, 32, 1))
    for name, embeddings in HEADS.items():
        shapes[variant_key("wake", {"word": name})] = (name, (1, embeddings, 96))
    for variant, (model, shape) in shapes.items():
        yield _network(variant, f"{model}-{form}", shape, form, threads)


def landmarks(*, threads: int) -> Iterator[Subject]:
    """Networks that only LiteRT runs."""
    for model, side in IMAGES.items():
        variant = variant_key("landmarks", {"model": model})
        yield _network(variant, f"{model}-tflite", (1, side, side, 3), "tflite", threads)


def _network(variant: str, model: str, shape: tuple[int, ...], form: str, threads: int) -> Subject:
    # Opened once per variant: an interpreter that changes its input's shape allocates anew.
    loaded = open_runtime(form).load(model_store().fetch(_references()[model], name=model), threads=threads)
    rng = np.random.default_rng(0)
    feeds: list[Mapping[str, Array]] = [
        {loaded.input_names[0]: rng.random(shape, np.float32)} for _ in range(2)
    ]
    calls = [partial(loaded.run, feed) for feed in feeds]
    return Subject(variant=variant, speed_class=CLASSES[form], calls=calls)


def _references() -> Mapping[str, ModelRef]:
    tables, _ = read_toml(MODELS)
    return model_refs_from(tables["models"], file=MODELS)


class _Opened:
    """A runtime with other threads than one, and with some models replaced."""

    def __init__(self, name: str, threads: int, replaced: Mapping[str, Path]) -> None:
        self._inner: Runtime = open_runtime(name)
        self.name = name
        self._threads, self._replaced = threads, replaced

    def version(self) -> str:
        return self._inner.version()

    def load(self, source: Path | str, **_options: Any) -> LoadedModel:
        file = self._replaced.get(Path(source).name, source)
        return self._inner.load(file, threads=self._threads)
