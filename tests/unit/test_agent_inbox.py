"""What arrives at an agent: the right event, or one that says it was no message."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compass_agent import events as ev
from compass_agent.inbox import event_of
from compass_shared import codec
from compass_shared.messages import (
    AssignmentMessage,
    CoordinatorMessage,
    Message,
    PipelineMessage,
    ProbeMessage,
    ShareMessage,
    StatusMessage,
)
from compass_shared.plan import Epoch
from compass_shared.topics import Kind, Topics
from support.agents import CHAIN, SITE, assigned, plan_at

TOPICS = Topics("home")
ASSIGNMENT = assigned(CHAIN, plan_at(CHAIN, SITE, "edge", "edge"))
SHARE = ShareMessage(
    query="q1",
    origin="tablet",
    pipeline="chain",
    digest=CHAIN.digest,
    epoch=Epoch(coordinator=1, sequence=1),
    variants=("find",),
    rate_hz=1.0,
    cores=0.5,
    token="secret",
)
STATUS = CoordinatorMessage(online=True, epoch=3)
PROBES = ProbeMessage(pipeline="chain", digest="d", variants=("find",), epoch=3)
DECLARED = PipelineMessage(pipeline="chain", version="1", digest="d", document={"schema": 1})


@pytest.mark.parametrize(
    ("topic", "message", "event"),
    [
        (
            TOPICS.query(Kind.ASSIGNMENT, SITE, "q1"),
            AssignmentMessage(assignment=ASSIGNMENT),
            ev.AssignmentArrived(query="q1", assignment=ASSIGNMENT),
        ),
        (TOPICS.query(Kind.SHARE, SITE, "q1"), SHARE, ev.ShareArrived(query="q1", share=SHARE)),
        (TOPICS.coordinator, STATUS, ev.CoordinatorArrived(status=STATUS)),
        (TOPICS.pipeline("chain"), DECLARED, ev.PipelineArrived(declaration=DECLARED)),
        (TOPICS.agent(Kind.PROBE, SITE), PROBES, ev.ProbesAsked(probes=PROBES)),
    ],
    ids=["assignment", "share", "coordinator", "pipeline", "probes"],
)
def test_messages_become_events(topic: str, message: Message, event: ev.Event) -> None:
    assert event_of(topic, codec.encode(message)) == event


def test_an_empty_decision_is_a_withdrawn_one() -> None:
    assignment, share = (TOPICS.query(kind, SITE, "q1") for kind in (Kind.ASSIGNMENT, Kind.SHARE))
    assert event_of(assignment, b"") == ev.AssignmentArrived(query="q1", assignment=None)
    assert event_of(share, b"") == ev.ShareArrived(query="q1", share=None)


@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        (TOPICS.coordinator, b""),
        (TOPICS.pipeline("chain"), b""),
        (TOPICS.agent(Kind.PROBE, SITE), b""),
        (TOPICS.agent(Kind.STATUS, SITE), codec.encode(StatusMessage(online=True, session=1))),
        (TOPICS.query(Kind.ASSIGNMENT, SITE, "q1"), codec.encode(STATUS)),
        (TOPICS.query(Kind.ASSIGNMENT, SITE, "q1"), b"not MessagePack"),
        ("somebody/elses/topic", b""),
        ("compass/2/home/coordinator/status", codec.encode(STATUS)),
    ],
    ids=[
        "no coordinator",
        "no pipeline",
        "no probes",
        "an agent's own",
        "another's shape",
        "bytes",
        "topic",
        "version",
    ],
)
def test_what_is_no_message_for_an_agent_is_refused(topic: str, payload: bytes) -> None:
    event = event_of(topic, payload)
    assert isinstance(event, ev.MessageRefused)
    assert event.topic == topic
    assert event.problem


@given(topic=st.text(max_size=300) | st.just(TOPICS.coordinator), payload=st.binary(max_size=64))
def test_whatever_arrives_is_an_event(topic: str, payload: bytes) -> None:
    event = event_of(topic, payload)
    assert isinstance(event, (ev.MessageRefused, ev.CoordinatorArrived))
