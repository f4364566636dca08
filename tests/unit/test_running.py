"""Segments that the core asks for: each is reported once, and what nobody waits for is given up."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from compass_agent.bundles import Bundle
from compass_agent.events import RunSegment, SegmentDone, SegmentFailed
from compass_agent.execution import LocalPool
from compass_agent.operators import OperatorHost
from compass_agent.pace import Pace
from compass_agent.routes import LinkProxies
from compass_agent.running import SegmentRunner
from compass_agent.served import Served
from compass_shared.clock import MonotonicClock
from compass_shared.errors import DeadlineError, InferenceError
from compass_shared.pipeline import REQUEST
from compass_shared.plan import Epoch, Plan
from compass_shared.segments import cut
from support.agents import pipeline_of, python_operator

ONE = pipeline_of("one", python_operator("step", REQUEST))
PLAN = Plan(config={"step": {}}, placement={"step": "here"})


class NoModels:
    def fetch(self, *_args: object, **_options: object) -> Path:
        raise AssertionError


def action(attempt: int = 1, *, deadline_s: float = 30.0) -> RunSegment:
    (segment,) = cut(ONE, PLAN.placement, "here")
    return RunSegment(
        request="r1",
        attempt=attempt,
        segment=segment,
        query="q1",
        pipeline=ONE,
        plan=PLAN,
        epoch=Epoch(coordinator=1, sequence=1),
        values={REQUEST: b"input"},
        deadline_s=deadline_s,
        worker=None,
    )


@pytest.fixture
def calls() -> list[bytes]:
    return []


@pytest.fixture
def runner(calls: list[bytes]) -> SegmentRunner:
    def step(inputs: Mapping[str, Any], knobs: object, model: object) -> int:
        calls.append(inputs[REQUEST])
        if inputs[REQUEST] == b"bad":
            raise ValueError("cannot")
        return len(inputs[REQUEST])

    bundle = Bundle(folder=Path(), pipeline=ONE, code_sha256="", package="", functions={"step": step})
    clock = MonotonicClock()
    return SegmentRunner(
        host=OperatorHost([bundle], NoModels()),
        pool=LocalPool(1, clock=clock),
        pace=Pace(),
        proxies=LinkProxies({}, rng=random.Random(0)),
        clock=clock,
        served=Served(rng=random.Random(0), since_s=0.0),
    )


async def _run(runner: SegmentRunner, asked: RunSegment) -> SegmentDone | SegmentFailed:
    async with aiohttp.ClientSession() as http:
        return await runner.run(asked, http)


async def test_a_segment_runs_and_says_what_it_made(runner: SegmentRunner) -> None:
    asked = action()
    runner.begin(asked)
    done = await _run(runner, asked)
    assert isinstance(done, SegmentDone)
    assert (done.request, done.attempt, done.values) == ("r1", 1, {"step": 5})
    assert done.wall_s >= done.timings[0].wall_s


async def test_an_operator_that_fails_is_reported_with_its_error(runner: SegmentRunner) -> None:
    asked = replace(action(), values={REQUEST: b"bad"})
    runner.begin(asked)
    failed = await _run(runner, asked)
    assert isinstance(failed, SegmentFailed)
    assert isinstance(failed.error, InferenceError)


async def test_the_next_attempt_gives_the_one_before_up(runner: SegmentRunner, calls: list[bytes]) -> None:
    first, second = action(1), action(2)
    runner.begin(first)
    runner.begin(second)
    given_up, done = await asyncio.gather(_run(runner, first), _run(runner, second))
    assert isinstance(given_up, SegmentFailed)
    assert isinstance(given_up.error, DeadlineError)
    assert isinstance(done, SegmentDone)
    assert calls == [b"input"], "the first attempt left the pool to the second"


async def test_a_request_that_ended_before_its_segment_began_runs_nothing(
    runner: SegmentRunner, calls: list[bytes]
) -> None:
    asked = action()
    runner.begin(asked)
    runner.end("r1")
    failed = await _run(runner, asked)
    assert isinstance(failed, SegmentFailed)
    assert isinstance(failed.error, DeadlineError)
    assert calls == []
