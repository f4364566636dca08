"""Requests in flight, as a state machine without I/O.

A request runs the segments of its plan, each as soon as the values it needs are there. When a segment
fails for a reason that another site may not share (a link, a refusal, a worker's time), the request
starts over on its fallback; an operator that fails on the input fails the request. A request ends
exactly once: with a value, with an error, or with DeadlineError.

    submitted ──> attempt 1 (assigned plan) ──done──> Finish(value)
                      │ failed / overdue
                      └──> attempt 2 (fallback) ──done──> Finish(value)
                                │ failed                └── deadline: Finish(DeadlineError), from anywhere
                                └──> Finish(error)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from compass_agent.events import (
    Action,
    AttemptOverdue,
    Finish,
    Later,
    Outcome,
    RequestOverdue,
    RunSegment,
    SegmentDone,
    SegmentFailed,
    SegmentTrace,
    Source,
)
from compass_shared.errors import CompassError, DeadlineError, InferenceError
from compass_shared.pipeline import REQUEST, Pipeline
from compass_shared.plan import Epoch, Plan, WorkerAccess
from compass_shared.segments import Segment, cut
from compass_shared.values import Value

FALLBACK_MARGIN = 1.5
"""The fallback is started this many times its own predicted p95 before the deadline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One plan that a request may follow."""

    source: Source
    query: str
    pipeline: Pipeline
    plan: Plan
    epoch: Epoch
    workers: dict[str, WorkerAccess] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class _Flight:
    """One request in flight."""

    request: str
    value: Value
    routes: tuple[Route, ...]
    """What to try, in order."""
    started_s: float
    deadline_s: float
    stream: int
    position: int
    attempt: int = 0
    """One-based index into routes."""
    segments: tuple[Segment, ...] = ()
    values: dict[str, Value] = field(default_factory=dict)
    """Values made so far in this attempt."""
    waiting: set[int] = field(default_factory=set)
    """Segments not yet started in this attempt."""
    running: set[int] = field(default_factory=set)
    traces: list[SegmentTrace] = field(default_factory=list)
    """Over all attempts."""

    @property
    def route(self) -> Route:
        return self.routes[self.attempt - 1]


class RequestBook:
    """All requests in flight at one agent."""

    def __init__(self, site: str) -> None:
        self._site = site
        self._flights: dict[str, _Flight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def start(
        self,
        request: str,
        value: Value,
        routes: Sequence[Route],
        *,
        deadline_s: float,
        now_s: float,
        stream: int = 0,
        position: int = 0,
    ) -> list[Action]:
        """Take a request in and start its first attempt.

        Args:
            request: Unique id.
            value: Its input.
            routes: Plans to try in order; at least one.
            deadline_s: Time allowed from now.
            now_s: The time.
            stream: Stream of its query that it is part of.
            position: Which request of the stream it is; all its attempts are the same one.
        """
        if request in self._flights or not routes:
            raise ValueError(f"request {request!r} is already in flight or has no route")
        flight = _Flight(
            request=request,
            value=value,
            routes=tuple(routes),
            started_s=now_s,
            deadline_s=deadline_s,
            stream=stream,
            position=position,
        )
        self._flights[request] = flight
        overdue = Later(delay_s=deadline_s, event=RequestOverdue(request=request))
        return [overdue, *self._next_attempt(flight, now_s)]

    def segment_done(self, event: SegmentDone, now_s: float) -> list[Action]:
        """Take a segment's values and start what they were waited for by; late answers are dropped."""
        flight = self._current(event.request, event.attempt, event.segment)
        if flight is None:
            return []
        segment = flight.segments[event.segment]
        flight.running.discard(event.segment)
        flight.values.update({name: event.values[name] for name in segment.exports})
        flight.traces.append(
            SegmentTrace(
                site=segment.site,
                operators=segment.operators,
                wall_s=event.wall_s,
                wait_s=event.wait_s,
                timings=event.timings,
                sent_bytes=event.sent_bytes,
                received_bytes=event.received_bytes,
            )
        )
        if not flight.waiting and not flight.running:
            return [self._finish(flight, now_s, value=flight.values[flight.route.pipeline.output])]
        return self._start_ready(flight, now_s)

    def segment_failed(self, event: SegmentFailed, now_s: float) -> list[Action]:
        """Try the next route, unless the input itself is at fault."""
        flight = self._current(event.request, event.attempt, event.segment)
        if flight is None:
            return []
        if isinstance(event.error, InferenceError) or flight.attempt >= len(flight.routes):
            return [self._finish(flight, now_s, error=event.error)]
        return self._next_attempt(flight, now_s)

    def attempt_overdue(self, event: AttemptOverdue, now_s: float) -> list[Action]:
        """Give the running attempt up while the fallback can still make it."""
        flight = self._flights.get(event.request)
        if flight is None or flight.attempt != event.attempt or flight.attempt >= len(flight.routes):
            return []
        return self._next_attempt(flight, now_s)

    def request_overdue(self, event: RequestOverdue, now_s: float) -> list[Action]:
        """End a request whose time is up."""
        flight = self._flights.get(event.request)
        if flight is None:
            return []
        error = DeadlineError(f"request {flight.request}", flight.deadline_s)
        return [self._finish(flight, now_s, error=error)]

    def _current(self, request: str, attempt: int, segment: int) -> _Flight | None:
        flight = self._flights.get(request)
        if flight is None or flight.attempt != attempt or segment not in flight.running:
            return None
        return flight

    def _next_attempt(self, flight: _Flight, now_s: float) -> list[Action]:
        flight.attempt += 1
        flight.segments = cut(flight.route.pipeline, flight.route.plan.placement, self._site)
        flight.values = {REQUEST: flight.value}
        flight.waiting = {segment.index for segment in flight.segments}
        flight.running = set()
        actions: list[Action] = []
        delay_s = self._patience_s(flight, now_s)
        if delay_s is not None:
            event = AttemptOverdue(request=flight.request, attempt=flight.attempt)
            actions.append(Later(delay_s=delay_s, event=event))
        return actions + self._start_ready(flight, now_s)

    def _patience_s(self, flight: _Flight, now_s: float) -> float | None:
        """How long this attempt may take before the next one has to start, None for the last."""
        if flight.attempt >= len(flight.routes):
            return None
        estimate = flight.routes[flight.attempt].plan.estimate
        reserve_s = FALLBACK_MARGIN * estimate.latency_p95_s if estimate else flight.deadline_s / 2
        remaining_s = flight.started_s + flight.deadline_s - now_s
        return max(remaining_s - reserve_s, remaining_s / 2)

    def _start_ready(self, flight: _Flight, now_s: float) -> list[Action]:
        actions: list[Action] = []
        for segment in flight.segments:
            if segment.index in flight.waiting and all(need in flight.values for need in segment.needs):
                flight.waiting.discard(segment.index)
                flight.running.add(segment.index)
                actions.append(self._run(flight, segment, now_s))
        return actions

    def _run(self, flight: _Flight, segment: Segment, now_s: float) -> RunSegment:
        route = flight.route
        return RunSegment(
            request=flight.request,
            attempt=flight.attempt,
            segment=segment,
            query=route.query,
            pipeline=route.pipeline,
            plan=route.plan,
            epoch=route.epoch,
            values={need: flight.values[need] for need in segment.needs},
            deadline_s=max(0.0, flight.started_s + flight.deadline_s - now_s),
            worker=None if segment.site == self._site else route.workers[segment.site],
            stream=flight.stream,
            position=flight.position,
        )

    def _finish(
        self, flight: _Flight, now_s: float, *, value: Value = None, error: CompassError | None = None
    ) -> Finish:
        del self._flights[flight.request]
        route = flight.route
        return Finish(
            outcome=Outcome(
                request=flight.request,
                query=route.query,
                value=value,
                error=error,
                latency_s=now_s - flight.started_s,
                source=route.source,
                attempts=flight.attempt,
                epoch=route.epoch,
                plan=route.plan,
                segments=tuple(flight.traces),
            )
        )
