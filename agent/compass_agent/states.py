"""State of stateful operators, kept from one request of a query to the next.

A *cell* holds what one operator keeps for one query at this site. It knows the operator's variant, the
stream and the last position that it saw:

    no cell, another variant, a higher stream, or a call that failed before   a fresh state
    the next request of the stream                                            the state, ``gap`` 0
    one that skips n positions (they ran elsewhere, or were lost)             the state, ``gap`` n
    one that is late or runs once more                                        the state, ``gap`` < 0
    a straggler: of a lower stream, or late and of another variant            a state that is thrown away

A call that fails leaves no state: it may have changed half of it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from compass_shared.values import State

if TYPE_CHECKING:
    from compass_agent.deadline import Deadline

MAX_QUERIES = 256
"""Queries whose states are kept; each has as many cells as its pipeline has stateful operators."""

_LOOK_S = 0.02
"""How often a call that waits for another one looks whether it is still wanted."""


@dataclass(slots=True)
class _Cell:
    """What one operator keeps for one query."""

    turn: threading.Condition = field(default_factory=threading.Condition)
    """Guards ``busy`` and ``waiting``; the rest belongs to whose turn it is."""
    busy: bool = False
    """Whether the operator runs."""
    waiting: list[tuple[int, int]] = field(default_factory=list)
    """Stream and position of those who wait for their turn, the lowest of which is next."""
    state: State | None = None
    variant: str = ""
    stream: int = -1
    last: int = -1
    """Highest position of the stream that the state saw."""

    @contextmanager
    def taking_turns(self, stream: int, position: int, deadline: Deadline | None) -> Iterator[None]:
        """Wait for one's turn, and keep it while the context lasts; a deadline may be given up meanwhile."""
        who = stream, position
        with self.turn:
            self.waiting.append(who)
            try:
                while self.busy or who != min(self.waiting):
                    self.turn.wait(_patience_s(deadline))
                _patience_s(deadline)
                self.busy = True
            finally:
                self.waiting.remove(who)
                self.turn.notify_all()  # of those who still wait another one may be the next now
        try:
            yield
        finally:
            with self.turn:
                self.busy = False
                self.turn.notify_all()

    def take(self, variant: str, stream: int, position: int) -> State:
        """The state for the request whose turn it is."""
        same = variant == self.variant
        if stream < self.stream or (stream == self.stream and position < self.last and not same):
            return State()
        if self.state is None or not same or stream > self.stream:
            self.state, self.last = State(), position
        else:
            self.state.gap = position - self.last - 1
            self.last = max(position, self.last)
        self.variant, self.stream = variant, stream
        return self.state

    def spoil(self, state: State) -> None:
        """Keep a state no longer, if it is the one that is kept."""
        if self.state is state:
            self.state = None


class _Cells:
    """The cells of one query: operator -> cell."""

    def __init__(self) -> None:
        self._cells: dict[str, _Cell] = {}
        self._lock = threading.Lock()

    def of(self, operator: str) -> _Cell:
        with self._lock:
            return self._cells.setdefault(operator, _Cell())

    def keep(self, variants: Collection[str]) -> None:
        with self._lock:
            self._cells = {name: cell for name, cell in self._cells.items() if cell.variant in variants}


@dataclass(frozen=True, slots=True)
class RequestStates:
    """The states as one request of a stream may use them."""

    _cells: _Cells
    stream: int
    position: int

    @contextmanager
    def held(self, operator: str, variant: str, *, deadline: Deadline | None = None) -> Iterator[State]:
        """The operator's state, for this request alone as long as the context lasts.

        Blocks while another request of the query runs the operator; of those who wait the earliest request
        is next. An error inside drops the state.

        Args:
            operator: Its name.
            variant: Its name and knobs, from ``pipeline.variant_key``.
            deadline: Until when to wait.

        Raises:
            DeadlineError: The time is over, or nobody waits for the request any more.
        """
        cell = self._cells.of(operator)
        with cell.taking_turns(self.stream, self.position, deadline):
            state = cell.take(variant, self.stream, self.position)
            try:
                yield state
            except BaseException:
                cell.spoil(state)
                raise


class StateBook:
    """The states kept at one site; any number of threads may use it at once.

    The query that was not used for longest gives way when there are too many.

    Args:
        max_queries: Most queries that states are kept of.
    """

    def __init__(self, *, max_queries: int = MAX_QUERIES) -> None:
        self._max_queries = max_queries
        self._queries: OrderedDict[str, _Cells] = OrderedDict()
        """The one used last is last."""
        self._lock = threading.Lock()

    def __contains__(self, query: str) -> bool:
        return query in self._queries

    def __len__(self) -> int:
        return len(self._queries)

    def of(self, *, query: str, stream: int, position: int) -> RequestStates:
        """The states for one request of a query.

        What was dropped after this is not made again by this request: it ends on states of its own.
        """
        with self._lock:
            cells = self._queries.setdefault(query, _Cells())
            self._queries.move_to_end(query)
            while len(self._queries) > self._max_queries:
                self._queries.popitem(last=False)
        return RequestStates(cells, stream, position)

    def drop(self, query: str) -> None:
        """Forget all of a query."""
        with self._lock:
            self._queries.pop(query, None)

    def keep(self, query: str, variants: Collection[str]) -> None:
        """Forget of a query what belongs to none of these variants: it runs elsewhere, or otherwise, now."""
        with self._lock:
            cells = self._queries.get(query)
        if cells is not None:
            cells.keep(variants)


def _patience_s(deadline: Deadline | None) -> float | None:
    """How long to wait before one looks at the deadline again.

    Raises:
        DeadlineError: It has passed, or was given up.
    """
    if deadline is None:
        return None
    deadline.check()
    return min(_LOOK_S, deadline.remaining_s())
