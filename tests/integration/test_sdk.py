"""The SDK as a program uses it, without a network: an agent that is alone runs everything itself."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compass_agent.events import Source
from compass_agent.sdk import Agent, BlockingAgent
from compass_shared.errors import ConfigError, DeadlineError, InferenceError, ModelLoadError, TransportError
from support.bundles import write_tiny_bundle

ROWS = np.array([[1.0, 2.0], [3.0, -1.0]], np.float32)
LABELS = {"labels": ["low", "high"], "total": 5.0}
GATED = """

import threading

ENTERED = threading.Semaphore(0)
GATE = threading.Event()
_scale = scale


def scale(inputs, knobs, model):
    ENTERED.release()
    assert GATE.wait(30)
    return _scale(inputs, knobs, model)
"""

SLOW = """

import sys
import time

_scale = scale


def scale(inputs, knobs, model):
    print("slow", file=sys.stderr, flush=True)
    time.sleep(3)
    return _scale(inputs, knobs, model)
"""


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    return {"name": "phone", "bundles": [write_tiny_bundle(tmp_path)], "cache_root": tmp_path / "cache"}


def _gated(settings: dict[str, Any]) -> None:
    """Let the bundle's first operator wait for the test."""
    code = settings["bundles"][0] / "operators.py"
    code.write_text(code.read_text() + GATED)


def _of_operators(agent: Agent, name: str) -> Any:
    function: Any = agent.shell.bundles["tiny"].functions["scale"]
    return function.__globals__[name]


async def test_a_request_is_answered(settings: dict[str, Any]) -> None:
    async with Agent(**settings) as agent:
        assert await agent.request("tiny", ROWS) == LABELS
        outcome = await agent.outcome("tiny", ROWS)
    assert (outcome.value, outcome.source, outcome.attempts) == (LABELS, Source.DEFAULT, 1)
    (trace,) = outcome.segments
    assert trace.site == "phone"
    assert [timing.operator for timing in trace.timings] == ["scale", "classify", "label"]
    assert 0 < trace.wall_s <= outcome.latency_s


async def test_requests_at_once_get_their_own_answers(settings: dict[str, Any]) -> None:
    async with Agent(**settings, cores=2) as agent:
        inputs = [ROWS * factor for factor in range(1, 21)]
        values = await asyncio.gather(*(agent.request("tiny", rows) for rows in inputs))
    assert [value["total"] for value in values] == [5.0 * factor for factor in range(1, 21)]  # type: ignore[index, call-overload]


async def test_an_unknown_pipeline_is_named_with_what_is_there(settings: dict[str, Any]) -> None:
    async with Agent(**settings) as agent:
        with pytest.raises(ConfigError, match="'huge' is not installed here; installed: tiny"):
            await agent.request("huge", ROWS)
        assert await agent.request("tiny", ROWS) == LABELS


async def test_models_may_be_opened_before_the_first_request(settings: dict[str, Any]) -> None:
    async with Agent(**settings) as agent:
        await agent.open_models("tiny")
        (settings["bundles"][0] / "plain.onnx").unlink()
        assert await agent.request("tiny", ROWS) == LABELS
        with pytest.raises(ConfigError, match="'huge'"):
            await agent.open_models("huge")


async def test_a_wrong_model_is_refused_with_its_hashes(settings: dict[str, Any]) -> None:
    (settings["bundles"][0] / "plain.onnx").write_bytes(b"another model")
    async with Agent(**settings) as agent:
        with pytest.raises(ModelLoadError) as caught:
            await agent.open_models("tiny")
        assert caught.value.expected_sha256 != caught.value.actual_sha256 is not None
        with pytest.raises(ModelLoadError):
            await agent.request("tiny", ROWS)


@pytest.mark.parametrize("value", [b"\xff\xd8 no image", None, {"rows": []}, np.zeros(3)], ids=str)
async def test_a_failing_operator_is_named_and_the_agent_lives_on(
    settings: dict[str, Any], value: Any
) -> None:
    async with Agent(**settings) as agent:
        with pytest.raises(InferenceError, match="not an array of rows") as caught:
            await agent.request("tiny", value)
        assert caught.value.operator == "scale"
        assert await agent.request("tiny", ROWS) == LABELS


