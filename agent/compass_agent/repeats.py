"""Calls that come twice are run once: answers under way, and the latest ones."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass
from typing import Any

MAX_REPLIES = 256
MAX_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Reply:
    """What is sent back for a call."""

    status: int
    body: bytes
    retry_after_s: float | None = None


class Repeats:
    """Replies by key, as long as there is room for them.

    Args:
        keep: Which replies are final; others (a refusal) may be otherwise when the call comes again.
        max_replies: How many are kept.
        max_bytes: How much they may take.
    """

    def __init__(
        self, keep: Callable[[Reply], bool], *, max_replies: int = MAX_REPLIES, max_bytes: int = MAX_BYTES
    ) -> None:
        self._keep = keep
        self._max_replies = max_replies
        self._max_bytes = max_bytes
        self._running: dict[Hashable, asyncio.Task[Reply]] = {}
        self._replies: OrderedDict[Hashable, Reply] = OrderedDict()
        """The newest last."""
        self._bytes = 0

    def __contains__(self, key: Hashable) -> bool:
        return key in self._running or key in self._replies

    async def once(self, key: Hashable, make: Callable[[], Coroutine[Any, Any, Reply]]) -> Reply:
        """The reply of that key, made now if it is new; a caller that goes away does not stop it."""
        if (reply := self._replies.get(key)) is not None:
            return reply
        if key not in self._running:
            self._running[key] = asyncio.create_task(make())
            self._running[key].add_done_callback(lambda task: self._finished(key, task))
        return await asyncio.shield(self._running[key])

    async def close(self) -> None:
        """Give up what is under way."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _finished(self, key: Hashable, task: asyncio.Task[Reply]) -> None:
        del self._running[key]
        if task.cancelled() or task.exception() is not None or not self._keep(task.result()):
            return
        self._replies[key] = task.result()
        self._bytes += len(task.result().body)
        while len(self._replies) > self._max_replies or self._bytes > self._max_bytes:
            _, oldest = self._replies.popitem(last=False)
            self._bytes -= len(oldest.body)
