"""What the agent's core is told (events) and what it asks for (actions).

Events and actions are values. The shell turns what happens outside into events, hands them to
``AgentCore.handle(event, now_s)`` and carries out the actions that come back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from compass_shared.calls import OperatorTiming
from compass_shared.errors import CompassError
from compass_shared.messages import (
    CoordinatorMessage,
    HelloMessage,
    LinkReport,
    Message,
    PipelineMessage,
    ProbeMessage,
    ProfileMessage,
    ShareMessage,
    WorkerInfo,
)
from compass_shared.pipeline import Pipeline
from compass_shared.plan import Assignment, Epoch, Plan, WorkerAccess
from compass_shared.profile import OperatorProfile
from compass_shared.query import Query
from compass_shared.segments import Segment
from compass_shared.topics import Kind
from compass_shared.values import Value

# --- events ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The agent runs; it may hold assignments from before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConnected:
    """The broker took us; retained messages will follow."""

    session: int
    """Session epoch of this very connection: the next one's is higher."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerLost:
    """The broker is gone for now."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HelloReady:
    """The shell found out what this agent is and can run."""

    hello: HelloMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileReady:
    """Operators of one pipeline, and the links, were measured."""

    profile: ProfileMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuringDue:
    """The agent is up, and a coordinator was heard or waited for long enough: measuring may begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuringEnded:
    """What ``MeasureOperators`` asked for was measured and handed in as ``ProfileReady``, or it failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedCounted:
    """What serving took, by pipeline, since it was last asked for."""

    over_s: float
    operators: Mapping[str, Mapping[str, OperatorProfile]]
    """Pipeline -> variant -> what its runs took; pipelines that served nothing are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryDue:
    """Time to say how the agent is doing; the shell read the machine's part."""

    cpu_share: float
    memory_used_bytes: int
    memory_total_bytes: int
    battery: float | None = None
    temperature_c: float | None = None
    links: tuple[LinkReport, ...] = ()
    overruns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignmentArrived:
    """The coordinator assigned a plan; None withdraws it."""

    query: str
    assignment: Assignment | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareArrived:
    """The coordinator gave this worker a share to serve; None withdraws it."""

    query: str
    share: ShareMessage | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareReady:
    """A share is served from now on, its models open; or it is not, and the one before it stays."""

    query: str
    epoch: Epoch
    problem: str | None
    """Why it is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorArrived:
    """The coordinator came up, went down, or knows other workers."""

    status: CoordinatorMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineArrived:
    """The declarative part of a pipeline, as the coordinator plans with it."""

    declaration: PipelineMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbesAsked:
    """The coordinator wants some variants measured."""

    probes: ProbeMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageRefused:
    """Something on the wire was not a message; it is counted and never fatal."""

    topic: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryDeclared:
    """The application on this device wants a query served; None withdraws it."""

    name: str
    query: Query | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSubmitted:
    """One input to push through a pipeline."""

    request: str
    pipeline: str
    value: Value
    query: str | None = None
    deadline_s: float | None = None
    """Time allowed; the assignment's own if None."""
    new_stream: bool = False
    """Whether it begins a new stream of its query: stateful operators know nothing of what was before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentDone:
    """A segment ran, here or at a worker."""

    request: str
    attempt: int
    segment: int
    values: Mapping[str, Value]
    timings: tuple[OperatorTiming, ...]
    wait_s: float
    wall_s: float
    """From the action to the result, as seen by this agent."""
    sent_bytes: int = 0
    received_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentFailed:
    """A segment did not run or did not answer."""

    request: str
    attempt: int
    segment: int
    error: CompassError


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptOverdue:
    """The fallback must start now if it is still to make the deadline."""

    request: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOverdue:
    """A request's deadline passed."""

    request: str


Event: TypeAlias = (
    Started
    | BrokerConnected
    | BrokerLost
    | HelloReady
    | ProfileReady
    | MeasuringDue
    | MeasuringEnded
    | ServedCounted
    | TelemetryDue
    | AssignmentArrived
    | ShareArrived
    | ShareReady
    | CoordinatorArrived
    | PipelineArrived
    | ProbesAsked
    | MessageRefused
    | QueryDeclared
    | RequestSubmitted
    | SegmentDone
    | SegmentFailed
    | AttemptOverdue
    | RequestOverdue
)

# --- actions --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Publish a control message; None clears a retained one."""

    kind: Kind
    message: Message | None
    item: str | None = None
    """Query, for kinds that have one topic a query."""
    retain: bool = False
    qos: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSegment:
    """Run one segment and report SegmentDone or SegmentFailed."""

    request: str
    attempt: int
    segment: Segment
    query: str
    pipeline: Pipeline
    plan: Plan
    epoch: Epoch
    values: Mapping[str, Value]
    deadline_s: float
    """Time that remains."""
    worker: WorkerAccess | None
    """None: run it here."""
    stream: int = 0
    """Stream of the query that the request is part of."""
    position: int = 0
    """Which request of the stream it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Later:
    """Hand this event back after a delay."""

    delay_s: float
    event: AttemptOverdue | RequestOverdue


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """A request ended; each one does so exactly once."""

    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveAssignments:
    """Keep these on disk: the agent serves from them when it is alone."""

    assignments: Mapping[str, Assignment]


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldShare:
    """Open a share's models, serve its query up to it, and report ShareReady; None stops serving the query.

    A later one for the same query takes the place of one that is not ready yet.
    """

    query: str
    share: ShareMessage | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenModels:
    """Open what these variants need, so that no request has to wait for it."""

    pipeline: str
    variants: tuple[str, ...]
    """Keys from ``pipeline.variant_key``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetStates:
    """Drop what stateful operators kept here of a query's requests: it ended, or they run elsewhere now."""

    query: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureOperators:
    """Measure operators while no request runs, hand the profile in, and report MeasuringEnded."""

    pipeline: str
    variants: tuple[str, ...] | None
    """Keys from ``pipeline.variant_key``; None: all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CountServed:
    """Report ServedCounted, and count from nothing again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureLinks:
    """Workers became known or moved: measure the way to them, then the profile can be published."""

    workers: Mapping[str, WorkerInfo]
    """Site name -> worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsePeers:
    """Ask these for models before any registry."""

    addresses: tuple[str, ...]
    """Base URLs: the coordinator's model server, then the workers."""


Action: TypeAlias = (
    Send
    | RunSegment
    | Later
    | Finish
    | SaveAssignments
    | HoldShare
    | OpenModels
    | ForgetStates
    | MeasureOperators
    | CountServed
    | MeasureLinks
    | UsePeers
)

# --- outcomes -------------------------------------------------------------------------------------


class Source(Enum):
    """Which plan answered a request."""

    ASSIGNED = "assigned"
    FALLBACK = "fallback"
    DEFAULT = "default"
    """No assignment was ever received: every operator here, every knob at its first value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentTrace:
    """What became of one segment of a request."""

    site: str
    operators: tuple[str, ...]
    wall_s: float
    wait_s: float
    timings: tuple[OperatorTiming, ...]
    sent_bytes: int
    received_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a request ended: with a value or with an error, never both."""

    request: str
    query: str
    value: Value = None
    error: CompassError | None = None
    latency_s: float
    source: Source
    attempts: int
    epoch: Epoch | None
    plan: Plan | None = None
    segments: tuple[SegmentTrace, ...] = field(default_factory=tuple)
