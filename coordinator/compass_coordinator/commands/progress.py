"""What a command is busy with, for people who wait: nothing for short work, a line for longer."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

PATIENCE_S = 2.0
"""Work that takes longer than this is announced."""


@contextlib.contextmanager
def busy_with(what: str) -> Iterator[None]:
    """Say on stderr what goes on, if the block takes longer than ``PATIENCE_S``.

    Args:
        what: ``planning 500 queries at 22 sites``.
    """
    timer = threading.Timer(PATIENCE_S, _say, args=(what,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _say(what: str) -> None:
    print(f"compass: {what} ...", file=sys.stderr, flush=True)
