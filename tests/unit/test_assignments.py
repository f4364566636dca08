"""Assignments in force: which are taken, which are refused and why, and what a request may follow."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compass_agent.assignments import DEFAULT_DEADLINE_S, NO_EPOCH, AssignmentBook, default_plan
from compass_agent.events import RequestSubmitted, Source
from compass_shared.errors import ConfigError, RefusedError
from compass_shared.plan import Assignment, Epoch, Plan, PlanShare
from support.agents import CHAIN, DIAMOND, PIPELINES, SITE, WORKERS, assigned, plan_at

REMOTE = plan_at(CHAIN, SITE, "edge", "edge")
LOCAL = plan_at(CHAIN, SITE, p95_s=2.0)
TAKEN = assigned(CHAIN, REMOTE, epoch=(3, 5))


@pytest.fixture
def book() -> AssignmentBook:
    return AssignmentBook(SITE, PIPELINES, {})


def submitted(pipeline: str = "chain", query: str | None = None) -> RequestSubmitted:
    return RequestSubmitted(request="r1", pipeline=pipeline, value=0, query=query)


def with_plan(**changes: object) -> Assignment:
    return replace(TAKEN, plan=replace(REMOTE, **changes))  # type: ignore[arg-type]


def test_what_fits_is_in_force(book: AssignmentBook) -> None:
    assert book.take("q1", TAKEN) is None
    assert book.in_force == {"q1": TAKEN}
    assert book.coordinator_epoch == 3


@pytest.mark.parametrize(
    ("epoch", "refused"),
    [
        ((3, 5), None),
        ((3, 6), None),
        ((4, 1), None),
        ((3, 4), "superseded by 3.5"),
        ((2, 9), "coordinator epoch 2 is older than 3"),
    ],
    ids=["again", "next", "new coordinator", "superseded", "old coordinator"],
)
def test_epochs_only_grow(book: AssignmentBook, epoch: tuple[int, int], refused: str | None) -> None:
    book.take("q1", TAKEN)
    later = assigned(CHAIN, LOCAL, epoch=epoch)
    assert book.take("q1", later) == refused
    assert book.in_force["q1"] == (TAKEN if refused else later)


def test_queries_of_one_coordinator_are_not_ordered_among_each_other(book: AssignmentBook) -> None:
    book.take("q1", TAKEN)
    assert book.take("q2", assigned(CHAIN, LOCAL, query="q2", epoch=(3, 1))) is None


def test_a_coordinator_that_only_said_hello_already_counts(book: AssignmentBook) -> None:
    book.coordinator_epoch = 4
    assert book.take("q1", TAKEN) == "coordinator epoch 3 is older than 4"
    assert book.in_force == {}


@pytest.mark.parametrize(
    ("assignment", "refused"),
    [
        (replace(TAKEN, query="q2"), "it is for query 'q2', not 'q1'"),
        (replace(TAKEN, pipeline="other"), "pipeline 'other' is not installed here"),
        (replace(TAKEN, digest="0" * 64), "is digest-of-ch here, not 000000000000: update the bundle"),
        (with_plan(config={}), "operator 'shrink' has knobs ['side'], got []"),
        (with_plan(config={"shrink": {"side": 1}}), "knob 'side' is one of [320, 640], got 1"),
        (with_plan(config={"shrink": {"side": 320.0}}), "got 320.0"),
        (with_plan(config={"blur": {}, "shrink": {"side": 320}}), "has no operator 'blur'"),
        (with_plan(placement={"shrink": SITE, "find": "edge"}), "operator 'read' is placed at None"),
        (replace(TAKEN, deadline_s=float("inf")), "a deadline of inf s is none"),
        (replace(TAKEN, deadline_s=float("nan")), "a deadline of nan s is none"),
        (replace(TAKEN, workers={}), "operator 'find' is placed at 'edge', which cannot be reached"),
        (replace(TAKEN, fallback=REMOTE), "operator 'find' is placed at 'edge', which cannot be reached"),
        (replace(TAKEN, fallback=replace(LOCAL, config={})), "has knobs ['side']"),
    ],
    ids=[
        "other query",
        "not installed",
        "other digest",
        "knob missing",
        "value unknown",
        "value of another type",
        "operator unknown",
        "operator without a site",
        "deadline never",
        "deadline not a number",
        "worker out of reach",
        "fallback that is not local",
        "fallback that cannot run",
    ],
)
def test_what_cannot_run_here_is_refused_with_the_reason(
    book: AssignmentBook, assignment: Assignment, refused: str
) -> None:
    problem = book.take("q1", assignment)
    assert problem is not None
    assert refused in problem
    assert book.in_force == {}
    assert book.coordinator_epoch == 0, "and leaves no trace"


def test_a_refused_assignment_leaves_the_one_in_force(book: AssignmentBook) -> None:
    book.take("q1", TAKEN)
    assert book.take("q1", replace(TAKEN, epoch=Epoch(coordinator=3, sequence=6), workers={})) is not None
    assert book.in_force == {"q1": TAKEN}


def test_withdrawn_is_forgotten(book: AssignmentBook) -> None:
    book.take("q1", TAKEN)
    book.withdraw("q1")
    book.withdraw("q1")
    assert book.in_force == {}


@pytest.mark.parametrize("newest_first", [True, False])
def test_what_was_saved_is_in_force_again(newest_first: bool) -> None:
    """A newer coordinator may have decided on one query only when the agent stopped."""
    other = assigned(CHAIN, LOCAL, query="q2", epoch=(2, 9))
    saved = {"q1": TAKEN, "q2": other} if newest_first else {"q2": other, "q1": TAKEN}
    book = AssignmentBook(SITE, PIPELINES, saved)
    assert book.in_force == {"q1": TAKEN, "q2": other}
    assert book.coordinator_epoch == 3


def test_what_was_saved_for_another_version_of_the_bundle_is_left_out() -> None:
    stale = replace(TAKEN, digest="0" * 64)
    book = AssignmentBook(SITE, PIPELINES, {"q1": stale, "q2": assigned(DIAMOND, None, query="q2")})
    assert set(book.in_force) == {"q2"}
    assert book.coordinator_epoch == 1


@pytest.mark.parametrize(
    ("epoch", "pipeline", "digest", "refused"),
    [
        ((3, 1), "chain", CHAIN.digest, ""),
        ((2, 9), "chain", CHAIN.digest, "coordinator epoch 2 is older than 3"),
        ((3, 1), "other", CHAIN.digest, "not installed"),
        ((3, 1), "chain", "0" * 64, "update the bundle"),
    ],
)
def test_shares_are_for_the_same_code_and_a_current_coordinator(
    book: AssignmentBook, epoch: tuple[int, int], pipeline: str, digest: str, refused: str
) -> None:
    book.take("q1", TAKEN)
    problem = book.share_problem(Epoch(coordinator=epoch[0], sequence=epoch[1]), pipeline, digest)
    assert refused in (problem or "")
    assert (problem is None) == (not refused)


def test_what_runs_here_is_what_plan_and_fallback_place_here(book: AssignmentBook) -> None:
    book.take("q1", TAKEN)
    book.take("q2", replace(TAKEN, query="q2", fallback=None))
    book.take("q3", replace(TAKEN, query="q3", plan=None, fallback=None))
    assert book.local_variants("q1") == ("shrink[side=320]", "find", "read")
    assert book.local_variants("q2") == ("shrink[side=320]",)
    assert book.local_variants("q3") == ()


# --- routes ---------------------------------------------------------------------------------------


def test_the_assigned_plan_comes_first_and_the_fallback_second(book: AssignmentBook) -> None:
    book.take("q1", TAKEN)
    routes, deadline_s = book.routes(submitted())
    assert [(route.source, route.plan) for route in routes] == [
        (Source.ASSIGNED, REMOTE),
        (Source.FALLBACK, TAKEN.fallback),
    ]
    assert all((route.query, route.epoch, route.workers) == ("q1", TAKEN.epoch, WORKERS) for route in routes)
    assert deadline_s == TAKEN.deadline_s


def test_a_fallback_that_would_do_the_same_again_is_not_tried(book: AssignmentBook) -> None:
    """It would only double the load of a device that is too slow already."""
    same = replace(LOCAL, estimate=None)
    book.take("q1", replace(TAKEN, plan=LOCAL, fallback=same))
    assert [route.source for route in book.routes(submitted())[0]] == [Source.ASSIGNED]


def test_a_plan_without_a_fallback_is_the_only_route(book: AssignmentBook) -> None:
    book.take("q1", replace(TAKEN, fallback=None))
    assert [route.source for route in book.routes(submitted())[0]] == [Source.ASSIGNED]


def test_a_query_without_a_plan_runs_its_fallback(book: AssignmentBook) -> None:
    book.take("q1", replace(TAKEN, plan=None, refusal="no capacity"))
    assert [route.source for route in book.routes(submitted())[0]] == [Source.FALLBACK]


@pytest.mark.parametrize("refusal", ["latency cannot be met", None])
def test_a_refused_query_says_why(book: AssignmentBook, refusal: str | None) -> None:
    book.take("q1", replace(TAKEN, plan=None, fallback=None, refusal=refusal))
    with pytest.raises(RefusedError) as caught:
        book.routes(submitted())
    assert caught.value.reason == (refusal or "query 'q1' has no plan")


@pytest.mark.parametrize("query", [None, "q7"])
def test_before_any_assignment_everything_runs_here(book: AssignmentBook, query: str | None) -> None:
    routes, deadline_s = book.routes(submitted(query=query))
    (route,) = routes
    assert route.plan == Plan(
        config={"shrink": {"side": 320}, "find": {}, "read": {}},
        placement=dict.fromkeys(("shrink", "find", "read"), SITE),
    )
    assert (route.source, route.query, route.epoch) == (Source.DEFAULT, query or "chain", NO_EPOCH)
    assert deadline_s == DEFAULT_DEADLINE_S


def test_the_default_plan_is_a_config_of_the_pipeline() -> None:
    for pipeline in PIPELINES.values():
        pipeline.check_config(default_plan(pipeline, SITE).config)


def test_of_several_queries_one_has_to_be_named(book: AssignmentBook) -> None:
    book.take("q1", TAKEN)
    book.take("q2", assigned(CHAIN, LOCAL, query="q2", epoch=(3, 6)))
    book.take("q3", assigned(DIAMOND, None, query="q3", epoch=(3, 7)))
    with pytest.raises(ConfigError, match="name one: q1, q2"):
        book.routes(submitted())
    assert book.routes(submitted(query="q2"))[0][0].query == "q2"
    assert book.routes(submitted("diamond"))[0][0].query == "q3"


def test_a_query_serves_its_own_pipeline_only(book: AssignmentBook) -> None:
    book.take("q1", TAKEN)
    with pytest.raises(ConfigError, match="query 'q1' runs pipeline 'chain', not 'diamond'"):
        book.routes(submitted("diamond", query="q1"))


def test_a_pipeline_has_to_be_installed(book: AssignmentBook) -> None:
    with pytest.raises(ConfigError, match="'other' is not installed here; installed: chain, diamond"):
        book.routes(submitted("other"))
    with pytest.raises(ConfigError, match="installed: none"):
        AssignmentBook(SITE, {}, {}).routes(submitted())


def split(*fractions: float) -> Assignment:
    """A query that is split over as many plans, alternately remote and local."""
    plans = [(REMOTE, LOCAL)[at % 2] for at in range(len(fractions))]
    shares = tuple(PlanShare(plan=plan, fraction=part) for plan, part in zip(plans, fractions, strict=True))
    return replace(TAKEN, plan=plans[0], split=shares)


def test_requests_of_a_split_query_follow_its_plans_by_fraction(book: AssignmentBook) -> None:
    book.take("q1", split(0.75, 0.25))
    followed = [book.routes(submitted())[0][0].plan for _ in range(40)]
    assert followed.count(REMOTE) == 30
    assert followed.count(LOCAL) == 10
    # Never more than a request away from the fraction, so a worker sees an even stream.
    assert all(abs(followed[:n].count(LOCAL) - n / 4) <= 1 for n in range(40))


def test_what_a_query_served_in_part_leaves_is_refused(book: AssignmentBook) -> None:
    book.take("q1", split(0.6))
    served = 0
    for number in range(1, 21):
        # The plan goes first whenever it is at least as far behind its fraction as nothing is behind its.
        if 0.6 * number - served >= 0.4 * number - (number - 1 - served):
            book.routes(submitted())
            served += 1
        else:
            with pytest.raises(RefusedError, match="40% of its requests"):
                book.routes(submitted())
    assert served == 12


@pytest.mark.parametrize("fractions", [(0.6, 0.6), (0.0, 1.0), (-0.5, 0.5), (float("nan"),)])
def test_fractions_that_are_no_shares_are_refused(book: AssignmentBook, fractions: tuple[float, ...]) -> None:
    assert "not shares of its requests" in (book.take("q1", split(*fractions)) or "")


def test_every_plan_of_a_split_query_has_to_fit(book: AssignmentBook) -> None:
    bad = replace(LOCAL, placement=dict.fromkeys(LOCAL.placement, "nowhere"))
    assignment = split(0.5, 0.5)
    shares = (assignment.split[0], PlanShare(plan=bad, fraction=0.5))
    assert "cannot be reached" in (book.take("q1", replace(assignment, split=shares)) or "")


def test_a_split_query_keeps_the_variants_of_all_its_plans(book: AssignmentBook) -> None:
    book.take("q1", split(0.5, 0.5))
    remote_only = {f"{name}" for name, site in REMOTE.placement.items() if site == SITE}
    local = {variant.partition("[")[0] for variant in book.local_variants("q1")}
    assert local == set(LOCAL.placement) >= remote_only
