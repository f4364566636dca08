"""The coordinator asks for probes: few, patiently, never what it knows; it plans again when times move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from compass_coordinator import events as ev
from compass_coordinator.probing import ANSWER_S, LONGEST_PAUSE_S, MOST_TRIES, PAUSE_S
from compass_shared.messages import ProbeMessage, ServedMessage
from compass_shared.query import Slo
from support.coordinators import (
    FAST,
    PIPELINE,
    VARIANTS,
    CheckedCoordinator,
    declared,
    profile_of,
    query_of,
    status_of,
)

SMALL, LARGE, READ = VARIANTS
CLOSE = Slo(latency_p95_s=0.47, accuracy=0.8, cost_usd_per_1000=1.0)
"""The phone needs 0.45 s at p95, if it takes for READ what it takes for LARGE."""


def probes(actions: Sequence[ev.Action]) -> list[tuple[str, ProbeMessage]]:
    return [
        (action.agent or "", action.message)
        for action in actions
        if isinstance(action, ev.Send) and isinstance(action.message, ProbeMessage)
    ]


@pytest.fixture
def coordinator() -> CheckedCoordinator:
    """One whose phone measured one variant of three, and has a query that the others decide."""
    coordinator = CheckedCoordinator()
    coordinator(ev.Started())
    coordinator.join("edge")
    coordinator.join("phone", variants=(LARGE,))
    coordinator(declared(query_of("q", CLOSE, rate_hz=0.1)))
    coordinator.settle()
    return coordinator


def answer(coordinator: CheckedCoordinator, *variants: str) -> list[ev.Action]:
    return coordinator(ev.AgentProfile(agent="phone", profile=profile_of("phone", variants=variants)))


def test_it_asks_for_what_decides_once_and_plans_with_the_answer(coordinator: CheckedCoordinator) -> None:
    ((agent, message),) = probes(coordinator.tick())
    assert agent == "phone"
    assert (message.pipeline, message.digest) == ("chain", PIPELINE.digest)
    assert message.epoch == coordinator.core.epoch
    assert READ in message.variants
    assert LARGE not in message.variants
    assert probes(coordinator.tick(1.0)) == [], "once"
    answer(coordinator, *VARIANTS)
    coordinator.settle()
    assert coordinator.core.last_plan is not None
    assert coordinator.core.last_plan.plans["q"].placement == {"shrink": "phone", "read": "phone"}
    assert probes(coordinator.tick(1e5)) == [], "everything is measured"


def test_nothing_is_asked_where_nothing_hinges_on_it() -> None:
    coordinator = CheckedCoordinator()
    coordinator(ev.Started())
    coordinator.join("edge")
    coordinator.join("phone", variants=(LARGE, READ))
    coordinator(declared(query_of("q", replace(CLOSE, latency_p95_s=60.0))))
    coordinator.settle()
    assert coordinator.core.last_plan is not None
    assert set(coordinator.core.last_plan.plans) == {"q"}
    assert probes(coordinator.tick(1.0)) == []


def test_a_site_that_nothing_is_known_of_is_asked_first_and_only_for_queries() -> None:
    coordinator = CheckedCoordinator()
    coordinator(ev.Started())
    coordinator.join("edge")
    coordinator.join("phone", variants=())
    coordinator.settle()
    assert probes(coordinator.tick()) == [], "nobody wants it"
    coordinator(declared(query_of("q", FAST)))
    coordinator.settle()
    assert "measured 0 of 3" in coordinator.core.left_out["q"]
    ((agent, message),) = probes(coordinator.tick())
    assert agent == "phone"
    answer(coordinator, *message.variants)
    coordinator.settle()
    assert coordinator.core.left_out == {}


def test_silence_is_answered_with_longer_and_longer_pauses_and_then_given_up(
    coordinator: CheckedCoordinator,
) -> None:
    asked_s, pauses_s = [], []
    for _ in range(4000):
        if probes(coordinator.tick(30.0)):
            asked_s.append(coordinator.now_s)
            coordinator.tick(ANSWER_S)
            pauses_s.append(coordinator.now_s)
    waits_s = [after - before for before, after in zip(pauses_s, asked_s[1:], strict=False)]
    assert len(asked_s) == MOST_TRIES
    assert all(PAUSE_S <= wait_s <= LONGEST_PAUSE_S + 30.0 for wait_s in waits_s)
    assert waits_s == sorted(waits_s)
    assert waits_s[-1] > 1.5 * waits_s[0]
    assert READ in coordinator.fleet.agents["phone"].hopeless["chain"]


def test_a_profile_that_says_nothing_new_is_no_answer(coordinator: CheckedCoordinator) -> None:
    assert probes(coordinator.tick())
    answer(coordinator, LARGE)
    coordinator.settle()
    assert probes(coordinator.tick(1.0)) == [], "it was asked and may still be measuring"
    assert coordinator.fleet.agents["phone"].hopeless == {}


def test_who_left_is_asked_again_when_it_is_back_and_not_before(coordinator: CheckedCoordinator) -> None:
    assert probes(coordinator.tick())
    coordinator(status_of("phone", online=False))
    assert probes(coordinator.tick(1.0)) == []
    coordinator(status_of("phone", session=102))
    assert [agent for agent, _ in probes(coordinator.tick(1.0))] == ["phone"]


# --- serving --------------------------------------------------------------------------------------


def said(coordinator: CheckedCoordinator, factor: float, *, runs: int = 50) -> list[ev.Action]:
    """The phone says what reading took: so many times what it took when it was measured."""
    found = profile_of("phone").profile.operators[READ]
    window = replace(found, mean_s=factor * found.mean_s, p95_s=factor * found.p95_s, count=runs)
    message = ServedMessage(
        session=100, pipeline="chain", digest=PIPELINE.digest, operators={READ: window}, over_s=60.0
    )
    coordinator.now_s += 60.0
    return coordinator(ev.AgentServed(agent="phone", served=message))


@pytest.fixture
def serving() -> CheckedCoordinator:
    """One whose phone measured everything and reads by itself."""
    coordinator = CheckedCoordinator()
    coordinator(ev.Started())
    coordinator.join("phone", "edge")
    coordinator(declared(query_of("q", CLOSE, rate_hz=0.1)))
    coordinator.settle()
    assert coordinator.core.last_plan is not None
    assert set(coordinator.core.last_plan.plans["q"].placement.values()) == {"phone"}
    return coordinator


def test_small_changes_are_not_planned_for_and_a_large_one_is_once(serving: CheckedCoordinator) -> None:
    for _ in range(3):
        assert said(serving, 1.04) == []
        serving.tick(10.0)
        assert serving.planning is None
    for _ in range(5):
        said(serving, 3.0)
    serving.tick(10.0)
    assert serving.planning is not None
    serving.planned()
    assert serving.core.last_plan is not None
    assert "edge" in serving.core.last_plan.plans["q"].placement.values(), "the phone got too slow"
    serving.tick(10.0)
    assert serving.planning is None


def test_a_report_that_makes_no_sense_is_noted_and_changes_nothing(serving: CheckedCoordinator) -> None:
    (note,) = said(serving, float("nan"))
    assert isinstance(note, ev.Note)
    assert "makes no sense" in note.text
    assert serving.core.refused_messages == 1
    serving.tick(10.0)
    assert serving.planning is None
