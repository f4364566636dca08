"""Requests in flight: segments start when they can, failures fall back once, every request ends once."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from compass_agent import events as ev
from compass_agent.requests import FALLBACK_MARGIN, RequestBook, Route
from compass_shared.errors import CompassError, DeadlineError, InferenceError, RefusedError, TransportError
from compass_shared.pipeline import REQUEST, Pipeline
from compass_shared.plan import Epoch, Plan
from support.agents import (
    CHAIN,
    DIAMOND,
    EDGE,
    SITE,
    WORKERS,
    Ledger,
    done,
    failed,
    made_by,
    outcome_of,
    pipeline_of,
    plan_at,
    python_operator,
    runs,
    timers,
)

LOCAL = plan_at(CHAIN, SITE, p95_s=2.0)
REMOTE = plan_at(CHAIN, SITE, "edge", "edge", p95_s=0.5)


def route(pipeline: Pipeline, plan: Plan, source: ev.Source = ev.Source.ASSIGNED) -> Route:
    return Route(
        source=source,
        query="q1",
        pipeline=pipeline,
        plan=plan,
        epoch=Epoch(coordinator=1, sequence=1),
        workers=WORKERS,
    )


def two_routes(pipeline: Pipeline, plan: Plan, fallback: Plan) -> list[Route]:
    return [route(pipeline, plan), route(pipeline, fallback, ev.Source.FALLBACK)]


class Book:
    """A request book whose every step is checked."""

    def __init__(self) -> None:
        self.book = RequestBook(SITE)
        self.ledger = Ledger()
        self.now_s = 0.0

    def start(self, request: str, routes: Sequence[Route], *, deadline_s: float = 10.0) -> list[ev.Action]:
        actions = self.book.start(request, "input", routes, deadline_s=deadline_s, now_s=self.now_s)
        self.ledger.submitted(request, "input", deadline_s=self.now_s + deadline_s)
        self.ledger.check(None, actions, now_s=self.now_s, in_flight=len(self.book))
        return actions

    def __call__(self, event: ev.Event) -> list[ev.Action]:
        match event:
            case ev.SegmentDone():
                actions = self.book.segment_done(event, self.now_s)
            case ev.SegmentFailed():
                actions = self.book.segment_failed(event, self.now_s)
            case ev.AttemptOverdue():
                actions = self.book.attempt_overdue(event, self.now_s)
            case ev.RequestOverdue():
                actions = self.book.request_overdue(event, self.now_s)
            case _:
                raise AssertionError(event)
        self.ledger.check(event, actions, now_s=self.now_s, in_flight=len(self.book))
        return actions


@pytest.fixture
def book() -> Book:
    return Book()


def test_a_local_plan_is_one_segment_and_ends_with_its_output(book: Book) -> None:
    actions = book.start("r1", [route(CHAIN, LOCAL)])
    (run,) = runs(actions)
    assert run.segment.operators == ("shrink", "find", "read")
    assert run.values == {REQUEST: "input"}
    assert run.worker is None
    book.now_s = 1.5
    outcome = outcome_of(book(done(run)))
    assert outcome.value == made_by("r1", 1, "read")
    assert outcome.error is None
    assert (outcome.latency_s, outcome.attempts, outcome.source) == (1.5, 1, ev.Source.ASSIGNED)
    (trace,) = outcome.segments
    assert (trace.site, trace.operators, trace.wall_s) == (SITE, ("shrink", "find", "read"), 0.2)


def test_a_remote_plan_calls_the_worker_with_what_it_needs_and_the_time_that_is_left(book: Book) -> None:
    (first,) = runs(book.start("r1", two_routes(CHAIN, REMOTE, LOCAL)))
    assert (first.segment.operators, first.worker) == (("shrink",), None)
    book.now_s = 4.0
    (second,) = runs(book(done(first)))
    assert (second.segment.operators, second.worker) == (("find", "read"), EDGE)
    assert second.values == {"shrink": made_by("r1", 1, "shrink")}
    assert (first.deadline_s, second.deadline_s) == (10.0, 6.0)
    outcome = outcome_of(book(done(second)))
    assert outcome.value == made_by("r1", 1, "read")
    assert [trace.sent_bytes for trace in outcome.segments] == [0, 1000]


@pytest.mark.parametrize("last", ["left", "right"])
def test_branches_start_together_and_the_join_waits_for_both(book: Book, last: str) -> None:
    plan = plan_at(DIAMOND, SITE, "edge", "cloud", SITE)
    (split,) = runs(book.start("r1", [route(DIAMOND, plan)]))
    branches = {run.segment.operators[0]: run for run in runs(book(done(split)))}
    assert set(branches) == {"left", "right"}
    first = next(name for name in branches if name != last)
    assert book(done(branches[first])) == []
    (join,) = runs(book(done(branches[last])))
    assert join.values == {name: made_by("r1", 1, name) for name in ("left", "right")}
    assert outcome_of(book(done(join))).value == made_by("r1", 1, "join")


def test_segments_whose_needs_are_there_do_not_wait_for_slower_ones(book: Book) -> None:
    """a -> b and c -> d only meet at the end: d starts while b still runs."""
    pipeline = pipeline_of(
        "two-lanes",
        python_operator("a", REQUEST),
        python_operator("b", "a"),
        python_operator("c", REQUEST),
        python_operator("d", "c"),
        python_operator("e", "b", "d"),
    )
    plan = plan_at(pipeline, "edge", SITE, "cloud", "edge", SITE)
    started = {run.segment.operators: run for run in runs(book.start("r1", [route(pipeline, plan)]))}
    assert set(started) == {("a",), ("c",)}
    (d,) = runs(book(done(started[("c",)])))
    assert d.segment.operators == ("d",)
    (b,) = runs(book(done(started[("a",)])))
    assert b.segment.operators == ("b",)
    assert book(done(b)) == []
    (e,) = runs(book(done(d)))
    assert e.segment.operators == ("e",)


@pytest.mark.parametrize(
    "error", [TransportError("gone"), RefusedError("over its share"), DeadlineError("call", 1.0)]
)
def test_a_worker_that_fails_means_the_fallback_once(book: Book, error: CompassError) -> None:
    (first,) = runs(book.start("r1", two_routes(CHAIN, REMOTE, LOCAL)))
    (remote,) = runs(book(done(first)))
    (local,) = runs(book(failed(remote, error)))
    assert (local.attempt, local.worker, local.segment.operators) == (2, None, ("shrink", "find", "read"))
    outcome = outcome_of(book(done(local)))
    assert (outcome.source, outcome.attempts) == (ev.Source.FALLBACK, 2)
    assert outcome.value == made_by("r1", 2, "read")
    assert [trace.site for trace in outcome.segments] == [SITE, SITE], "what ran of attempt 1 is traced too"


def test_a_fallback_that_fails_ends_the_request_with_its_own_error(book: Book) -> None:
    (first,) = runs(book.start("r1", two_routes(CHAIN, REMOTE, LOCAL)))
    (local,) = runs(book(failed(first)))
    last = TransportError("the fallback's own")
    assert outcome_of(book(failed(local, last))).error is last


def test_an_operator_that_fails_on_the_input_ends_the_request_without_a_fallback(book: Book) -> None:
    (first,) = runs(book.start("r1", two_routes(CHAIN, REMOTE, LOCAL)))
    error = InferenceError("shrink", "not an image")
    outcome = outcome_of(book(failed(first, error)))
    assert outcome.error is error
    assert (outcome.attempts, outcome.source) == (1, ev.Source.ASSIGNED)


def test_without_a_fallback_the_first_failure_is_the_end_and_nothing_switches(book: Book) -> None:
    actions = book.start("r1", [route(CHAIN, REMOTE)])
    assert [type(timer.event) for timer in timers(actions)] == [ev.RequestOverdue]
    error = TransportError("gone")
    assert outcome_of(book(failed(runs(actions)[0], error))).error is error


def test_the_fallback_starts_in_time_to_make_the_deadline(book: Book) -> None:
    actions = book.start("r1", two_routes(CHAIN, REMOTE, LOCAL), deadline_s=10.0)
    later = next(timer for timer in timers(actions) if isinstance(timer.event, ev.AttemptOverdue))
    assert later.delay_s == 10.0 - FALLBACK_MARGIN * 2.0
    (slow,) = runs(actions)
    book.now_s = later.delay_s
    switched = book(later.event)
    assert timers(switched) == [], "there is nothing to switch to any more"
    (local,) = runs(switched)
    assert book(done(slow)) == [], "the late answer of attempt 1 is dropped"
    assert outcome_of(book(done(local))).value == made_by("r1", 2, "read")
    assert book(done(local)) == [], "and so is a second answer"


@pytest.mark.parametrize(
    ("fallback_p95_s", "delay_s"),
    [(None, 5.0), (9.0, 5.0), (float("inf"), 5.0), (0.0, 10.0)],
    ids=["unknown", "slow", "overloaded", "instant"],
)
def test_an_attempt_gets_at_least_half_of_the_time(
    book: Book, fallback_p95_s: float | None, delay_s: float
) -> None:
    fallback = plan_at(CHAIN, SITE, p95_s=fallback_p95_s)
    actions = book.start("r1", two_routes(CHAIN, REMOTE, fallback), deadline_s=10.0)
    assert [timer.delay_s for timer in timers(actions)] == [10.0, delay_s]


def test_an_attempt_that_already_failed_is_not_overdue(book: Book) -> None:
    actions = book.start("r1", two_routes(CHAIN, REMOTE, LOCAL))
    overdue = timers(actions)[1].event
    assert isinstance(overdue, ev.AttemptOverdue)
    book(failed(runs(actions)[0]))
    assert book(overdue) == []


@pytest.mark.parametrize("attempts", [1, 2])
def test_the_deadline_ends_a_request_in_any_attempt(book: Book, attempts: int) -> None:
    actions = book.start("r1", two_routes(CHAIN, REMOTE, LOCAL), deadline_s=3.0)
    (run,) = runs(actions)
    if attempts == 2:
        (run,) = runs(book(failed(run)))
    book.now_s = 3.0
    outcome = outcome_of(book(ev.RequestOverdue(request="r1")))
    assert isinstance(outcome.error, DeadlineError)
    assert outcome.error.deadline_s == 3.0
    assert (outcome.value, outcome.latency_s, outcome.attempts) == (None, 3.0, attempts)
    assert book(done(run)) == []
    assert book(failed(run)) == []
    assert book(ev.RequestOverdue(request="r1")) == []


def test_a_failed_branch_takes_the_other_one_with_it(book: Book) -> None:
    plan, local = plan_at(DIAMOND, SITE, "edge", "cloud", SITE), plan_at(DIAMOND, SITE)
    (split,) = runs(book.start("r1", two_routes(DIAMOND, plan, local)))
    left, right = runs(book(done(split)))
    (again,) = runs(book(failed(left)))
    assert book(done(right)) == []
    assert outcome_of(book(done(again))).value == made_by("r1", 2, "join")


def test_events_of_requests_that_never_were_are_dropped(book: Book) -> None:
    (run,) = runs(book.start("r1", [route(CHAIN, LOCAL)]))
    stranger = RequestBook(SITE)
    assert stranger.segment_done(done(run), 0.0) == []
    assert stranger.segment_failed(failed(run), 0.0) == []
    assert stranger.attempt_overdue(ev.AttemptOverdue(request="r1", attempt=1), 0.0) == []
    assert stranger.request_overdue(ev.RequestOverdue(request="r1"), 0.0) == []


def test_ids_are_unique_and_a_route_is_needed(book: Book) -> None:
    book.start("r1", [route(CHAIN, LOCAL)])
    with pytest.raises(ValueError, match="already in flight"):
        book.book.start("r1", "input", [route(CHAIN, LOCAL)], deadline_s=1.0, now_s=0.0)
    with pytest.raises(ValueError, match="no route"):
        book.book.start("r2", "input", [], deadline_s=1.0, now_s=0.0)


# --- any order of answers, failures and time ------------------------------------------------------


@st.composite
def pipelines(draw: st.DrawFn) -> Pipeline:
    """Random DAGs of up to six operators in which nothing is left unread."""
    count = draw(st.integers(1, 6))
    inputs: list[list[str]] = []
    for index in range(count):
        known = [REQUEST, *(f"op{before}" for before in range(index))]
        inputs.append(draw(st.lists(st.sampled_from(known), min_size=1, max_size=3, unique=True)))
    read = {name for names in inputs for name in names}
    inputs[-1] += [f"op{index}" for index in range(count - 1) if f"op{index}" not in read]
    operators = (python_operator(f"op{index}", *names) for index, names in enumerate(inputs))
    return pipeline_of("random", *operators)


@st.composite
def route_lists(draw: st.DrawFn) -> list[Route]:
    """One to three plans, each anywhere; an agent has two at most, but nothing here depends on that."""
    pipeline = draw(pipelines())
    sites = st.sampled_from([SITE, "edge", "cloud"])
    p95s_s = st.none() | st.sampled_from([0.25, 1.0, 8.0, float("inf")])
    plans = [
        plan_at(pipeline, *(draw(sites) for _ in pipeline.operators), p95_s=draw(p95s_s))
        for _ in range(draw(st.integers(1, 3)))
    ]
    return [route(pipeline, plan) for plan in plans]


@dataclass(order=True, frozen=True)
class Due:
    """A timer that was asked for."""

    at_s: float
    number: int
    event: ev.AttemptOverdue | ev.RequestOverdue


BACK = st.sampled_from([1, 1, 2, 3, None])
"""How far back the segment was asked for that answers or fails; None for any."""
ERRORS = st.sampled_from([TransportError("gone"), RefusedError("full"), InferenceError("op0", "bad")])


class RequestMachine(RuleBasedStateMachine):
    """Submits, answers, repeats, fails and lets time pass; the ledger checks every step."""

    def __init__(self) -> None:
        super().__init__()
        self.checked = Book()
        self.asked: list[ev.RunSegment] = []
        """Every segment ever asked for; each may be answered at any time, and more than once."""
        self.due: list[Due] = []
        self.numbers = itertools.count()

    def take(self, actions: Sequence[ev.Action]) -> None:
        self.asked.extend(runs(actions))
        for timer in timers(actions):
            at_s = self.checked.now_s + timer.delay_s
            heapq.heappush(self.due, Due(at_s, next(self.numbers), timer.event))

    def pass_until(self, end_s: float) -> None:
        while self.due and self.due[0].at_s <= end_s:
            due = heapq.heappop(self.due)
            self.checked.now_s = due.at_s
            self.take(self.checked(due.event))
        self.checked.now_s = end_s

    @rule(routes=route_lists(), deadline_s=st.sampled_from([0.0, 0.5, 2.0, 10.0]))
    def submit(self, routes: list[Route], deadline_s: float) -> None:
        request = f"r{len(self.checked.ledger.deadlines_s)}"
        self.take(self.checked.start(request, routes, deadline_s=deadline_s))

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), back=BACK)
    def answer(self, data: st.DataObject, back: int | None) -> None:
        self.take(self.checked(done(self.pick(data, back))))

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), back=BACK, error=ERRORS)
    def fail(self, data: st.DataObject, back: int | None, error: CompassError) -> None:
        self.take(self.checked(failed(self.pick(data, back), error)))

    def pick(self, data: st.DataObject, back: int | None) -> ev.RunSegment:
        """One of the last segments, which mostly still run, or any."""
        if back is None:
            return data.draw(st.sampled_from(self.asked))
        return self.asked[max(-back, -len(self.asked))]

    @rule(seconds=st.sampled_from([0.0, 0.125, 0.5, 3.0, 20.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.pass_until(self.checked.now_s + seconds)

    @invariant()
    def nothing_outlives_its_deadline(self) -> None:
        ledger = self.checked.ledger
        alive = set(ledger.deadlines_s) - set(ledger.finished)
        assert all(ledger.deadlines_s[request] >= self.checked.now_s for request in alive)

    def teardown(self) -> None:
        self.pass_until(self.checked.now_s + 100.0)
        ledger = self.checked.ledger
        assert set(ledger.finished) == set(ledger.deadlines_s), "every request ends"
        assert len(self.checked.book) == 0


TestAnyOrder = RequestMachine.TestCase
TestAnyOrder.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
