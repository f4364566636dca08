"""A transport that outlives its connections: queue, resend, back off, come back.

It knows no protocol: ``compass_shared.mqtt`` gives it connections, tests give it scripted ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from compass_shared.codec import MAX_MESSAGE_BYTES
from compass_shared.errors import TransportError
from compass_shared.transport import (
    QUEUE_LIMIT,
    Backoff,
    Connected,
    Disconnected,
    OnEvent,
    Outgoing,
    Received,
    TransportEvent,
    checked_outgoing,
)

_LOG = logging.getLogger(__name__)

_MAX_ATTEMPTS = 3
"""Connections that one message may see end before it is given up: it may be what ends them."""


class Connection(Protocol):
    """One connection to a broker, from its beginning to its end."""

    ended: asyncio.Future[str]
    """Done when the connection is over; why, in words."""
    window: int
    """QoS 1 publishes that may be in flight together."""
    max_payload_bytes: int
    """Longest payload that the broker takes; known once open."""

    async def open(self, filters: Sequence[str]) -> tuple[str, ...]:
        """Connect and subscribe.

        Returns:
            Filters that were refused.

        Raises:
            TransportError: If there is no connection.
        """

    def send(self, message: Outgoing) -> int:
        """Send now; returns the number by which a QoS 1 publish will be acknowledged."""

    async def goodbye(self) -> None:
        """End in the way that leaves no will."""

    def abort(self) -> None:
        """Free what is held, whatever the state; safe to call twice."""


class Listener(Protocol):
    """Who a connection tells."""

    def received(self, event: Received) -> None:
        """A message arrived."""

    def ignored(self, problem: str) -> None:
        """Something arrived that is no message for Compass."""

    def acknowledged(self, number: int, refusal: str | None) -> None:
        """The broker took a QoS 1 publish, or refused it with a reason."""


Opener: TypeAlias = Callable[[int, Listener], Connection]
"""Makes the connection of a number, not yet open."""


@dataclass(slots=True, kw_only=True)
class Counters:
    """What happened on a transport since it was made."""

    connections: int = 0
    """Attempts to connect."""
    received: int = 0
    ignored: int = 0
    """Messages that were too long or whose topic was not text."""
    sent: int = 0
    """QoS 1 publishes that the broker took."""
    dropped: int = 0
    """QoS 0 publishes while there was no broker."""
    refused_publishes: int = 0
    """QoS 1 publishes that the broker refused, or that were given up."""
    refused_filters: int = 0


@dataclass(slots=True)
class _Tried:
    message: Outgoing
    attempts: int = 0


class ReconnectingTransport:
    """A ``Transport`` over one connection after another.

    Args:
        opener: Makes connections.
        name: Names the broker and client, in logs and errors.
        filters: What to subscribe to on every connection.
        rng: Draws the delays between attempts.
        backoff: Limits of these delays.
        queue_limit: QoS 1 publishes that may wait or be in flight together.
        max_payload_bytes: Longest payload to publish.
    """

    def __init__(
        self,
        opener: Opener,
        *,
        name: str,
        filters: Sequence[str],
        rng: random.Random,
        backoff: Backoff | None = None,
        queue_limit: int = QUEUE_LIMIT,
        max_payload_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self._opener = opener
        self._name = name
        self._filters = tuple(dict.fromkeys(filters))
        self._rng = rng
        self._backoff = backoff or Backoff()
        self._queue_limit = queue_limit
        self._max_payload_bytes = max_payload_bytes
        self._queue: deque[_Tried] = deque()
        self._in_flight: OrderedDict[int, _Tried] = OrderedDict()
        self._connection: Connection | None = None
        self._early: list[Received] = []
        self._on_event: OnEvent | None = None
        self._task: asyncio.Task[None] | None = None
        self._empty: asyncio.Event | None = None
        self._closing = False
        self._known_down = False
        self.counters = Counters()

    def start(self, on_event: OnEvent) -> None:
        """Begin to connect, and keep doing so until ``close``."""
        if self._task is not None:
            raise RuntimeError("a transport is started once")
        self._on_event = on_event
        self._empty = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"transport {self._name}")
        self._task.add_done_callback(_report_defect)

    def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False) -> None:
        """Hand over one message; see ``Transport``."""
        message = checked_outgoing(
            topic, payload, qos=qos, retain=retain, limit_bytes=self._max_payload_bytes
        )
        if self._task is None or self._closing:
            raise TransportError(f"{topic}: the transport is not open")
        if qos == 0:
            self._send_or_drop(message)
        elif len(self._queue) + len(self._in_flight) >= self._queue_limit:
            raise TransportError(f"{topic}: {self._queue_limit} messages wait for {self._name} already")
        else:
            self._queue.append(_Tried(message))
            self._pump()

    async def close(self, *, flush_s: float = 2.0) -> None:
        """Flush, say goodbye and end; safe to call twice and before ``start``."""
        task, self._closing = self._task, True
        if task is None or task.done():
            return
        if self._connection is not None and self._empty is not None:
            self._pump()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._empty.wait(), flush_s)
        if self._connection is not None:
            await self._connection.goodbye()
        task.cancel()
        await asyncio.wait([task])

    async def _run(self) -> None:
        clock, failures = asyncio.get_running_loop().time, 0
        while True:
            began_s = clock()
            reason = await self._live_once()
            if self._closing:
                return
            failures = 0 if clock() - began_s >= self._backoff.steady_s else failures
            delay_s = self._backoff.delay_s(failures, self._rng)
            self._report_down(reason, delay_s)
            await asyncio.sleep(delay_s)
            failures += 1

    async def _live_once(self) -> str:
        """Connect, serve until the connection ends, and return why it did."""
        self.counters.connections += 1
        number = self.counters.connections
        connection = self._opener(number, self)
        try:
            refused = await connection.open(self._filters)
            self._report_up(number, refused)
            self._connection = connection
            self._pump()
            return await asyncio.shield(connection.ended)
        except TransportError as error:
            return str(error)
        finally:
            self._connection = None
            connection.abort()
            self._requeue()

    def _report_up(self, number: int, refused: tuple[str, ...]) -> None:
        self._known_down = False
        _LOG.info("connected to %s", self._name)
        if refused:
            self.counters.refused_filters += len(refused)
            _LOG.error("%s refused the filters %s; check its access rules", self._name, refused)
        self._emit(Connected(connection=number, refused=refused))
        for event in self._early:
            self._emit(event)
        self._early.clear()

    def _report_down(self, reason: str, delay_s: float) -> None:
        self._early.clear()
        level = logging.DEBUG if self._known_down else logging.WARNING
        _LOG.log(level, "no broker at %s (%s); next attempt in %.1f s", self._name, reason, delay_s)
        if not self._known_down:
            self._emit(Disconnected(reason=reason))
        self._known_down = True

    def _emit(self, event: TransportEvent) -> None:
        # Soon instead of now: a handler that fails or publishes must not do so inside a protocol's callback.
        asyncio.get_running_loop().call_soon(self._deliver, event)

    def _deliver(self, event: TransportEvent) -> None:
        if not self._closing and self._on_event is not None:
            self._on_event(event)

    def received(self, event: Received) -> None:
        """Called by the connection."""
        self.counters.received += 1
        if self._connection is None:  # some brokers send what is retained before they confirm the filters
            self._early.append(event)
        else:
            self._emit(event)

    def ignored(self, problem: str) -> None:
        """Called by the connection."""
        self.counters.ignored += 1
        _LOG.warning("ignored a message from %s: %s", self._name, problem)

    def acknowledged(self, number: int, refusal: str | None) -> None:
        """Called by the connection."""
        tried = self._in_flight.pop(number, None)
        if tried is not None and refusal is not None:
            self._give_up(tried, f"the broker refused it: {refusal}")
        elif tried is not None:
            self.counters.sent += 1
        self._pump()

    def _send_or_drop(self, message: Outgoing) -> None:
        if self._connection is None or len(message.payload) > self._connection.max_payload_bytes:
            self.counters.dropped += 1
        else:
            self._connection.send(message)

    def _pump(self) -> None:
        """Send what waits, as far as the window goes."""
        connection = self._connection
        while connection is not None and self._queue and len(self._in_flight) < connection.window:
            tried = self._queue.popleft()
            if len(tried.message.payload) > connection.max_payload_bytes:
                self._give_up(tried, f"the broker takes no more than {connection.max_payload_bytes} bytes")
            else:
                tried.attempts += 1
                self._in_flight[connection.send(tried.message)] = tried
        if self._closing and self._empty is not None and not self._queue and not self._in_flight:
            self._empty.set()

    def _requeue(self) -> None:
        """Put what was in flight back before what waits, in order."""
        for tried in reversed(self._in_flight.values()):
            if tried.attempts < _MAX_ATTEMPTS:
                self._queue.appendleft(tried)
            else:
                self._give_up(tried, f"{tried.attempts} connections ended while it was on its way")
        self._in_flight.clear()

    def _give_up(self, tried: _Tried, reason: str) -> None:
        self.counters.refused_publishes += 1
        _LOG.error("a message at %s was not published: %s", tried.message.topic, reason)


def _report_defect(task: asyncio.Task[None]) -> None:
    """A transport ends only when it is closed; anything else must not pass in silence."""
    if not task.cancelled() and task.exception() is not None:
        _LOG.critical("%s ended", task.get_name(), exc_info=task.exception())
