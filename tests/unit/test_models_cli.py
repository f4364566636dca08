"""The portable folder and the ``models`` command."""

from __future__ import annotations

import argparse
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from compass_agent.models import ModelStore, Progress, State, cli, export_models, import_models
from compass_shared.errors import ConfigError, ModelLoadError
from compass_shared.model_cache import ModelCache
from compass_shared.model_ref import ModelRef
from support.models_kit import MODEL, OTHER, files_below, sha


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "det.onnx").write_bytes(MODEL)
    (folder / "keys.txt").write_bytes(OTHER)
    (folder / "pipeline.toml").write_text(
        f"""
        name = "tiny"
        [models.det]
        uri = "file:det.onnx"
        sha256 = "{sha(MODEL)}"
        licence = "MIT"
        assets = {{ dictionary = "keys" }}
        [models.keys]
        uri = "file:keys.txt"
        sha256 = "{sha(OTHER)}"
        """
    )
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "cache")


@pytest.fixture
def exported(bundle: Path, cache: ModelCache, tmp_path: Path) -> Path:
    refs = {
        "det": ModelRef(uri="file:det.onnx", sha256=sha(MODEL), licence="MIT"),
        "again": ModelRef(uri="file:det.onnx", sha256=sha(MODEL), licence="MIT"),
    }
    export_models(ModelStore(cache), refs, tmp_path / "portable", base=bundle)
    return tmp_path / "portable"


def run(*args: object) -> int:
    parser = argparse.ArgumentParser(prog="compass-agent")
    cli.add_parser(parser.add_subparsers())
    return cli.run(parser.parse_args(["models", *map(str, args)]))


def rows(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)}


def test_export_and_import(exported: Path, bundle: Path, tmp_path: Path) -> None:
    more = {"keys": ModelRef(uri="file:keys.txt", sha256=sha(OTHER))}
    export_models(ModelStore(ModelCache(tmp_path / "cache")), more, exported, base=bundle)
    assert {path.name for path in exported.iterdir()} == {"index.json", sha(MODEL), sha(OTHER)}
    second = ModelCache(tmp_path / "second")
    models = import_models(exported, second)
    assert [(model.names, model.licence) for model in models] == [(("again", "det"), "MIT"), (("keys",), "")]
    assert second.path_of(sha(MODEL)).read_bytes() == MODEL
    assert second.path_of(sha(OTHER)).read_bytes() == OTHER


def test_export_mends_a_damaged_folder(exported: Path, bundle: Path, cache: ModelCache) -> None:
    (exported / sha(MODEL)).write_bytes(b"damaged")
    export_models(ModelStore(cache), {"det": ModelRef(uri="file:x", sha256=sha(MODEL))}, exported)
    assert (exported / sha(MODEL)).read_bytes() == MODEL


def test_import_refuses_changed_bytes(exported: Path, tmp_path: Path) -> None:
    (exported / sha(MODEL)).write_bytes(OTHER)
    second = ModelCache(tmp_path / "second")
    with pytest.raises(ModelLoadError, match=r"^again, det: wrong SHA-256") as caught:
        import_models(exported, second)
    assert (caught.value.expected_sha256, caught.value.actual_sha256) == (sha(MODEL), sha(OTHER))
    assert files_below(second.root) == []


def test_import_of_a_missing_file(exported: Path, tmp_path: Path) -> None:
    (exported / sha(MODEL)).unlink()
    with pytest.raises(ModelLoadError, match=r"cannot import.*No such file"):
        import_models(exported, ModelCache(tmp_path / "second"))


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"\xff",
        b"[]",
        b'{"version": 2, "models": []}',
        b'{"version": 1, "models": [{"sha256": "../../x", "size_bytes": 1, "names": ["x"], "uri": "u"}]}',
    ],
)
def test_import_refuses_a_bad_index(tmp_path: Path, index: bytes) -> None:
    with pytest.raises(ConfigError, match="no folder made by"):
        import_models(tmp_path, ModelCache(tmp_path / "cache"))
    (tmp_path / "index.json").write_bytes(index)
    with pytest.raises(ConfigError) as caught:
        import_models(tmp_path, ModelCache(tmp_path / "cache"))
    assert caught.value.file == str(tmp_path / "index.json")


def test_commands_from_a_bundle_to_another_machine(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = ("--cache", tmp_path / "cache", "--json")
    there = ("--cache", tmp_path / "there", "--json")
    assert run("list", bundle, *here) == 0
    assert {row["state"] for row in rows(capsys).values()} == {"absent"}
    assert run("verify", bundle, *here) == 1
    capsys.readouterr()
    assert run("fetch", bundle / "pipeline.toml", *here) == 0
    fetched = rows(capsys)
    assert fetched["det"]["state"] == "fetched"
    assert Path(fetched["det"]["path"]).read_bytes() == MODEL
    assert run("export", bundle, "--to", tmp_path / "portable", *here) == 0
    assert rows(capsys)["keys"]["state"] == "exported"
    assert run("import", tmp_path / "portable", *there) == 0
    assert rows(capsys)["det"]["licence"] == "MIT"
    assert run("verify", *there) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    Path(fetched["det"]["path"]).write_bytes(OTHER)
    assert run("verify", bundle, *here) == 1
    assert {name: row["state"] for name, row in rows(capsys).items()} == {"det": "damaged", "keys": "cached"}


def test_table_and_environment(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPASS_CACHE", str(tmp_path / "own"))
    assert run("fetch", bundle) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].split() == ["NAME", "STATE", "SIZE", "SHA-256", "LICENCE", "FROM"]
    assert lines[1].split() == ["det", "fetched", "0.10", "MB", sha(MODEL)[:12], "MIT", "file:det.onnx"]
    assert "det: done 0.10 MB (file:det.onnx)" in captured.err.splitlines()
    assert (tmp_path / "own" / "models" / "sha256").is_dir()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no bundle"),
        ("name = \n", "not valid TOML.*line 1"),
        ("[models.x]\nuri = 'file:x'\n", r"\[models\.x\.sha256\]: is missing"),
        ("models = 5\n", r"\[models\]: must be a table"),
    ],
)
def test_a_wrong_file_is_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "pipeline.toml").write_text(content)
    assert run("list", tmp_path) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_failed_model_is_exit_code_1(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (bundle / "det.onnx").write_bytes(OTHER)
    assert run("fetch", bundle, "--cache", tmp_path / "cache") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1].startswith("error: det: wrong SHA-256")


@pytest.mark.parametrize("action", ["", "list", "fetch", "export", "import", "verify"])
def test_help_has_examples(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*filter(None, [action]), "--help")
    assert caught.value.code == 0
    assert "examples:\n  compass-agent models" in capsys.readouterr().out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_is_one_line() -> None:
    stream = Terminal()
    line = cli._ProgressLine(stream)
    for state, done_bytes in ((State.DOWNLOADING, 0), (State.DOWNLOADING, 500_000), (State.DONE, 1_000_000)):
        line(Progress(name="m", state=state, source="s", done_bytes=done_bytes, total_bytes=1_000_000))
    line.end()
    assert stream.getvalue().split("\r\x1b[K") == [
        "",
        "m: downloading 0 of 1.00 MB (s)",
        "m: downloading 0.50 MB of 1.00 MB (s)",
        "m: done 1.00 MB (s)\n",
    ]
