"""The models of read-text in int8: onnxruntime's own static quantisation, calibrated on the pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import READ_TEXT
from compass_agent.bundles import load_bundle
from compass_agent.inputs import load_examples
from compass_agent.operators import OperatorHost
from compass_agent.runtimes import LoadedModel, Runtime, open_runtime
from compass_shared.pipeline import REQUEST
from profiling.devices.settings import SkippedError
from profiling.devices.subjects import UPSTREAM, model_store

if TYPE_CHECKING:
    from compass_shared.values import Array, Value

FEEDS = 3
"""What a model is calibrated on: enough for its latency, which is all that is looked at."""
MODELS = 7
"""That read-text runs."""


def int8_models(folder: Path) -> dict[str, Path]:
    """Quantise every model that read-text runs, unless an earlier call did.

    Returns:
        SHA-256 of a model -> its int8 version in ``folder``.

    Raises:
        SkippedError: If the ``onnx`` package, which onnxruntime quantises with, is not installed.
    """
    made = {file.stem: file for file in folder.glob("*.onnx")}
    if len(made) == MODELS:
        return made
    try:
        from onnxruntime.quantization import (  # noqa: PLC0415  # needs a package that only this needs
            CalibrationDataReader,
            QuantFormat,
            quantize_static,
        )
    except ImportError as error:
        raise SkippedError(f"pip install onnx to measure it ({error})") from error

    class Recorded(CalibrationDataReader):  # type: ignore[misc]  # untyped
        """The feeds of one model, one after the other."""

        def __init__(self, feeds: list[Mapping[str, Array]]) -> None:
            self._left: Iterator[Mapping[str, Array]] = iter(feeds)

        def get_next(self) -> Mapping[str, Array] | None:
            return next(self._left, None)

    folder.mkdir(parents=True, exist_ok=True)
    for source, feeds in _recorded().items():
        part = folder / f"{source.name}.part"
        quantize_static(str(source), str(part), Recorded(feeds[:FEEDS]), quant_format=QuantFormat.QDQ)
        made[source.name] = part.rename(part.with_suffix(".onnx"))
    return made


def _recorded() -> dict[Path, list[Mapping[str, Array]]]:
    """What every model of read-text is given when its variants run on a page."""
    store = model_store()
    bundle = load_bundle(READ_TEXT)
    recorder = _Recorder()
    host = OperatorHost([bundle], store, open_runtime=lambda _name: recorder)
    pipeline = bundle.pipeline
    values: dict[str, Value] = {REQUEST: load_examples(bundle, "profiling", store)[0].value}
    for operator in pipeline.operators:
        if operator.runtime == "onnx":
            for knobs in operator.variants():
                host.bind(pipeline.name, operator.name, knobs)(values)
        if operator.name in UPSTREAM:
            values[operator.name] = host.bind(pipeline.name, operator.name, UPSTREAM[operator.name])(values)
    return recorder.feeds


class _Recorder:
    """The onnx runtime, keeping what its models are given."""

    name = "onnx"

    def __init__(self) -> None:
        self._inner: Runtime = open_runtime("onnx")
        self.feeds: dict[Path, list[Mapping[str, Array]]] = {}

    def version(self) -> str:
        return self._inner.version()

    def load(self, source: Path | str, **options: Any) -> LoadedModel:
        return _RecordedModel(self._inner.load(source, **options), self.feeds.setdefault(Path(source), []))


class _RecordedModel:
    def __init__(self, inner: LoadedModel, feeds: list[Mapping[str, Array]]) -> None:
        self._inner, self._feeds = inner, feeds
        self.input_names = inner.input_names

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        self._feeds.append(feed)
        return self._inner.run(feed)
