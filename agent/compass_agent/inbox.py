"""From what arrives on the wire to events of the agent's core."""

from __future__ import annotations

from typing import cast

from compass_agent import events as ev
from compass_shared import codec, messages, topics
from compass_shared.errors import MessageError
from compass_shared.topics import Kind


def event_of(topic: str, payload: bytes) -> ev.Event:
    """Decode one message.

    Returns:
        The event it is; ``MessageRefused`` for anything that is not a message meant for an agent.
    """
    try:
        return _event(topics.parse(topic), payload)
    except MessageError as error:
        return ev.MessageRefused(topic=topic[:200], problem=str(error))


def _event(topic: topics.Topic, payload: bytes) -> ev.Event:
    message = codec.decode(topic.kind, payload) if payload else None
    item = topic.item or ""
    match topic.kind:
        case Kind.ASSIGNMENT:
            body = cast("messages.AssignmentMessage | None", message)
            return ev.AssignmentArrived(query=item, assignment=body.assignment if body else None)
        case Kind.SHARE:
            return ev.ShareArrived(query=item, share=cast("messages.ShareMessage | None", message))
        case Kind.COORDINATOR if message is not None:
            return ev.CoordinatorArrived(status=cast("messages.CoordinatorMessage", message))
        case Kind.PROBE if message is not None:
            return ev.ProbesAsked(probes=cast("messages.ProbeMessage", message))
        case Kind.PIPELINE if message is not None:
            return ev.PipelineArrived(declaration=cast("messages.PipelineMessage", message))
    raise MessageError(f"{topic.kind.value} is not for an agent, or empty")
