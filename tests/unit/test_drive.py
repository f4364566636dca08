"""Driving an agent: arrivals that repeat, and commands that never end it by accident."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from compass_agent.arrivals import Arrival, arrivals, clip_arrivals
from compass_agent.config import AgentConfig
from compass_agent.drive import Driver, emitter
from compass_agent.events import Outcome
from compass_agent.probing import Measure
from compass_agent.shell import AgentShell
from compass_shared.errors import RefusedError
from compass_shared.query import Query, Slo
from support.bundles import write_tiny_bundle
from support.clips import CLIPS, write_counter_bundle

QUERY = Query(
    name="q1",
    origin="phone",
    pipeline="tiny",
    rate_hz=2.0,
    slo=Slo(latency_p95_s=1.0, accuracy=0.9, cost_usd_per_1000=1.0),
)
GROUPS = ["clear"] * 6 + ["blurred"] * 3 + ["tiny"]


def _query(**changes: Any) -> Query:
    return msgspec.convert({**msgspec.to_builtins(QUERY), **changes}, Query)


# --- arrivals -------------------------------------------------------------------------------------


def test_arrivals_follow_from_seed_and_name() -> None:
    first = arrivals(QUERY, seconds=60, seed=1, groups=GROUPS)
    assert arrivals(QUERY, seconds=60, seed=1, groups=GROUPS) == first
    assert arrivals(QUERY, seconds=60, seed=2, groups=GROUPS) != first
    assert arrivals(_query(name="q2"), seconds=60, seed=1, groups=GROUPS) != first
    assert arrivals(_query(weight=3.0), seconds=60, seed=1, groups=GROUPS) == first


def test_when_requests_come_does_not_depend_on_what_they_carry() -> None:
    many = [arrival.at_s for arrival in arrivals(QUERY, seconds=60, seed=1, groups=GROUPS)]
    one = [arrival.at_s for arrival in arrivals(QUERY, seconds=60, seed=1, groups=["only"])]
    assert many == one


def test_a_longer_phase_begins_like_a_shorter_one() -> None:
    short = arrivals(QUERY, seconds=20, seed=1, groups=GROUPS)
    long = arrivals(QUERY, seconds=60, seed=1, groups=GROUPS)
    assert 0 < len(short) < len(long)
    assert long[: len(short)] == short


def test_arrivals_are_numbered_ordered_and_in_time() -> None:
    found = arrivals(QUERY, seconds=60, seed=1, groups=GROUPS)
    assert [arrival.index for arrival in found] == list(range(len(found)))
    times = [arrival.at_s for arrival in found]
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] < 60


@pytest.mark.parametrize("rate_hz", [0.5, 2.0, 20.0])
def test_arrivals_are_a_poisson_process_of_the_querys_rate(rate_hz: float) -> None:
    query, seconds = _query(rate_hz=rate_hz), 10_000 / rate_hz
    times = [arrival.at_s for arrival in arrivals(query, seconds=seconds, seed=5, groups=["only"])]
    assert len(times) == pytest.approx(10_000, rel=0.05)  # five standard deviations
    gaps = [after - before for before, after in itertools.pairwise(times)]
    mean_s = sum(gaps) / len(gaps)
    spread_s = (sum((gap - mean_s) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert spread_s == pytest.approx(mean_s, rel=0.1), "as exponential gaps have it"


def test_groups_take_turns_and_every_input_comes_once_a_round() -> None:
    found = arrivals(_query(rate_hz=10.0), seconds=100, seed=3, groups=GROUPS)
    assert len(found) > 100
    inputs = [arrival.example for arrival in found]
    for start in range(0, 100, 10):
        assert sorted(inputs[start : start + 10]) == list(range(10))
    # Of ten inputs six are clear: any five in a row hold about three of them.
    for start in range(95):
        clear = Counter(GROUPS[index] for index in inputs[start : start + 5])["clear"]
        assert 2 <= clear <= 4


# --- clips ----------------------------------------------------------------------------------------

LENGTHS = [3, 0, 2, 4]


def _clips(**changes: Any) -> list[Arrival]:
    given: dict[str, Any] = {"seconds": 60, "seed": 1, "groups": ["only"] * 4, "lengths": LENGTHS}
    return clip_arrivals(_query(rate_hz=2.0), **given | changes)


def test_the_requests_of_clips_come_evenly_from_a_moment_of_their_own() -> None:
    times = [arrival.at_s for arrival in _clips()]
    assert 0 <= times[0] < 0.5
    assert times == pytest.approx([times[0] + 0.5 * index for index in range(120)])
    assert _clips() == _clips()
    assert _clips(seed=2)[0].at_s != times[0]
    assert [arrival.index for arrival in _clips()] == list(range(120))


def test_clips_are_played_one_after_the_other_from_their_start() -> None:
    played = [(arrival.example, arrival.step) for arrival in _clips(seconds=4.5)]
    round_one, rest = played[: sum(LENGTHS)], played[sum(LENGTHS) :]
    assert rest == []
    order = [clip for clip, step in round_one if step == 0]
    assert sorted(order) == [0, 2, 3], "a clip without requests is none"
    assert round_one == [(clip, step) for clip in order for step in range(LENGTHS[clip])]
    again = [(arrival.example, arrival.step) for arrival in _clips(seconds=8)]
    assert again == (round_one * 2)[:16], "the last one is cut short"


def test_clips_without_any_request_end_at_once() -> None:
    assert _clips(lengths=[0, 0, 0, 0]) == []


@pytest.fixture
async def counter(tmp_path: Path) -> AsyncIterator[AgentShell]:
    """An agent with a pipeline that counts the requests of a stream."""
    config = AgentConfig(
        name="phone",
        bundles=(write_counter_bundle(tmp_path),),
        cache_root=tmp_path / "cache",
        measure=Measure.NOTHING,
    )
    shell = AgentShell(config)
    await shell.start()
    yield shell
    await shell.close()


async def _driven(shell: AgentShell, seconds: float) -> tuple[list[Mapping[str, Any]], list[Arrival]]:
    events = Events()
    driver = Driver(shell, events.append)
    query = _query(pipeline="counter", rate_hz=100.0)
    await driver.run(_declare(query))
    await driver.run(_line(do="serve", phase="p", seconds=seconds, seed=4, split="heldout"))
    assert not events.of("error")
    plan = clip_arrivals(
        query, seconds=seconds, seed=4, groups=["only"] * len(CLIPS), lengths=list(CLIPS.values())
    )
    assert len(events.of("request")) == len(plan)
    return sorted(events.of("request"), key=lambda event: event["index"]), plan


async def test_each_clip_is_a_stream_and_is_scored_as_a_whole(counter: AgentShell) -> None:
    requests, plan = await _driven(counter, 0.2)
    names = list(CLIPS)
    assert [request["input"] for request in requests] == [names[arrival.example] for arrival in plan]
    assert len(plan) > 2 * sum(CLIPS.values()), "clips come again, and are cut short at the end"
    assert {(request["error"], request["score"]) for request in requests} == {(None, 1.0)}
    assert {len(request["segments"]) for request in requests} == {1}


async def test_a_request_that_is_lost_lowers_the_score_of_its_clip_alone(
    counter: AgentShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, sent = counter.request, 0

    async def request(pipeline: str, value: Any, **options: Any) -> Outcome:
        nonlocal sent
        sent += 1
        if sent in {2, 3}:  # an operator fails on the first of them, the agent refuses the second
            value = -1.0
        if sent == 3:
            raise RefusedError("no room")
        return await ask(pipeline, value, **options)

    monkeypatch.setattr(counter, "request", request)
    requests, plan = await _driven(counter, 0.15)
    errors = [request["error"] for request in requests]
    assert errors == [None, "InferenceError", "RefusedError", *[None] * (len(plan) - 3)]
    length = list(CLIPS.values())[plan[0].example]
    assert length > 2, "both are of the first clip"
    # The first is counted right, two are lost, and what comes after them is counted too low.
    scores = [request.get("score") for request in requests]
    assert scores == [1 / length, None, None, *[1 / length] * (length - 3), *[1.0] * (len(plan) - length)]


# --- commands -------------------------------------------------------------------------------------


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[AgentShell]:
    config = AgentConfig(
        name="phone",
        bundles=(write_tiny_bundle(tmp_path),),
        cache_root=tmp_path / "cache",
        cores=2,
        measure=Measure.NOTHING,
    )
    shell = AgentShell(config)
    await shell.start()
    yield shell
    await shell.close()


class Events(list[Mapping[str, Any]]):
    """What a driver said."""

    def of(self, kind: str) -> list[Mapping[str, Any]]:
        return [event for event in self if event["event"] == kind]


def _line(**command: Any) -> bytes:
    return json.dumps(command).encode() + b"\n"


def _declare(*queries: Query) -> bytes:
    return _line(do="declare", queries=msgspec.to_builtins(queries))


async def test_every_request_is_served_and_reported_once(shell: AgentShell) -> None:
    events = Events()
    driver = Driver(shell, events.append)
    fast = _query(rate_hz=100.0)
    assert await driver.run(_declare(fast))
    assert await driver.run(_line(do="serve", phase="p", seconds=0.2, seed=4, split="heldout"))
    requests = events.of("request")
    expected = arrivals(fast, seconds=0.2, seed=4, groups=["only", "only"])
    assert sorted(request["index"] for request in requests) == [arrival.index for arrival in expected]
    assert {request["error"] for request in requests} == {None}
    assert {request["score"] for request in requests} == {1.0}
    assert {request["phase"] for request in requests} == {"p"}
    by_index = {request["index"]: request["input"] for request in requests}
    assert all(by_index[a.index] == f"heldout-{a.example}" for a in expected)
    assert [event["event"] for event in (events[0], events[-1])] == ["serving", "served"]


async def test_rates_are_scaled(shell: AgentShell) -> None:
    events = Events()
    driver = Driver(shell, events.append)
    await driver.run(_declare(_query(rate_hz=1.0)))
    await driver.run(_line(do="serve", phase="p", seconds=0.2, seed=4, split="heldout", rate_factor=100.0))
    expected = arrivals(_query(rate_hz=100.0), seconds=0.2, seed=4, groups=["only", "only"])
    assert len(events.of("request")) == len(expected) > 0


async def test_a_metric_that_fails_costs_the_score_and_not_the_request(
    shell: AgentShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = Events()
    driver = Driver(shell, events.append)

    def metric(_output: object, _truth: object) -> float:
        raise KeyError("labels")

    monkeypatch.setattr(type(shell.bundles["tiny"]), "metric", lambda _bundle: metric)
    await driver.run(_declare(_query(rate_hz=50.0)))
    await driver.run(_line(do="serve", phase="p", seconds=0.1, seed=4, split="heldout"))
    requests = events.of("request")
    assert requests
    assert {(request["error"], request["score"]) for request in requests} == {(None, 0.0)}
    assert "the metric failed on input 'heldout-" in events.of("error")[0]["problem"]
    assert events.of("served")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"\xff\n", "not a command"),
        (b"{}\n", "not a command"),
        (_line(do="dance"), "not a command"),
        (_line(do="serve", phase="p"), "not a command"),
        (_declare(_query(pipeline="unknown")), "not installed here"),
        (_declare(_query(origin="laptop")), "must bear that name and start at 'phone'"),
        (_declare(_query(rate_hz=-1.0)), "must lie between"),
    ],
)
async def test_a_bad_command_is_reported_and_the_next_one_obeyed(
    shell: AgentShell, line: bytes, said: str
) -> None:
    events = Events()
    driver = Driver(shell, events.append)
    assert await driver.run(line)
    assert said in events.of("error")[0]["problem"]
    await driver.run(_declare(_query(rate_hz=50.0)))
    await driver.run(_line(do="serve", phase="p", seconds=0.1, seed=4, split="heldout"))
    assert events.of("served")


async def test_an_unknown_split_is_reported(shell: AgentShell) -> None:
    events = Events()
    driver = Driver(shell, events.append)
    await driver.run(_declare(QUERY))
    assert await driver.run(_line(do="serve", phase="p", seconds=0.1, seed=4, split="none"))
    assert "there is no split 'none'" in events.of("error")[0]["problem"]


async def test_a_refused_request_ends_as_an_error(shell: AgentShell) -> None:
    events = Events()
    driver = Driver(shell, events.append)
    await driver.run(_declare(_query(rate_hz=50.0)))
    await shell.close()
    await driver.run(_line(do="serve", phase="p", seconds=0.1, seed=4, split="heldout"))
    assert {request["error"] for request in events.of("request")} == {"TransportError"}


async def test_stop_is_obeyed(shell: AgentShell) -> None:
    assert await Driver(shell, Events().append).run(_line(do="stop")) is False


async def test_a_new_declaration_withdraws_what_it_does_not_name(
    shell: AgentShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, bool]] = []
    monkeypatch.setattr(shell, "handle", lambda event: told.append((event.name, event.query is not None)))
    driver = Driver(shell, Events().append)
    await driver.run(_declare(QUERY, _query(name="q2")))
    await driver.run(_declare(_query(name="q2"), _query(name="q3")))
    assert told == [("q1", True), ("q2", True), ("q1", False), ("q2", True), ("q3", True)]


def test_events_are_one_json_document_a_line() -> None:
    stream = io.StringIO()
    emit = emitter(stream)
    emit({"event": "a", "text": "two\nlines"})
    emit({"event": "b"})
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["a", "b"]


async def test_commands_may_overlap(shell: AgentShell) -> None:
    events = Events()
    driver = Driver(shell, events.append)
    await driver.run(_declare(_query(rate_hz=50.0)))
    serving = asyncio.ensure_future(
        driver.run(_line(do="serve", phase="p", seconds=0.3, seed=4, split="heldout"))
    )
    while not events.of("request"):  # noqa: ASYNC110  # pytest's timeout ends it
        await asyncio.sleep(0.001)
    await driver.run(_declare(_query(name="q2")))
    await serving
    expected = arrivals(_query(rate_hz=50.0), seconds=0.3, seed=4, groups=["only", "only"])
    assert len(events.of("request")) == len(expected)
