"""Child processes that speak JSON lines: commands on stdin, events on stdout, logs in a file."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from compass_shared.errors import TransportError

OnEvent = Callable[[str, Mapping[str, Any]], None]
"""Told (child, event)."""

_LINE_LIMIT = 16 * 1024 * 1024
_STOP_TIMEOUT_S = 8.0
_LOG_TAIL_LINES = 12


class Child:
    """One child process.

    Args:
        name: For people.
        module: Python module that it runs.
        arguments: Its command line.
        log: File that its stderr goes to.
        on_event: Told every event, on the event loop.
    """

    def __init__(
        self, name: str, module: str, arguments: Sequence[str], *, log: Path, on_event: OnEvent
    ) -> None:
        self.name = name
        self._command = [sys.executable, "-m", module, *arguments]
        self._log = log
        self._on_event = on_event
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self.ended: asyncio.Future[str] | None = None
        """Set, with the reason, when the process ended without being asked to."""
        self._stopping = False

    async def start(self) -> None:
        """Start the process."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=_LINE_LIMIT,
                # Ctrl-C reaches the demo alone, which then stops its children in order.
                start_new_session=True,
            )
        self.ended = asyncio.get_running_loop().create_future()
        self._reader = asyncio.create_task(self._read(), name=f"events of {self.name}")

    def send(self, command: Mapping[str, Any]) -> None:
        """Send one command."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")

    async def stop(self) -> None:
        """Ask the process to end; after a while, end it."""
        self._stopping = True
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), _STOP_TIMEOUT_S)
        except asyncio.TimeoutError:
            process.kill()
            await process.wait()
        if self._reader is not None:
            await asyncio.gather(self._reader, return_exceptions=True)

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                continue  # something printed by a library
            self._on_event(self.name, event)
        code = await self._process.wait()
        if not self._stopping and self.ended is not None and not self.ended.done():
            self.ended.set_result(f"{self.name} ended with exit code {code}:\n{self._tail()}")

    def _tail(self) -> str:
        with contextlib.suppress(OSError):
            lines = self._log.read_text(errors="replace").splitlines()
            return "\n".join(lines[-_LOG_TAIL_LINES:])
        return ""


class Children:
    """All child processes of a demo; none outlives the ``async with`` block.

    Args:
        logs: Folder for their stderr.
    """

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._children: dict[str, Child] = {}

    async def __aenter__(self) -> Children:
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(child.stop() for child in self._children.values()))

    async def start(self, name: str, module: str, arguments: Sequence[str], on_event: OnEvent) -> Child:
        """Start one more; ``on_event`` is told its events, on the event loop."""
        child = Child(name, module, arguments, log=self._logs / f"{name}.log", on_event=on_event)
        self._children[name] = child
        await child.start()
        return child

    async def stop(self, name: str) -> None:
        """Stop one."""
        await self._children.pop(name).stop()

    async def until(self, event: asyncio.Event, what: str, timeout_s: float) -> None:
        """Wait for something that the children bring about.

        Raises:
            TransportError: If a child ended first, or the time is up.
        """
        waiting: asyncio.Future[Any] = asyncio.ensure_future(event.wait())
        ends = [child.ended for child in self._children.values() if child.ended is not None]
        try:
            await asyncio.wait([waiting, *ends], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        for end in ends:
            if end.done():
                raise TransportError(end.result())
        if not event.is_set():
            raise TransportError(f"{what} took longer than {timeout_s:.0f} s; see the logs in {self._logs}")
