from __future__ import annotations

import pytest

from compass_shared.errors import ConfigError, MessageError
from compass_shared.topic_tree import matches
from compass_shared.topics import Kind, Topic, Topics, parse

TOPICS = Topics("demo")
FROM_AN_AGENT = [Kind.STATUS, Kind.HELLO, Kind.TELEMETRY, Kind.PROFILE, Kind.SERVED, Kind.ACK]
OF_AN_AGENT = [*FROM_AN_AGENT, Kind.PROBE]
OF_A_QUERY = [Kind.QUERY, Kind.ASSIGNMENT, Kind.SHARE]


def test_every_kind_has_its_topic() -> None:
    assert TOPICS.agent(Kind.STATUS, "phone-1") == "compass/1/demo/agents/phone-1/status"
    assert TOPICS.agent(Kind.ACK, "phone-1") == "compass/1/demo/agents/phone-1/acks"
    assert TOPICS.query(Kind.QUERY, "phone-1", "labels") == "compass/1/demo/agents/phone-1/queries/labels"
    assert TOPICS.query(Kind.SHARE, "edge", "labels") == "compass/1/demo/agents/edge/shares/labels"
    assert TOPICS.pipeline("read-text") == "compass/1/demo/pipelines/read-text"
    assert TOPICS.coordinator == "compass/1/demo/coordinator/status"


def test_parsing_tells_whose_it_is() -> None:
    topic = parse("compass/1/demo/agents/phone-1/assignments/labels")
    assert topic == Topic(fleet="demo", kind=Kind.ASSIGNMENT, agent="phone-1", item="labels")


@pytest.mark.parametrize("bad", ["", "Phone", "a b", "a/b", "+", "#", "a" * 65, "ä", "a\n"])
def test_what_is_no_name_never_gets_into_a_topic(bad: str) -> None:
    for build in (
        lambda: Topics(bad),
        lambda: TOPICS.agent(Kind.STATUS, bad),
        lambda: TOPICS.query(Kind.QUERY, bad, "q"),
        lambda: TOPICS.query(Kind.QUERY, "a", bad),
        lambda: TOPICS.pipeline(bad),
        lambda: TOPICS.for_agent(bad),
    ):
        with pytest.raises(ConfigError):
            build()


@pytest.mark.parametrize("kind", [*OF_A_QUERY, Kind.PIPELINE, Kind.COORDINATOR])
def test_agent_takes_only_kinds_of_an_agent(kind: Kind) -> None:
    with pytest.raises(ValueError, match="not a topic of one agent"):
        TOPICS.agent(kind, "a")


@pytest.mark.parametrize("kind", [*OF_AN_AGENT, Kind.PIPELINE, Kind.COORDINATOR])
def test_query_takes_only_kinds_of_a_query(kind: Kind) -> None:
    with pytest.raises(ValueError, match="not a topic of one query"):
        TOPICS.query(kind, "a", "q")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "compass",
        "compass/2/demo/coordinator/status",
        "compass/1/Demo/coordinator/status",
        "compass/1/demo/coordinator/status/more",
        "compass/1/demo/coordinator/hello",
        "compass/1/demo/agents/a/queries",
        "compass/1/demo/agents/a/hello/q",
        "compass/1/demo/agents/a/pipelines/p",
        "compass/1/demo/agents/+/hello",
        "compass/1/demo/agents//hello",
        "/compass/1/demo/pipelines/p",
    ],
)
def test_other_topics_are_refused(text: str) -> None:
    with pytest.raises(MessageError, match="not a Compass topic"):
        parse(text)


def test_a_long_topic_is_cut_in_the_error() -> None:
    with pytest.raises(MessageError) as caught:
        parse("x" * 10_000)
    assert len(str(caught.value)) < 300


def test_an_agent_hears_its_own_orders_and_nobody_elses() -> None:
    def heard(topic: str) -> bool:
        return any(matches(pattern, topic) for pattern in TOPICS.for_agent("a1"))

    assert heard(TOPICS.query(Kind.ASSIGNMENT, "a1", "q"))
    assert heard(TOPICS.query(Kind.SHARE, "a1", "q"))
    assert heard(TOPICS.agent(Kind.PROBE, "a1"))
    assert heard(TOPICS.pipeline("p"))
    assert heard(TOPICS.coordinator)
    assert not heard(TOPICS.query(Kind.ASSIGNMENT, "a2", "q"))
    assert not heard(TOPICS.agent(Kind.PROBE, "a2"))
    assert not heard(TOPICS.query(Kind.QUERY, "a1", "q"))
    assert not heard(Topics("other").query(Kind.ASSIGNMENT, "a1", "q"))


def test_a_coordinator_hears_everything_of_its_fleet_once() -> None:
    topics = [TOPICS.agent(kind, "a1") for kind in FROM_AN_AGENT]
    topics += [TOPICS.query(kind, "a1", "q") for kind in OF_A_QUERY]
    for topic in [*topics, TOPICS.coordinator]:
        assert sum(matches(pattern, topic) for pattern in TOPICS.for_coordinator()) == 1
        assert not any(matches(pattern, topic) for pattern in Topics("other").for_coordinator())
    assert not any(matches(p, TOPICS.agent(Kind.PROBE, "a1")) for p in TOPICS.for_coordinator())
