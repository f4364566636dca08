"""State between requests: whose it is, when it is fresh, and that calls for it come one at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from compass_agent.deadline import Deadline
from compass_agent.states import StateBook
from compass_agent.streams import MAX_STREAMS, Streams
from compass_shared.clock import VirtualClock
from compass_shared.errors import DeadlineError


def seen(
    book: StateBook,
    position: int,
    *,
    query: str = "q",
    stream: int = 5,
    operator: str = "track",
    variant: str = "track[model=a]",
) -> tuple[list[int], int]:
    """Positions that this and earlier requests left in the state, and its gap."""
    states = book.of(query=query, stream=stream, position=position)
    with states.held(operator, variant) as state:
        state.setdefault("positions", []).append(position)
        return list(state["positions"]), state.gap


@pytest.fixture
def book() -> StateBook:
    return StateBook()


def test_requests_of_a_stream_find_what_the_last_one_left(book: StateBook) -> None:
    assert [seen(book, position) for position in range(3)] == [([0], 0), ([0, 1], 0), ([0, 1, 2], 0)]


@pytest.mark.parametrize("other", [{"query": "r"}, {"operator": "count"}])
def test_queries_and_operators_have_states_of_their_own(book: StateBook, other: dict[str, str]) -> None:
    seen(book, 0)
    assert seen(book, 1, **other) == ([1], 0)  # type: ignore[arg-type]
    assert seen(book, 1) == ([0, 1], 0)


def test_a_gap_says_how_many_requests_were_missed_here(book: StateBook) -> None:
    gaps = [seen(book, position)[1] for position in (4, 5, 9, 10, 7, 10, 11)]
    assert gaps == [0, 0, 3, 0, -4, -1, 0], "a late one does not turn the time back"


@pytest.mark.parametrize("change", [{"stream": 6}, {"variant": "track[model=b]"}], ids=str)
def test_a_new_stream_or_variant_begins_anew(book: StateBook, change: dict[str, int | str]) -> None:
    seen(book, 3)
    assert seen(book, 4, **change) == ([4], 0)  # type: ignore[arg-type]
    assert seen(book, 6, **change) == ([4, 6], 1)  # type: ignore[arg-type]


def test_a_position_of_a_new_stream_may_be_lower(book: StateBook) -> None:
    seen(book, 30)
    seen(book, 0, stream=6)
    assert seen(book, 1, stream=6) == ([0, 1], 0)


@pytest.mark.parametrize("straggler", [{"stream": 4}, {"variant": "track[model=b]"}], ids=str)
def test_stragglers_get_a_state_that_is_thrown_away(book: StateBook, straggler: dict[str, int | str]) -> None:
    seen(book, 3)
    for _ in range(2):
        assert seen(book, 2, **straggler) == ([2], 0)  # type: ignore[arg-type]
    assert seen(book, 4) == ([3, 4], 0)


def test_a_call_that_fails_leaves_nothing(book: StateBook) -> None:
    seen(book, 0)
    with pytest.raises(KeyError), book.of(query="q", stream=5, position=1).held("track", "track[model=a]"):
        raise KeyError
    assert seen(book, 2) == ([2], 0)
    assert seen(book, 9, stream=4) == ([9], 0), "a lower stream is a straggler all the same"
    assert seen(book, 3) == ([2, 3], 0)


def test_a_straggler_that_fails_harms_nobody(book: StateBook) -> None:
    seen(book, 0)
    with pytest.raises(KeyError), book.of(query="q", stream=4, position=0).held("track", "track[model=a]"):
        raise KeyError
    assert seen(book, 1) == ([0, 1], 0)


def test_the_query_not_used_for_longest_gives_way() -> None:
    book = StateBook(max_queries=2)
    for query in ("q", "r", "q", "s"):
        seen(book, 0, query=query)
    assert (len(book), "r" in book) == (2, False)
    assert seen(book, 1, query="q")[0] == [0, 0, 1]
    assert seen(book, 1, query="r") == ([1], 0)


def test_what_was_dropped_is_not_made_again_by_what_is_under_way(book: StateBook) -> None:
    under_way = book.of(query="q", stream=5, position=0)
    book.drop("q")
    book.drop("never heard of")
    with under_way.held("track", "track[model=a]") as state:
        state["late"] = True
    assert len(book) == 0
    assert seen(book, 1) == ([1], 0)


def test_states_of_other_variants_are_dropped(book: StateBook) -> None:
    seen(book, 0)
    seen(book, 0, operator="count", variant="count")
    book.keep("q", {"count", "find"})
    book.keep("never heard of", {"count"})
    assert seen(book, 1) == ([1], 0)
    assert seen(book, 1, operator="count", variant="count") == ([0, 1], 0)


# --- one at a time --------------------------------------------------------------------------------


def _started(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_calls_of_many_threads_come_one_at_a_time(book: StateBook) -> None:
    inside: list[int] = []
    most: list[int] = []

    def count(start: int) -> None:
        for position in range(start, 400, 4):
            states = book.of(query="q", stream=1, position=position)
            with states.held("track", "track") as state:
                inside.append(position)
                most.append(len(inside))
                state["calls"] = state.get("calls", 0) + 1
                inside.pop()

    for thread in [_started(lambda start=start: count(start)) for start in range(4)]:  # type: ignore[misc]
        thread.join()
    with book.of(query="q", stream=1, position=400).held("track", "track") as state:
        assert state["calls"] == 400, "none was lost"
    assert set(most) == {1}


def test_of_those_who_wait_the_earliest_request_is_next(book: StateBook) -> None:
    waiting = {position: Deadline(f"r{position}", 1e9) for position in (3, 1, 2)}
    ran: list[int] = []

    def run(position: int) -> None:
        states = book.of(query="q", stream=1, position=position)
        with states.held("track", "track", deadline=waiting[position]):
            ran.append(position)

    def others() -> int:
        return len(book._queries["q"].of("track").waiting)

    threads = []
    with book.of(query="q", stream=1, position=0).held("track", "track"):
        for position in waiting:
            threads.append(_started(lambda position=position: run(position)))  # type: ignore[misc]
            while others() < len(threads):
                pass
    for thread in threads:
        thread.join()
    assert ran == [1, 2, 3]


def test_other_queries_do_not_wait(book: StateBook) -> None:
    first = book.of(query="q", stream=1, position=0)
    with first.held("track", "track"):
        assert seen(book, 0, query="r") == ([0], 0)
        assert seen(book, 0, operator="count") == ([0], 0)


def _refused_while_held(book: StateBook, deadline: Deadline, after: Callable[[], None]) -> None:
    """A second call waits for the first, which goes on holding the state, until ``after`` ends its time."""
    waiting, refused = threading.Event(), threading.Event()

    def second() -> None:
        waiting.set()
        with (
            pytest.raises(DeadlineError),
            book.of(query="q", stream=1, position=1).held("track", "track", deadline=deadline),
        ):
            raise AssertionError("it was not its turn")
        refused.set()

    with book.of(query="q", stream=1, position=0).held("track", "track"):
        thread = _started(second)
        assert waiting.wait(30)
        after()
        assert refused.wait(30)
        thread.join()
    assert seen(book, 1, stream=1, variant="track") == ([1], 0), "the lock is free again"


def test_who_waits_gives_up_at_its_deadline(book: StateBook) -> None:
    clock = VirtualClock()
    _refused_while_held(book, Deadline("r2", 5.0, clock=clock), lambda: clock.advance(6.0))


def test_who_waits_gives_up_when_nobody_wants_it_any_more(book: StateBook) -> None:
    deadline = Deadline("r2", 1000.0)
    _refused_while_held(book, deadline, deadline.give_up)


def test_a_turn_that_comes_too_late_is_not_taken(book: StateBook) -> None:
    deadline = Deadline("r1", 0.0, clock=VirtualClock())
    states = book.of(query="q", stream=5, position=0)
    with pytest.raises(DeadlineError), states.held("track", "track[model=a]", deadline=deadline):
        raise AssertionError("it was not its turn")
    assert seen(book, 1) == ([1], 0)


# --- streams --------------------------------------------------------------------------------------


def test_requests_are_numbered_by_query() -> None:
    streams = Streams(100)
    assert [streams.next("q") for _ in range(3)] == [(100, 0), (100, 1), (100, 2)]
    assert [streams.next("r"), streams.next("q")] == [(101, 0), (100, 3)]


def test_a_new_stream_has_a_higher_number_than_all_before() -> None:
    streams = Streams(100)
    streams.next("q")
    streams.next("r")
    assert [streams.next("q", new_stream=True), streams.next("q")] == [(102, 0), (102, 1)]
    streams.end("q")
    streams.end("never heard of")
    assert [streams.next("q"), streams.next("r")] == [(103, 0), (101, 1)]


def test_queries_without_number_are_counted_in_bounded_memory() -> None:
    streams = Streams(0)
    streams.next("first")
    for index in range(MAX_STREAMS):
        streams.next(f"q{index}")
    assert streams.next(f"q{MAX_STREAMS - 1}")[1] == 1
    assert streams.next("first") == (MAX_STREAMS + 1, 0), "forgotten, and never taken for its former self"
