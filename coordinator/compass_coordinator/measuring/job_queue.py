"""Which measuring process does which job next."""

from __future__ import annotations

from collections import deque

from compass_shared.measured import Job


class JobQueue:
    """Which job a process does next.

    Args:
        shared: Whether processes share their results: then an input may go from one to another.
    """

    def __init__(self, *, shared: bool) -> None:
        self._shared = shared
        self._waiting: dict[int, deque[Job]] = {}
        """Input -> its jobs, in the order that they came."""
        self._owner: dict[int, int] = {}
        """Input -> worker that has its results in memory."""
        self._busy: set[int] = set()
        """Inputs that are worked on."""

    def put(self, job: Job) -> None:
        """Add a job."""
        self._waiting.setdefault(job.input, deque()).append(job)

    def take(self, worker: int) -> Job | None:
        """The next job of a worker, if there is one for it: of its own inputs first, then of nobody's."""
        own = (index for index in self._waiting if self._owner.get(index) == worker)
        free = (index for index in self._waiting if index not in self._owner)
        others = (index for index in self._waiting if self._shared and index not in self._busy)
        index = next((index for choice in (own, free, others) for index in choice), None)
        if index is None:
            return None
        self._owner[index] = worker
        self._busy.add(index)
        job = self._waiting[index].popleft()
        if not self._waiting[index]:
            del self._waiting[index]
        return job

    def finish(self, job: Job) -> None:
        """A job that was taken is done."""
        self._busy.discard(job.input)
