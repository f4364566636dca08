"""What tests of the agent's core share: small pipelines, assignments, and a ledger of invariants.

The ledger sees every event and what the core made of it, and asserts what must hold whatever happened:
every request ends at most once, nothing runs for one that ended, and a value means that everything the
request's last attempt exported was delivered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compass_agent import events as ev
from compass_agent.core import AgentCore
from compass_agent.probing import Measure
from compass_shared.calls import OperatorTiming
from compass_shared.errors import CompassError, TransportError
from compass_shared.pipeline import REQUEST, Operator, Pipeline
from compass_shared.plan import Assignment, Epoch, Estimate, Plan, WorkerAccess
from compass_shared.segments import cut
from compass_shared.values import Value

SITE = "phone"
EDGE = WorkerAccess(address="http://127.0.0.1:8001", token="edge-token")
CLOUD = WorkerAccess(address="http://127.0.0.1:8002", token="cloud-token")
WORKERS = {"edge": EDGE, "cloud": CLOUD}


def python_operator(name: str, *inputs: str, knobs: Mapping[str, tuple[int, ...]] | None = None) -> Operator:
    """An operator without a model."""
    return Operator(
        name=name, inputs=inputs, runtime="python", function=f".operators:{name}", knobs=knobs or {}
    )


def pipeline_of(name: str, *operators: Operator, digest: str = "") -> Pipeline:
    """A pipeline whose output is its last operator."""
    return Pipeline(
        name=name,
        version="1",
        description="",
        operators=operators,
        output=operators[-1].name,
        digest=digest or f"digest-of-{name}",
    )


CHAIN = pipeline_of(
    "chain",
    python_operator("shrink", REQUEST, knobs={"side": (320, 640)}),
    python_operator("find", "shrink"),
    python_operator("read", "find"),
)
DIAMOND = pipeline_of(
    "diamond",
    python_operator("split", REQUEST),
    python_operator("left", "split"),
    python_operator("right", "split"),
    python_operator("join", "left", "right"),
)
PIPELINES = {pipeline.name: pipeline for pipeline in (CHAIN, DIAMOND)}


def plan_at(pipeline: Pipeline, *sites: str, p95_s: float | None = None) -> Plan:
    """A plan with these sites for its operators, in order; one site for all if only one is given."""
    where = sites * len(pipeline.operators) if len(sites) == 1 else sites
    return Plan(
        config={op.name: next(op.variants()) for op in pipeline.operators},
        placement={op.name: site for op, site in zip(pipeline.operators, where, strict=True)},
        estimate=None if p95_s is None else estimate(p95_s),
    )


def estimate(p95_s: float) -> Estimate:
    """An estimate of which only the latency matters."""
    return Estimate(
        latency_mean_s=p95_s / 2,
        latency_var_s2=0.0,
        latency_p95_s=p95_s,
        accuracy=0.9,
        cost_usd_per_1000=0.0,
        demand={},
    )


def assigned(
    pipeline: Pipeline,
    plan: Plan | None,
    *,
    query: str = "q1",
    fallback: Plan | None = None,
    epoch: tuple[int, int] = (1, 1),
    workers: Mapping[str, WorkerAccess] = WORKERS,
    deadline_s: float = 10.0,
    refusal: str | None = None,
) -> Assignment:
    """An assignment; the fallback is local unless one is given."""
    return Assignment(
        query=query,
        pipeline=pipeline.name,
        digest=pipeline.digest,
        epoch=Epoch(coordinator=epoch[0], sequence=epoch[1]),
        plan=plan,
        fallback=plan_at(pipeline, SITE, p95_s=2.0) if fallback is None else fallback,
        workers=workers,
        deadline_s=deadline_s,
        refusal=refusal,
    )


def done(run: ev.RunSegment, values: Mapping[str, Value] | None = None) -> ev.SegmentDone:
    """The answer to a RunSegment; each value says which request, attempt and operator made it."""
    made = {name: made_by(run.request, run.attempt, name) for name in run.segment.exports}
    return ev.SegmentDone(
        request=run.request,
        attempt=run.attempt,
        segment=run.segment.index,
        values=made if values is None else values,
        timings=tuple(
            OperatorTiming(operator=op, wall_s=0.1, cpu_s=0.1, device_s=0.1) for op in run.segment.operators
        ),
        wait_s=0.01,
        wall_s=0.2,
        sent_bytes=0 if run.worker is None else 1000,
        received_bytes=0 if run.worker is None else 100,
    )


def failed(run: ev.RunSegment, error: CompassError | None = None) -> ev.SegmentFailed:
    """The failure of a RunSegment; a broken link unless an error is given."""
    return ev.SegmentFailed(
        request=run.request,
        attempt=run.attempt,
        segment=run.segment.index,
        error=error or TransportError("the link broke"),
    )


def made_by(request: str, attempt: int, operator: str) -> str:
    """The value that ``done`` delivers."""
    return f"{request}/{attempt}/{operator}"


def runs(actions: Sequence[ev.Action]) -> list[ev.RunSegment]:
    """The RunSegments among actions."""
    return [action for action in actions if isinstance(action, ev.RunSegment)]


def timers(actions: Sequence[ev.Action]) -> list[ev.Later]:
    """The Laters among actions."""
    return [action for action in actions if isinstance(action, ev.Later)]


def sends(actions: Sequence[ev.Action]) -> list[ev.Send]:
    """The Sends among actions."""
    return [action for action in actions if isinstance(action, ev.Send)]


def outcome_of(actions: Sequence[ev.Action]) -> ev.Outcome:
    """The one outcome among actions."""
    (outcome,) = (action.outcome for action in actions if isinstance(action, ev.Finish))
    return outcome


class Ledger:
    """Asserts the invariants of requests after every event.

    Args:
        site: The agent's own site.
    """

    def __init__(self, site: str = SITE) -> None:
        self._site = site
        self.deadlines_s: dict[str, float] = {}
        """Request -> time at which it has to have ended."""
        self.finished: dict[str, ev.Outcome] = {}
        self.runs: dict[tuple[str, int, int], ev.RunSegment] = {}
        """(request, attempt, segment) -> what was asked for."""
        self._inputs: dict[str, Value] = {}
        self._attempt: dict[str, int] = {}
        self._answered: set[tuple[str, int, int]] = set()
        """Segments that were done or failed while they were waited for."""
        self._delivered: dict[tuple[str, int], dict[str, Value]] = {}
        """(request, attempt) -> values that came while the attempt was the current one."""

    def submitted(self, request: str, value: Value, *, deadline_s: float) -> None:
        """Note that a request was taken in.

        Args:
            request: Its id.
            value: Its input.
            deadline_s: The time at which it has to have ended.
        """
        assert request not in self.deadlines_s, "ids of requests are unique"
        self.deadlines_s[request] = deadline_s
        self._inputs[request] = value
        self._attempt[request] = 1

    def check(self, event: object, actions: Sequence[ev.Action], *, now_s: float, in_flight: int) -> None:
        """Assert what must hold after ``event`` led to ``actions``."""
        if self._is_late(event):
            assert not actions, "what nobody waits for any more changes nothing"
        elif isinstance(event, ev.SegmentDone | ev.SegmentFailed):
            self._answer(event)
        for action in actions:
            if isinstance(action, ev.RunSegment):
                self._check_run(action, now_s)
            elif isinstance(action, ev.Finish):
                self._check_finish(action.outcome, now_s)
            elif isinstance(action, ev.Later):
                assert action.delay_s >= 0
                assert action.event.request not in self.finished, "no timer for a request that ended"
        assert in_flight == len(self.deadlines_s) - len(self.finished)
        waited_for = {(request, attempt) for request, attempt, _ in self.runs.keys() - self._answered}
        alive = ((request, self._attempt[request]) for request in self.deadlines_s.keys() - self.finished)
        assert waited_for.issuperset(alive), "what is in flight waits for something"

    def _is_late(self, event: object) -> bool:
        if isinstance(event, ev.SegmentDone | ev.SegmentFailed):
            key = event.request, event.attempt, event.segment
            if key not in self.runs or key in self._answered:
                return True
        if isinstance(event, ev.SegmentDone | ev.SegmentFailed | ev.AttemptOverdue):
            return event.request in self.finished or self._attempt.get(event.request) != event.attempt
        return isinstance(event, ev.RequestOverdue) and event.request in self.finished

    def _answer(self, event: ev.SegmentDone | ev.SegmentFailed) -> None:
        key = event.request, event.attempt, event.segment
        self._answered.add(key)
        if isinstance(event, ev.SegmentDone):
            values = self._values(event.request, event.attempt)
            values.update({name: event.values[name] for name in self.runs[key].segment.exports})

    def _values(self, request: str, attempt: int) -> dict[str, Value]:
        return self._delivered.setdefault((request, attempt), {REQUEST: self._inputs[request]})

    def _check_run(self, run: ev.RunSegment, now_s: float) -> None:
        assert run.request in self.deadlines_s, "nothing runs for a request that was never submitted"
        assert run.request not in self.finished, "nothing runs for a request that ended"
        assert run.attempt in {self._attempt[run.request], self._attempt[run.request] + 1}
        self._attempt[run.request] = run.attempt
        key = run.request, run.attempt, run.segment.index
        assert key not in self.runs, "a segment runs once in an attempt"
        self.runs[key] = run
        assert (run.worker is None) == (run.segment.site == self._site)
        assert set(run.values) == set(run.segment.needs)
        delivered = self._values(run.request, run.attempt)
        assert all(delivered[name] == value for name, value in run.values.items())
        assert 0 <= run.deadline_s <= max(0.0, self.deadlines_s[run.request] - now_s) + 1e-9

    def _check_finish(self, outcome: ev.Outcome, now_s: float) -> None:
        assert outcome.request in self.deadlines_s, "only what was submitted ends"
        assert outcome.request not in self.finished, "a request ends once"
        assert now_s <= self.deadlines_s[outcome.request] + 1e-9, "and by its deadline at the latest"
        assert outcome.attempts == self._attempt[outcome.request]
        if outcome.error is None:
            (pipeline,) = {run.pipeline.name: run.pipeline for run in self._runs_of(outcome)}.values()
            assert outcome.plan is not None
            delivered = self._values(outcome.request, outcome.attempts)
            for segment in cut(pipeline, outcome.plan.placement, self._site):
                assert set(segment.exports) <= set(delivered), "a value needs everything it was made from"
            assert outcome.value == delivered[pipeline.output]
        else:
            assert outcome.value is None
        self.finished[outcome.request] = outcome

    def _runs_of(self, outcome: ev.Outcome) -> list[ev.RunSegment]:
        return [run for (request, *_), run in self.runs.items() if request == outcome.request]


class CheckedAgent:
    """An agent's core with a ledger beside it and a clock that the test sets.

    Args:
        assignments: What was in force when the agent last stopped.
        measure: Which operators it measures.
    """

    def __init__(
        self,
        *,
        pipelines: Mapping[str, Pipeline] = PIPELINES,
        assignments: Mapping[str, Assignment] | None = None,
        measure: Measure = Measure.FULL,
    ) -> None:
        self.core = AgentCore(
            name=SITE, session=100, pipelines=pipelines, assignments=assignments, measure=measure
        )
        self.ledger = Ledger()
        self.now_s = 0.0
        self.due: list[tuple[float, ev.Event]] = []
        """Timers that were asked for, with the time at which they fire."""
        self._requests = 0

    def __call__(self, event: ev.Event) -> list[ev.Action]:
        """Hand over an event and check what follows from it."""
        actions = self.core.handle(event, self.now_s)
        self._check(event, actions)
        return actions

    def _check(self, event: ev.Event, actions: Sequence[ev.Action]) -> None:
        self.due.extend((self.now_s + timer.delay_s, timer.event) for timer in timers(actions))
        self.ledger.check(event, actions, now_s=self.now_s, in_flight=self.core.in_flight)

    def pass_until(self, end_s: float) -> list[ev.Action]:
        """Let time pass, and timers fire; what follows from them."""
        actions: list[ev.Action] = []
        while self.due and (first := min(self.due, key=lambda due: due[0]))[0] <= end_s:
            self.due.remove(first)
            self.now_s, event = first
            actions.extend(self(event))
        self.now_s = end_s
        return actions

    def assign(self, assignment: Assignment) -> list[ev.Action]:
        """The coordinator assigns a plan."""
        return self(ev.AssignmentArrived(query=assignment.query, assignment=assignment))

    def submit(
        self,
        pipeline: str = "chain",
        *,
        query: str | None = None,
        deadline_s: float | None = None,
        new_stream: bool = False,
    ) -> list[ev.Action]:
        """The application pushes an input through a pipeline: requests r1, r2, ..."""
        request = f"r{self._requests + 1}"
        event = ev.RequestSubmitted(
            request=request,
            pipeline=pipeline,
            value="input",
            query=query,
            deadline_s=deadline_s,
            new_stream=new_stream,
        )
        actions = self.core.handle(event, self.now_s)
        self._requests += 1
        (overdue,) = (t for t in timers(actions) if isinstance(t.event, ev.RequestOverdue))
        self.ledger.submitted(request, "input", deadline_s=self.now_s + overdue.delay_s)
        self._check(event, actions)
        return actions

    def finish(self, actions: Sequence[ev.Action]) -> ev.Outcome:
        """Answer every segment, in the order in which they are asked for, until the request ends."""
        waiting = runs(actions)
        while waiting:
            actions = self(done(waiting.pop(0)))
            waiting.extend(runs(actions))
        return outcome_of(actions)
