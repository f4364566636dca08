"""What ``compass profile`` shows while it works: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from compass_coordinator.profiler.selective import Status

QUIET_S = 10.0
"""Between two lines where there is no terminal."""


class ProfileScreen:
    """Progress of a profiling run, on stderr.

    Args:
        quiet: Show no progress, only what is said.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        console = Console(stderr=True)
        self._quiet = quiet
        self._live = console.is_terminal and not quiet
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed:.0f}/{task.total:.0f} configs decided"),
            TextColumn("{task.fields[spent]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not self._live,
        )
        self._task = self._progress.add_task("starting", total=1, spent="")
        self._said_s = time.monotonic()

    def __enter__(self) -> ProfileScreen:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """One line."""
        if self._live:
            self._progress.console.print(f"compass: {text}", highlight=False)
        else:
            print(f"compass: {text}", file=sys.stderr, flush=True)

    def show(self, status: Status) -> None:
        """How far it is."""
        wrong = "" if status.wrong is None else f", wrong {status.wrong:.1%}"
        spent = f"{status.spent_s:.1f} operator-s{wrong}"
        if self._live:
            self._progress.update(
                self._task,
                description=_short(status.doing),
                completed=status.decided,
                total=status.configs,
                spent=spent,
            )
        elif not self._quiet and time.monotonic() - self._said_s >= QUIET_S:
            self._said_s = time.monotonic()
            self.say(f"{status.doing}; {status.decided} of {status.configs} configs decided, {spent}")


def _short(text: str, width: int = 48) -> str:
    return text if len(text) <= width else f"...{text[-width + 3 :]}"
