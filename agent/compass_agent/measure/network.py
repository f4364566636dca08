"""How fast the way to a worker is: a round trip of an empty call, and the throughput of sized ones.

A transfer of N bytes takes a round trip plus N / throughput, so the throughput is N over what the round trip
leaves of the time. N grows until a transfer is long enough for the clock and for TCP to settle.
"""

from __future__ import annotations

import asyncio
import io
import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import aiohttp

from compass_agent.measure.routes import MAX_TRANSFER_BYTES, PING_PATH, SINK_PATH, SOURCE_PATH
from compass_shared.clock import Clock, MonotonicClock
from compass_shared.errors import TransportError
from compass_shared.messages import LinkReport

_WARM_UP = 2
_ROUND_TRIPS = 10
_MIN_ROUND_TRIPS = 4
_ROUND_TRIPS_S = 0.6
"""Time for the round trips, unless these are too few by then."""

_FIRST_BYTES = 16 * 1024
_TRANSFER_S = 0.3
"""Aim for one transfer."""
_LONG_ENOUGH = 0.5
"""Share of the aim from which on a transfer counts."""
_GROWTH = 16.0
_TRANSFERS = 3
_TRANSFERS_S = 1.2
"""Time for one direction, unless nothing was measured by then."""
_LEAST_SHARE = 0.05
"""Of a transfer's time, that is its own: on the fastest links the round trip seems to be all of it."""

_CALL_TIMEOUT = aiohttp.ClientTimeout(total=15.0, connect=5.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """Of one direction."""

    bps: float
    """Bytes per second."""
    rel_sd: float
    """Relative standard deviation of single transfers."""


async def measure_link(
    session: aiohttp.ClientSession, base_url: str, *, target: str, clock: Clock | None = None
) -> LinkReport:
    """Measure the way to a worker and back; takes about 3 s and at most 30 MB, longer below 0.1 MB/s.

    Args:
        session: Connections to use; measured the way requests will go, so give it the agent's own.
        base_url: Where the worker, or the emulated link to it, is reached.
        target: Name of the worker's site.
        clock: Measures the time.

    Returns:
        Mean and variance of the round trips, ``count`` of them; throughput each way; and the relative
        standard deviation of single transfers, both directions together.

    Raises:
        TransportError: If the worker is not reached or does not play along.
    """
    probe = _Probe(session, base_url.rstrip("/"), clock or MonotonicClock())
    try:
        round_trips_s = await probe.round_trips_s()
        rtt_s = statistics.fmean(round_trips_s)
        up = await probe.throughput(probe.upload, rtt_s)
        down = await probe.throughput(probe.download, rtt_s)
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError) as error:
        problem = str(error) or type(error).__name__
        raise TransportError(f"the link to {target} at {base_url} cannot be measured: {problem}") from error
    return LinkReport(
        target=target,
        rtt_s=rtt_s,
        rtt_var_s2=statistics.variance(round_trips_s),
        up_bps=up.bps,
        down_bps=down.bps,
        rel_sd=statistics.fmean((up.rel_sd**2, down.rel_sd**2)) ** 0.5,
        count=len(round_trips_s),
    )


class _Probe:
    """Calls one worker and takes the time."""

    def __init__(self, session: aiohttp.ClientSession, base_url: str, clock: Clock) -> None:
        self._session = session
        self._base_url = base_url
        self._clock = clock

    async def round_trips_s(self) -> list[float]:
        for _ in range(_WARM_UP):
            await self._ping()
        end_s = self._clock.now_s() + _ROUND_TRIPS_S
        took_s: list[float] = []
        while len(took_s) < _MIN_ROUND_TRIPS or (len(took_s) < _ROUND_TRIPS and self._clock.now_s() < end_s):
            took_s.append(await self._timed(self._ping))
        return took_s

    async def throughput(self, transfer: Callable[[int], Awaitable[None]], rtt_s: float) -> Throughput:
        """Transfer ever more until it takes long enough, then a few times more."""
        end_s = self._clock.now_s() + _TRANSFERS_S
        size_bytes = _FIRST_BYTES
        taken: list[tuple[int, float]] = []
        while len(taken) < _TRANSFERS:
            took_s = await self._timed(lambda: transfer(size_bytes))  # noqa: B023  # awaited at once
            own_s = max(took_s - rtt_s, _LEAST_SHARE * took_s)
            counts = own_s >= _LONG_ENOUGH * _TRANSFER_S or size_bytes == MAX_TRANSFER_BYTES
            late = self._clock.now_s() >= end_s
            if counts or late:
                taken.append((size_bytes, own_s))
            if late:
                break
            if not counts:
                size_bytes = next_size(size_bytes, own_s)
        return summary(taken)

    async def upload(self, size_bytes: int) -> None:
        async with self._session.post(
            self._base_url + SINK_PATH, data=io.BytesIO(bytes(size_bytes)), timeout=_CALL_TIMEOUT
        ) as response:
            await _checked(response, 204)

    async def download(self, size_bytes: int) -> None:
        async with self._session.get(
            self._base_url + SOURCE_PATH, params={"bytes": str(size_bytes)}, timeout=_CALL_TIMEOUT
        ) as response:
            body = await _checked(response, 200)
        if len(body) != size_bytes:
            raise TransportError(f"{self._base_url}: {len(body)} bytes came instead of {size_bytes}")

    async def _ping(self) -> None:
        async with self._session.get(self._base_url + PING_PATH, timeout=_CALL_TIMEOUT) as response:
            await _checked(response, 204)

    async def _timed(self, call: Callable[[], Awaitable[None]]) -> float:
        start_s = self._clock.now_s()
        await call()
        return self._clock.now_s() - start_s


def next_size(size_bytes: int, own_s: float) -> int:
    """Bytes of the next transfer, after one that was too short."""
    growth = min(_GROWTH, _TRANSFER_S / own_s) if own_s > 0 else _GROWTH
    return min(MAX_TRANSFER_BYTES, int(size_bytes * growth) + 1)


def summary(taken: Sequence[tuple[int, float]]) -> Throughput:
    """Throughput of transfers, from their sizes in bytes and their own times in seconds."""
    bps = sum(size for size, _ in taken) / sum(own_s for _, own_s in taken)
    rates = [size / own_s for size, own_s in taken]
    rel_sd = statistics.stdev(rates) / statistics.fmean(rates) if len(rates) > 1 else 0.0
    return Throughput(bps=bps, rel_sd=rel_sd)


async def _checked(response: aiohttp.ClientResponse, status: int) -> bytes:
    body = await response.read()
    if response.status != status:
        raise TransportError(f"{response.url} answered {response.status}; is it a Compass worker?")
    return body
