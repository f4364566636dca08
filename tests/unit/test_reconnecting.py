"""The transport over scripted connections: what is queued, sent again, given up and told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

import pytest

from compass_shared.errors import TransportError
from compass_shared.reconnecting import Listener, ReconnectingTransport
from compass_shared.transport import Backoff, Connected, Disconnected, Outgoing, Received, TransportEvent

NO_DELAY = Backoff(first_s=0.0, most_s=0.0)


class Scripted:
    """A connection that a test drives by hand."""

    def __init__(self, number: int, listener: Listener) -> None:
        self.number = number
        self.listener = listener
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.window = 2
        self.max_payload_bytes = 100
        self.sent: list[Outgoing] = []
        self.refused: tuple[str, ...] = ()
        self.failure: str | None = None
        self.early: tuple[Received, ...] = ()
        self.farewell = False

    async def open(self, filters: Sequence[str]) -> tuple[str, ...]:
        for event in self.early:
            self.listener.received(event)
        if self.failure is not None:
            raise TransportError(self.failure)
        return self.refused

    def send(self, message: Outgoing) -> int:
        self.sent.append(message)
        return len(self.sent)

    async def goodbye(self) -> None:
        self.farewell = True

    def abort(self) -> None:
        pass

    @property
    def payloads(self) -> list[bytes]:
        return [message.payload for message in self.sent]


class Bench:
    """A transport, its connections and its events."""

    def __init__(self, prepare: Callable[[Scripted], None] = lambda _: None) -> None:
        self.connections: list[Scripted] = []
        self.events: list[TransportEvent] = []
        self._prepare = prepare
        self.transport = ReconnectingTransport(
            self._open, name="test", filters=["a/+"], rng=random.Random(1), backoff=NO_DELAY, queue_limit=4
        )

    def _open(self, number: int, listener: Listener) -> Scripted:
        connection = Scripted(number, listener)
        self._prepare(connection)
        self.connections.append(connection)
        return connection

    @property
    def now(self) -> Scripted:
        return self.connections[-1]

    async def settle(self) -> None:
        """Let everything that can run without time do so."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def start(self) -> Bench:
        self.transport.start(self.events.append)
        await self.settle()
        return self

    def publish(self, *payloads: bytes, qos: int = 1) -> None:
        for payload in payloads:
            self.transport.publish("t", payload, qos=qos)


async def test_publishes_wait_for_the_window_and_go_out_in_order() -> None:
    bench = await Bench().start()
    bench.publish(b"1", b"2", b"3")
    assert bench.now.payloads == [b"1", b"2"]
    bench.now.listener.acknowledged(1, None)
    assert bench.now.payloads == [b"1", b"2", b"3"]
    assert bench.transport.counters.sent == 1
    await bench.transport.close(flush_s=0.0)


async def test_what_was_in_flight_goes_first_on_the_next_connection() -> None:
    bench = await Bench().start()
    bench.publish(b"1", b"2", b"3")
    bench.now.listener.acknowledged(1, None)
    bench.now.ended.set_result("lost")
    await bench.settle()
    assert bench.now.number == 2
    assert bench.now.payloads == [b"2", b"3"]
    await bench.transport.close(flush_s=0.0)


async def test_a_message_that_ends_connections_is_given_up() -> None:
    bench = await Bench().start()
    bench.publish(b"poison")
    for _ in range(3):
        bench.now.ended.set_result("lost")
        await bench.settle()
    bench.publish(b"good")
    assert bench.now.payloads == [b"good"]
    assert bench.transport.counters.refused_publishes == 1
    await bench.transport.close(flush_s=0.0)


async def test_a_refused_publish_is_counted_and_not_sent_again() -> None:
    bench = await Bench().start()
    bench.publish(b"1")
    bench.now.listener.acknowledged(1, "Not authorized")
    bench.now.ended.set_result("lost")
    await bench.settle()
    assert bench.now.payloads == []
    assert bench.transport.counters.refused_publishes == 1
    assert bench.transport.counters.sent == 0
    await bench.transport.close(flush_s=0.0)


