"""What a worker serves so that others can measure the way to it: ``/ping``, ``/sink`` and ``/source``.

They take no token, so they are small: a bounded size, a bounded time, and few transfers at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from aiohttp import web

from compass_shared.calls import MEDIA_TYPE, ErrorBody, encode_error

PING_PATH = "/ping"
SINK_PATH = "/sink"
SOURCE_PATH = "/source"
MAX_TRANSFER_BYTES = 4 * 1024 * 1024
"""Largest transfer in either direction."""

_MAX_AT_ONCE = 8
_TRANSFER_TIMEOUT_S = 30.0
_RETRY_AFTER_S = 1.0
_PIECE = bytes(64 * 1024)


def link_routes() -> list[web.RouteDef]:
    """Routes to add to a worker's application.

    ``GET /ping`` answers 204. ``POST /sink`` reads a body of at most ``MAX_TRANSFER_BYTES`` and answers 204.
    ``GET /source?bytes=N`` answers with N bytes. Refusals are framed as ``compass_shared.calls.ErrorBody``:
    400 for a wrong N, 413 for too much, 503 for too many at once, 408 for too slow.
    """
    transfers = _Transfers()
    return [
        web.get(PING_PATH, _ping, allow_head=False),
        web.post(SINK_PATH, transfers.sink),
        web.get(SOURCE_PATH, transfers.source, allow_head=False),
    ]


async def _ping(_request: web.Request) -> web.Response:
    return web.Response(status=204)


class _Transfers:
    """Counts the transfers of one application."""

    def __init__(self) -> None:
        self._running = 0

    async def sink(self, request: web.Request) -> web.StreamResponse:
        if (request.content_length or 0) > MAX_TRANSFER_BYTES:
            return _too_much()
        return await self._limited(self._read(request))

    async def source(self, request: web.Request) -> web.StreamResponse:
        text = request.query.get("bytes", "")
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            return _refusal(400, "?bytes=N names how many bytes to send")
        if int(text) > MAX_TRANSFER_BYTES:
            return _too_much()
        return await self._limited(self._write(request, int(text)))

    async def _limited(self, transfer: Coroutine[Any, Any, web.StreamResponse]) -> web.StreamResponse:
        if self._running >= _MAX_AT_ONCE:
            transfer.close()
            return _refusal(503, f"{_MAX_AT_ONCE} links are being measured already", _RETRY_AFTER_S)
        self._running += 1
        try:
            return await asyncio.wait_for(transfer, _TRANSFER_TIMEOUT_S)
        except asyncio.TimeoutError:
            return _refusal(408, f"the transfer took longer than {_TRANSFER_TIMEOUT_S:.0f} s")
        finally:
            self._running -= 1

    async def _read(self, request: web.Request) -> web.StreamResponse:
        size_bytes = 0
        async for piece in request.content.iter_any():
            size_bytes += len(piece)
            if size_bytes > MAX_TRANSFER_BYTES:
                return _too_much()
        return web.Response(status=204)

    async def _write(self, request: web.Request, size_bytes: int) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = size_bytes
        await response.prepare(request)
        for start in range(0, size_bytes, len(_PIECE)):
            await response.write(_PIECE[: size_bytes - start])
        await response.write_eof()
        return response


def _too_much() -> web.Response:
    return _refusal(413, f"a transfer has at most {MAX_TRANSFER_BYTES} bytes")


def _refusal(status: int, problem: str, retry_after_s: float | None = None) -> web.Response:
    body = encode_error(ErrorBody(error="RefusedError", problem=problem, retry_after_s=retry_after_s))
    return web.Response(status=status, body=body, content_type=MEDIA_TYPE)
