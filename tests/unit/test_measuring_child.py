"""One measuring process, played by a few lines of Python: what it says, and what it leaves unsaid."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from compass_coordinator.measuring.child import MeasuringChild
from compass_shared.errors import BackendError, ConfigError, MessageError
from compass_shared.measured import PROCESS_ENDED, Done, Job, encode_line

JOB = Job(id=7, input=0, configs=("a",))
DONE = Done(id=7, input=0, scores={})

Start = Callable[[str], MeasuringChild]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts a process that runs this code instead of the agent's."""
    started: list[MeasuringChild] = []
    popen = subprocess.Popen

    def start(code: str) -> MeasuringChild:
        def played(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
            return popen([sys.executable, "-S", "-c", f"import os, sys\n{code}"], **options)

        monkeypatch.setattr("compass_coordinator.measuring.child.subprocess.Popen", played)
        started.append(MeasuringChild([]))
        return started[-1]

    yield start
    for child in started:
        child.end()


def _answer(line: bytes) -> str:
    """Code that takes one job and says this."""
    return f"sys.stdin.readline()\nos.write(1, {line!r})\n"


def test_one_that_closed_its_pipe_may_still_say_why(start: Start) -> None:
    """As an interpreter does that is on its way out: SIGTERM would take its words and its exit code."""
    slow = "os.close(1)\nimport decimal, asyncio\nos.write(2, b'compass-agent: no metric')\nos._exit({})"
    with pytest.raises(ConfigError, match=r"^no metric$"):
        start(slow.format(2)).ready()
    with pytest.raises(BackendError, match=f"^{PROCESS_ENDED} with exit code 1: no metric$"):
        start(slow.format(1)).ready()


def test_one_that_ends_over_a_job(start: Start) -> None:
    with pytest.raises(BackendError, match=f"^{PROCESS_ENDED} with exit code 9; it said last: out of memory"):
        start(_answer(encode_line(DONE)[:-9]) + "os.write(2, b'out of memory')\nos._exit(9)").measure(JOB)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (
            b'{"message":"done","id":7,"input":0,"scores":{},"warm_up_cpu_s":null}\n',
            "not a Done.*warm_up_cpu_s",
        ),
        (encode_line(Done(id=6, input=0, scores={})), "answered job 6, not 7"),
    ],
)
def test_an_answer_that_is_none_is_not_taken_for_a_crash(start: Start, line: bytes, named: str) -> None:
    with pytest.raises(MessageError, match=named):
        start(_answer(line) + "sys.stdin.read()").measure(JOB)


def test_an_answer_is_taken(start: Start) -> None:
    assert start(_answer(encode_line(DONE)) + "sys.stdin.read()").measure(JOB) == DONE
