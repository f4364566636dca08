"""Models that a bundle's own code makes of others."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from compass_agent.models import ModelStore
from compass_shared.errors import ConfigError, ModelLoadError
from compass_shared.model_cache import ModelCache
from compass_shared.model_ref import ModelRef, model_refs_from

WEIGHTS = b"1 2 3"
MODEL = b"3 2 1"
CODE = """
from pathlib import Path
CALLS = Path(__file__).with_name("calls")

def reversed_weights(parts):
    CALLS.write_text(CALLS.read_text() + "x" if CALLS.exists() else "x")
    return parts["weights"].read_bytes()[::-1]

def wrong_type(parts):
    return "text"

def failing(parts):
    raise RuntimeError("no such layer")
"""


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "convert.py").write_text(CODE)
    (folder / "weights.bin").write_bytes(WEIGHTS)
    return folder


def refs(function: str = "reversed_weights", sha256: str = sha(MODEL)) -> dict[str, ModelRef]:
    return model_refs_from(
        {
            "weights": {"uri": "file:weights.bin", "sha256": sha(WEIGHTS)},
            "made": {"uri": f"made:.convert:{function}", "sha256": sha256, "assets": {"weights": "weights"}},
        }
    )


def test_a_model_is_made_once_and_kept(tmp_path: Path, bundle: Path) -> None:
    store = ModelStore(ModelCache(tmp_path / "cache"))
    for _ in range(2):
        paths = store.fetch_all(refs(), base=bundle)
        assert paths["made"].read_bytes() == MODEL
    assert (bundle / "calls").read_text() == "x"


def test_what_is_cached_needs_neither_code_nor_parts(tmp_path: Path, bundle: Path) -> None:
    cache = ModelCache(tmp_path / "cache")
    ModelStore(cache).fetch(refs()["made"], base=bundle, others=refs())
    assert ModelStore(cache).fetch(refs()["made"]).read_bytes() == MODEL


@pytest.mark.parametrize(
    ("ref", "problem"),
    [
        (refs("wrong_type")["made"], "made str, not bytes"),
        (refs("failing")["made"], "RuntimeError: no such layer"),
        (refs("missing")["made"], "there is no"),
        (refs(sha256=sha(b"other"))["made"], sha(MODEL)[:8]),
    ],
)
def test_what_goes_wrong_is_said(tmp_path: Path, bundle: Path, ref: ModelRef, problem: str) -> None:
    store = ModelStore(ModelCache(tmp_path / "cache"))
    with pytest.raises(ModelLoadError, match=problem):
        store.fetch(ref, name="made", base=bundle, others=refs())


def test_parts_come_from_the_same_pipeline(tmp_path: Path, bundle: Path) -> None:
    store = ModelStore(ModelCache(tmp_path / "cache"))
    with pytest.raises(ModelLoadError, match="no model of its pipeline"):
        store.fetch(refs()["made"], base=bundle)


def test_a_model_may_come_with_other_things_than_it_was_made_of(tmp_path: Path, bundle: Path) -> None:
    table: dict[str, dict[str, object]] = {
        "weights": {"uri": "file:weights.bin", "sha256": sha(WEIGHTS)},
        "first": {"uri": "made:.convert:reversed_weights", "sha256": sha(MODEL)},
    }
    table["first"] |= {"made_of": {"weights": "weights"}, "assets": {"labels": "labels"}}
    with pytest.raises(ConfigError, match="no model 'labels'"):
        model_refs_from(table)
    table["labels"] = {"uri": "file:labels.txt", "sha256": sha(b"labels")}
    chain = model_refs_from(table)
    store = ModelStore(ModelCache(tmp_path / "cache"))
    assert store.fetch(chain["first"], base=bundle, others=chain).read_bytes() == MODEL
    assert chain["first"].company == {"labels": "labels"}
    assert refs()["made"].company == {}, "the parts alone: not wanted once it is made"
    with pytest.raises(ConfigError, match="made: only"):
        model_refs_from({"weights": {**table["weights"], "made_of": {"x": "weights"}}})


@pytest.mark.parametrize("uri", ["made:os:remove", "made:.convert", "made:", "made:.convert:a b"])
def test_only_functions_of_the_bundle_make_models(uri: str) -> None:
    with pytest.raises(ConfigError, match="of the bundle's own folder"):
        model_refs_from({"made": {"uri": uri, "sha256": sha(MODEL)}})


def test_what_is_made_is_no_archive() -> None:
    table = {"uri": "made:.a:b", "sha256": sha(MODEL), "member": "x", "archive_sha256": sha(b"")}
    with pytest.raises(ConfigError, match=r"members"):
        model_refs_from({"made": table})