async def test_a_message_longer_than_the_broker_takes_does_not_block_the_others() -> None:
    bench = await Bench().start()
    bench.publish(bytes(101), b"2")
    bench.publish(bytes(101), b"0", qos=0)
    assert bench.now.payloads == [b"2", b"0"]
    assert bench.transport.counters.refused_publishes == 1
    assert bench.transport.counters.dropped == 1
    await bench.transport.close(flush_s=0.0)


async def test_a_full_queue_raises_and_qos_0_is_dropped_without_a_broker() -> None:
    def fail(connection: Scripted) -> None:
        connection.failure = "nobody there"

    bench = await Bench(fail).start()
    bench.publish(b"1", b"2", b"3", b"4")
    with pytest.raises(TransportError, match="4 messages wait"):
        bench.publish(b"5")
    bench.publish(b"stale", qos=0)
    assert bench.transport.counters.dropped == 1
    await bench.transport.close()


async def test_unacknowledged_messages_count_as_waiting() -> None:
    bench = await Bench().start()
    bench.publish(b"1", b"2", b"3", b"4")
    with pytest.raises(TransportError):
        bench.publish(b"5")
    await bench.transport.close(flush_s=0.0)


async def test_disconnected_is_told_once_and_also_when_there_never_was_a_broker() -> None:
    def fail_first(connection: Scripted) -> None:
        connection.failure = "nobody there" if connection.number < 4 else None

    bench = await Bench(fail_first).start()
    bench.now.ended.set_result("lost")
    await bench.settle()
    assert bench.events == [
        Disconnected(reason="nobody there"),
        Connected(connection=4),
        Disconnected(reason="lost"),
        Connected(connection=5),
    ]
    await bench.transport.close()


async def test_messages_that_precede_the_suback_follow_connected() -> None:
    early = Received(topic="a/1", payload=b"kept", retained=True)

    def prepare(connection: Scripted) -> None:
        connection.early = (early,)

    bench = await Bench(prepare).start()
    assert bench.events == [Connected(connection=1), early]
    await bench.transport.close()


async def test_refused_filters_are_told() -> None:
    def prepare(connection: Scripted) -> None:
        connection.refused = ("a/+",)

    bench = await Bench(prepare).start()
    assert bench.events == [Connected(connection=1, refused=("a/+",))]
    assert bench.transport.counters.refused_filters == 1
    await bench.transport.close()


async def test_closing_waits_for_what_is_on_its_way() -> None:
    bench = await Bench().start()
    bench.publish(b"1", b"2", b"3")
    closing = asyncio.create_task(bench.transport.close(flush_s=60.0))
    await bench.settle()
    for number in (1, 2, 3):
        assert not bench.now.farewell
        bench.now.listener.acknowledged(number, None)
    await closing
    assert bench.now.farewell
    assert bench.now.payloads == [b"1", b"2", b"3"]


async def test_nothing_is_told_after_closing() -> None:
    bench = await Bench().start()
    await bench.transport.close()
    bench.now.listener.received(Received(topic="a/1", payload=b"late"))
    await bench.settle()
    assert bench.events == [Connected(connection=1)]
    with pytest.raises(TransportError, match="not open"):
        bench.publish(b"1")


async def test_a_transport_is_started_once() -> None:
    bench = await Bench().start()
    with pytest.raises(RuntimeError):
        bench.transport.start(bench.events.append)
    await bench.transport.close()


def test_delays_double_up_to_a_limit_and_are_spread_over_their_upper_half() -> None:
    backoff, rng = Backoff(first_s=1.0, most_s=10.0), random.Random(7)
    drawn = {failures: [backoff.delay_s(failures, rng) for _ in range(200)] for failures in (0, 1, 2, 9, 500)}
    limits = {0: 1.0, 1: 2.0, 2: 4.0, 9: 10.0, 500: 10.0}
    for failures, delays in drawn.items():
        assert limits[failures] / 2 <= min(delays) < max(delays) <= limits[failures]
        assert max(delays) - min(delays) > limits[failures] / 4
