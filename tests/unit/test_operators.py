"""The operator host: variants bound to code and models, loaded once, failing as typed errors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compass_agent.bundles import load_bundle
from compass_agent.operators import BoundOperator, OperatorHost, check_value
from compass_agent.runtimes import LoadedModel, Runtime, open_runtime
from compass_shared.errors import BackendError, ConfigError, InferenceError, ModelLoadError
from compass_shared.model_ref import ModelRef
from compass_shared.payloads import encode_payload
from compass_shared.pipeline import Operator
from support.bundles import write_tiny_bundle
from support.computations import affine_relu

ROWS = np.array([[1.0, 2.0], [3.0, -1.0]], np.float32)


class FolderStore:
    """Finds models beside pipeline.toml and counts."""

    def __init__(self) -> None:
        self.fetched: list[str] = []

    def fetch(self, ref: ModelRef, *, name: str = "", base: Path | None = None, **_options: object) -> Path:
        assert base is not None
        self.fetched.append(name)
        return base / ref.origin.location


class CountingRuntime:
    """The ONNX runtime, counting what it opens."""

    name = "onnx"

    def __init__(self, *, fail_first: bool = False) -> None:
        self.loads: list[str] = []
        self._real = open_runtime("onnx")
        self._failures = int(fail_first)

    def version(self) -> str:
        return "counting 1"

    def load(self, source: Path | str, *, threads: int = 1) -> LoadedModel:
        self.loads.append(Path(source).name)
        if self._failures:
            self._failures -= 1
            raise ModelLoadError("no memory")
        return self._real.load(source, threads=threads)


@pytest.fixture
def store() -> FolderStore:
    return FolderStore()


def _host(
    tmp_path: Path, store: FolderStore, runtime: Callable[[str], Runtime] = open_runtime, copies: int = 1
) -> OperatorHost:
    names = ["tiny", "tiny-2", "tiny-3"][:copies]
    bundles = [load_bundle(write_tiny_bundle(tmp_path, name=name)) for name in names]
    return OperatorHost(bundles, store, open_runtime=runtime)


def test_operators_run_with_their_model(tmp_path: Path, store: FolderStore) -> None:
    host = _host(tmp_path, store)
    scaled = host.run("tiny", "scale", {"request": ROWS}, {"factor": 2.0})
    np.testing.assert_array_equal(np.asarray(scaled), ROWS * 2)
    y = host.run("tiny", "classify", {"scale": scaled}, {"model": "plain"})
    np.testing.assert_allclose(np.asarray(y), affine_relu(ROWS * 2)["y"], rtol=1e-6)
    label = host.run("tiny", "label", {"scale": scaled, "classify": y}, {})
    assert label == {"labels": ["low", "high"], "total": 10.0}


def test_nothing_is_fetched_before_it_is_needed(tmp_path: Path, store: FolderStore) -> None:
    host = _host(tmp_path, store)
    host.bind("tiny", "scale", {"factor": 1.0})
    assert store.fetched == []
    host.preload("tiny", ["classify[model=plain]", "label"])
    assert sorted(store.fetched) == ["labels", "plain"]


def test_assets_come_with_the_model(tmp_path: Path, store: FolderStore) -> None:
    model = _host(tmp_path, store).bind("tiny", "classify", {"model": "plain"}).model
    assert model is not None
    assert {name: path.name for name, path in model.assets.items()} == {
        "model": "plain.onnx",
        "labels": "labels.txt",
    }


def test_a_model_file_is_opened_once(tmp_path: Path, store: FolderStore) -> None:
    runtime = CountingRuntime()
    host = _host(tmp_path, store, lambda _: runtime, copies=3)
    start = threading.Barrier(6)

    def bind(pipeline: str) -> BoundOperator:
        start.wait()
        return host.bind(pipeline, "classify", {"model": "plain"})

    with ThreadPoolExecutor(6) as pool:
        bound = list(pool.map(bind, ["tiny", "tiny-2", "tiny-3"] * 2))
    assert runtime.loads == ["plain.onnx"]
    assert bound[0] is bound[3]


def test_a_failed_load_is_tried_again(tmp_path: Path, store: FolderStore) -> None:
    runtime = CountingRuntime(fail_first=True)
    host = _host(tmp_path, store, lambda _: runtime)
    with pytest.raises(ModelLoadError, match="no memory") as caught:
        host.preload("tiny", ["classify[model=plain]"])
    assert caught.value.model == "plain"
    host.preload("tiny", ["classify[model=plain]"])
    assert len(runtime.loads) == 2


@pytest.mark.parametrize(
    ("pipeline", "operator", "knobs", "said"),
    [
        ("huge", "scale", {"factor": 1.0}, "installed: tiny"),
        ("tiny", "shrink", {}, "no variant 'shrink'"),
        ("tiny", "scale", {"factor": 3.0}, r"no variant 'scale\[factor=3.0\]'"),
        ("tiny", "scale", {"factor": 1}, r"no variant 'scale\[factor=1\]'"),
        ("tiny", "scale", {}, "no variant 'scale'"),
    ],
)
def test_what_does_not_exist_is_refused(
    tmp_path: Path, store: FolderStore, pipeline: str, operator: str, knobs: Mapping[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        _host(tmp_path, store).bind(pipeline, operator, knobs)


def test_a_failing_operator_is_named_and_keeps_its_cause(tmp_path: Path, store: FolderStore) -> None:
    with pytest.raises(InferenceError, match="ValueError: not an array") as caught:
        _host(tmp_path, store).run("tiny", "scale", {"request": b"no image"}, {"factor": 1.0})
    assert caught.value.operator == "scale"
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_failing_model_is_named_by_its_operator(tmp_path: Path, store: FolderStore) -> None:
    wide = np.zeros((1, 9), np.float32)
    with pytest.raises(InferenceError) as caught:
        _host(tmp_path, store).run("tiny", "classify", {"scale": wide}, {"model": "plain"})
    assert caught.value.operator == "classify"
    assert caught.value.problem.count("operator") == 0


def _bound(function: Callable[..., Any]) -> BoundOperator:
    operator = Operator(name="odd", inputs=("request",), runtime="python")
    return BoundOperator(operator=operator, knobs={}, function=function, model=None)


@pytest.mark.parametrize(
    "error", [SystemExit(1), asyncio.CancelledError(), GeneratorExit(), MemoryError(), StopIteration()]
)
def test_whatever_an_operator_raises_ends_only_its_request(error: BaseException) -> None:
    def raising(inputs: object, knobs: object, model: object) -> None:
        raise error

    with pytest.raises(InferenceError, match=type(error).__name__):
        _bound(raising)({})


def test_ctrl_c_still_ends_the_program() -> None:
    def interrupted(inputs: object, knobs: object, model: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _bound(interrupted)({})


def test_a_closed_host_binds_nothing_more(tmp_path: Path, store: FolderStore) -> None:
    host = OperatorHost([load_bundle(write_tiny_bundle(tmp_path))], store)
    scale = host.bind("tiny", "scale", {"factor": 2.0})
    host.close()
    np.testing.assert_array_equal(np.asarray(scale({"request": ROWS})), ROWS * 2)
    with pytest.raises(BackendError, match="closed"):
        host.bind("tiny", "scale", {"factor": 2.0})
    with pytest.raises(BackendError, match="closed"):
        host.preload("tiny", ["label"])


@pytest.mark.parametrize(
    "value",
    [
        object(),
        {1: "a"},
        [set()],
        {"a": [bytearray(b"")]},
        np.array([object()]),
        np.zeros(2, complex),
        np.array(["text"]),
    ],
    ids=lambda value: repr(value).partition(" at 0x")[0],  # the same in every process
)
def test_an_output_has_to_be_a_value(value: object) -> None:
    with pytest.raises(InferenceError, match="TypeError"):
        _bound(lambda inputs, knobs, model: value)({})


def test_values_pass() -> None:
    check_value({"a": [1, 2.0, True, None, "x", b"y", (np.zeros(2, np.uint8), np.float32(1))]})


def test_an_operator_without_a_function_runs_its_model(tmp_path: Path, store: FolderStore) -> None:
    folder = write_tiny_bundle(tmp_path)
    text = (folder / "pipeline.toml").read_text()
    (folder / "pipeline.toml").write_text(text.replace('function = ".operators:classify"\n', ""))
    host = OperatorHost([load_bundle(folder)], store)
    for value in (ROWS, {"x": ROWS}):
        y = host.run("tiny", "classify", {"scale": value}, {"model": "plain"})
        np.testing.assert_allclose(np.asarray(y), affine_relu(ROWS)["y"], rtol=1e-6)
    with pytest.raises(InferenceError):
        host.run("tiny", "classify", {"scale": "text"}, {"model": "plain"})


def test_only_what_a_codec_wrote_down_is_read_back() -> None:
    written = encode_payload(np.array([0.5, 1.0], np.float32), "f16")

    def looking(inputs: Mapping[str, Any], knobs: object, model: object) -> Any:
        return [type(inputs[name]).__name__ for name in ("request", "shrink")]

    operator = Operator(name="odd", inputs=("request", "shrink"), runtime="python")
    bound = BoundOperator(
        operator=operator, knobs={}, function=looking, model=None, encoded=frozenset({"shrink"})
    )
    assert bound({"request": written, "shrink": written}) == ["dict", "ndarray"]
