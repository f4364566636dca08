"""``GET /models/{sha256}``: how workers and the coordinator share the models they hold."""

from __future__ import annotations

import asyncio

from aiohttp import web

from compass_shared.model_cache import ModelCache, is_sha256


def model_routes(cache: ModelCache) -> list[web.RouteDef]:
    """Routes that serve a cache's files by hash, to be added to an application.

    Answers 400 to what is not a SHA-256, 404 to what is not held, else the bytes with their length.
    The receiver verifies them: nobody has to trust the sender.
    """

    async def get_model(request: web.Request) -> web.StreamResponse:
        sha256 = request.match_info["sha256"]
        if not is_sha256(sha256):
            raise web.HTTPBadRequest(text="a model is named by 64 lower-case hexadecimal digits\n")
        if not await asyncio.to_thread(cache.has, sha256):
            raise web.HTTPNotFound(text="not held here\n")
        return web.FileResponse(cache.path_of(sha256), headers={"Content-Type": "application/octet-stream"})

    return [web.get("/models/{sha256}", get_model)]
