"""Input sets are made once on a machine, and anew whenever something they follow from changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from compass_agent.bundles import Bundle, load_bundle
from compass_agent.inputs import data_sha256, load_examples
from compass_agent.models import ModelStore
from compass_shared.errors import ConfigError
from compass_shared.model_cache import ModelCache

TOML = """
schema = 1
name = "counted"
version = "1"
output = "echo"
[inputs]
function = ".inputs:make"
splits = { few = 2 }
[metric]
name = "m"
function = ".inputs:score"
[[operators]]
name = "echo"
inputs = ["request"]
runtime = "python"
function = ".inputs:echo"
"""
CODE = """
from pathlib import Path

def make(split, assets):
    log = Path(__file__).with_name("made.md")
    log.write_text((log.read_text() if log.exists() else "") + "x")
    return [(f"{split}-{i}", VALUE(i), "truth", "group") for i in range(2)]

def score(output, truth):
    return 1.0

def echo(inputs, knobs, model):
    return inputs["request"]
"""


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(ModelCache(tmp_path / "cache"))


def _bundle(folder: Path, value: str = "(lambda i: bytes([i]))") -> Bundle:
    folder.mkdir(exist_ok=True)
    (folder / "pipeline.toml").write_text(TOML)
    (folder / "labels.txt").write_text("a")
    (folder / "inputs.py").write_text(f"from collections import namedtuple\nVALUE = {value}\n{CODE}")
    return load_bundle(folder)


def _made(folder: Path) -> int:
    return len((folder / "made.md").read_text())


def test_a_set_is_made_once(tmp_path: Path, store: ModelStore) -> None:
    bundle = _bundle(tmp_path / "b")
    first, second = (load_examples(bundle, "few", store) for _ in range(2))
    assert first == second
    assert [(e.name, e.value, e.truth, e.group) for e in first] == [
        ("few-0", b"\x00", "truth", "group"),
        ("few-1", b"\x01", "truth", "group"),
    ]
    assert _made(tmp_path / "b") == 1


def test_a_file_beside_the_code_that_changed_makes_another_set(tmp_path: Path, store: ModelStore) -> None:
    bundle = _bundle(tmp_path / "b")
    load_examples(bundle, "few", store)
    (tmp_path / "b" / "labels.txt").write_text("b")
    load_examples(bundle, "few", store)
    assert _made(tmp_path / "b") == 2


@pytest.mark.parametrize("name", ["labels.txt", "labels/a/truth.json", "labels/profile/a.json", "a.json"])
def test_data_are_all_files_beside_the_code(tmp_path: Path, name: str) -> None:
    folder = _bundle(tmp_path / "b").folder
    seen = {data_sha256(folder)}
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for content in ("new", "old"):
        (folder / name).write_text(content)
        seen.add(data_sha256(folder))
    (folder / name).rename(folder / "renamed")
    seen.add(data_sha256(folder))
    assert len(seen) == 4


@pytest.mark.parametrize(
    "name",
    [
        "profile/accuracy.json",
        "a.measured.jsonl",
        "a.measured.jsonl.lock",
        "labels/a.progress",
        ".git/index",
        "labels/.hidden",
        "labels/__pycache__/a.bin",
        "labels/read.py",
        "labels/README.md",
        "pipeline.toml",
    ],
)
def test_what_is_no_data(tmp_path: Path, name: str) -> None:
    folder = _bundle(tmp_path / "b").folder
    before = data_sha256(folder)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("new")
    assert data_sha256(folder) == before


def test_a_table_beside_its_log_is_no_data(tmp_path: Path) -> None:
    folder = _bundle(tmp_path / "b").folder
    before = data_sha256(folder)
    (folder / "a.measured.jsonl").write_text("{}")
    (folder / "a.json").write_text("{}")
    assert data_sha256(folder) == before


def test_data_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _bundle(tmp_path / "b").folder

    def denied(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(ConfigError, match=r"labels.txt: cannot be read: Permission denied"):
        data_sha256(folder)


def test_a_damaged_set_is_made_anew(tmp_path: Path, store: ModelStore) -> None:
    bundle = _bundle(tmp_path / "b")
    load_examples(bundle, "few", store)
    (kept,) = (tmp_path / "cache" / "inputs").glob("*.msgpack")
    kept.write_bytes(b"\xc1 not a frame")
    assert [example.name for example in load_examples(bundle, "few", store)] == ["few-0", "few-1"]
    assert _made(tmp_path / "b") == 2


def test_what_cannot_be_framed_is_made_each_time(tmp_path: Path, store: ModelStore) -> None:
    bundle = _bundle(tmp_path / "b", "(lambda i: {i: object})")
    load_examples(bundle, "few", store)
    load_examples(bundle, "few", store)
    assert _made(tmp_path / "b") == 2
