"""Streams: which requests of a query follow each other."""

from __future__ import annotations

from collections import OrderedDict

MAX_STREAMS = 1024
"""Queries that are counted; of more, the one that was not used for longest begins a new stream."""


class Streams:
    """Numbers the requests of every query, in the order in which they are submitted.

    Args:
        first: Number of the first stream; the session epoch, so that a later session's are higher. Every
            stream has a higher number than all before it, of whatever query: one that was forgotten and
            comes back is never taken for an earlier stream of its own.
    """

    def __init__(self, first: int) -> None:
        self._next_stream = first
        self._next: OrderedDict[str, tuple[int, int]] = OrderedDict()
        """Query -> stream and position of its next request; the one used last is last."""

    def next(self, query: str, *, new_stream: bool = False) -> tuple[int, int]:
        """Stream and position of a query's next request."""
        known = self._next.pop(query, None)
        if known is None or new_stream:
            known = self._next_stream, 0
            self._next_stream += 1
        stream, position = known
        self._next[query] = stream, position + 1
        if len(self._next) > MAX_STREAMS:
            self._next.popitem(last=False)
        return known

    def end(self, query: str) -> None:
        """The query's next request begins a new stream."""
        self._next.pop(query, None)
