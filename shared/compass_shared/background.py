"""Work that a shell has under way: named tasks that are kept, logged when they fail, and ended together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any


class Background:
    """Background tasks of one shell.

    Args:
        logger: Where a task that fails is reported.
        on_failure: Told the task's name and its error, after the report.
    """

    def __init__(
        self,
        logger: logging.Logger,
        on_failure: Callable[[str, BaseException], None] = lambda _name, _error: None,
    ) -> None:
        self._logger = logger
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[None]] = set()
        """The event loop keeps no strong reference to a task; this does."""

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start a task on the running loop."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def end(self) -> None:
        """Cancel what is under way and wait until it has ended."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._logger.error("%s failed: %s", task.get_name(), error, exc_info=error)
            self._on_failure(task.get_name(), error)
