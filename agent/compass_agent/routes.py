"""Where a worker is reached: its own address, or the shaping proxy that emulates the link to it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from urllib.parse import urlsplit

from compass_agent.emulate.link import Shape
from compass_agent.emulate.proxy import ShapingProxy
from compass_shared.errors import TransportError
from compass_shared.messages import WorkerInfo
from compass_shared.site import Tier


class LinkProxies:
    """One shaping proxy for each worker whose tier has a shape.

    Args:
        shapes: Tier of the worker -> emulated link.
        rng: Draws jitter.
    """

    def __init__(self, shapes: Mapping[Tier, Shape], *, rng: random.Random) -> None:
        self._shapes = dict(shapes)
        self._rng = rng
        self._proxies: dict[str, ShapingProxy] = {}
        """Worker's own address -> proxy."""

    async def through(self, worker: WorkerInfo) -> str:
        """Address to use for a worker; starts its proxy if it has to go through one.

        Raises:
            TransportError: If the worker's address is no URL.
        """
        shape = self._shapes.get(worker.tier)
        if shape is not None and worker.address not in self._proxies:
            parts = urlsplit(worker.address)
            if parts.hostname is None or parts.port is None:
                raise TransportError(f"{worker.address!r} names no host and port")
            proxy = ShapingProxy(parts.hostname, parts.port, shape, rng=self._rng)
            await proxy.start()
            self._proxies[worker.address] = proxy
        return self.address_of(worker.address)

    def address_of(self, address: str) -> str:
        """Address to use for a worker that ``through`` was asked for, else its own."""
        proxy = self._proxies.get(address)
        return address if proxy is None else f"http://127.0.0.1:{proxy.port}"

    async def close(self) -> None:
        """Stop all proxies."""
        for proxy in self._proxies.values():
            await proxy.close()
        self._proxies.clear()
