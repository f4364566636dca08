"""Segments in one thread, deadlines between operators, and the bounded pool."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compass_agent.bundles import Bundle, load_bundle
from compass_agent.deadline import Deadline
from compass_agent.execution import LocalPool, SegmentResult, run_segment
from compass_agent.models import ModelStore
from compass_agent.operators import OperatorHost
from compass_agent.pace import Pace
from compass_agent.states import RequestStates, StateBook
from compass_shared.clock import VirtualClock
from compass_shared.errors import ConfigError, DeadlineError, InferenceError, MessageError, RefusedError
from compass_shared.model_cache import ModelCache
from compass_shared.pipeline import REQUEST, Config
from compass_shared.values import State, Value
from support.agents import pipeline_of, python_operator
from support.bundles import write_tiny_bundle

ROWS = np.array([[1.0, 2.0], [3.0, -1.0]], np.float32)
CONFIG: Config = {"scale": {"factor": 2.0}, "classify": {"model": "plain"}, "label": {}}
ALL = ("scale", "classify", "label")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> OperatorHost:
    folder = tmp_path_factory.mktemp("bundles")
    return OperatorHost([load_bundle(write_tiny_bundle(folder))], ModelStore(ModelCache(folder / "cache")))


def _run(
    host: OperatorHost,
    operators: Sequence[str] = ALL,
    *,
    values: dict[str, Value] | None = None,
    exports: Sequence[str] = ("label",),
    pace: Pace | None = None,
    deadline: Deadline | None = None,
) -> dict[str, Value]:
    given = {"request": ROWS} if values is None else values
    result = run_segment(
        host, host.pipeline("tiny"), operators, CONFIG, given, exports, pace or Pace(), deadline=deadline
    )
    assert len(result.timings) == len(operators)
    return dict(result.values)


def test_a_whole_pipeline_is_one_segment(host: OperatorHost) -> None:
    assert _run(host) == {"label": {"labels": ["low", "high"], "total": 10.0}}


def test_only_what_is_asked_for_runs_and_only_exports_come_back(host: OperatorHost) -> None:
    values = _run(host, ("scale",), exports=("scale",))
    assert list(values) == ["scale"]
    assert _run(host, ("label", "classify"), values=values) == _run(host)


def test_the_pipeline_says_in_which_order(host: OperatorHost) -> None:
    pipeline = host.pipeline("tiny")
    result = run_segment(
        host, pipeline, ("label", "scale", "classify"), CONFIG, {"request": ROWS}, (), Pace()
    )
    assert [timing.operator for timing in result.timings] == list(ALL)
    assert result.values == {}


def test_every_operator_is_timed_at_its_speed(host: OperatorHost) -> None:
    pipeline, pace = host.pipeline("tiny"), Pace({"default": 1.0, "onnx-fp32": 3.0})
    result = run_segment(host, pipeline, ALL, CONFIG, {"request": ROWS}, ALL, pace)
    scale, classify, label = result.timings
    assert result.busy_s == pytest.approx(scale.cpu_s + 3 * classify.cpu_s + label.cpu_s)
    assert classify.wall_s >= 3 * classify.cpu_s
    assert (result.overruns == 0) == (result.overrun_s == 0)


def test_overruns_are_counted(host: OperatorHost) -> None:
    ticks = iter(range(1000))
    pace = Pace({"default": 2.0}, thread_time=lambda: 0.0, wall_time=lambda: float(next(ticks)))
    result = run_segment(host, host.pipeline("tiny"), ALL, CONFIG, {"request": ROWS}, (), pace)
    assert (result.overruns, result.overrun_s, result.busy_s) == (3, 3.0, 0.0)


@pytest.mark.parametrize(
    ("operators", "values", "exports", "said"),
    [
        (("classify",), {"request": ROWS}, ("classify",), "needs the value of 'scale'"),
        (("scale",), {}, ("scale",), "needs the value of 'request'"),
        (("scale",), {"request": ROWS}, ("label",), "'label' is wanted"),
    ],
)
def test_an_incomplete_segment_does_not_start(
    host: OperatorHost, operators: Sequence[str], values: dict[str, Value], exports: Sequence[str], said: str
) -> None:
    with pytest.raises(MessageError, match=said):
        _run(host, operators, values=values, exports=exports)


def test_an_unknown_operator_is_refused(host: OperatorHost) -> None:
    with pytest.raises(ConfigError, match="no operator 'shrink'"):
        _run(host, ("scale", "shrink"))


def test_a_failing_operator_ends_the_segment(host: OperatorHost) -> None:
    with pytest.raises(InferenceError) as caught:
        _run(host, values={"request": b"no array"})
    assert caught.value.operator == "scale"


def test_a_passed_deadline_stops_the_segment_between_operators(host: OperatorHost) -> None:
    clock = VirtualClock()
    deadline = Deadline("request r1", 2.0, clock=clock)
    ran: list[float] = []

    def wall_time() -> float:  # read at the start and at the end of each operator
        clock.advance(0.75)
        ran.append(clock.now_s())
        return clock.now_s()

    with pytest.raises(DeadlineError, match="request r1") as caught:
        _run(host, pace=Pace(wall_time=wall_time), deadline=deadline)
    assert caught.value.deadline_s == 2.0
    assert len(ran) == 4, "two operators ran, the third did not"


def test_a_segment_nobody_waits_for_stops(host: OperatorHost) -> None:
    deadline = Deadline("request r1", 1000.0)
    deadline.check()
    deadline.give_up()
    with pytest.raises(DeadlineError):
        _run(host, deadline=deadline)


# --- state and items ------------------------------------------------------------------------------

SPLIT = replace(python_operator("split", REQUEST), function=".operators:split")
COUNT = replace(python_operator("count", "split"), items="split", items_batch=2)
TRACK = replace(python_operator("track", "count"), stateful=True)
TRACKER = pipeline_of("tracker", SPLIT, COUNT, TRACK)
TRACKED: Config = {"split": {}, "count": {}, "track": {}}


def _track(inputs: Mapping[str, Any], _knobs: object, _model: object, state: State) -> list[object]:
    state["seen"] = state.get("seen", 0) + len(inputs["count"])
    if not inputs["count"]:
        raise ValueError("nothing to follow")
    return [state["seen"], state.gap]


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> OperatorHost:
    functions: dict[str, Any] = {
        "split": lambda inputs, _knobs, _model: inputs["request"].split(),
        "count": lambda inputs, _knobs, _model: [len(word) for word in inputs["split"]],
        "track": _track,
    }
    bundle = Bundle(folder=Path(), pipeline=TRACKER, code_sha256="", package="", functions=functions)
    return OperatorHost([bundle], ModelStore(ModelCache(tmp_path_factory.mktemp("cache"))))


def _tracked(
    host: OperatorHost,
    text: str,
    states: RequestStates | None,
    *,
    pace: Pace | None = None,
    deadline: Deadline | None = None,
) -> SegmentResult:
    operators = ("split", "count", "track")
    given: dict[str, Value] = {"request": text}
    return run_segment(
        host, TRACKER, operators, TRACKED, given, ("track",), pace or Pace(), states=states, deadline=deadline
    )


def test_items_of_a_fan_out_are_counted(tracker: OperatorHost) -> None:
    timings = _tracked(tracker, "one two three", None).timings
    assert [timing.items for timing in timings] == [None, 3, None]


def test_operators_with_state_find_what_they_kept(tracker: OperatorHost) -> None:
    book = StateBook()
    made = [
        _tracked(tracker, text, book.of(query="q", stream=1, position=position)).values["track"]
        for position, text in ((0, "a b"), (1, "c"), (3, "d"))
    ]
    assert made == [[2, 0], [3, 0], [4, 1]]
    with pytest.raises(InferenceError, match="nothing to follow"):
        _tracked(tracker, "", book.of(query="q", stream=1, position=4))
    assert _tracked(tracker, "e", book.of(query="q", stream=1, position=5)).values["track"] == [1, 0]


def test_without_a_place_for_states_each_call_begins_anew(tracker: OperatorHost) -> None:
    assert [_tracked(tracker, "a b", None).values["track"] for _ in range(2)] == [[2, 0]] * 2


def test_waiting_for_another_request_is_no_time_of_the_operators(tracker: OperatorHost) -> None:
    book, clock, looked = StateBook(), VirtualClock(), threading.Event()

    class Seen(Deadline):
        looks = 0

        def remaining_s(self) -> float:
            self.looks += 1
            if self.looks > len(TRACKER.operators):  # once before each of them
                looked.set()  # so it waits now
            return super().remaining_s()

    done: list[SegmentResult] = []
    second = book.of(query="q", stream=1, position=1)

    def run() -> None:
        pace = Pace(wall_time=clock.now_s)
        done.append(_tracked(tracker, "a", second, pace=pace, deadline=Seen("r2", 60.0, clock=clock)))

    with book.of(query="q", stream=1, position=0).held("track", "track"):
        thread = threading.Thread(target=run)
        thread.start()
        assert looked.wait(30)
        clock.advance(5.0)
    thread.join()
    assert [timing.wall_s for timing in done[0].timings if timing.operator == "track"] == [0.0]


# --- the pool -------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def pool(clock: VirtualClock) -> Iterator[LocalPool]:
    pool = LocalPool(1, max_waiting=2, clock=clock)
    yield pool
    pool.close()


class Gate:
    """Holds a call in the pool until it is opened."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self._opened = threading.Event()

    def hold(self) -> str:
        self.entered.set()
        assert self._opened.wait(30)
        return "held"

    def open(self) -> None:
        self._opened.set()


