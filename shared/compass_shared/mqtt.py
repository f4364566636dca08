"""The MQTT 5 transport, and the only place that imports paho.

Every connection has a paho client of its own, driven by the event loop instead of paho's thread: nothing of
an earlier connection leaks into the next, and every callback runs on the loop. Connecting (name look-up, TLS
handshake) blocks, so it happens in a worker thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import random
import ssl
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from compass_shared.broker_url import Address, parse_address
from compass_shared.codec import MAX_MESSAGE_BYTES
from compass_shared.errors import TransportError
from compass_shared.reconnecting import Connection, Listener, ReconnectingTransport
from compass_shared.transport import QUEUE_LIMIT, Backoff, Outgoing, Received, Will, WillOf, will_of

_LOG = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 5.0
_ANSWER_TIMEOUT_S = 10.0
"""For CONNACK and SUBACK."""
_GOODBYE_TIMEOUT_S = 1.0
_WINDOW = 100
"""Publishes in flight, unless the broker wants fewer."""
_OVERHEAD_BYTES = 2_048
"""Topic and properties of a packet, at most, beside its payload."""
_PACKETS_PER_TURN = 64
"""Packets read before other tasks of the loop have their turn."""

_FOREIGN = (OSError, ValueError, paho.WebsocketConnectionError)
"""What connecting raises: sockets, names and TLS (OSError), certificates of another name (ValueError)."""

_Answer = TypeVar("_Answer")


class MqttTransport(ReconnectingTransport):
    """A ``Transport`` on an MQTT 5 broker.

    Args:
        url: See ``parse_address``.
        client_id: Unique among the broker's clients; another client with it throws this one off.
        filters: What to subscribe to at QoS 1, on every connection.
        rng: Draws the delays between attempts.
        will: The will of each connection.
        backoff: Limits of the delays.
        queue_limit: QoS 1 publishes that may wait or be in flight together.
        max_payload_bytes: Longest payload, either way.
        keepalive_s: How long the connection may be silent; it counts as lost soon after.
        ca_file: Certificates to trust instead of the system's.

    Raises:
        ConfigError: If the URL or the file is wrong.
    """

    def __init__(  # noqa: PLR0913  # keyword-only, and all of them are the broker's
        self,
        url: str,
        *,
        client_id: str,
        filters: Sequence[str],
        rng: random.Random,
        will: Will | WillOf | None = None,
        backoff: Backoff | None = None,
        queue_limit: int = QUEUE_LIMIT,
        max_payload_bytes: int = MAX_MESSAGE_BYTES,
        keepalive_s: int = 20,
        ca_file: Path | str | None = None,
    ) -> None:
        address = parse_address(url, ca_file=ca_file)

        def opener(number: int, listener: Listener) -> Connection:
            return _PahoConnection(
                address,
                listener,
                client_id=client_id,
                will=will_of(will, number) if will is not None else None,
                keepalive_s=keepalive_s,
                max_payload_bytes=max_payload_bytes,
            )

        super().__init__(
            opener,
            name=f"{address} as {client_id}",
            filters=filters,
            rng=rng,
            backoff=backoff,
            queue_limit=queue_limit,
            max_payload_bytes=max_payload_bytes,
        )


class _PahoConnection:
    """One paho client, connected at most once."""

    def __init__(
        self,
        address: Address,
        listener: Listener,
        *,
        client_id: str,
        will: Will | None,
        keepalive_s: int,
        max_payload_bytes: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._address = address
        self._listener = listener
        self._keepalive_s = keepalive_s
        self._receive_limit_bytes = max_payload_bytes
        self._handled = 0
        self._tick_handle: asyncio.TimerHandle | None = None
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._granted: asyncio.Future[list[ReasonCode]] = self._loop.create_future()
        self.ended: asyncio.Future[str] = self._loop.create_future()
        self.window = _WINDOW
        self.max_payload_bytes = max_payload_bytes
        self._client = self._new_client(client_id, will)

    def _new_client(self, client_id: str, will: Will | None) -> paho.Client:
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=paho.MQTTv5,
            reconnect_on_failure=False,
        )
        client.connect_timeout = _CONNECT_TIMEOUT_S
        client.max_inflight_messages_set(0)  # the window is kept by the transport
        if self._address.tls is not None:
            client.tls_set_context(self._address.tls)
        if self._address.user is not None:
            client.username_pw_set(self._address.user, self._address.password)
        if will is not None:
            client.will_set(will.topic, will.payload, will.qos, will.retain)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_publish = self._on_publish
        client.on_message = self._on_message
        return client

    async def open(self, filters: Sequence[str]) -> tuple[str, ...]:
        """Connect, subscribe, and return what was refused."""
        with _translated():
            await self._connect()
            self._attach()
            await self._answer(self._opened)
            if not filters:
                return ()
            self._client.subscribe([(pattern, 1) for pattern in filters])
            codes = await self._answer(self._granted)
        return tuple(pattern for pattern, code in zip(filters, codes, strict=False) if code.is_failure)

    async def _connect(self) -> None:
        connect = functools.partial(
            self._client.connect,
            self._address.host,
            self._address.port,
            self._keepalive_s,
            clean_start=True,
            properties=self._connect_properties(),
        )
        connecting = self._loop.run_in_executor(None, connect)
        try:
            await asyncio.shield(connecting)
        except asyncio.CancelledError:  # the thread goes on, and may still open a socket
            connecting.add_done_callback(self._abort_late)
            raise

    def _abort_late(self, connecting: asyncio.Future[Any]) -> None:
        connecting.exception()  # nobody waits for it any more
        self.abort()

    async def _answer(self, answer: asyncio.Future[_Answer]) -> _Answer:
        either: tuple[asyncio.Future[Any], ...] = (answer, self.ended)
        await asyncio.wait(either, timeout=_ANSWER_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise TransportError(self.ended.result() if self.ended.done() else "the broker does not answer")

    def _connect_properties(self) -> Properties:
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.MaximumPacketSize = self._receive_limit_bytes + _OVERHEAD_BYTES
        return properties

    def _attach(self) -> None:
        """Let the event loop drive the client from here on."""
        sock = self._client.socket()
        if sock is None:
            raise ConnectionError("the broker closed the connection at once")
        file = sock.fileno()

        def detach(*_: Any) -> None:
            self._loop.remove_reader(file)
            self._loop.remove_writer(file)

        def write(*_: Any) -> None:
            self._loop.add_writer(file, self._drive, self._client.loop_write)

        def written(*_: Any) -> None:
            self._loop.remove_writer(file)

        self._client.on_socket_close = detach
        self._client.on_socket_register_write = write
        self._client.on_socket_unregister_write = written
        self._loop.add_reader(file, self._read)
        if self._client.want_write():
            write()
        self._tick()

    def send(self, message: Outgoing) -> int:
        """Hand one message to paho, which writes when the socket can take it."""
        return self._client.publish(message.topic, message.payload, message.qos, message.retain).mid

    async def goodbye(self) -> None:
        """Send DISCONNECT and wait until it is out."""
        if not self.ended.done():
            self._client.disconnect()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(self.ended), _GOODBYE_TIMEOUT_S)

    def abort(self) -> None:
        """Close the socket without a goodbye, if it is open."""
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        self._end("given up")
        client, sock = self._client, self._client.socket()
        client.on_socket_close = client.on_socket_register_write = client.on_socket_unregister_write = None
        if sock is not None and sock.fileno() >= 0:
            self._loop.remove_reader(sock.fileno())
            self._loop.remove_writer(sock.fileno())
            sock.close()

    def _read(self) -> None:
        # paho reads one packet at a time, and bytes that TLS holds already wake no reader: so read on while
        # there is progress.
        for _ in range(_PACKETS_PER_TURN):
            handled = self._handled
            self._drive(self._client.loop_read)
            if self._handled == handled and not self._held_by_tls():
                return

    def _drive(self, step: Callable[[], object]) -> None:
        """Let paho do one step; whatever a broken broker makes it raise ends this connection only."""
        try:
            step()
        except Exception as error:
            _LOG.exception("paho failed on what %s sent", self._address)
            self._end(f"paho failed: {type(error).__name__}: {error}")
            self.abort()

    def _held_by_tls(self) -> int:
        sock = self._client.socket()
        return sock.pending() if isinstance(sock, ssl.SSLSocket) else 0

    def _tick(self) -> None:
        """Keep the connection alive, or find that it is not."""
        self._drive(self._client.loop_misc)
        if not self.ended.done():
            self._tick_handle = self._loop.call_later(min(1.0, self._keepalive_s / 4), self._tick)

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, code: ReasonCode, granted: Any) -> None:
        if code.is_failure:
            self._end(f"the broker refused the connection: {code}")
            return
        self.window = min(_WINDOW, getattr(granted, "ReceiveMaximum", _WINDOW))
        limit_bytes = getattr(granted, "MaximumPacketSize", None)
        if limit_bytes is not None:
            self.max_payload_bytes = min(self.max_payload_bytes, limit_bytes - _OVERHEAD_BYTES)
        if not self._opened.done():
            self._opened.set_result(None)

    def _on_disconnect(
        self, _client: Any, _data: Any, flags: Any, code: ReasonCode, _properties: Any
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self._end(f"the broker ended the connection: {code}")
        elif code.is_failure:
            self._end("the connection was lost")
        else:
            self._end("closed")

    def _on_subscribe(
        self, _client: Any, _data: Any, _mid: int, codes: list[ReasonCode], _props: Any
    ) -> None:
        if not self._granted.done():
            self._granted.set_result(codes)

    def _on_publish(self, _client: Any, _data: Any, mid: int, code: ReasonCode, _properties: Any) -> None:
        self._handled += 1
        self._listener.acknowledged(mid, str(code) if code.is_failure else None)

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        self._handled += 1
        try:
            topic = message.topic
        except UnicodeDecodeError:
            self._listener.ignored("its topic is not text")
            return
        if len(message.payload) > self._receive_limit_bytes:
            self._listener.ignored(f"{len(message.payload)} bytes at {topic[:200]!r}")
            return
        retained = bool(message.retain)
        self._listener.received(Received(topic=topic, payload=bytes(message.payload), retained=retained))

    def _end(self, reason: str) -> None:
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        if not self.ended.done():
            self.ended.set_result(reason)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turn everything that a failed connection raises into a TransportError."""
    try:
        yield
    except _FOREIGN as error:
        raise TransportError(str(error) or type(error).__name__) from error
