"""A TCP proxy that shapes what passes: the network of an emulated device.

All connections through one proxy share its link. In each direction a chunk first waits for its turn on the
wire, then travels for the link's delay. A new connection's first byte takes a round trip longer, for the
handshake that loopback does not make it wait for. The proxy reads no further ahead than the link needs to
stay busy, so that a sender feels the link and not a buffer.

Timers of the event loop are late by up to a millisecond, and so is the proxy.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import cast

from compass_agent.emulate.link import Ends, Lane, Pipe, Shape
from compass_shared.errors import TransportError

_EARLY_BYTES = 16 * 1024


class ShapingProxy:
    """Listens on loopback and forwards to a target through a shaped link.

    Args:
        host: Where to forward to.
        port: Where to forward to.
        shape: The link.
        rng: Draws the jitter.
    """

    def __init__(self, host: str, port: int, shape: Shape, *, rng: random.Random) -> None:
        self._target = (host, port)
        self._handshake_s = 2 * shape.delay_s
        self._up = Lane(shape, shape.up_bytes_per_s, rng)
        self._down = Lane(shape, shape.down_bytes_per_s, rng)
        self._server: asyncio.Server | None = None
        self._pairs: set[_Pair] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._cut = False
        self.port = 0
        """Where it listens on 127.0.0.1, once started."""

    @property
    def bytes_up(self) -> int:
        """Bytes that entered the link from the device."""
        return self._up.bytes

    @property
    def bytes_down(self) -> int:
        """Bytes that entered the link towards the device."""
        return self._down.bytes

    async def start(self) -> None:
        """Listen on a free port of loopback.

        Raises:
            TransportError: If it cannot.
        """
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(lambda: _Side(self._accept), "127.0.0.1", 0)
        except OSError as error:
            raise TransportError(f"the shaping proxy cannot listen: {error}") from error
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """End every connection and stop listening."""
        self.cut()
        if self._server is not None:
            self._server.close()
        for task in list(self._connecting):
            task.cancel()
        if self._connecting:
            await asyncio.wait(self._connecting)
        if self._server is not None:
            await self._server.wait_closed()

    async def __aenter__(self) -> ShapingProxy:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def cut(self) -> None:
        """Reset every connection, and every new one, until ``restore``."""
        self._cut = True
        for pair in list(self._pairs):
            pair.abort()

    def stall(self) -> None:
        """Deliver nothing until ``restore``; connections stay open, as on a link that went dark."""
        self._up.stalled = self._down.stalled = True

    def restore(self) -> None:
        """Undo ``cut`` and ``stall``; what a stall held back is delivered."""
        self._cut = self._up.stalled = self._down.stalled = False
        for pair in list(self._pairs):
            pair.deliver()

    def _accept(self, near: _Side) -> None:
        near.transport.pause_reading()
        task = asyncio.get_running_loop().create_task(self._connect(near))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, near: _Side) -> None:
        far = _Side(None)
        loop = asyncio.get_running_loop()
        opens_at_s = loop.time() + self._handshake_s
        try:
            await loop.create_connection(lambda: far, *self._target)
        except OSError:  # the device sees a connection that ends at once
            near.transport.abort()
            return
        except asyncio.CancelledError:
            near.transport.abort()
            raise
        if self._cut or near.gone or far.gone:
            near.transport.abort()
            far.transport.abort()
            return
        near.transport.resume_reading()  # before the pipes, which may want a pause at once
        far.transport.resume_reading()
        self._pairs.add(_Pair(near, far, self._up, self._down, opens_at_s, self._pairs.discard))


class _Side(asyncio.BufferedProtocol):
    """One TCP connection: the device's or the target's."""

    transport: asyncio.Transport

    def __init__(self, accept: Callable[[_Side], None] | None) -> None:
        self._accept = accept
        self._buffer = bytearray(_EARLY_BYTES)
        self._early: list[bytes] = []
        """What was read before the other side was there; CPython 3.10 reads on after a pause that early."""
        self._sends: Pipe | None = None
        self._gets: Pipe | None = None
        self._on_lost: Callable[[_Side], None] | None = None
        self._said_all = False
        self.gone = False

    def join(self, sends: Pipe, gets: Pipe, chunk_bytes: int, on_lost: Callable[[_Side], None]) -> None:
        """Become one side of a pair."""
        self._sends, self._gets, self._on_lost = sends, gets, on_lost
        self._buffer = bytearray(chunk_bytes)
        for data in self._early:
            sends.push(data)
        self._early.clear()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if self._accept is not None:
            self._accept(self)

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002  # the lane knows what is fair
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._read(bytes(self._buffer[:nbytes]))

    def eof_received(self) -> bool:
        if not self._said_all:  # told again when reading is resumed
            self._said_all = True
            self._read(b"")
        return True  # the other direction goes on

    def _read(self, data: bytes) -> None:
        if self._sends is not None:
            self._sends.push(data)
        else:
            self._early.append(data)
            self.transport.pause_reading()

    def pause_writing(self) -> None:
        if self._gets is not None:
            self._gets.block()

    def resume_writing(self) -> None:
        if self._gets is not None:
            self._gets.unblock()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # a reset and an end alike
        self.gone = True
        if self._on_lost is not None:
            self._on_lost(self)


class _Pair:
    """A connection through the proxy: its two sides and the two pipes between them."""

    def __init__(
        self,
        near: _Side,
        far: _Side,
        up: Lane,
        down: Lane,
        opens_at_s: float,
        forget: Callable[[_Pair], None],
    ) -> None:
        self._near, self._far = near, far
        self._forget = forget
        self._ended = 0
        self._up = Pipe(up, self._ends(near, far), opens_at_s=opens_at_s)
        self._down = Pipe(down, self._ends(far, near), opens_at_s=0.0)
        near.join(self._up, self._down, up.chunk_bytes, self._lost)
        far.join(self._down, self._up, down.chunk_bytes, self._lost)

    def abort(self) -> None:
        """Reset both sides."""
        self._near.transport.abort()
        self._far.transport.abort()

    def deliver(self) -> None:
        """Go on after a stall."""
        self._up.deliver()
        self._down.deliver()

    def _ends(self, source: _Side, target: _Side) -> Ends:
        def end() -> None:
            self._ended += 1
            if source.gone:
                target.transport.close()
            elif not target.gone:
                target.transport.write_eof()
                if self._ended == 2:
                    source.transport.close()
                    target.transport.close()

        return Ends(
            write=target.transport.write,
            end=end,
            pause=source.transport.pause_reading,
            resume=source.transport.resume_reading,
        )

    def _lost(self, side: _Side) -> None:
        """What a lost side had sent still arrives; then the other one ends too."""
        sends, gets = (self._up, self._down) if side is self._near else (self._down, self._up)
        gets.stop()
        if self._near.gone and self._far.gone:
            sends.stop()
            self._forget(self)
        else:
            sends.push(b"")