async def _held(pool: LocalPool) -> tuple[Gate, asyncio.Task[object]]:
    gate = Gate()
    task: asyncio.Task[object] = asyncio.create_task(pool.run(gate.hold))
    assert await asyncio.to_thread(gate.entered.wait, 30)
    return gate, task


async def test_waiting_is_measured(pool: LocalPool, clock: VirtualClock) -> None:
    gate, first = await _held(pool)
    second = asyncio.create_task(pool.run(lambda: "second"))
    await asyncio.sleep(0)
    assert (pool.running, pool.waiting) == (1, 1)
    clock.advance(5.0)
    gate.open()
    done = await second
    assert (done.value, done.wait_s) == ("second", 5.0)
    await first
    assert (await pool.run(lambda: "third")).wait_s == 0.0


async def test_a_full_queue_refuses(pool: LocalPool) -> None:
    gate, first = await _held(pool)
    others = [asyncio.create_task(pool.run(lambda: "queued")) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(RefusedError, match="2 calls are waiting") as caught:
        await pool.run(lambda: "too many")
    assert caught.value.retry_after_s is not None
    gate.open()
    await asyncio.gather(first, *others)


async def test_what_cannot_start_in_time_is_refused(pool: LocalPool, clock: VirtualClock) -> None:
    await pool.run(lambda: clock.advance(4.0))  # calls take 4 s here
    assert pool.expected_wait_s() == 0.0
    gate, first = await _held(pool)
    assert pool.expected_wait_s() == 4.0
    with pytest.raises(RefusedError) as caught:
        await pool.run(lambda: "late", within_s=3.0)
    assert caught.value.retry_after_s == 4.0
    patient = asyncio.create_task(pool.run(lambda: "in time", within_s=4.5))
    await asyncio.sleep(0)
    gate.open()
    assert (await patient).value == "in time"
    await first


async def test_a_cancelled_call_never_runs(pool: LocalPool) -> None:
    gate, first = await _held(pool)
    ran: list[int] = []
    task = asyncio.create_task(pool.run(lambda: ran.append(1)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pool.waiting == 0
    gate.open()
    await first
    await pool.run(lambda: None)
    assert ran == []


async def test_errors_pass_and_leave_the_pool_whole(pool: LocalPool) -> None:
    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            await pool.run(lambda: 1 // 0)
    assert (await pool.run(lambda: "fine")).value == "fine"
    assert (pool.running, pool.waiting) == (0, 0)


async def test_as_many_run_at_once_as_there_are_cores() -> None:
    pool = LocalPool(3)
    together = threading.Barrier(3)
    calls = [pool.run(lambda: together.wait(30)) for _ in range(3)]
    assert sorted(done.value for done in await asyncio.gather(*calls)) == [0, 1, 2]
    pool.close()
