"""What the coordinator's core is told (events) and what it asks for (actions)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from compass_coordinator.planning import FleetPlan
from compass_coordinator.profiler.latency.completion import Gap
from compass_coordinator.profiler.latency.next_probe import Wish
from compass_shared.messages import (
    AckMessage,
    CoordinatorMessage,
    HelloMessage,
    Message,
    ProfileMessage,
    ServedMessage,
    StatusMessage,
    TelemetryMessage,
)
from compass_shared.plan import Epoch
from compass_shared.problem import Problem
from compass_shared.query import Query
from compass_shared.topics import Kind

# --- events ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The retained state of the fleet was read; decisions may begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerConnected:
    """The broker took us (again)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStatus:
    """An agent came online or went offline."""

    agent: str
    status: StatusMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentHello:
    """An agent said what it is; None when its retained hello was cleared."""

    agent: str
    hello: HelloMessage | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentProfile:
    """An agent measured operators and links."""

    agent: str
    profile: ProfileMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentServed:
    """An agent said what serving took."""

    agent: str
    served: ServedMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentTelemetry:
    """An agent said how it is doing."""

    agent: str
    telemetry: TelemetryMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentAck:
    """An agent took or refused a decision."""

    agent: str
    ack: AckMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class QuerySeen:
    """A query was declared at an agent; None when it was withdrawn."""

    agent: str
    name: str
    query: Query | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionSeen:
    """A retained decision, of this coordinator or of one before it."""

    agent: str
    kind: Kind
    query: str
    epoch: Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorSeen:
    """A coordinator's status, perhaps our own."""

    status: CoordinatorMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageRefused:
    """Something on the wire was not a message; it is counted and never fatal."""

    topic: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """The planner finished."""

    version: int
    problem: Problem
    """With its profiles filled up."""
    plan: FleetPlan
    wishes: tuple[Wish, ...] = ()
    """What is worth measuring before the next planning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanningFailed:
    """The planner raised; the fleet goes on with what it has."""

    version: int
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time passed."""


Event: TypeAlias = (
    Started
    | BrokerConnected
    | AgentStatus
    | AgentHello
    | AgentProfile
    | AgentServed
    | AgentTelemetry
    | AgentAck
    | QuerySeen
    | DecisionSeen
    | CoordinatorSeen
    | MessageRefused
    | Planned
    | PlanningFailed
    | Tick
)

# --- actions --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Send:
    """Publish a control message, retained unless it asks for probes; None clears it."""

    kind: Kind
    message: Message | None
    agent: str | None = None
    item: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StartPlanning:
    """Solve this problem somewhere else and report Planned or PlanningFailed."""

    version: int
    problem: Problem
    gaps: Mapping[tuple[str, str], Gap] = field(default_factory=dict)
    """(Site, pipeline) -> what fills up its profile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveEpoch:
    """Keep the coordinator epoch on disk before anything is published under it."""

    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something people should read; the shell logs it."""

    text: str
    serious: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Another coordinator with a higher epoch is in charge."""

    reason: str


Action: TypeAlias = Send | StartPlanning | SaveEpoch | Note | Stop
