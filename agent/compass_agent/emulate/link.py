"""An emulated link: what delays the bytes of ``compass_agent.emulate.proxy``."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

_AHEAD_S = 0.05
"""How long the link stays busy on what was read already: longer than the event loop is usually held up."""
_FREE_AHEAD_BYTES = 4 * 1024 * 1024
_CHUNK_S = 0.005
"""Time on the wire of one chunk; connections take turns by chunks."""
_MIN_CHUNK_BYTES = 1024
_MAX_CHUNK_BYTES = 64 * 1024
_SLACK_S = 0.0005
"""Chunks due this soon are delivered now: half of what a timer of the event loop is late by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How a link behaves."""

    delay_s: float = 0.0
    """One way; a round trip takes twice as long."""
    jitter_s: float = 0.0
    """Up to this much more, drawn for each chunk; chunks never overtake each other."""
    up_bytes_per_s: float | None = None
    """From the device; None is as fast as the machine."""
    down_bytes_per_s: float | None = None


class Lane:
    """One direction of the link: who may use the wire, and when.

    Args:
        shape: The link.
        bytes_per_s: This direction's rate; None is no limit.
        rng: Draws the jitter.
    """

    def __init__(self, shape: Shape, bytes_per_s: float | None, rng: random.Random) -> None:
        self._shape = shape
        self._bytes_per_s = bytes_per_s
        self._rng = rng
        self._free_at_s = 0.0
        self.stalled = False
        self.bytes = 0
        """Bytes that entered so far."""
        self.chunk_bytes = _MAX_CHUNK_BYTES
        self.ahead_bytes = _FREE_AHEAD_BYTES
        """What one connection may hold back before its sender has to wait."""
        if bytes_per_s is not None:
            fair_bytes = int(bytes_per_s * _CHUNK_S)
            self.chunk_bytes = min(_MAX_CHUNK_BYTES, max(_MIN_CHUNK_BYTES, fair_bytes))
            under_way_s = _AHEAD_S + shape.delay_s + shape.jitter_s
            self.ahead_bytes = int(bytes_per_s * under_way_s) + 3 * self.chunk_bytes

    def arrives_at_s(self, now_s: float, size_bytes: int) -> float:
        """Give a chunk the next turn on the wire; returns when its last byte reaches the other end."""
        self.bytes += size_bytes
        if self._bytes_per_s is not None:
            self._free_at_s = max(now_s, self._free_at_s) + size_bytes / self._bytes_per_s
            now_s = self._free_at_s
        jitter_s = self._rng.uniform(0.0, self._shape.jitter_s) if self._shape.jitter_s else 0.0
        return now_s + self._shape.delay_s + jitter_s


@dataclass(slots=True, kw_only=True)
class Ends:
    """What a pipe does at its two ends."""

    write: Callable[[bytes], None]
    end: Callable[[], None]
    """After the last byte was written."""
    pause: Callable[[], None]
    """Read no more for now."""
    resume: Callable[[], None]


@dataclass(slots=True)
class _Held:
    at_s: float
    data: bytes = field(repr=False)
    """Empty at the end of the stream."""


class Pipe:
    """One direction of one connection: bytes in, the same bytes out, later.

    Args:
        lane: The direction of the link, shared with the other connections.
        ends: What to do with the bytes.
        opens_at_s: Bytes count as sent no earlier: the handshake's time.
    """

    def __init__(self, lane: Lane, ends: Ends, *, opens_at_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._lane = lane
        self._ends = ends
        self._opens_at_s = opens_at_s
        self._held: deque[_Held] = deque()
        self._held_bytes = 0
        self._last_s = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._paused = False
        self._blocked = False
        self._stopped = False

    def push(self, data: bytes) -> None:
        """Take bytes from the sender; empty is the end of its stream."""
        if self._stopped:
            return
        now_s = max(self._loop.time(), self._opens_at_s)
        self._last_s = max(self._last_s, self._lane.arrives_at_s(now_s, len(data)))
        self._held.append(_Held(self._last_s, data))
        self._held_bytes += len(data)
        if self._held_bytes > self._lane.ahead_bytes and not self._paused:
            self._paused = True
            self._ends.pause()
        if self._timer is None:
            self.deliver()

    def deliver(self) -> None:
        """Write what is due, and come back for the rest."""
        self._cancel_timer()
        due_s = self._loop.time() + _SLACK_S
        while self._held and not self._blocked and not self._lane.stalled and self._held[0].at_s <= due_s:
            held = self._held.popleft()
            self._held_bytes -= len(held.data)
            if held.data:
                self._ends.write(held.data)
            else:
                self._ends.end()
        if self._paused and self._held_bytes <= self._lane.ahead_bytes - self._lane.chunk_bytes:
            self._paused = False
            self._ends.resume()
        if self._held and not self._blocked and not self._lane.stalled:
            self._timer = self._loop.call_at(self._held[0].at_s - _SLACK_S, self.deliver)

    def block(self) -> None:
        """The receiver takes no more for now."""
        self._blocked = True

    def unblock(self) -> None:
        """The receiver takes bytes again."""
        self._blocked = False
        self.deliver()

    def stop(self) -> None:
        """Forget what is held, and what still comes."""
        self._stopped = True
        self._cancel_timer()
        self._held.clear()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
