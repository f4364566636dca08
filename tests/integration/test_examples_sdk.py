"""The SDK's examples, run as their README says; the models come from a registry or the cache."""

from __future__ import annotations

import os
import subprocess
import sys
from difflib import SequenceMatcher
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "sdk"
PAGE = "Drinking water\nRooms to let\nCash desk closed\nUpper Weir Walk\n"

pytestmark = [pytest.mark.network, pytest.mark.timeout(600)]


def _run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    run = subprocess.run(
        [sys.executable, FOLDER / script, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    last = run.stderr.splitlines()[-1:] or [""]
    if "ModelLoadError" in last[0] and "sha256" not in last[0]:
        pytest.skip(f"the models cannot be had here: {last[0]}")
    return run


@pytest.mark.parametrize("script", ["ask.py", "ask_blocking.py"])
def test_an_example_reads_a_page(script: str) -> None:
    run = _run(script)
    assert run.returncode == 0, run.stderr
    # Pillow's font and the models' arithmetic differ a little between versions and machines.
    assert SequenceMatcher(None, run.stdout, PAGE).ratio() > 0.8


def test_a_file_that_is_no_image_is_said_to_be_none() -> None:
    run = _run("ask_blocking.py", __file__)
    assert run.returncode == 1
    assert "InferenceError: operator 'prepare'" in run.stderr.splitlines()[-1]
