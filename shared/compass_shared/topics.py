"""Every MQTT topic, in one place: ``compass/1/{fleet}/...``.

The ``1`` is the version of the topic tree; message schemas carry their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from compass_shared.errors import MessageError
from compass_shared.names import checked_name, is_name

_ROOT = "compass/1"


class Kind(Enum):
    """What a topic carries; the value is the topic's own word."""

    STATUS = "status"
    HELLO = "hello"
    TELEMETRY = "telemetry"
    PROFILE = "profile"
    PROBE = "probes"
    SERVED = "served"
    ACK = "acks"
    QUERY = "queries"
    ASSIGNMENT = "assignments"
    SHARE = "shares"
    PIPELINE = "pipelines"
    COORDINATOR = "coordinator"


_FROM_AGENT = {Kind.STATUS, Kind.HELLO, Kind.TELEMETRY, Kind.PROFILE, Kind.SERVED, Kind.ACK}
_PER_AGENT = {*_FROM_AGENT, Kind.PROBE}
_PER_QUERY = {Kind.QUERY, Kind.ASSIGNMENT, Kind.SHARE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """A parsed topic."""

    fleet: str
    kind: Kind
    agent: str | None = None
    item: str | None = None
    """Query or pipeline name, for the kinds that have one."""

    def __str__(self) -> str:
        if self.kind is Kind.COORDINATOR:
            return f"{_ROOT}/{self.fleet}/coordinator/status"
        if self.kind is Kind.PIPELINE:
            return f"{_ROOT}/{self.fleet}/pipelines/{self.item}"
        tail = f"/{self.item}" if self.kind in _PER_QUERY else ""
        return f"{_ROOT}/{self.fleet}/agents/{self.agent}/{self.kind.value}{tail}"


@dataclass(frozen=True, slots=True)
class Topics:
    """Topics and filters of one fleet.

    Raises:
        ConfigError: If the fleet's name, or a name given to a method, is not a name.
    """

    fleet: str

    def __post_init__(self) -> None:
        checked_name(self.fleet, "fleet")

    def agent(self, kind: Kind, agent: str) -> str:
        """Topic of one agent as a whole: status, hello, telemetry, profile, probes, served, acks."""
        if kind not in _PER_AGENT:
            raise ValueError(f"{kind} is not a topic of one agent")
        return str(Topic(fleet=self.fleet, kind=kind, agent=checked_name(agent, "agent")))

    def query(self, kind: Kind, agent: str, query: str) -> str:
        """Topic of one query at one agent: query, assignment, share."""
        if kind not in _PER_QUERY:
            raise ValueError(f"{kind} is not a topic of one query")
        agent, query = checked_name(agent, "agent"), checked_name(query, "query")
        return str(Topic(fleet=self.fleet, kind=kind, agent=agent, item=query))

    def pipeline(self, pipeline: str) -> str:
        """Topic of a pipeline's declarative part."""
        return str(Topic(fleet=self.fleet, kind=Kind.PIPELINE, item=checked_name(pipeline, "pipeline")))

    @property
    def coordinator(self) -> str:
        """Topic of the coordinator's status."""
        return str(Topic(fleet=self.fleet, kind=Kind.COORDINATOR))

    def for_agent(self, agent: str) -> tuple[str, ...]:
        """Filters an agent subscribes to."""
        checked_name(agent, "agent")
        base = f"{_ROOT}/{self.fleet}"
        return (
            f"{base}/agents/{agent}/assignments/+",
            f"{base}/agents/{agent}/shares/+",
            f"{base}/agents/{agent}/probes",
            f"{base}/pipelines/+",
            self.coordinator,
        )

    def for_coordinator(self) -> tuple[str, ...]:
        """Filters a coordinator subscribes to; it reads its own retained decisions too."""
        base = f"{_ROOT}/{self.fleet}"
        own = [f"{base}/agents/+/{kind.value}" for kind in sorted(_FROM_AGENT, key=lambda kind: kind.value)]
        each = [f"{base}/agents/+/{kind.value}/+" for kind in sorted(_PER_QUERY, key=lambda kind: kind.value)]
        return (*own, *each, self.coordinator)


def parse(topic: str) -> Topic:
    """Parse a topic that a message arrived on.

    Raises:
        MessageError: If it is not a topic of this tree.
    """
    match topic.split("/"):
        case ["compass", "1", fleet, "coordinator", "status"] if is_name(fleet):
            return Topic(fleet=fleet, kind=Kind.COORDINATOR)
        case ["compass", "1", fleet, "pipelines", item] if is_name(fleet) and is_name(item):
            return Topic(fleet=fleet, kind=Kind.PIPELINE, item=item)
        case ["compass", "1", fleet, "agents", agent, word] if is_name(fleet) and is_name(agent):
            kind = _kind(word, _PER_AGENT)
            if kind is not None:
                return Topic(fleet=fleet, kind=kind, agent=agent)
        case ["compass", "1", fleet, "agents", agent, word, item] if (
            is_name(fleet) and is_name(agent) and is_name(item)
        ):
            kind = _kind(word, _PER_QUERY)
            if kind is not None:
                return Topic(fleet=fleet, kind=kind, agent=agent, item=item)
    raise MessageError(f"not a Compass topic: {topic[:200]!r}")


def _kind(word: str, among: set[Kind]) -> Kind | None:
    return next((kind for kind in among if kind.value == word), None)
