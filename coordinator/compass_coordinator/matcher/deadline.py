"""The one clock of the matcher: it only ever cuts work short, it never decides between choices."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment after which no further improvement is begun."""

    at_s: float
    """On the monotonic clock; infinite for no limit."""

    @classmethod
    def after(cls, limit_s: float | None) -> Deadline:
        """The moment ``limit_s`` seconds from now; None for never."""
        return cls(math.inf if limit_s is None else time.monotonic() + limit_s)

    @property
    def limited(self) -> bool:
        """Whether there is a limit at all."""
        return self.at_s < math.inf

    def passed(self) -> bool:
        """Whether it is too late. Without a limit no clock is read."""
        return self.at_s < math.inf and time.monotonic() >= self.at_s

    def left_s(self) -> float:
        """Seconds left, >= 0; infinite without a limit."""
        return math.inf if self.at_s == math.inf else max(0.0, self.at_s - time.monotonic())
