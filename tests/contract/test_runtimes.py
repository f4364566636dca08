"""One suite for every runtime: the same small computation, the same errors."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compass_agent.runtimes import RUNTIMES, LoadedModel, available_runtimes, installed_runtimes, open_runtime
from compass_shared.errors import InferenceError, ModelLoadError
from support.computations import BIAS, WEIGHTS, affine_relu
from support.onnx_bytes import affine_relu_onnx
from support.tflite_bytes import affine_relu_tflite

SOURCES: dict[str, Callable[[], bytes]] = {
    "onnx": lambda: affine_relu_onnx(WEIGHTS, BIAS),
    "tflite": lambda: affine_relu_tflite(WEIGHTS, BIAS),
}


@pytest.fixture(params=sorted(RUNTIMES))
def name(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if name not in available_runtimes():
        pytest.skip(f"the {name} runtime is not installed")
    return name


@pytest.fixture
def model(name: str, tmp_path: Path) -> LoadedModel:
    return open_runtime(name).load(_source(name, tmp_path))


def _source(name: str, folder: Path) -> Path | str:
    if name == "python":
        return "support.computations:affine_relu"
    path = folder / hashlib.sha256(name.encode()).hexdigest()  # as in the model cache: no suffix
    path.write_bytes(SOURCES[name]())
    return path


def _rows(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 2)).astype(np.float32)


def _check(y: Any, rows: np.ndarray) -> None:
    np.testing.assert_allclose(y, affine_relu(rows)["y"], rtol=1e-6, atol=1e-6)


def test_inputs_and_outputs_go_by_name(model: LoadedModel) -> None:
    assert model.input_names == ("x",)
    outputs = model.run({"x": _rows(1)})
    assert list(outputs) == ["y"]
    _check(outputs["y"], _rows(1))


def test_shape_may_change_from_call_to_call(model: LoadedModel) -> None:
    for count in (1, 7, 7, 3, 1):
        _check(model.run({"x": _rows(count)})["y"], _rows(count))


def test_arrays_as_they_come_from_the_wire_are_taken(model: LoadedModel) -> None:
    rows = np.frombuffer(_rows(2).tobytes(), np.float32).reshape(2, 2)
    assert not rows.flags.writeable
    _check(model.run({"x": rows})["y"], rows)


def test_outputs_belong_to_the_caller(model: LoadedModel) -> None:
    first = model.run({"x": _rows(2)})["y"]
    kept = first.copy()
    model.run({"x": -_rows(2)})
    np.testing.assert_array_equal(first, kept)


def test_many_threads_share_one_model(model: LoadedModel) -> None:
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda count: model.run({"x": _rows(count)})["y"], [1, 2, 3, 4] * 25))
    for count, result in zip([1, 2, 3, 4] * 25, results, strict=True):
        _check(result, _rows(count))


@pytest.mark.parametrize(
    "feed",
    [{}, {"z": _rows(1)}, {"x": _rows(1), "z": _rows(1)}],
    ids=["nothing", "another name", "one too many"],
)
def test_wrong_names_are_refused(model: LoadedModel, feed: dict[str, np.ndarray]) -> None:
    with pytest.raises(InferenceError, match=r"takes \['x'\]"):
        model.run(feed)


@pytest.mark.parametrize(
    "array", [_rows(1).astype(np.float64), np.zeros((1, 5), np.float32)], ids=["dtype", "shape"]
)
def test_wrong_arrays_are_refused_and_the_model_lives_on(model: LoadedModel, array: np.ndarray) -> None:
    with pytest.raises(InferenceError) as caught:
        model.run({"x": array})
    assert caught.value.__cause__ is not None
    _check(model.run({"x": _rows(1)})["y"], _rows(1))


@pytest.mark.parametrize("content", [b"", b"not a model at all" * 10], ids=["empty", "garbage"])
def test_what_is_no_model_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    source: Path | str = tmp_path / "model"
    (tmp_path / "model").write_bytes(content)
    if name == "python":
        source = "support.computations:nothing"
    with pytest.raises(ModelLoadError) as caught:
        open_runtime(name).load(source)
    assert caught.value.model in {"model", "support.computations:nothing"}


def test_a_missing_file_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError):
        open_runtime(name).load(tmp_path / "missing")


def test_versions_name_the_library() -> None:
    found = available_runtimes()
    assert {"onnx", "python"} <= set(found)
    assert all(any(letter.isdigit() for letter in version) for version in found.values())


def test_what_works_is_installed_under_the_same_version() -> None:
    for runtime, library in available_runtimes().items():
        assert installed_runtimes()[runtime] == library


def test_looking_for_runtimes_imports_none() -> None:
    code = "import sys; from compass_agent.runtimes import installed_runtimes as found; print(*found()); "
    code += "assert not {'onnxruntime', 'ai_edge_litert', 'tflite_runtime'} & set(sys.modules)"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert "onnx" in run.stdout


def test_an_unknown_runtime_is_refused() -> None:
    with pytest.raises(ModelLoadError, match="onnx, python, tflite"):
        open_runtime("caffe")


def test_an_unknown_provider_is_refused() -> None:
    from compass_agent.runtimes.onnx import OnnxRuntime  # noqa: PLC0415

    with pytest.raises(ModelLoadError, match="CPUExecutionProvider"):
        OnnxRuntime(providers=["QuantumExecutionProvider"])


def test_onnx_takes_the_ort_format_without_a_suffix(tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(affine_relu_onnx(WEIGHTS, BIAS), options, ["CPUExecutionProvider"])
    bare = (tmp_path / "model.ort").rename(tmp_path / "model")
    model = open_runtime("onnx").load(bare)
    _check(model.run({"x": _rows(3)})["y"], _rows(3))


def test_tflite_without_a_signature_goes_by_tensor_names(tmp_path: Path) -> None:
    if "tflite" not in available_runtimes():
        pytest.skip("the tflite runtime is not installed")
    (tmp_path / "model").write_bytes(affine_relu_tflite(WEIGHTS, BIAS, signature=False))
    model = open_runtime("tflite").load(tmp_path / "model")
    assert model.input_names == ("x",)
    assert list(model.run({"x": _rows(1)})) == ["y"]


def test_tflite_runs_what_has_no_size_before_its_first_input(tmp_path: Path) -> None:
    if "tflite" not in available_runtimes():
        pytest.skip("the tflite runtime is not installed")
    (tmp_path / "model").write_bytes(affine_relu_tflite(WEIGHTS, BIAS, any_size=True))
    model = open_runtime("tflite").load(tmp_path / "model")
    for rows in (1, 3):
        _check(model.run({"x": _rows(rows)})["y"], _rows(rows))


def test_a_python_model_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "labels").write_text("a\nb\n")
    model = open_runtime("python").load(tmp_path / "labels")
    assert model.input_names == ()
    with pytest.raises(InferenceError, match="plain file"):
        model.run({})
