"""One suite over every transport: in memory, rumqttd and mosquitto."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

import pytest

from compass_agent.emulate.link import Shape
from compass_agent.emulate.proxy import ShapingProxy
from compass_coordinator.demo.broker import RETAINED_LIMIT, EmbeddedBroker
from compass_shared.errors import MessageError, TransportError
from compass_shared.mqtt import MqttTransport
from compass_shared.topics import Kind, Topics
from compass_shared.transport import (
    Backoff,
    Connected,
    Disconnected,
    InMemoryBroker,
    InMemoryTransport,
    Received,
    Transport,
    TransportEvent,
    Will,
)
from support.brokers import Mosquitto, mosquitto_binary

TOPICS = Topics("demo")
STATUS = TOPICS.agent(Kind.STATUS, "a1")
WILL = Will(topic=STATUS, payload=b"gone")
LIMIT_BYTES = 4_000
PATIENCE_S = 20.0


class Client:
    """A transport whose events are kept."""

    def __init__(self, transport: Transport, sever: Callable[[], None]) -> None:
        self.transport = transport
        self.sever = sever
        self.events: list[TransportEvent] = []
        self._changed = asyncio.Event()

    async def start(self) -> Client:
        self.transport.start(self._on_event)
        await self.until(lambda: self.connections == 1)
        return self

    def _on_event(self, event: TransportEvent) -> None:
        self.events.append(event)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async def wait() -> None:
            while not condition():
                self._changed.clear()
                await self._changed.wait()

        try:
            await asyncio.wait_for(wait(), PATIENCE_S)
        except asyncio.TimeoutError:
            pytest.fail(f"waited in vain; events: {self.events[-5:]}")

    @property
    def connections(self) -> int:
        return sum(isinstance(event, Connected) for event in self.events)

    @property
    def received(self) -> list[Received]:
        return [event for event in self.events if isinstance(event, Received)]

    @property
    def payloads(self) -> list[bytes]:
        return [event.payload for event in self.received]


class Broker(Protocol):
    """A broker under test."""

    async def client(
        self, name: str, *filters: str, will: Will | None = None, limit_bytes: int = LIMIT_BYTES
    ) -> Client: ...

    async def down(self) -> None: ...

    async def up(self) -> None: ...

    async def close(self) -> None: ...


class InMemory:
    def __init__(self) -> None:
        self._broker = InMemoryBroker(asyncio.get_running_loop().call_soon)
        self._transports: list[InMemoryTransport] = []

    async def client(
        self, name: str, *filters: str, will: Will | None = None, limit_bytes: int = LIMIT_BYTES
    ) -> Client:
        transport = InMemoryTransport(
            self._broker, filters=filters, will=will, queue_limit=5, max_payload_bytes=limit_bytes
        )
        self._transports.append(transport)

        def sever() -> None:
            transport.sever()
            transport.restore()

        return await Client(transport, sever).start()

    async def down(self) -> None:
        for transport in self._transports:
            transport.sever()

    async def up(self) -> None:
        for transport in self._transports:
            transport.restore()

    async def close(self) -> None:
        for transport in self._transports:
            await transport.close()


class Real:
    """A broker process; every client goes through a proxy of its own, which can cut it off."""

    def __init__(self, process: EmbeddedBroker | Mosquitto) -> None:
        self._process = process
        self._transports: list[MqttTransport] = []
        self._proxies: list[ShapingProxy] = []

    async def client(
        self, name: str, *filters: str, will: Will | None = None, limit_bytes: int = LIMIT_BYTES
    ) -> Client:
        port = int(self._process.url.rpartition(":")[2])
        proxy = ShapingProxy("127.0.0.1", port, Shape(), rng=random.Random(1))
        await proxy.start()
        transport = MqttTransport(
            f"mqtt://127.0.0.1:{proxy.port}",
            client_id=name,
            filters=filters,
            will=will,
            rng=random.Random(1),
            backoff=Backoff(first_s=0.1, most_s=0.3),
            queue_limit=5,
            max_payload_bytes=limit_bytes,
        )
        self._proxies.append(proxy)
        self._transports.append(transport)

        def sever() -> None:
            proxy.cut()
            proxy.restore()

        return await Client(transport, sever).start()

    async def down(self) -> None:
        await asyncio.to_thread(self._process.stop)

    async def up(self) -> None:
        await asyncio.to_thread(self._process.start)

    async def close(self) -> None:
        for transport in self._transports:
            await transport.close()
        for proxy in self._proxies:
            await proxy.close()


@pytest.fixture(
    params=[
        "memory",
        pytest.param("rumqttd", marks=pytest.mark.broker),
        pytest.param("mosquitto", marks=pytest.mark.broker),
    ]
)
async def broker(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Broker]:
    if request.param == "memory":
        memory = InMemory()
        yield memory
        await memory.close()
        return
    if request.param == "mosquitto":
        mosquitto_binary()
    else:
        pytest.importorskip("iotcore")
    with EmbeddedBroker() if request.param == "rumqttd" else Mosquitto(tmp_path) as process:
        real = Real(process)
        yield real
        await real.close()


async def test_a_message_reaches_who_subscribed_and_nobody_else(broker: Broker) -> None:
    one = await broker.client("one", "t/one")
    other = await broker.client("other", "t/other", "t/end")
    one.transport.publish("t/one", b"mine")
    await one.until(lambda: one.payloads == [b"mine"])
    one.transport.publish("t/end", b"end")
    await other.until(lambda: bool(other.payloads))
    assert other.payloads == [b"end"]
    assert not one.received[0].retained


async def test_connected_comes_first_and_then_what_is_retained(broker: Broker) -> None:
    early = await broker.client("early", "k/1")
    early.transport.publish("k/1", b"old", retain=True)
    early.transport.publish("k/1", b"kept", retain=True)
    await early.until(lambda: early.payloads == [b"old", b"kept"])
    assert not early.received[-1].retained
    late = await broker.client("late", "k/+")
    await late.until(lambda: bool(late.payloads))
    assert isinstance(late.events[0], Connected)
    assert late.received == [Received(topic="k/1", payload=b"kept", retained=True)]


async def test_an_empty_payload_clears_what_is_retained(broker: Broker) -> None:
    early = await broker.client("early", "k/1")
    early.transport.publish("k/1", b"kept", retain=True)
    early.transport.publish("k/2", b"stays", retain=True)
    early.transport.publish("k/1", b"", retain=True)
    await early.until(lambda: early.payloads == [b"kept", b""])
    late = await broker.client("late", "k/+")
    await late.until(lambda: bool(late.payloads))
    assert late.payloads == [b"stays"]


async def test_every_retained_message_reaches_a_late_subscriber(broker: Broker) -> None:
    early = await broker.client("early", "r/done")
    expected = {f"r/{number}/x" for number in range(RETAINED_LIMIT - 10)}
    for topic in sorted(expected):
        await publish_patiently(early, topic, b"kept", retain=True)
    await publish_patiently(early, "r/done", b"done")
    await early.until(lambda: early.payloads == [b"done"])
    late = await broker.client("late", "r/+/x", "r/other")
    await late.until(lambda: len(late.received) == len(expected))
    assert {event.topic for event in late.received if event.retained} == expected


async def test_wildcards(broker: Broker) -> None:
    plus = await broker.client("plus", "w/+/x", "w/end")
    sharp = await broker.client("sharp", "w/#")
    for topic in ("w/a/x", "w/b/x", "w/a/y", "w/a/x/z", "w", "v/a/x", "w/end"):
        await publish_patiently(plus, topic, topic.encode())
    await plus.until(lambda: len(plus.payloads) >= 3)
    await sharp.until(lambda: len(sharp.payloads) >= 6)
    assert sorted(plus.payloads) == [b"w/a/x", b"w/b/x", b"w/end"]  # in order within one filter only
    assert sharp.payloads == [b"w/a/x", b"w/b/x", b"w/a/y", b"w/a/x/z", b"w", b"w/end"]


async def test_fleets_do_not_hear_each_other(broker: Broker) -> None:
    mine = await broker.client("mine", *Topics("mine").for_coordinator())
    theirs = await broker.client("theirs", *Topics("theirs").for_coordinator())
    for fleet in ("theirs", "mine"):
        theirs.transport.publish(Topics(fleet).agent(Kind.HELLO, "a1"), fleet.encode())
    await mine.until(lambda: bool(mine.payloads))
    await theirs.until(lambda: bool(theirs.payloads))
    assert (mine.payloads, theirs.payloads) == ([b"mine"], [b"theirs"])


async def test_the_will_is_published_when_the_connection_breaks(broker: Broker) -> None:
    watcher = await broker.client("watcher", STATUS)
    agent = await broker.client("a1", will=WILL)
    agent.transport.publish(STATUS, b"here", retain=True)
    await watcher.until(lambda: watcher.payloads == [b"here"])
    agent.sever()
    await watcher.until(lambda: watcher.payloads == [b"here", b"gone"])
    await agent.until(lambda: agent.connections == 2)
    assert any(isinstance(event, Disconnected) for event in agent.events)
    late = await broker.client("late", STATUS)
    await late.until(lambda: bool(late.payloads))
    assert late.received == [Received(topic=STATUS, payload=b"gone", retained=True)]


async def test_a_second_break_has_its_will_too(broker: Broker) -> None:
    watcher = await broker.client("watcher", STATUS)
    agent = await broker.client("a1", will=WILL)
    agent.sever()
    await agent.until(lambda: agent.connections == 2)
    await watcher.until(lambda: len(watcher.payloads) == 1)
    agent.sever()
    await agent.until(lambda: agent.connections == 3)
    await watcher.until(lambda: len(watcher.payloads) == 2)
    assert watcher.payloads == [b"gone", b"gone"]


async def test_closing_publishes_what_waits_and_no_will(broker: Broker) -> None:
    watcher = await broker.client("watcher", STATUS, "t/end")
    agent = await broker.client("a1", will=WILL)
    agent.transport.publish(STATUS, b"bye", retain=True)
    await agent.transport.close()
    await agent.transport.close()
    with pytest.raises(TransportError):
        agent.transport.publish(STATUS, b"late")
    other = await broker.client("other")
    other.transport.publish("t/end", b"end")
    await watcher.until(lambda: b"end" in watcher.payloads)
    assert watcher.payloads == [b"bye", b"end"]
    assert isinstance(agent.events[-1], Connected)


async def test_hundreds_of_messages_arrive_once_and_in_order(broker: Broker) -> None:
    reader = await broker.client("reader", "n/+")
    writer = await broker.client("writer")
    expected = [b"%d" % number for number in range(500)]
    for number, payload in enumerate(expected):
        await publish_patiently(writer, f"n/{number % 3}", payload)
    await reader.until(lambda: len(reader.payloads) >= 500)
    assert reader.payloads == expected


async def test_oversize_payloads_are_refused_before_they_are_sent(broker: Broker) -> None:
    client = await broker.client("client", "o/1")
    with pytest.raises(MessageError, match="o/1"):
        client.transport.publish("o/1", bytes(LIMIT_BYTES + 1))
    client.transport.publish("o/1", bytes(LIMIT_BYTES))
    await client.until(lambda: bool(client.payloads))
    assert client.payloads == [bytes(LIMIT_BYTES)]
    assert client.connections == 1


async def test_oversize_payloads_of_others_do_no_harm(broker: Broker) -> None:
    client = await broker.client("client", "o/+")
    careless = await broker.client("careless", limit_bytes=3 * LIMIT_BYTES)
    careless.transport.publish("o/1", bytes(3 * LIMIT_BYTES))
    careless.transport.publish("o/2", b"fits")
    await client.until(lambda: bool(client.payloads))
    assert client.payloads == [b"fits"]
    assert client.connections == 1


async def test_topics_to_publish_at_have_no_wildcards(broker: Broker) -> None:
    client = await broker.client("client")
    for topic in ("", "a/+/b", "a/#"):
        with pytest.raises(ValueError, match="not a topic"):
            client.transport.publish(topic, b"x")


async def test_it_comes_back_when_the_broker_does(broker: Broker) -> None:
    client = await broker.client("client", "t/1")
    await broker.down()
    await client.until(lambda: isinstance(client.events[-1], Disconnected))
    client.transport.publish("t/1", b"stale", qos=0)
    for number in range(5):
        client.transport.publish("t/1", b"%d" % number)
    with pytest.raises(TransportError, match="wait"):
        client.transport.publish("t/1", b"too many")
    await broker.up()
    await client.until(lambda: len(client.payloads) == 5)
    assert client.payloads == [b"0", b"1", b"2", b"3", b"4"]
    assert [type(event) for event in client.events[:3]] == [Connected, Disconnected, Connected]


async def publish_patiently(client: Client, topic: str, payload: bytes, *, retain: bool = False) -> None:
    """Publish as soon as the queue has room."""

    async def publish() -> None:
        while True:
            with contextlib.suppress(TransportError):
                return client.transport.publish(topic, payload, retain=retain)
            await asyncio.sleep(0.001)

    await asyncio.wait_for(publish(), PATIENCE_S)
