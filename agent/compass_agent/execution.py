"""Running segments: the operators of one segment in one thread, and the pool of such threads."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from compass_agent.deadline import Deadline, present
from compass_agent.operators import OperatorHost
from compass_agent.pace import Pace, Paced
from compass_shared.calls import OperatorTiming
from compass_shared.clock import Clock, MonotonicClock
from compass_shared.errors import MessageError, RefusedError
from compass_shared.framing import framed_size
from compass_shared.items import items_in
from compass_shared.pipeline import Config, Operator, Pipeline, variant_key

if TYPE_CHECKING:
    from compass_agent.operators import BoundOperator
    from compass_agent.states import RequestStates
    from compass_shared.values import Value

Result = TypeVar("Result")

MAX_WAITING = 64
"""Calls that may wait for a thread before more are refused."""

_NEWEST = 0.1
"""Weight of the newest duration in the running mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentResult:
    """What a segment made and what that took."""

    values: Mapping[str, Value]
    """The exports."""
    timings: tuple[OperatorTiming, ...]
    """In the order in which they ran."""
    busy_s: float
    """Time for which one core was busy, noise of the machine excluded: see ``Paced.busy_s``."""
    overruns: int = 0
    """Emulated operators that took longer than they should have."""
    overrun_s: float = 0.0
    """By how much, all together."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Operator -> framed bytes of what it made, if that was asked for."""


def run_segment(  # noqa: PLR0913  # what runs, on what, and how
    host: OperatorHost,
    pipeline: Pipeline,
    operators: Collection[str],
    config: Config,
    values: Mapping[str, Value],
    exports: Collection[str],
    pace: Pace,
    *,
    deadline: Deadline | None = None,
    sized: bool = False,
    states: RequestStates | None = None,
) -> SegmentResult:
    """Run some operators of a pipeline, in this thread, one after the other.

    Args:
        host: Where the operators are.
        pipeline: What they are part of.
        operators: Which to run; the pipeline says in which order.
        config: Knobs of (at least) these operators.
        values: What they need and do not make themselves, ``request`` included.
        exports: Operators whose values are wanted.
        pace: Speed to run at.
        deadline: Checked before every operator.
        sized: Whether to find out how large the outputs are, which takes a copy of each.
        states: Where stateful operators find what they kept; None: each has nothing and keeps nothing.

    Raises:
        ConfigError: If there is no such operator or knob value.
        MessageError: If a value is missing, or is wanted that no operator here makes.
        ModelLoadError: If a model cannot be had.
        InferenceError: If an operator fails.
        DeadlineError: If the time is over before the last operator starts.
    """

    def paced(step: Operator, run: BoundOperator, inputs: Mapping[str, Value]) -> Paced[Value]:
        if states is None or not step.stateful:
            return pace.run(step.speed_class, partial(run, inputs))
        # Waiting for another request of the query is no time of this operator's.
        with states.held(step.name, variant_key(step.name, run.knobs), deadline=deadline) as state:
            return pace.run(step.speed_class, partial(run, inputs, state))

    steps = _steps(pipeline, operators)
    _check_complete(steps, values, exports)
    made: dict[str, Value] = dict(values)
    ran: list[Paced[Value]] = []
    items: list[int | None] = []
    for step in steps:
        run = host.bind(pipeline.name, step.name, config.get(step.name, {}))
        if deadline is not None:
            deadline.check()
        inputs = {name: made[name] for name in step.inputs}
        with present(deadline):
            done = paced(step, run, inputs)
        made[step.name] = done.value
        ran.append(done)
        items.append(items_in(step, inputs))
    return SegmentResult(
        values={name: made[name] for name in exports},
        timings=tuple(
            OperatorTiming(
                operator=step.name, wall_s=done.wall_s, cpu_s=done.cpu_s, device_s=done.device_s, items=count
            )
            for step, done, count in zip(steps, ran, items, strict=True)
        ),
        busy_s=sum(done.busy_s for done in ran),
        overruns=sum(done.overrun_s > 0 for done in ran),
        overrun_s=sum(done.overrun_s for done in ran),
        sizes={step.name: framed_size(made[step.name]) for step in steps} if sized else {},
    )


