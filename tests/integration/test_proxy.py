"""The shaping proxy on real sockets: the bytes are the same, and the time is at least what the link takes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
from collections.abc import AsyncIterator

import pytest

from compass_agent.emulate.link import Shape
from compass_agent.emulate.proxy import ShapingProxy

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def echo_behind(shape: Shape) -> AsyncIterator[ShapingProxy]:
    """A server that sends everything back, behind a proxy."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, ShapingProxy("127.0.0.1", port, shape, rng=random.Random(1)) as proxy:
        yield proxy
        proxy.cut()
        for writer in writers:
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


async def connect(proxy: ShapingProxy) -> Streams:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def echo(streams: Streams, data: bytes) -> float:
    """Send, read as much back, compare; returns the time it took."""
    reader, writer = streams
    clock = asyncio.get_running_loop().time
    start_s = clock()
    writer.write(data)
    back = await asyncio.wait_for(reader.readexactly(len(data)), 30.0)
    assert hashlib.sha256(back).digest() == hashlib.sha256(data).digest()
    return clock() - start_s


async def finish(streams: Streams) -> bytes:
    """End our direction and read what is left of the other."""
    reader, writer = streams
    writer.write_eof()
    rest = await asyncio.wait_for(reader.read(), 30.0)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()
    return rest


async def gone(streams: Streams) -> None:
    """Wait until the connection is lost."""
    reader, writer = streams
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 30.0) == b""
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


@pytest.mark.parametrize(
    "shape",
    [
        Shape(),
        Shape(delay_s=0.02, jitter_s=0.01),
        Shape(up_bytes_per_s=4e6, down_bytes_per_s=8e6),
        Shape(delay_s=0.01, jitter_s=0.02, up_bytes_per_s=5e6, down_bytes_per_s=5e6),
    ],
)
async def test_the_bytes_are_the_same(shape: Shape) -> None:
    data = random.Random(5).randbytes(700_000)
    async with echo_behind(shape) as proxy:
        several = [await connect(proxy) for _ in range(3)]
        await asyncio.gather(*(echo(streams, data[number:]) for number, streams in enumerate(several)))
        assert [await finish(streams) for streams in several] == [b""] * 3
        assert proxy.bytes_up == proxy.bytes_down == 3 * len(data) - 3


async def test_a_round_trip_takes_both_delays_and_the_first_one_the_handshake_too() -> None:
    async with echo_behind(Shape(delay_s=0.03)) as proxy:
        streams = await connect(proxy)
        first_s = await echo(streams, b"first")
        later_s = [await echo(streams, b"later") for _ in range(5)]
        await finish(streams)
    assert first_s >= 0.119
    assert min(later_s) >= 0.059
    assert min(later_s) < 0.110


@pytest.mark.parametrize(
    ("shape", "least_s"),
    [
        (Shape(up_bytes_per_s=2e6), 0.2),
        (Shape(down_bytes_per_s=2e6), 0.2),
        (Shape(up_bytes_per_s=4e6, down_bytes_per_s=4e6, delay_s=0.02), 0.14),
    ],
)
async def test_a_transfer_takes_as_long_as_the_rate_says(shape: Shape, least_s: float) -> None:
    async with echo_behind(shape) as proxy:
        streams = await connect(proxy)
        took_s = await echo(streams, bytes(400_000))
        await finish(streams)
    assert least_s - 0.002 <= took_s < 3 * least_s + 0.2


async def test_connections_share_the_rate() -> None:
    async with echo_behind(Shape(up_bytes_per_s=2e6)) as proxy:
        several = [await connect(proxy) for _ in range(4)]
        took_s = await asyncio.gather(*(echo(streams, bytes(100_000)) for streams in several))
        for streams in several:
            await finish(streams)
    assert 0.198 <= max(took_s) < 1.0
    assert min(took_s) > 0.1  # by turns, not one after the other


async def test_a_sender_has_to_wait_for_the_link() -> None:
    async with echo_behind(Shape(up_bytes_per_s=1e5)) as proxy:
        reader, writer = await connect(proxy)
        writer.write(bytes(20_000_000))
        await reader.readexactly(1000)
        assert proxy.bytes_up < 100_000
        writer.transport.abort()
        await writer.wait_closed()


async def test_what_was_sent_before_the_end_still_arrives() -> None:
    async with echo_behind(Shape(delay_s=0.02, up_bytes_per_s=1e6, down_bytes_per_s=1e6)) as proxy:
        streams = await connect(proxy)
        streams[1].write(bytes(50_000))
        assert await finish(streams) == bytes(50_000)


async def test_a_server_may_speak_first() -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(100_000))
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, ShapingProxy("127.0.0.1", port, Shape(), rng=random.Random(1)) as proxy:
        assert await finish(await connect(proxy)) == bytes(100_000)


async def test_cut_resets_connections_until_restore() -> None:
    async with echo_behind(Shape()) as proxy:
        old = await connect(proxy)
        await echo(old, b"before")
        proxy.cut()
        await gone(old)
        await gone(await connect(proxy))
        proxy.restore()
        new = await connect(proxy)
        await echo(new, b"after")
        await finish(new)


async def test_stall_holds_bytes_back_until_restore() -> None:
    async with echo_behind(Shape(delay_s=0.001)) as proxy:
        streams = await connect(proxy)
        await echo(streams, b"before")
        proxy.stall()
        waiting = asyncio.create_task(echo(streams, b"held"))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting), 0.1)
        proxy.restore()
        await waiting
        await finish(streams)


async def test_a_target_that_is_not_there_ends_the_connection(free_port: int) -> None:
    async with ShapingProxy("127.0.0.1", free_port, Shape(), rng=random.Random(1)) as proxy:
        await gone(await connect(proxy))


async def test_closing_ends_everything() -> None:
    async with echo_behind(Shape(delay_s=0.05)) as proxy:
        streams = await connect(proxy)
        streams[1].write(b"on its way")
        await proxy.close()
        await gone(streams)
        with pytest.raises(OSError, match="Connect call failed"):
            await connect(proxy)
