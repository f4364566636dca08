"""Two real processes at one cache, and processes that are killed or interrupted halfway."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from compass_agent.models import ModelStore
from compass_shared.model_cache import ModelCache
from compass_shared.model_ref import ModelRef, model_ref_from
from support.models_kit import (
    MODEL,
    Stall,
    Web,
    child,
    fetching_child,
    files_below,
    make_zip,
    sha,
    wait_for_line,
    web,
)

_CLI = """
import argparse, sys
from compass_agent.models import cli
parser = argparse.ArgumentParser()
cli.add_parser(parser.add_subparsers())
raise SystemExit(cli.run(parser.parse_args(sys.argv[1:])))
"""


@pytest.fixture
def site() -> Iterator[Web]:
    with web() as running:
        yield running


def downloading(line: str) -> bool:
    state, _, done_bytes = line.partition(" ")
    return state == "downloading" and int(done_bytes) > 0


def end(process: subprocess.Popen[str]) -> tuple[str, str]:
    try:
        return process.communicate(timeout=60)
    finally:
        process.kill()


def table_for(site: Web, tmp_path: Path) -> tuple[dict[str, object], Stall]:
    archive = make_zip(tmp_path / "a.zip", {"model": MODEL}).read_bytes()
    stall = Stall(archive)
    site.answers["/a.zip"] = stall
    return {
        "uri": f"{site.address}/a.zip",
        "archive_sha256": sha(archive),
        "member": "model",
        "sha256": sha(MODEL),
    }, stall


def test_the_second_process_waits_and_finds_it(site: Web, tmp_path: Path) -> None:
    table, stall = table_for(site, tmp_path)
    first = fetching_child(tmp_path / "cache", table)
    wait_for_line(first.stdout, downloading)
    second = fetching_child(tmp_path / "cache", table)
    wait_for_line(second.stdout, lambda line: line.startswith("waiting"))
    stall.released.set()
    outputs = [end(first)[0], end(second)[0]]
    assert [process.returncode for process in (first, second)] == [0, 0]
    path = str(ModelCache(tmp_path / "cache").path_of(sha(MODEL)))
    assert [output.splitlines()[-1] for output in outputs] == [path, path]
    assert "downloading" not in outputs[1]
    assert site.asked == ["/a.zip"]


def test_members_of_one_archive_in_two_processes(site: Web, tmp_path: Path) -> None:
    files = {"one": MODEL, "two": MODEL[::-1]}
    archive = make_zip(tmp_path / "a.zip", files).read_bytes()
    stall = Stall(archive)
    site.answers["/a.zip"] = stall
    tables = [
        {
            "uri": f"{site.address}/a.zip",
            "archive_sha256": sha(archive),
            "member": name,
            "sha256": sha(content),
        }
        for name, content in files.items()
    ]
    first = fetching_child(tmp_path / "cache", tables[0])
    wait_for_line(first.stdout, downloading)
    second = fetching_child(tmp_path / "cache", tables[1])
    wait_for_line(second.stdout, lambda line: line.startswith("waiting"))
    stall.released.set()
    assert [end(process)[1] for process in (first, second)] == ["", ""]
    assert site.asked == ["/a.zip"]
    assert len(ModelCache(tmp_path / "cache").hashes()) == 3


def test_killed_halfway(site: Web, tmp_path: Path) -> None:
    table, stall = table_for(site, tmp_path)
    cache = ModelCache(tmp_path / "cache")
    process = fetching_child(cache.root, table)
    wait_for_line(process.stdout, downloading)
    process.kill()
    end(process)
    assert cache.hashes() == []
    assert len(files_below(cache.root)) == 1  # the half, in staging
    stall.released.set()
    assert ModelStore(cache).fetch(model_ref_from(table, field="m")).read_bytes() == MODEL
    assert {path.name for path in files_below(cache.root)} == {table["sha256"], table["archive_sha256"]}


def test_a_waiting_process_takes_over_from_a_killed_one(site: Web, tmp_path: Path) -> None:
    table, stall = table_for(site, tmp_path)
    first = fetching_child(tmp_path / "cache", table)
    wait_for_line(first.stdout, downloading)
    second = fetching_child(tmp_path / "cache", table)
    wait_for_line(second.stdout, lambda line: line.startswith("waiting"))
    first.kill()
    end(first)
    stall.released.set()
    assert end(second)[0].splitlines()[-1].endswith(sha(MODEL))
    assert second.returncode == 0


def test_ctrl_c_ends_the_command_cleanly(site: Web, tmp_path: Path) -> None:
    site.answers["/m"] = Stall(MODEL)
    toml = f'[models.slow]\nuri = "{site.address}/m"\nsha256 = "{sha(MODEL)}"\n'
    (tmp_path / "pipeline.toml").write_text(toml)
    cache = ModelCache(tmp_path / "cache")
    process = child(_CLI, "models", "fetch", str(tmp_path), "--cache", str(cache.root))
    wait_for_line(process.stderr, lambda line: line.startswith("slow: downloading"))
    process.send_signal(signal.SIGINT)
    out, err = end(process)
    assert process.returncode == 130
    assert out == ""
    assert err.splitlines()[-1] == "interrupted; nothing half-done is kept"
    assert "Traceback" not in err
    assert files_below(cache.root) == []
    assert not cache.has(ModelRef(uri="file:x", sha256=sha(MODEL)).sha256)
