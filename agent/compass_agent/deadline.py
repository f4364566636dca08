"""Times until which something is wanted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

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


_PRESENT: ContextVar[Deadline | None] = ContextVar("present_deadline", default=None)


@contextmanager
def present(deadline: Deadline | None) -> Iterator[None]:
    """Make this the deadline of what runs in this thread meanwhile."""
    token = _PRESENT.set(deadline)
    try:
        yield
    finally:
        _PRESENT.reset(token)


def left_s(most_s: float) -> float:
    """Time that what waits for others may take here: until the present deadline, ``most_s`` at most.

    Raises:
        DeadlineError: If it has passed.
    """
    deadline = _PRESENT.get()
    if deadline is None:
        return most_s
    deadline.check()
    return min(most_s, deadline.remaining_s())