def _steps(pipeline: Pipeline, operators: Collection[str]) -> list[Operator]:
    steps = [operator for operator in pipeline.operators if operator.name in operators]
    if len(steps) < len(set(operators)):
        for name in operators:
            pipeline.operator(name)  # raises for the unknown one
    return steps


def _check_complete(steps: list[Operator], values: Mapping[str, Value], exports: Collection[str]) -> None:
    """Find out what is missing before anything runs."""
    made = {step.name for step in steps}
    for step in steps:
        for name in step.inputs:
            if name not in values and name not in made:
                raise MessageError(f"operator {step.name!r} needs the value of {name!r}, which was not given")
    for name in exports:
        if name not in made:
            raise MessageError(f"the value of {name!r} is wanted, but it is not among the operators")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooled(Generic[Result]):
    """What a call in the pool returned."""

    value: Result
    wait_s: float
    """From when it was handed in to when it started."""


class LocalPool:
    """As many threads as cores, and a bounded queue before them.

    Args:
        cores: Calls that run at once.
        max_waiting: Calls that may wait.
        clock: The time.
    """

    def __init__(self, cores: int, *, max_waiting: int = MAX_WAITING, clock: Clock | None = None) -> None:
        self.cores = cores
        self._max_waiting = max_waiting
        self.clock = clock or MonotonicClock()
        self._threads = ThreadPoolExecutor(cores, thread_name_prefix="compass-operators")
        self._lock = threading.Condition()
        self._pending = 0
        """Handed in and not finished."""
        self._running = 0
        self._mean_s = 0.0
        """Running mean of how long calls take."""

    @property
    def running(self) -> int:
        """Calls that run now."""
        return self._running

    @property
    def waiting(self) -> int:
        """Calls that wait for a thread."""
        return max(0, self._pending - self._running)

    def expected_wait_s(self) -> float:
        """Time until a call that came now would start, judged by how long calls took lately."""
        ahead = self._pending - self.cores + 1
        return max(0, ahead) * self._mean_s / self.cores

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait, in a thread that is not the loop's, until nothing runs or waits; False if it never did."""
        with self._lock:
            return self._lock.wait_for(lambda: self._pending == 0, timeout_s)

    async def run(self, call: Callable[[], Result], *, within_s: float = math.inf) -> Pooled[Result]:
        """Make a call in one of the threads; cancelled while it waits, it never runs.

        Args:
            call: What to do; what it raises is raised here.
            within_s: Time in which it should start.

        Raises:
            RefusedError: If the queue is full or too slow for that, with when to try again.
        """
        self._admit(within_s)
        future = self._threads.submit(self._work, call, self.clock.now_s())
        future.add_done_callback(lambda _: self._count(pending=-1))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Drop what waits; what runs ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _admit(self, within_s: float) -> None:
        wait_s = self.expected_wait_s()
        if self._pending >= self.cores + self._max_waiting:
            raise RefusedError(f"{self._max_waiting} calls are waiting already", retry_after_s=wait_s)
        if wait_s > within_s:
            raise RefusedError(
                f"could start in {wait_s:.3f} s, which is after the deadline", retry_after_s=wait_s
            )
        self._count(pending=1)

    def _work(self, call: Callable[[], Result], submitted_s: float) -> Pooled[Result]:
        started_s = self.clock.now_s()
        self._count(running=1)
        try:
            return Pooled(value=call(), wait_s=started_s - submitted_s)
        finally:
            self._count(running=-1, took_s=self.clock.now_s() - started_s)

    def _count(self, *, pending: int = 0, running: int = 0, took_s: float | None = None) -> None:
        with self._lock:
            self._pending += pending
            self._running += running
            if self._pending == 0:
                self._lock.notify_all()
            if took_s is not None:
                self._mean_s += (took_s - self._mean_s) * (_NEWEST if self._mean_s else 1)
