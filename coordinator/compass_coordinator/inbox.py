"""From what arrives on the wire to events of the coordinator's core."""

from __future__ import annotations

from typing import cast

from compass_coordinator import events as ev
from compass_shared import codec, messages, topics
from compass_shared.errors import MessageError
from compass_shared.topics import Kind


def event_of(topic: str, payload: bytes) -> ev.Event | None:
    """Decode one message.

    Returns:
        The event it is, ``MessageRefused`` for anything that is not a message meant for a coordinator, and
        None for what says nothing: a cleared decision.
    """
    try:
        return _event(topics.parse(topic), payload)
    except MessageError as error:
        return ev.MessageRefused(topic=topic[:200], problem=str(error))


def _event(topic: topics.Topic, payload: bytes) -> ev.Event | None:  # noqa: PLR0911, PLR0912  # one line a kind
    agent, item = topic.agent or "", topic.item or ""
    message = codec.decode(topic.kind, payload) if payload else None
    match message:
        case messages.StatusMessage():
            return ev.AgentStatus(agent=agent, status=message)
        case messages.HelloMessage():
            return ev.AgentHello(agent=agent, hello=message)
        case messages.ProfileMessage():
            return ev.AgentProfile(agent=agent, profile=message)
        case messages.ServedMessage():
            return ev.AgentServed(agent=agent, served=message)
        case messages.TelemetryMessage():
            return ev.AgentTelemetry(agent=agent, telemetry=message)
        case messages.AckMessage():
            return ev.AgentAck(agent=agent, ack=message)
        case messages.QueryMessage():
            return ev.QuerySeen(agent=agent, name=item, query=message.query)
        case messages.CoordinatorMessage():
            return ev.CoordinatorSeen(status=message)
        case messages.AssignmentMessage():
            return ev.DecisionSeen(agent=agent, kind=topic.kind, query=item, epoch=message.assignment.epoch)
        case messages.ShareMessage():
            return ev.DecisionSeen(agent=agent, kind=topic.kind, query=item, epoch=message.epoch)
    if topic.kind is Kind.QUERY:
        return ev.QuerySeen(agent=agent, name=item, query=None)
    if topic.kind is Kind.HELLO:
        return ev.AgentHello(agent=agent, hello=None)
    if topic.kind in {Kind.ASSIGNMENT, Kind.SHARE, Kind.STATUS, Kind.COORDINATOR}:
        return None
    raise MessageError(f"an empty {cast('str', topic.kind.value)} says nothing")
