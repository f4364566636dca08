"""examples/README.md, followed word for word in an empty folder."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from support.markdown import ROOT, all_blocks

PAGE = ROOT / "examples" / "README.md"

pytestmark = [pytest.mark.network, pytest.mark.timeout(300)]


def _commands() -> list[list[str]]:
    """Every line of the page's shell blocks, in order."""
    blocks = [text for info, text in all_blocks(PAGE.read_text(encoding="utf-8")) if info == "sh"]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.strip()]


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """As a user in the environment that the tests run in."""
    program = {
        "python": [],
        "compass": ["-m", "compass_coordinator"],
        "compass-agent": ["-m", "compass_agent"],
    }
    words = [sys.executable, *program[command[0]], *command[1:]]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_page_leads_to_a_pipeline_that_runs(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")  # "in a checkout of this repository"
    commands = _commands()
    assert commands[0][:2] == ["pip", "install"], "what the tests run in is installed"
    printed: dict[str, str] = {}
    for command in commands[1:]:
        run = _run(command, tmp_path)
        if command[0] == "python" and run.returncode and "ModelLoadError" in run.stderr:
            pytest.skip(f"the model cannot be had here: {run.stderr.splitlines()[-1]}")
        assert run.returncode == 0, f"{command}: {run.stderr}"
        printed[" ".join(command[:2])] = run.stdout
    assert set(printed) == {
        "python examples/first_steps/material.py",
        "compass new",
        "compass profile",
        "compass plan",
        "compass-agent run",
    }
    assert "6 configs" in printed["compass profile"]
    assert "quick-phone" in printed["compass plan"]
    answer = json.loads(printed["compass-agent run"])
    assert answer["output"] == "turned"
    table = json.loads((tmp_path / "tilt" / "profile" / "accuracy.json").read_text())
    assert max(row["mean"] for row in table["configs"].values()) > 0.9
