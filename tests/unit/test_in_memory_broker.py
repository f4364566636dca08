"""The broker in memory when it is driven by hand, as the simulator does."""

from __future__ import annotations

import pytest

from compass_shared.errors import TransportError
from compass_shared.transport import (
    Connected,
    Disconnected,
    InMemoryBroker,
    InMemoryTransport,
    Received,
    TransportEvent,
    Will,
)


def test_nothing_is_delivered_until_it_is_asked_for() -> None:
    broker, events = InMemoryBroker(), list[TransportEvent]()
    transport = InMemoryTransport(broker, filters=["t/+"])
    transport.start(events.append)
    transport.publish("t/1", b"x")
    assert events == []
    assert broker.deliver() == 2
    assert events == [Connected(connection=1), Received(topic="t/1", payload=b"x")]
    assert broker.deliver() == 0


def test_answers_follow_in_the_same_delivery() -> None:
    broker, heard = InMemoryBroker(), list[bytes]()
    asking, answering = (
        InMemoryTransport(broker, filters=["answers"]),
        InMemoryTransport(broker, filters=["questions"]),
    )

    def answer(event: TransportEvent) -> None:
        if isinstance(event, Received):
            answering.publish("answers", b"to " + event.payload)

    def hear(event: TransportEvent) -> None:
        if isinstance(event, Received):
            heard.append(event.payload)

    asking.start(hear)
    answering.start(answer)
    asking.publish("questions", b"one")
    asking.publish("questions", b"two")
    broker.deliver()
    assert heard == [b"to one", b"to two"]


def test_each_connection_has_the_will_of_its_number() -> None:
    broker, events = InMemoryBroker(), list[TransportEvent]()
    watcher = InMemoryTransport(broker, filters=["status"])
    agent = InMemoryTransport(broker, will=lambda number: Will(topic="status", payload=b"%d" % number))
    watcher.start(events.append)
    agent.start(lambda _event: None)
    for _ in range(2):
        agent.sever()
        agent.sever()  # it is severed already
        agent.restore()
    broker.deliver()
    assert [event.payload for event in events if isinstance(event, Received)] == [b"1", b"2"]


def test_a_severed_transport_hears_nothing_and_says_why() -> None:
    broker, events = InMemoryBroker(), list[TransportEvent]()
    transport, other = InMemoryTransport(broker, filters=["t"]), InMemoryTransport(broker)
    transport.start(events.append)
    other.start(lambda _event: None)
    transport.sever("no signal")
    other.publish("t", b"missed")
    broker.deliver()
    assert events == [Connected(connection=1), Disconnected(reason="no signal")]


def test_publishing_needs_a_start() -> None:
    with pytest.raises(TransportError, match="not open"):
        InMemoryTransport(InMemoryBroker()).publish("t", b"x")
