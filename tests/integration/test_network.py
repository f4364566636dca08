"""Links are measured over real sockets, through the shaping proxy; bands are wide: machines are shared."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from compass_agent.emulate.link import Shape
from compass_agent.emulate.proxy import ShapingProxy
from compass_agent.measure import routes
from compass_agent.measure.network import measure_link, next_size, summary
from compass_agent.measure.routes import MAX_TRANSFER_BYTES, link_routes
from compass_shared.calls import decode_error
from compass_shared.errors import TransportError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@contextlib.asynccontextmanager
async def served(*definitions: web.RouteDef) -> AsyncIterator[str]:
    """An application with these routes; yields its base URL."""
    app = web.Application()
    app.add_routes(definitions)
    async with TestServer(app, host="127.0.0.1") as server:
        yield str(server.make_url("/"))


@pytest.mark.parametrize(
    ("shape", "least_rtt_s", "up_bps", "down_bps"),
    [
        (Shape(delay_s=0.01, up_bytes_per_s=1e6, down_bytes_per_s=4e6), 0.02, 1e6, 4e6),
        (Shape(delay_s=0.002, jitter_s=0.004, up_bytes_per_s=8e6, down_bytes_per_s=2e6), 0.004, 8e6, 2e6),
        (Shape(up_bytes_per_s=60e3, down_bytes_per_s=100e3), 0.0, 60e3, 100e3),
    ],
)
async def test_the_measured_link_is_the_shaped_one(
    session: aiohttp.ClientSession, shape: Shape, least_rtt_s: float, up_bps: float, down_bps: float
) -> None:
    async with served(*link_routes()) as url:
        port = int(url.rstrip("/").rpartition(":")[2])
        async with ShapingProxy("127.0.0.1", port, shape, rng=random.Random(1)) as proxy:
            report = await measure_link(session, f"http://127.0.0.1:{proxy.port}", target="edge")
            await session.close()
    assert report.target == "edge"
    assert 4 <= report.count <= 10
    assert least_rtt_s - 0.001 <= report.rtt_s < least_rtt_s + 0.1
    assert report.rtt_var_s2 >= 0.0
    assert 0.4 * up_bps < report.up_bps < 1.3 * up_bps
    assert 0.4 * down_bps < report.down_bps < 1.3 * down_bps
    assert 0.0 <= report.rel_sd < 1.0


async def test_an_unshaped_link_is_fast(session: aiohttp.ClientSession) -> None:
    async with served(*link_routes()) as url:
        report = await measure_link(session, url, target="edge")
        await session.close()
    assert report.rtt_s < 0.1
    assert min(report.up_bps, report.down_bps) > 5e6


async def test_nobody_there(session: aiohttp.ClientSession, free_port: int) -> None:
    with pytest.raises(TransportError, match=f"edge at http://127.0.0.1:{free_port} cannot be measured"):
        await measure_link(session, f"http://127.0.0.1:{free_port}", target="edge")


async def test_an_address_that_is_none(session: aiohttp.ClientSession) -> None:
    with pytest.raises(TransportError, match="edge"):
        await measure_link(session, "nonsense", target="edge")


async def test_something_else_than_a_worker(session: aiohttp.ClientSession) -> None:
    async with served() as url:
        with pytest.raises(TransportError, match="answered 404; is it a Compass worker"):
            await measure_link(session, url, target="edge")


async def test_a_worker_that_sends_too_little(session: aiohttp.ClientSession) -> None:
    async def short(_request: web.Request) -> web.Response:
        return web.Response(body=b"short")

    ping, sink, _source = link_routes()
    async with served(ping, sink, web.get("/source", short)) as url:
        with pytest.raises(TransportError, match="5 bytes came instead of"):
            await measure_link(session, url, target="edge")


async def test_a_worker_that_hangs_up(session: aiohttp.ClientSession) -> None:
    async def hang_up(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    ping, _sink, source = link_routes()
    async with served(ping, web.post("/sink", hang_up), source) as url:
        with pytest.raises(TransportError, match="edge"):
            await measure_link(session, url, target="edge")


async def test_source_sends_exactly_what_was_asked_for(session: aiohttp.ClientSession) -> None:
    async with served(*link_routes()) as url:
        for size in (0, 1, 65_536, 65_537, 300_000):
            async with session.get(f"{url}source?bytes={size}") as response:
                assert (response.status, len(await response.read())) == (200, size)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 400),
        ("bytes=", 400),
        ("bytes=-1", 400),
        ("bytes=1.5", 400),
        ("bytes=%D9%A3", 400),
        (f"bytes={'9' * 30}", 400),
        (f"bytes={MAX_TRANSFER_BYTES + 1}", 413),
    ],
)
async def test_source_has_limits(session: aiohttp.ClientSession, query: str, status: int) -> None:
    async with served(*link_routes()) as url, session.get(f"{url}source?{query}") as response:
        assert response.status == status
        assert decode_error(await response.read()).error == "RefusedError"


@pytest.mark.parametrize("with_length", [True, False])
async def test_sink_has_a_limit(session: aiohttp.ClientSession, with_length: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(MAX_TRANSFER_BYTES // 65_536 + 1):
            yield bytes(65_536)

    headers = {"Content-Length": str((MAX_TRANSFER_BYTES // 65_536 + 1) * 65_536)} if with_length else {}
    async with served(*link_routes()) as url:
        with contextlib.suppress(aiohttp.ClientConnectionError):  # it need not read on to refuse
            async with session.post(f"{url}sink", data=pieces(), headers=headers) as response:
                assert response.status == 413
        async with session.get(f"{url}ping") as response:
            assert response.status == 204


async def test_few_transfers_run_at_once(
    session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "_MAX_AT_ONCE", 0)
    async with served(*link_routes()) as url:
        for call in (session.get(f"{url}source?bytes=1"), session.post(f"{url}sink", data=b"x")):
            async with call as response:
                assert response.status == 503
                assert decode_error(await response.read()).retry_after_s is not None


async def test_a_transfer_that_dawdles_is_ended(
    session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing_more() -> AsyncIterator[bytes]:
        yield b"first"
        await released.wait()

    monkeypatch.setattr(routes, "_TRANSFER_TIMEOUT_S", 0.05)
    released = asyncio.Event()
    async with served(*link_routes()) as url:
        async with session.post(f"{url}sink", data=nothing_more()) as response:
            assert response.status == 408
        released.set()


def test_transfers_grow_towards_the_aim_and_no_further() -> None:
    assert next_size(16_384, 0.0) == 16 * 16_384 + 1
    assert next_size(16_384, 0.001) == 16 * 16_384 + 1
    assert 290_000 < next_size(100_000, 0.1) < 310_000
    assert next_size(1_000_000, 0.001) == MAX_TRANSFER_BYTES


def test_throughput_weighs_transfers_by_their_time() -> None:
    even = summary([(1000, 1.0), (1000, 1.0)])
    assert (even.bps, even.rel_sd) == (1000.0, 0.0)
    uneven = summary([(1000, 1.0), (1000, 3.0)])
    assert uneven.bps == 500.0
    assert uneven.rel_sd == pytest.approx(0.7071, abs=1e-4)
    assert summary([(1000, 0.5)]).rel_sd == 0.0
