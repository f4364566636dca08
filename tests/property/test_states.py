"""Whatever moves, restarts and interleavings happen, a state holds requests of one query and stream only."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from compass_agent.states import StateBook
from compass_agent.streams import Streams

SITES = ("phone", "edge")
QUERIES = ("q", "r")
VARIANTS = ("track[model=a]", "track[model=b]")

REQUESTS = st.tuples(
    st.sampled_from(QUERIES),
    st.booleans(),  # a new stream
    st.sampled_from(SITES),
    st.sampled_from(VARIANTS),
    st.integers(0, 4),  # how many later ones overtake it
    st.sampled_from(["fine", "fine", "fine", "fails", "withdrawn before", "moved before"]),
)


@given(st.lists(REQUESTS, max_size=40))
def test_states_are_never_mixed(requests: list[tuple[str, bool, str, str, int, str]]) -> None:
    streams = Streams(7)
    books = {site: StateBook(max_queries=2) for site in SITES}
    numbered = [
        (index + delay, streams.next(query, new_stream=new), query, site, variant, what)
        for index, (query, new, site, variant, delay, what) in enumerate(requests)
    ]
    for _, (stream, position), query, site, variant, what in sorted(numbered, key=lambda one: one[0]):
        book = books[site]
        if what == "withdrawn before":
            book.drop(query)
        elif what == "moved before":
            book.keep(query, {variant})
        states = book.of(query=query, stream=stream, position=position)
        try:
            with states.held("track", variant) as state:
                who = query, stream, variant
                assert state.setdefault("who", who) == who
                positions = state.setdefault("positions", [])
                assert state.gap == (position - max(positions) - 1 if positions else 0)
                positions.append(position)
                _ = 1 // (what != "fails")
        except ZeroDivisionError:
            assert what == "fails"


@given(st.lists(st.sampled_from(VARIANTS), min_size=1, max_size=20), st.integers(0, 3))
def test_a_stream_that_stays_at_one_site_loses_nothing(variants: list[str], every: int) -> None:
    """Each run of requests of one variant is one state with all of them, whatever other queries do."""
    book = StateBook()
    run: list[int] = []
    for position, variant in enumerate(variants):
        if position and variants[position - 1] != variant:
            run = []
        run.append(position)
        with book.of(query="q", stream=1, position=position).held("track", variant) as state:
            state.setdefault("positions", []).append(position)
            assert state["positions"] == run
        for other in range(every):
            with book.of(query=f"r{other}", stream=position, position=0).held("track", variant) as state:
                assert state.setdefault("only", position) == position
