"""The HTTP server of a worker: segments, models, and what links are measured by."""

from __future__ import annotations

from aiohttp import web

from compass_agent.measure.routes import link_routes
from compass_agent.worker import Worker, create_app
from compass_shared.errors import TransportError
from compass_shared.model_cache import ModelCache
from compass_shared.model_routes import model_routes


class DataPlane:
    """A worker's server.

    Args:
        worker: What answers segment calls.
        cache: Models to serve.
        advertise: Base URL under which others reach it, if not the address it listens on.
    """

    def __init__(self, worker: Worker, cache: ModelCache, *, advertise: str | None = None) -> None:
        app = create_app(worker, routes=[*model_routes(cache), *link_routes()])
        # Handlers are left alone at shutdown only for as long as a request may still be answered.
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        self._advertise = advertise
        self.address = ""
        """Base URL, once started."""

    async def start(self, host: str, port: int) -> None:
        """Listen.

        Raises:
            TransportError: If the address is taken or not ours.
        """
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise TransportError(f"cannot listen on {host}:{port}: {error.strerror}") from error
        bound_port = self._runner.addresses[0][1]
        self.address = self._advertise or f"http://{host}:{bound_port}"

    async def close(self) -> None:
        """Stop listening and end what is under way."""
        await self._runner.cleanup()
