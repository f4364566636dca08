"""Rivals in processes that can be killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from matching.cases import Case
from matching.ours import Measured
from matching.rivals import Found

OURS_LIMIT_S = 300.0

_BENCH = Path(__file__).resolve().parent.parent
_START_S = 60.0
"""To start, to import and to make the case; and what a solver may overrun its own limit by."""
_LONGEST_ERROR = 160


def run_rival(rival: str, case: Case, limit_s: float, *, python: str = sys.executable) -> Found:
    """Run a rival on a case; whatever happens to it is told by the status.

    Args:
        rival: One of ``rivals.RIVALS``.
        case: Made anew in the process, by its recipe.
        limit_s: What the solver is given; it is killed some time after that.
        python: Interpreter that has the rival's packages.
    """
    started_s = time.monotonic()
    arguments = [rival, json.dumps(case.recipe), str(limit_s)]
    answer, error = run_module("matching.rivals", arguments, limit_s, python)
    if answer is None:
        return Found(status=error, seconds=time.monotonic() - started_s)
    return Found(**answer)


def run_ours(case: Case, runs: int) -> Measured | str:
    """Our matcher in a process of its own: what it took, or why it ended."""
    answer, error = run_module("matching.ours", [json.dumps(case.recipe), str(runs)], OURS_LIMIT_S)
    return Measured(**answer) if answer is not None else error


def run_module(
    module: str, arguments: list[str], limit_s: float, python: str = sys.executable
) -> tuple[dict[str, Any] | None, str]:
    """Run a module of the benchmark's: the JSON of its last line, or else why there is none."""
    # Threads as the coordinator has them: one.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started_s = time.monotonic()
    process = subprocess.Popen(
        [python, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=_BENCH,
        env=environment,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=limit_s + _START_S)
    except subprocess.TimeoutExpired:
        _kill(process)
        return None, f"killed after {time.monotonic() - started_s:.0f} s"
    if process.returncode != 0:
        return None, _last_line(errors) or f"ended with status {process.returncode}"
    answer: dict[str, Any] = json.loads(output.splitlines()[-1])
    return answer, ""


def _kill(process: subprocess.Popen[str]) -> None:
    """End a process and those that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:_LONGEST_ERROR] if lines else ""
