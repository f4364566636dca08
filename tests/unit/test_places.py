"""Placement constraints hold whatever the coordinator planned: at the origin, and at the worker."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compass_agent import events as ev
from compass_agent.assignments import AssignmentBook
from compass_agent.places import Places
from compass_shared.errors import RefusedError
from compass_shared.messages import AckMessage, CoordinatorMessage, ShareMessage, WorkerInfo
from compass_shared.pipeline import REQUEST, Pipeline
from compass_shared.plan import Epoch, PlanShare
from compass_shared.site import Tier
from support.agents import SITE, CheckedAgent, assigned, pipeline_of, plan_at, python_operator, sends

OTHERS = {"edge": Tier.EDGE, "cloud": Tier.CLOUD, "tablet": Tier.DEVICE}


def pipeline(*must_run_on: str) -> Pipeline:
    blur = replace(python_operator("blur", REQUEST), must_run_on=must_run_on)
    return pipeline_of("private", blur, python_operator("find", "blur"))


def problem(
    must_run_on: tuple[str, ...], site: str, *, tier: Tier = Tier.DEVICE, known: bool = True
) -> str | None:
    places = Places(SITE, tier)
    if known:
        places.tiers.update(OTHERS)
    declared = pipeline(*must_run_on)
    return places.problem(declared, plan_at(declared, site, "cloud"))


@pytest.mark.parametrize(
    ("must_run_on", "site", "allowed"),
    [
        ((), SITE, True),
        ((), "cloud", True),
        (("device",), SITE, True),
        (("device",), "edge", False),
        (("device",), "tablet", False),
        (("origin",), SITE, True),
        (("origin",), "cloud", False),
        (("device", "origin"), "tablet", False),
        (("edge",), SITE, False),
        (("edge",), "edge", True),
        (("edge",), "cloud", False),
        (("edge", "cloud"), "cloud", True),
        (("origin", "edge"), SITE, True),
        (("origin", "edge"), "edge", True),
        (("origin", "edge"), "cloud", False),
        (("device", "edge"), "edge", True),
        (("device", "edge"), "tablet", True),
    ],
    ids=str,
)
def test_operators_run_where_they_must(must_run_on: tuple[str, ...], site: str, allowed: bool) -> None:
    found = problem(must_run_on, site)
    expected = f"operator 'blur' is placed at {site!r}, but must run on {' or '.join(must_run_on)}"
    assert found == (None if allowed else expected)


@pytest.mark.parametrize(
    ("must_run_on", "tier", "site", "allowed"),
    [
        (("device",), Tier.DEVICE, "edge", False),
        (("origin",), Tier.CLOUD, "edge", False),
        (("edge",), Tier.DEVICE, "edge", True),  # the worker looks itself
        (("device",), Tier.CLOUD, "tablet", True),
        (("device",), Tier.CLOUD, SITE, False),
        (("origin",), Tier.CLOUD, SITE, True),
    ],
    ids=str,
)
def test_where_no_tier_is_known_what_is_private_stays(
    must_run_on: tuple[str, ...], tier: Tier, site: str, allowed: bool
) -> None:
    assert (problem(must_run_on, site, tier=tier, known=False) is None) == allowed


@pytest.mark.parametrize(
    ("must_run_on", "serves"), [((), True), (("edge",), True), (("device",), False), (("origin",), False)]
)
def test_a_worker_serves_what_may_run_at_its_tier(must_run_on: tuple[str, ...], serves: bool) -> None:
    places = Places("edge", Tier.EDGE)
    assert (places.serving_problem(pipeline(*must_run_on), ("blur", "find")) is None) == serves
    assert places.serving_problem(pipeline(*must_run_on), ("find",)) is None


# --- what the core makes of it --------------------------------------------------------------------

PRIVATE = pipeline("device")
GOOD = assigned(PRIVATE, plan_at(PRIVATE, SITE, "edge"))
LATER = Epoch(coordinator=1, sequence=2)


def _agent(declared: Pipeline = PRIVATE) -> CheckedAgent:
    return CheckedAgent(pipelines={declared.name: declared})


def _ack(actions: list[ev.Action]) -> AckMessage:
    (ack,) = (send.message for send in sends(actions) if isinstance(send.message, AckMessage))
    return ack


def test_an_assignment_that_breaks_a_constraint_is_refused_with_the_reason() -> None:
    agent = _agent()
    agent.assign(GOOD)
    ack = _ack(agent.assign(replace(GOOD, plan=plan_at(PRIVATE, "edge"), epoch=LATER)))
    assert not ack.taken
    assert ack.reason == "operator 'blur' is placed at 'edge', but must run on device"
    assert agent.core.assignments["q1"] == GOOD


def test_one_bad_plan_of_a_split_is_enough() -> None:
    split = tuple(PlanShare(plan=plan_at(PRIVATE, site, "edge"), fraction=0.5) for site in (SITE, "edge"))
    ack = _ack(_agent().assign(replace(GOOD, split=split)))
    assert "must run on device" in ack.reason


def test_a_fallback_is_held_to_it_as_well() -> None:
    cloudy = pipeline("cloud")
    here = plan_at(cloudy, SITE)
    ack = _ack(_agent(cloudy).assign(assigned(cloudy, plan_at(cloudy, "cloud"), fallback=here)))
    assert not ack.taken
    assert "is placed at 'phone', but must run on cloud" in ack.reason


def test_tiers_are_learned_from_the_coordinator() -> None:
    bound = pipeline("edge")
    agent = _agent(bound)
    info = {"cloud": WorkerInfo(address="http://127.0.0.1:1", tier=Tier.CLOUD)}
    agent(ev.CoordinatorArrived(status=CoordinatorMessage(online=True, epoch=1, workers=info)))
    wrong = replace(assigned(bound, plan_at(bound, "cloud")), fallback=None)
    assert "must run on edge" in _ack(agent.assign(wrong)).reason
    assert _ack(agent.assign(replace(wrong, plan=plan_at(bound, "edge")))).taken


def test_a_share_of_what_must_not_run_here_is_refused() -> None:
    agent = _agent(pipeline("origin"))
    share = ShareMessage(
        query="q9",
        origin="tablet",
        pipeline="private",
        digest=PRIVATE.digest,
        epoch=Epoch(coordinator=1, sequence=1),
        variants=("blur", "find"),
        rate_hz=1.0,
        cores=0.5,
        token="secret",
    )
    ack = _ack(agent(ev.ShareArrived(query="q9", share=share)))
    assert (ack.taken, ack.share) == (False, True)
    assert "must run on origin" in ack.reason
    harmless = replace(share, variants=("find",))
    assert isinstance(agent(ev.ShareArrived(query="q9", share=harmless))[0], ev.HoldShare)


def test_before_any_assignment_nothing_runs_where_it_must_not() -> None:
    book = AssignmentBook(SITE, {"private": pipeline("cloud")}, {})
    with pytest.raises(RefusedError, match=r"must run on cloud; nothing was assigned yet"):
        book.routes(ev.RequestSubmitted(request="r1", pipeline="private", value=0))
