"""What compass new writes, and what it refuses."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compass_agent.bundles import load_bundle
from compass_agent.cli import main
from compass_agent.models import ModelStore
from compass_agent.operators import OperatorHost
from compass_agent.runtimes.base import Tensor
from compass_agent.runtimes.onnx import signature
from compass_agent.scaffold import ModelShape, NewBundle, shape_of, write_bundle
from compass_agent.scaffold.new_bundle import NORMALISATIONS
from compass_shared.errors import ConfigError
from compass_shared.fleet_file import load_fleet
from compass_shared.model_cache import ModelCache
from compass_shared.new_options import NORMALISE, add_new_options, words_of
from support.onnx_bytes import affine_relu_onnx

SCORES = Tensor(name="y", dtype="float32", shape=(None, 3))


def tensor(*shape: int | None, dtype: str = "float32") -> Tensor:
    return Tensor(name="x", dtype=dtype, shape=shape)


@pytest.mark.parametrize(
    ("declared", "wanted"),
    [
        (
            tensor(None, 3, 64, 48),
            ModelShape(batched=True, whole_numbers=False, picture=True, width=48, height=64),
        ),
        (
            tensor(1, 32, 32, 1, dtype="uint8"),
            ModelShape(
                batched=True,
                whole_numbers=True,
                picture=True,
                channels=1,
                channels_first=False,
                width=32,
                height=32,
            ),
        ),
        (tensor(None, 3, None, None), ModelShape(batched=True, whole_numbers=False, picture=True)),
        (tensor(None, 2), ModelShape(batched=True, whole_numbers=False, picture=False)),
        (tensor(7, 2), ModelShape(batched=False, whole_numbers=False, picture=False)),
        (tensor(None, 5, 64, 64), ModelShape(batched=True, whole_numbers=False, picture=False)),
        (tensor(None, 3, 4, 4, dtype="int64"), ModelShape(batched=True, whole_numbers=False, picture=False)),
    ],
)
def test_a_signature_says_how_to_feed_a_model(declared: Tensor, wanted: ModelShape) -> None:
    found = shape_of([declared], [Tensor(name="y", dtype="float32", shape=(None, 4, 4))])
    assert replace(found, rank=wanted.rank, dtype=wanted.dtype, output=wanted.output) == wanted
    assert (found.rank, found.dtype, found.output) == (len(declared.shape), declared.dtype, "y")


def test_classes_are_counted_where_there_is_one_list() -> None:
    assert shape_of([tensor(None, 2)], [SCORES]).classes == 3
    assert shape_of([tensor(2)], [Tensor(name="y", dtype="float32", shape=(3,))]).classes == 3
    assert (
        shape_of([tensor(None, 2)], [Tensor(name="y", dtype="float32", shape=(None, 8, 8))]).classes is None
    )


def test_the_output_with_scores_is_taken() -> None:
    label = Tensor(name="label", dtype="int64", shape=(None,))
    pixel = Tensor(name="pixel", dtype="float32", shape=(None, 5, 1, 1))
    assert shape_of([tensor(None, 2)], [label, SCORES]).output == "y"
    found = shape_of([tensor(None, 3, 8, 8)], [pixel])
    assert (found.output, found.classes) == ("pixel", 5)


def test_a_model_with_several_inputs_is_refused() -> None:
    with pytest.raises(ConfigError, match="2 inputs"):
        shape_of([tensor(1), tensor(2)], [SCORES])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(affine_relu_onnx([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0]))
    return path


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    """Pairs of numbers, in a folder by which of them is the greater."""
    rng = np.random.default_rng(3)
    for index in range(24):
        pair = rng.uniform(0, 1, 2).astype(np.float32)
        folder = tmp_path / "inputs" / ("first" if pair[0] > pair[1] else "second")
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{index:02d}.npy", pair)
    return tmp_path / "inputs"


def new(model: Path, data: Path, **changes: object) -> NewBundle:
    fields: dict[str, object] = {"name": "greater", "model": model, "inputs": data}
    return NewBundle(**{**fields, "shape": shape_of(*signature(model)), **changes})  # type: ignore[arg-type]


def run_all(folder: Path, cache: Path) -> tuple[list[str], float]:
    """Outputs of a new bundle on its held-out inputs, and its score."""
    bundle, store = load_bundle(folder), ModelStore(ModelCache(cache))
    host = OperatorHost([bundle], store)
    config = next(bundle.pipeline.configs())
    outputs, scores = [], []
    for example in bundle.examples("heldout", store):
        made = {"request": example.value}
        for operator in bundle.pipeline.operators:
            inputs = {name: made[name] for name in operator.inputs}
            made[operator.name] = host.run(bundle.pipeline.name, operator.name, inputs, config[operator.name])
        outputs.append(str(made["decide"]))
        scores.append(bundle.metric()(made["decide"], example.truth))
    return outputs, float(np.mean(scores))


def test_a_bundle_of_labelled_arrays_runs(tmp_path: Path, model: Path, arrays: Path) -> None:
    folder = tmp_path / "greater"
    write_bundle(new(model, arrays), folder)
    outputs, score = run_all(folder, tmp_path / "cache")
    assert score == 1.0
    assert set(outputs) == {"first", "second"}
    pipeline = load_bundle(folder).pipeline
    assert pipeline.inputs is not None
    assert sum(pipeline.inputs.splits.values()) == 24
    assert pipeline.models["model"].sha256 == hashlib.sha256(model.read_bytes()).hexdigest()
    assert {query.pipeline for query in load_fleet(folder / "fleet.toml").queries} == {"greater"}


def test_without_labels_agreement_is_measured(tmp_path: Path, model: Path, arrays: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in arrays.rglob("*.npy"):
        path.rename(flat / path.name)
    write_bundle(new(model, flat), tmp_path / "greater")
    outputs, score = run_all(tmp_path / "greater", tmp_path / "cache")
    assert score == 1.0
    assert set(outputs) <= {"0", "1"}


@pytest.mark.parametrize(
    "written", [lambda pair: pair[None], lambda pair: pair.astype(np.float64)], ids=["batch", "float64"]
)
def test_arrays_may_have_a_batch_and_other_numbers(
    tmp_path: Path, model: Path, arrays: Path, written: Callable[[np.ndarray], np.ndarray]
) -> None:
    for path in arrays.rglob("*.npy"):
        np.save(path, written(np.load(path)))
    write_bundle(new(model, arrays), tmp_path / "greater")
    assert run_all(tmp_path / "greater", tmp_path / "cache")[1] == 1.0


def test_a_model_that_does_not_take_the_inputs_is_refused(tmp_path: Path, model: Path, arrays: Path) -> None:
    for path in arrays.rglob("*.npy"):
        np.save(path, np.zeros(3, np.float32))
    with pytest.raises(ConfigError, match="does not take the inputs"):
        write_bundle(new(model, arrays), tmp_path / "greater")
    assert not (tmp_path / "greater").exists()


def test_a_model_in_several_files_is_refused(tmp_path: Path, model: Path, arrays: Path) -> None:
    found = new(model, arrays)
    model.write_bytes(b"no model any more")
    with pytest.raises(ConfigError, match="does not open where it was copied to"):
        write_bundle(found, tmp_path / "greater")


def test_the_command_says_what_comes_next(
    tmp_path: Path, model: Path, arrays: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["new", "greater", "--model", str(model), "--inputs", str(arrays), "--to", str(tmp_path / "to")]
    assert main(command) == 0
    assert f"compass profile {tmp_path}/to/greater" in capsys.readouterr().out
    assert main(command) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"name": "No Name"}, "must match"),
        ({"labels": ("first",)}, "does not name 'second'"),
        ({"labels": ("first", "second", "third")}, "there are 3 labels and the model tells 2"),
        ({"inputs": Path("nowhere")}, "is no folder"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, model: Path, arrays: Path, changes: dict[str, object], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        write_bundle(new(model, arrays, **changes), tmp_path / "greater")
    assert not (tmp_path / "greater").exists()


def test_inputs_are_of_one_kind_and_in_folders_or_not(tmp_path: Path, model: Path, arrays: Path) -> None:
    np.save(arrays / "beside.npy", np.zeros(2, np.float32))
    with pytest.raises(ConfigError, match="both in sub-folders and beside"):
        write_bundle(new(model, arrays), tmp_path / "greater")
    Image.new("RGB", (4, 4)).save(arrays / "picture.png")
    with pytest.raises(ConfigError, match="pictures and arrays"):
        write_bundle(new(model, arrays), tmp_path / "greater")


def test_pictures_need_a_model_of_pictures(tmp_path: Path, model: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index in range(5):
        Image.new("RGB", (4, 4)).save(pictures / f"{index}.png")
    with pytest.raises(ConfigError, match=r"input is not \(batch, channels"):
        write_bundle(new(model, pictures), tmp_path / "greater")


def test_too_few_inputs_are_refused(tmp_path: Path, model: Path) -> None:
    (tmp_path / "few").mkdir()
    np.save(tmp_path / "few" / "one.npy", np.zeros(2, np.float32))
    with pytest.raises(ConfigError, match="has 1 inputs"):
        write_bundle(new(model, tmp_path / "few"), tmp_path / "greater")


def test_options_come_through_as_words() -> None:
    parser = argparse.ArgumentParser()
    add_new_options(parser)
    words = "tilt --model m.onnx --inputs p --to here --labels a,b --size 192x48 --normalise signed --bgr"
    parsed = parser.parse_args(words.split())
    assert parser.parse_args(words_of(parsed)) == parsed
    assert set(NORMALISE) == set(NORMALISATIONS)
