"""Assignments on disk: what was in force comes back, and a bad disk is not fatal."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from compass_agent import saved
from compass_shared.plan import Plan
from support.agents import CHAIN, SITE, assigned, plan_at

MIXED = Plan(
    config={"shrink": {"side": 320, "scale": 1.0, "gray": True, "kind": "fast"}},
    placement={"shrink": SITE, "find": "edge", "read": "edge"},
)
OVERLOADED = plan_at(CHAIN, SITE, p95_s=float("inf"))


def test_what_is_saved_comes_back_the_same(tmp_path: Path) -> None:
    """Knob values keep their types; a device too busy for its fallback has an infinite estimate."""
    assignments = {
        "q1": assigned(CHAIN, MIXED, fallback=OVERLOADED),
        "q2": assigned(CHAIN, None, query="q2", refusal="latency cannot be met"),
    }
    saved.save(tmp_path / "new" / "folder", assignments)
    found = saved.load(tmp_path / "new" / "folder")
    assert found == assignments
    assert found["q1"].plan is not None
    kinds = [type(value) for value in found["q1"].plan.config["shrink"].values()]
    assert kinds == [int, float, bool, str]


def test_only_its_user_may_read_it(tmp_path: Path) -> None:
    """It holds the tokens of workers."""
    saved.save(tmp_path, {"q1": assigned(CHAIN, MIXED)})
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_the_last_save_counts(tmp_path: Path) -> None:
    saved.save(tmp_path, {"q1": assigned(CHAIN, MIXED)})
    saved.save(tmp_path, {})
    assert saved.load(tmp_path) == {}


def test_nothing_saved_is_nothing_in_force(tmp_path: Path) -> None:
    assert saved.load(tmp_path) == {}
    assert saved.load(None) == {}
    saved.save(None, {"q1": assigned(CHAIN, MIXED)})


@pytest.mark.parametrize("content", [b"", b"\xc1", b"\x81\xa2q1\x01", b"{}{"])
def test_a_damaged_file_is_reported_and_counts_as_none(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    saved.save(tmp_path, {})
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    assert saved.load(tmp_path) == {}
    assert file.name in caplog.text


def test_a_disk_that_does_not_write_is_reported_and_not_fatal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "state"
    folder.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        saved.save(folder, {"q1": assigned(CHAIN, MIXED)})
    assert "not saved" in caplog.text
