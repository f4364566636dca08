from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TypeVar

from hypothesis import given
from hypothesis import strategies as st

from compass_shared.errors import MessageError
from compass_shared.names import NAME_PATTERN
from compass_shared.topic_tree import FilterTree, TopicTree, matches
from compass_shared.topics import Kind, Topic, parse

T = TypeVar("T")

NAMES = st.from_regex(NAME_PATTERN, fullmatch=True)
OF_AN_AGENT = st.sampled_from([Kind.STATUS, Kind.HELLO, Kind.TELEMETRY, Kind.PROFILE, Kind.ACK])
OF_A_QUERY = st.sampled_from([Kind.QUERY, Kind.ASSIGNMENT, Kind.SHARE])
TOPICS = st.one_of(
    st.builds(Topic, fleet=NAMES, kind=OF_AN_AGENT, agent=NAMES),
    st.builds(Topic, fleet=NAMES, kind=OF_A_QUERY, agent=NAMES, item=NAMES),
    st.builds(Topic, fleet=NAMES, kind=st.just(Kind.PIPELINE), item=NAMES),
    st.builds(Topic, fleet=NAMES, kind=st.just(Kind.COORDINATOR)),
)
LEVELS = st.sampled_from(["a", "b", "", "$a"])
PATHS = st.lists(LEVELS, min_size=1, max_size=4)
PATTERNS = st.builds(
    lambda levels, rest: levels + rest,
    st.lists(st.one_of(LEVELS, st.just("+")), min_size=1, max_size=4),
    st.sampled_from([[], ["#"]]),
) | st.just(["#"])


@given(TOPICS)
def test_a_topic_is_what_its_text_parses_to(topic: Topic) -> None:
    assert parse(str(topic)) == topic


@given(
    st.text() | TOPICS.map(str).flatmap(lambda text: st.sampled_from([text[:-1], text + "/", text.upper()]))
)
def test_any_text_parses_to_itself_or_is_refused(text: str) -> None:
    with contextlib.suppress(MessageError):
        assert str(parse(text)) == text


def matches_by_definition(pattern: list[str], topic: list[str]) -> bool:
    """The rules of MQTT, level by level."""
    if pattern[0] in ("+", "#") and topic[0].startswith("$"):
        return False
    for depth, level in enumerate(pattern):
        if level == "#":
            return True
        if depth >= len(topic) or level not in ("+", topic[depth]):
            return False
    return len(pattern) == len(topic)


def fits(pattern: list[str], topic: list[str]) -> bool:
    parent = pattern[-1] == "#" and len(pattern) == len(topic) + 1
    return matches_by_definition(pattern, topic) or (parent and matches_by_definition(pattern[:-1], topic))


@given(PATTERNS, PATHS)
def test_matching_is_as_defined(pattern: list[str], topic: list[str]) -> None:
    assert matches("/".join(pattern), "/".join(topic)) == fits(pattern, topic)


def some_of(items: Sequence[T]) -> st.SearchStrategy[set[T]]:
    return st.sets(st.sampled_from(items)) if items else st.just(set())


@given(st.lists(PATTERNS, max_size=8), st.lists(PATHS, max_size=8), st.data())
def test_both_trees_find_what_matches(
    patterns: list[list[str]], topics: list[list[str]], data: st.DataObject
) -> None:
    filters: FilterTree[int] = FilterTree()
    kept: TopicTree[str] = TopicTree()
    for number, pattern in enumerate(patterns):
        filters.add("/".join(pattern), number)
    for topic in topics:
        kept.put("/".join(topic), "/".join(topic))
    gone = data.draw(st.sets(st.sampled_from(range(len(patterns)))) if patterns else st.just(set()))
    cleared = data.draw(
        st.sets(st.sampled_from(["/".join(topic) for topic in topics])) if topics else st.just(set())
    )
    for number in gone:
        filters.discard("/".join(patterns[number]), number)
    for text in cleared:
        kept.discard(text)
    for topic in topics:
        expected = [n for n, pattern in enumerate(patterns) if n not in gone and fits(pattern, topic)]
        assert sorted(filters.matching("/".join(topic))) == expected
    for pattern in patterns:
        left = {"/".join(topic) for topic in topics if fits(pattern, topic)} - cleared
        assert sorted(kept.matching("/".join(pattern))) == sorted(left)
