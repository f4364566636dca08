"""Time, injected: pure code takes ``now_s``; shells own one of these."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A source of monotonic seconds."""

    def now_s(self) -> float:
        """Seconds since an arbitrary start; never goes back."""


class MonotonicClock:
    """The machine's own monotonic clock."""

    def now_s(self) -> float:
        """Seconds since boot or so."""
        return time.monotonic()


class VirtualClock:
    """A clock that only moves when told to, for tests and the simulator."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now_s = start_s

    def now_s(self) -> float:
        """The time it was last set to."""
        return self._now_s

    def advance(self, seconds: float) -> None:
        """Move forward.

        Raises:
            ValueError: If ``seconds`` is negative.
        """
        if seconds < 0:
            raise ValueError(f"time does not go back: {seconds} s")
        self._now_s += seconds
