"""Accuracy tables as files: what is saved comes back, what was measured on something else is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from compass_shared import profile_file
from compass_shared.errors import ProfileError
from compass_shared.model_ref import ModelRef
from compass_shared.pipeline import Pipeline
from compass_shared.profile import Accuracy, AccuracyTable, lower_bound
from compass_shared.profile_file import load_accuracy, save_accuracy
from support.agents import CHAIN

SHA_A, SHA_B = "a" * 64, "b" * 64
TABLE = AccuracyTable(
    pipeline="chain",
    metric="exact",
    split="profiling",
    configs={
        "shrink[side=320];find;read": Accuracy(mean=0.75, standard_error=0.01, count=200),
        "shrink[side=640];find;read": Accuracy(mean=1.0, standard_error=0.0, count=200),
    },
    provenance={"date": "2025-05-01", "models": {"det": SHA_A}, "runs": {"read": 3}},
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "accuracy.json"
    save_accuracy(file, TABLE)
    return file


def with_models(**models: str) -> Pipeline:
    refs = {name: ModelRef(uri=f"file:{name}", sha256=sha256) for name, sha256 in models.items()}
    return dataclasses.replace(CHAIN, models=refs)


def edited(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_what_is_saved_comes_back_the_same(file: Path) -> None:
    assert load_accuracy(file) == TABLE


def test_extra_metrics_come_back_and_are_checked(file: Path) -> None:
    known = Accuracy(mean=0.5, standard_error=0.1, count=20)
    table = dataclasses.replace(TABLE, others={"recall": {"shrink[side=320];find;read": known}})
    save_accuracy(file, table)
    assert load_accuracy(file) == table
    edited(file, others={"recall": {"a": {"mean": 1.5, "standard_error": 0.0, "count": 1}}})
    with pytest.raises(ProfileError, match=r"\[others\.recall\.a\]: a mean in"):
        load_accuracy(file)


def test_a_team_can_read_and_compare_it(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert text.count("\n") > 10
    assert list(file.parent.iterdir()) == [file], "nothing is left beside it"


def test_a_table_of_the_very_models_is_taken(file: Path) -> None:
    assert load_accuracy(file, with_models(det=SHA_A)) == TABLE


def test_models_that_were_not_measured_are_no_contradiction(file: Path) -> None:
    """A new variant of a model has no configs in the table yet; side files are never in it."""
    assert load_accuracy(file, with_models(det=SHA_A, new=SHA_B)) == TABLE


def test_a_table_of_another_model_is_refused_with_both_hashes(file: Path) -> None:
    with pytest.raises(ProfileError) as caught:
        load_accuracy(file, with_models(det=SHA_B))
    assert "model 'det'" in str(caught.value)
    assert SHA_A in str(caught.value)
    assert SHA_B in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_table_of_another_pipeline_is_refused(file: Path) -> None:
    other = dataclasses.replace(CHAIN, name="other")
    with pytest.raises(ProfileError, match="profile of pipeline 'chain', not 'other'"):
        load_accuracy(file, other)


@pytest.mark.parametrize("provenance", [{}, {"models": "det"}])
def test_a_table_that_names_no_models_could_be_of_any(file: Path, provenance: dict[str, object]) -> None:
    edited(file, provenance=provenance)
    with pytest.raises(ProfileError, match="its provenance names no models"):
        load_accuracy(file, with_models(det=SHA_A))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"schema": 2}, "expected an accuracy table of schema 1"),
        ({"kind": "speed"}, "expected an accuracy table"),
        ({"color": "red"}, "unknown field `color`"),
        ({"metric": None}, r"Expected `str`, got `null` - at `\$.metric`"),
        ({"configs": {"a": {"mean": 0.5, "standard_error": 0.1}}}, "missing required field `count`"),
        ({"configs": {"a": {"mean": "high", "standard_error": 0, "count": 1}}}, "Expected `float`"),
        ({"configs": {"a": {"mean": 1.5, "standard_error": 0, "count": 1}}}, r"\[configs.a\]: a mean in"),
        ({"configs": {"a": {"mean": 0.5, "standard_error": -1, "count": 1}}}, r"\[configs.a\]"),
        ({"configs": {"a": {"mean": 0.5, "standard_error": 0, "count": 0}}}, r"\[configs.a\]"),
    ],
)
def test_what_is_no_accuracy_table_is_refused(file: Path, fields: dict[str, Any], problem: str) -> None:
    edited(file, **fields)
    with pytest.raises(ProfileError, match=problem) as caught:
        load_accuracy(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b'{"schema": 1, "kind": "\xff"}', b'{"provenance": ' + b'{"a":' * 100_000],
    ids=["empty", "list", "cut off", "not UTF-8", "too deep"],
)
def test_what_is_no_json_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(ProfileError) as caught:
        load_accuracy(file)
    assert str(file) in str(caught.value)


def test_a_file_that_is_too_large_is_not_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_file, "_MAX_FILE_BYTES", 100)
    with pytest.raises(ProfileError, match="larger than 100 bytes"):
        load_accuracy(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="cannot be read: No such file"):
        load_accuracy(tmp_path / "none.json")


# --- what is known about how far a mean may be off -------------------------------------------------


def entry(**fields: Any) -> dict[str, Any]:
    return {"configs": {"a": {"mean": 0.5, "standard_error": 0.1, "count": 9, **fields}}}


def test_intervals_and_predictions_come_back(tmp_path: Path) -> None:
    key = "shrink[side=320];find;read"
    known = Accuracy(mean=0.75, standard_error=0.01, count=40, low=0.73, high=0.77)
    guess = Accuracy(mean=0.8, standard_error=0.02, count=0, low=0.74, high=0.9, predicted=True)
    table = dataclasses.replace(TABLE, configs={key: known, "b": guess}, confidence=0.9, inputs=200)
    save_accuracy(tmp_path / "accuracy.json", table)
    assert load_accuracy(tmp_path / "accuracy.json", with_models(det=SHA_A)) == table
    assert lower_bound(table, 1.0).configs["b"].mean == pytest.approx(0.78)


def test_files_without_intervals_stay_as_they_are(file: Path) -> None:
    """A table of before is loaded and saved again byte for byte: no diff in a team's repository."""
    document = json.loads(file.read_bytes())
    assert set(document) == {"schema", "kind", "pipeline", "metric", "split", "provenance", "configs"}
    assert {field for found in document["configs"].values() for field in found} == {
        "mean",
        "standard_error",
        "count",
    }
    before = file.read_bytes()
    save_accuracy(file, load_accuracy(file))
    assert file.read_bytes() == before


def test_ends_that_were_rounded_apart_from_the_mean_are_taken(file: Path) -> None:
    edited(file, **entry(low=0.5000004, high=0.5))
    assert load_accuracy(file).configs["a"].low == 0.5000004


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (entry(low=0.6, high=0.7), "0 <= low <= mean <= high <= 1 is expected, got 0.6, 0.5, 0.7"),
        (entry(low=0.4, high=0.45), "low <= mean <= high"),
        (entry(low=-0.1, high=0.7), "0 <= low"),
        (entry(low=0.4, high=1.1), "high <= 1"),
        (entry(low=0.4), "low and high belong together"),
        (entry(count=0), "of none if predicted is true"),
        (entry(count=-1, predicted=True), r"\[configs.a\]"),
        (entry() | {"inputs": 8}, "9 inputs were measured, the split has 8"),
        (entry() | {"confidence": 1}, "confidence"),
    ],
)
def test_what_contradicts_itself_is_refused(file: Path, fields: dict[str, Any], problem: str) -> None:
    edited(file, **fields)
    with pytest.raises(ProfileError, match=problem):
        load_accuracy(file)
