"""The demo's cross-checks: sound phases have no problems, and each kind of unsound one is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from compass_coordinator.demo.accounting import Calls, accounting_problems

PLANNED: Mapping[str, Any] = {
    "near": {"query": {"origin": "phone"}, "plan": {"placement": {"find": "phone", "read": "phone"}}},
    "far": {"query": {"origin": "phone"}, "plan": {"placement": {"find": "phone", "read": "cloud"}}},
    "there": {"query": {"origin": "cloud"}, "plan": {"placement": {"find": "cloud", "read": "cloud"}}},
    "none": {"query": {"origin": "phone"}, "plan": None},
}


def request(query: str, index: int, **changes: Any) -> dict[str, Any]:
    """A request that ran as planned."""
    placement = PLANNED[query]["plan"]["placement"]
    segments = [{"site": site, "operators": [name]} for name, site in placement.items()]
    return {
        "query": query,
        "index": index,
        "error": None,
        "source": "assigned",
        "attempts": 1,
        "epoch": {"coordinator": 1, "sequence": 1},
        "latency_s": 0.1,
        "segments": segments,
        **changes,
    }


GIVEN: dict[tuple[str, int, int], Any] = {
    **{(query, 1, 1): said["plan"] for query, said in PLANNED.items()},
    ("near", 1, 2): PLANNED["far"]["plan"],
}


def problems_of(requests: list[dict[str, Any]], counters: Mapping[str, Calls]) -> list[str]:
    return accounting_problems(requests, PLANNED, counters, GIVEN)


def refused(index: int) -> dict[str, Any]:
    return {"query": "none", "index": index, "error": "RefusedError", "problem": "no plan"}


def counted(**calls: int) -> dict[str, Counter[tuple[str, str]]]:
    """What the cloud counted for the query ``far``; the edge was idle."""
    return {"cloud": Counter({("far", name): number for name, number in calls.items()}), "edge": Counter()}


SOUND = [request("near", 0), request("near", 1), request("far", 0), request("far", 1), refused(0), refused(1)]


def test_a_sound_phase_has_no_problems() -> None:
    assert problems_of(SOUND, counted(read=2)) == []
    assert problems_of([], {}) == []


def test_a_query_that_was_planned_again_ran_as_its_assignment_said() -> None:
    elsewhere = [{"site": "phone", "operators": ["find"]}, {"site": "cloud", "operators": ["read"]}]
    counters = counted(read=2)
    counters["cloud"]["near", "read"] = 1
    later = {"coordinator": 1, "sequence": 2}
    assert problems_of([*SOUND, request("near", 2, segments=elsewhere, epoch=later)], counters) == []
    (problem,) = problems_of([*SOUND, request("near", 2, segments=elsewhere)], counters)
    assert "request 2 of near ran" in problem


def test_a_fallback_ran_elsewhere_and_the_worker_may_have_answered_too_late() -> None:
    local = [{"site": "phone", "operators": ["find", "read"]}]
    second = request("far", 2, source="fallback", attempts=2, segments=local)
    for calls in (2, 3):
        assert problems_of([*SOUND, second], counted(read=calls)) == []


def test_a_request_that_was_given_up_may_have_run() -> None:
    given_up = request("far", 2, error="DeadlineError", segments=[])
    for calls in (2, 3):
        assert problems_of([*SOUND, given_up], counted(read=calls)) == []


@pytest.mark.parametrize(
    ("requests", "calls", "said"),
    [
        ([*SOUND, request("near", 1)], 2, "request 1 of near ended 2 times"),
        ([*SOUND, refused(1)], 2, "request 1 of none ended 2 times"),
        ([*SOUND, request("near", 3)], 2, "requests of near are missing: ended [0, 1, 3]"),
        (SOUND[1:], 2, "requests of near are missing: ended [1]"),
        (
            [*SOUND, request("near", 2, segments=[{"site": "edge", "operators": ["find", "read"]}])],
            2,
            "request 2 of near ran",
        ),
        (
            [*SOUND, request("near", 2, segments=[{"site": "phone", "operators": ["find"]}])],
            2,
            "request 2 of near ran [('find', 'phone')], planned",
        ),
        (
            [*SOUND, {**request("near", 2), "query": "none"}],
            2,
            "request 2 of none ran",
        ),
        (SOUND, 1, "cloud counted 1 calls of read for far, its origin 2"),
        (SOUND, 3, "cloud counted 3 calls of read for far, its origin 2"),
        (SOUND, 0, "cloud counted 0 calls of read for far, its origin 2"),
    ],
)
def test_what_does_not_add_up_is_named(requests: list[dict[str, Any]], calls: int, said: str) -> None:
    problems = problems_of(requests, counted(read=calls))
    assert any(said in problem for problem in problems), problems


def test_what_a_worker_runs_for_a_query_of_its_own_is_no_call() -> None:
    own = request("there", 0, segments=[{"site": "cloud", "operators": ["find", "read"]}])
    assert problems_of([*SOUND, own], counted(read=2)) == []


def test_calls_that_no_origin_made_are_named() -> None:
    calls = counted(read=2)
    calls["edge"]["near", "find"] = 1
    (problem,) = problems_of(SOUND, calls)
    assert problem == "edge ran find for near 1 times, its origin did not report it"


def test_one_querys_late_answers_do_not_excuse_anothers_extra_calls() -> None:
    given_up = request("near", 2, error="DeadlineError", segments=[])
    (problem,) = problems_of([*SOUND, given_up], counted(read=3))
    assert problem == "cloud counted 3 calls of read for far, its origin 2"
