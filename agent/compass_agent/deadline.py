"""Times until which something is wanted."""

from __future__ import annotations

import math

from compass_shared.clock import Clock, MonotonicClock
from compass_shared.errors import DeadlineError


class Deadline:
    """A time until which something is wanted; it is looked at between operators, never inside one.

    Args:
        what: What is waited for, for the error.
        allowed_s: Time from now.
        clock: The time.
    """

    def __init__(self, what: str, allowed_s: float, *, clock: Clock | None = None) -> None:
        self._what = what
        self._allowed_s = allowed_s
        self._clock = clock or MonotonicClock()
        self._until_s = self._clock.now_s() + allowed_s

    def remaining_s(self) -> float:
        """Time that is left; negative when it has passed."""
        return self._until_s - self._clock.now_s()

    def give_up(self) -> None:
        """Nobody waits any more: the next check fails."""
        self._until_s = -math.inf

    def check(self) -> None:
        """Go on only in time.

        Raises:
            DeadlineError: If it has passed or was given up.
        """
        if not self.remaining_s() > 0:  # NaN, from the wire, is no time either
            raise DeadlineError(self._what, self._allowed_s)