async def test_a_request_ends_at_its_deadline(settings: dict[str, Any]) -> None:
    _gated(settings)
    async with Agent(**settings) as agent:
        with pytest.raises(DeadlineError):
            await agent.request("tiny", ROWS, deadline_s=0.05)
        _of_operators(agent, "GATE").set()
        assert await agent.request("tiny", ROWS) == LABELS


async def test_closing_ends_what_is_in_flight(settings: dict[str, Any]) -> None:
    _gated(settings)
    async with Agent(**settings) as agent:
        waiting = [asyncio.create_task(agent.request("tiny", ROWS)) for _ in range(3)]
        assert await asyncio.to_thread(_of_operators(agent, "ENTERED").acquire, timeout=30)
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert [str(error) for error in ended] == ["the agent was closed"] * 3
    assert all(isinstance(error, TransportError) for error in ended)
    with pytest.raises(TransportError, match="closed"):
        await agent.request("tiny", ROWS)
    _of_operators(agent, "GATE").set()


async def test_a_wrong_setting_is_refused_before_anything_starts(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="Phone"):
        Agent(**settings | {"name": "Phone 1"})
    with pytest.raises(ConfigError, match="cannot be read"):
        Agent(**settings | {"bundles": [settings["cache_root"]]})


# --- without asyncio ------------------------------------------------------------------------------


def test_the_blocking_twin_serves_several_threads(settings: dict[str, Any]) -> None:
    with BlockingAgent(**settings) as agent, ThreadPoolExecutor(2) as threads:
        agent.open_models("tiny")
        values = list(threads.map(lambda factor: agent.request("tiny", ROWS * factor), range(1, 21)))
        with pytest.raises(InferenceError):
            agent.request("tiny", "no rows")
    assert [value["total"] for value in values] == [5.0 * factor for factor in range(1, 21)]  # type: ignore[index, call-overload]


def test_closing_the_blocking_twin_ends_what_is_in_flight(settings: dict[str, Any]) -> None:
    _gated(settings)
    ended: list[BaseException] = []

    def ask(agent: BlockingAgent) -> None:
        try:
            agent.request("tiny", ROWS)
        except TransportError as error:
            ended.append(error)

    with BlockingAgent(**settings) as agent:
        threads = [threading.Thread(target=ask, args=(agent,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        assert agent._agent is not None
        operators = agent._agent
        assert _of_operators(operators, "ENTERED").acquire(timeout=30)
        while len(operators.shell._waiting) < 3:
            threads[0].join(0.001)
    for thread in threads:
        thread.join()
    assert [str(error) for error in ended] == ["the agent was closed"] * 3
    _of_operators(operators, "GATE").set()


def test_the_blocking_twin_wants_a_with_statement(settings: dict[str, Any]) -> None:
    agent = BlockingAgent(**settings)
    with pytest.raises(RuntimeError, match="with BlockingAgent"):
        agent.request("tiny", ROWS)
    with agent:
        assert agent.request("tiny", ROWS) == LABELS
    with pytest.raises(RuntimeError, match="with BlockingAgent"):
        agent.request("tiny", ROWS)


def test_what_fails_at_the_start_leaves_no_thread(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError), BlockingAgent(**settings | {"name": "Phone 1"}):
        pass
    assert "compass-agent" not in [thread.name for thread in threading.enumerate()]


# --- from the command line ------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_agent_ends_cleanly_when_interrupted(settings: dict[str, Any], number: signal.Signals) -> None:
    process = _running(settings, "--no-measure")
    assert "compass-agent phone is up" in _line(process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode in (0, 130)
    assert said == ""


def test_an_agent_that_measures_ends_after_the_operator_that_runs(settings: dict[str, Any]) -> None:
    code = settings["bundles"][0] / "operators.py"
    code.write_text(code.read_text() + SLOW)
    process = _running(settings)
    while _line(process) != "slow\n":
        pass
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)  # all of the measurement takes 30 s
    assert process.returncode in (0, 130)
    assert "Traceback" not in said


def _running(settings: dict[str, Any], *options: str) -> subprocess.Popen[str]:
    bundle, cache = str(settings["bundles"][0]), str(settings["cache_root"])
    command = [sys.executable, "-m", "compass_agent", "run", "--name", "phone"]
    return subprocess.Popen(
        [*command, "--bundle", bundle, "--cache", cache, *options],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line, "it ended"
    return line
