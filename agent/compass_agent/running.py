"""Running the segments that the core asks for: here in the pool, or there at a worker."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import aiohttp

from compass_agent.data import call_of, call_segment
from compass_agent.deadline import Deadline
from compass_agent.events import RunSegment, SegmentDone, SegmentFailed
from compass_agent.execution import LocalPool, SegmentResult, run_segment
from compass_agent.operators import OperatorHost
from compass_agent.pace import Pace
from compass_agent.routes import LinkProxies
from compass_agent.served import Served
from compass_agent.states import StateBook
from compass_shared.calls import OperatorTiming
from compass_shared.clock import Clock
from compass_shared.errors import BackendError, CompassError, DeadlineError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from compass_shared.values import Value

logger = logging.getLogger(__name__)


class SegmentRunner:
    """Runs segments and remembers which of them nobody waits for any more.

    Args:
        host: Operators that run here.
        pool: Threads that run them.
        pace: Speed to run at.
        proxies: The way to workers.
        clock: The time.
        served: Told what operators took.
    """

    def __init__(
        self,
        *,
        host: OperatorHost,
        pool: LocalPool,
        pace: Pace,
        proxies: LinkProxies,
        clock: Clock,
        served: Served,
    ) -> None:
        self._host = host
        self._pool = pool
        self._pace = pace
        self._proxies = proxies
        self._clock = clock
        self._served = served
        self._states = StateBook()
        """Of the queries that start here; what others run here is their worker's."""
        self._deadlines: dict[str, dict[tuple[int, int], Deadline]] = {}
        """Request -> (attempt, segment) -> deadline, of those that run here."""
        self.overruns = 0
        """Emulated operators here that took longer than they should have."""

    def begin(self, action: RunSegment) -> None:
        """Take a segment in, before anything is awaited; earlier attempts of its request are given up."""
        deadlines = self._deadlines.setdefault(action.request, {})
        for (attempt, _), deadline in deadlines.items():
            if attempt < action.attempt:
                deadline.give_up()
        if action.worker is None:
            deadline = Deadline(f"request {action.request}", action.deadline_s, clock=self._clock)
            deadlines[action.attempt, action.segment.index] = deadline

    async def run(self, action: RunSegment, http: aiohttp.ClientSession) -> SegmentDone | SegmentFailed:
        """Run a segment that was begun.

        Args:
            action: What to run.
            http: For calls to workers.

        Returns:
            How it went, whatever happened: the request has to go on, to its fallback or to its end.
        """
        started_s = self._clock.now_s()
        try:
            done = await (self._here(action) if action.worker is None else self._there(action, http))
        except Exception as error:
            return SegmentFailed(
                request=action.request,
                attempt=action.attempt,
                segment=action.segment.index,
                error=as_compass_error(error),
            )
        return replace(done, wall_s=self._clock.now_s() - started_s)

    def end(self, request: str) -> None:
        """The request ended: what it still runs stops before its next operator."""
        for deadline in self._deadlines.pop(request, {}).values():
            deadline.give_up()

    def forget(self, query: str) -> None:
        """Drop what stateful operators kept of a query."""
        self._states.drop(query)

    async def _here(self, action: RunSegment) -> SegmentDone:
        deadline = self._deadlines.get(action.request, {}).get((action.attempt, action.segment.index))
        if deadline is None:
            raise DeadlineError(f"request {action.request}", action.deadline_s)  # it ended meanwhile
        states = (
            self._states.of(query=action.query, stream=action.stream, position=action.position)
            if action.pipeline.stateful
            else None
        )
        call: Callable[[], SegmentResult] = partial(
            run_segment,
            self._host,
            action.pipeline,
            action.segment.operators,
            action.plan.config,
            action.values,
            action.segment.exports,
            self._pace,
            deadline=deadline,
            sized=self._served.wants_sizes(action.pipeline.name),
            states=states,
        )
        pooled = await self._pool.run(call)
        self.overruns += pooled.value.overruns
        self._served.add(action.pipeline.name, action.plan.config, pooled.value)
        return _done(action, pooled.value.values, pooled.value.timings, wait_s=pooled.wait_s)

    async def _there(self, action: RunSegment, http: aiohttp.ClientSession) -> SegmentDone:
        assert action.worker is not None
        address = self._proxies.address_of(action.worker.address)
        call = call_of(action, action.worker.token)
        reply = await call_segment(http, address, call, timeout_s=action.deadline_s)
        header = reply.answer.header
        return replace(
            _done(action, reply.answer.values, header.timings, wait_s=header.wait_s),
            sent_bytes=reply.sent_bytes,
            received_bytes=reply.received_bytes,
        )


def as_compass_error(error: Exception) -> CompassError:
    """The error itself, or what stands for a fault of the agent, which is logged."""
    if isinstance(error, CompassError):
        return error
    logger.error("a fault of the agent", exc_info=error)
    return BackendError(f"{type(error).__name__}: {error}")


def _done(
    action: RunSegment, values: Mapping[str, Value], timings: tuple[OperatorTiming, ...], *, wait_s: float
) -> SegmentDone:
    return SegmentDone(
        request=action.request,
        attempt=action.attempt,
        segment=action.segment.index,
        values=values,
        timings=timings,
        wait_s=wait_s,
        wall_s=0.0,
    )
