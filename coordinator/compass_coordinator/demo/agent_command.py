"""Commands of ``compass-agent`` that the demo runs to their end, each in a process of its own."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_TAIL_LINES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended."""

    code: int
    tail: str
    """The last lines that it said on stderr."""


async def run_agent_command(
    arguments: Sequence[str], on_line: Callable[[str], object] = lambda _line: None
) -> Ended:
    """Run ``compass-agent`` with these arguments; a caller that is cancelled ends it.

    Args:
        arguments: After ``compass-agent``.
        on_line: Told every line of stderr.
    """
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "compass_agent", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    try:
        async for raw in process.stderr:
            line = raw.decode(errors="replace").rstrip()
            tail.append(line)
            on_line(line)
        code = await process.wait()
    except asyncio.CancelledError:
        process.terminate()
        await process.wait()
        raise
    return Ended(code=code, tail="\n".join(tail))
