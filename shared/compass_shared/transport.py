"""What both shells need of an MQTT broker: a Protocol, its events, and a broker in memory.

The real one is ``compass_shared.mqtt``; one contract suite runs over both. Semantics they share:

- Sessions start clean. A transport subscribes its filters, then reports ``Connected``, then what is retained.
- QoS 1 arrives at least once and in order. What is published while the broker is away waits in a bounded
  queue; at QoS 0 it is dropped, because it would be stale.
- A will is published when the connection ends without ``close``.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from compass_shared.codec import MAX_MESSAGE_BYTES
from compass_shared.errors import MessageError, TransportError
from compass_shared.topic_tree import FilterTree, TopicTree

QUEUE_LIMIT = 1_000
"""Messages that may wait for the broker before ``publish`` raises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """The broker is there and the filters are subscribed."""

    connection: int
    """Grows with every connection; the same number as the will's."""
    refused: tuple[str, ...] = ()
    """Filters that the broker would not grant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disconnected:
    """The broker is gone, or was not reached at the first attempt."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A message arrived."""

    topic: str
    payload: bytes
    retained: bool = False
    """Whether the broker held it from before the subscription."""


TransportEvent: TypeAlias = Connected | Disconnected | Received
OnEvent: TypeAlias = Callable[[TransportEvent], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Will:
    """What the broker publishes when the connection ends without a goodbye."""

    topic: str
    payload: bytes
    retain: bool = True
    qos: int = 1


WillOf: TypeAlias = Callable[[int], Will]
"""Connection number -> its will, so that a will that arrives late can be told from the present one."""


class Transport(Protocol):
    """A connection to a broker that comes back by itself."""

    def start(self, on_event: OnEvent) -> None:
        """Begin to connect.

        Args:
            on_event: Called for every event, in order, on the event loop that ``start`` was called on.
        """

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Hand over one message; never blocks.

        Args:
            topic: A topic without wildcards.
            payload: Empty with ``retain`` clears what is retained.
            qos: 0 (dropped while there is no broker) or 1 (waits for it).
            retain: Whether the broker keeps it for later subscribers.

        Raises:
            MessageError: If the payload is too long for the wire.
            TransportError: If too many messages wait already, or the transport is not open.
        """

    async def close(self, *, flush_s: float = 2.0) -> None:
        """Let what waits go out, then say goodbye: there is no will, and no event follows.

        Args:
            flush_s: How long to wait for the broker to take everything.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Delays between attempts: they double up to a limit, each drawn from its upper half.

    A fleet whose broker restarts comes back spread over the delay instead of all at once.
    """

    first_s: float = 0.5
    most_s: float = 30.0
    steady_s: float = 10.0
    """A connection that lasted this long makes the next failure the first again."""

    def delay_s(self, failures: int, rng: random.Random) -> float:
        """Seconds to wait after so many failures in a row (0 for the first)."""
        limit_s = min(self.most_s, self.first_s * 2.0 ** min(failures, 30))
        return rng.uniform(limit_s / 2, limit_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A message on its way to the broker."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False


def checked_outgoing(
    topic: str, payload: bytes, *, qos: int, retain: bool, limit_bytes: int = MAX_MESSAGE_BYTES
) -> Outgoing:
    """Return a message that may be published.

    Raises:
        ValueError: If the topic or the QoS is not one that Compass publishes at.
        MessageError: If the payload is longer than ``limit_bytes``.
    """
    if not topic or "+" in topic or "#" in topic or "\0" in topic or len(topic) > 1_024:
        raise ValueError(f"not a topic to publish at: {topic[:200]!r}")
    if qos not in (0, 1):
        raise ValueError(f"QoS {qos} is not used; publish at 0 or 1")
    if len(payload) > limit_bytes:
        raise MessageError(f"{topic}: {len(payload)} bytes are more than {limit_bytes}")
    return Outgoing(topic=topic, payload=bytes(payload), qos=qos, retain=retain)


class InMemoryBroker:
    """A broker without a network, for unit tests and the simulator.

    Nothing is delivered inside ``publish``: deliveries are handed to ``schedule``, in order, one event each.

    Args:
        schedule: Runs a function soon (``loop.call_soon``, a simulator's agenda). None: they wait until
            ``deliver`` is called.
    """

    def __init__(self, schedule: Callable[[Callable[[], None]], object] | None = None) -> None:
        self._schedule = schedule
        self._waiting: deque[Callable[[], None]] = deque()
        self._subscribers: FilterTree[InMemoryTransport] = FilterTree()
        self._retained: TopicTree[Outgoing] = TopicTree()

    def deliver(self) -> int:
        """Deliver everything that waits, and what follows from it.

        Returns:
            How many events were delivered.
        """
        count = 0
        while self._waiting:
            self._waiting.popleft()()
            count += 1
        return count

    def soon(self, action: Callable[[], None]) -> None:
        """Run ``action`` after everything that was scheduled before it."""
        if self._schedule is None:
            self._waiting.append(action)
        else:
            self._schedule(action)

    def subscribe(self, transport: InMemoryTransport, filters: Sequence[str]) -> None:
        """Add a transport and hand it what is retained."""
        for pattern in filters:
            self._subscribers.add(pattern, transport)
            for kept in self._retained.matching(pattern):
                transport.receive(kept, retained=True)

    def unsubscribe(self, transport: InMemoryTransport, filters: Sequence[str]) -> None:
        """Remove a transport."""
        for pattern in filters:
            self._subscribers.discard(pattern, transport)

    def route(self, message: Outgoing) -> None:
        """Retain a message if asked to, and hand it to everybody who subscribed."""
        if message.retain and message.payload:
            self._retained.put(message.topic, message)
        elif message.retain:
            self._retained.discard(message.topic)
        for transport in self._subscribers.matching(message.topic):
            transport.receive(message, retained=False)


class InMemoryTransport:
    """A ``Transport`` on an ``InMemoryBroker``.

    Args:
        broker: The broker.
        filters: What to subscribe to.
        will: The will of each connection.
        queue_limit: Messages that may wait while severed.
        max_payload_bytes: Longest payload.
    """

    def __init__(
        self,
        broker: InMemoryBroker,
        *,
        filters: Sequence[str] = (),
        will: Will | WillOf | None = None,
        queue_limit: int = QUEUE_LIMIT,
        max_payload_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self._broker = broker
        self._filters = tuple(dict.fromkeys(filters))
        self._will = will
        self._queue_limit = queue_limit
        self._max_payload_bytes = max_payload_bytes
        self._queue: deque[Outgoing] = deque()
        self._on_event: OnEvent | None = None
        self._connection = 0
        self._online = False

    def start(self, on_event: OnEvent) -> None:
        """Connect; ``Connected`` is scheduled."""
        self._on_event = on_event
        self.restore()

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Route one message, or queue it while severed."""
        message = checked_outgoing(
            topic, payload, qos=qos, retain=retain, limit_bytes=self._max_payload_bytes
        )
        if self._on_event is None:
            raise TransportError(f"{topic}: the transport is not open")
        if self._online:
            self._broker.route(message)
        elif qos == 1:
            if len(self._queue) >= self._queue_limit:
                raise TransportError(f"{topic}: {self._queue_limit} messages wait for the broker already")
            self._queue.append(message)

    async def close(self, *, flush_s: float = 2.0) -> None:  # noqa: ARG002  # nothing waits while online
        """Leave without a will."""
        self._leave()
        self._on_event = None

    def sever(self, reason: str = "severed") -> None:
        """Cut the connection as a broken network would: the will is published."""
        if not self._online:
            return
        self._leave()
        self._emit(Disconnected(reason=reason))
        if self._will is not None:
            will = will_of(self._will, self._connection)
            self._broker.route(
                Outgoing(topic=will.topic, payload=will.payload, qos=will.qos, retain=will.retain)
            )

    def restore(self) -> None:
        """Connect again; what was queued goes out."""
        if self._online or self._on_event is None:
            return
        self._online = True
        self._connection += 1
        self._emit(Connected(connection=self._connection))
        self._broker.subscribe(self, self._filters)
        while self._queue:
            self._broker.route(self._queue.popleft())

    def receive(self, message: Outgoing, *, retained: bool) -> None:
        """Called by the broker; what is too long is ignored."""
        if len(message.payload) <= self._max_payload_bytes:
            self._emit(Received(topic=message.topic, payload=message.payload, retained=retained))

    def _leave(self) -> None:
        if self._online:
            self._online = False
            self._broker.unsubscribe(self, self._filters)

    def _emit(self, event: TransportEvent) -> None:
        def deliver() -> None:
            if self._on_event is not None:
                self._on_event(event)

        self._broker.soon(deliver)


def will_of(will: Will | WillOf, connection: int) -> Will:
    """The will of one connection."""
    return will(connection) if callable(will) else will
