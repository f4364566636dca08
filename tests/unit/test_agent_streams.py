"""The agent's core and operators with state: numbers of requests, and when what was kept is dropped."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compass_agent import events as ev
from compass_agent.data import call_of
from compass_shared.calls import decode_call, encode_call
from compass_shared.errors import RefusedError
from compass_shared.framing import decode_value, encode_value
from compass_shared.messages import AckMessage
from compass_shared.pipeline import REQUEST
from compass_shared.plan import Assignment, Epoch, Plan, PlanShare
from compass_shared.query import Query, Slo
from support.agents import (
    CHAIN,
    SITE,
    CheckedAgent,
    assigned,
    failed,
    pipeline_of,
    plan_at,
    python_operator,
    runs,
    sends,
)

FLOW = pipeline_of(
    "flow",
    python_operator("shrink", REQUEST, knobs={"side": (320, 640)}),
    replace(python_operator("track", "shrink", knobs={"reach": (1, 2)}), stateful=True),
    python_operator("draw", "track"),
)
QUERY = Query(
    name="q1",
    origin=SITE,
    pipeline="flow",
    rate_hz=1.0,
    slo=Slo(latency_p95_s=1.0, accuracy=0.5, cost_usd_per_1000=1.0),
)
LOCAL, REMOTE = plan_at(FLOW, SITE, p95_s=2.0), plan_at(FLOW, SITE, "edge", "edge")


def configured(plan: Plan, operator: str, **knobs: int) -> Plan:
    return replace(plan, config={**plan.config, operator: knobs})


def assignment(plan: Plan | None, sequence: int = 1, *, fallback: Plan | None = LOCAL) -> Assignment:
    made = assigned(FLOW, plan, epoch=(1, sequence))
    return replace(made, fallback=fallback)


@pytest.fixture
def agent() -> CheckedAgent:
    return CheckedAgent(pipelines={"flow": FLOW})


def numbered(actions: list[ev.Action]) -> tuple[int, int]:
    (numbers,) = {(run.stream, run.position) for run in runs(actions)}
    return numbers


def forgets(actions: list[ev.Action]) -> list[str]:
    return [action.query for action in actions if isinstance(action, ev.ForgetStates)]


# --- numbers --------------------------------------------------------------------------------------


def test_requests_of_a_query_are_numbered_in_the_order_of_submission(agent: CheckedAgent) -> None:
    agent.assign(assignment(LOCAL))
    agent.assign(replace(assignment(LOCAL), query="q2"))
    asked = [numbered(agent.submit("flow", query=query)) for query in ("q1", "q1", "q2", "q1")]
    assert asked == [(100, 0), (100, 1), (101, 0), (100, 2)], "the session of the agent is 100"


def test_the_program_may_begin_a_new_stream(agent: CheckedAgent) -> None:
    agent.assign(assignment(LOCAL))
    asked = [numbered(agent.submit("flow", new_stream=new)) for new in (False, False, True, False)]
    assert asked == [(100, 0), (100, 1), (101, 0), (101, 1)]


def test_all_segments_and_attempts_of_a_request_are_the_same_one(agent: CheckedAgent) -> None:
    agent.assign(assignment(REMOTE))
    agent.submit("flow")
    (first,) = runs(agent.submit("flow"))
    assert (first.attempt, first.stream, first.position) == (1, 100, 1)
    again = runs(agent(failed(first)))
    assert {(run.attempt, run.worker) for run in again} == {(2, None)}
    assert numbered(list(again)) == (100, 1)


def test_a_request_that_is_refused_is_missing_in_its_stream(agent: CheckedAgent) -> None:
    agent.assign(assignment(LOCAL))
    agent.submit("flow")
    agent.assign(replace(assignment(None, 2, fallback=None), refusal="no room"))
    for new_stream in (True, False):
        with pytest.raises(RefusedError, match="no room"):
            agent.submit("flow", new_stream=new_stream)
    agent.assign(assignment(LOCAL, 3))
    assert numbered(agent.submit("flow")) == (101, 2), "of the stream that the refused one began"


def test_a_query_that_was_withdrawn_and_comes_back_begins_a_new_stream(agent: CheckedAgent) -> None:
    agent(ev.QueryDeclared(name="q1", query=QUERY))
    agent.submit("flow", query="q1")
    assert forgets(agent(ev.QueryDeclared(name="q1", query=None))) == ["q1"]
    agent(ev.QueryDeclared(name="q1", query=QUERY))
    assert numbered(agent.submit("flow", query="q1")) == (101, 0)


def test_numbers_travel_with_a_call_and_may_be_missing_from_an_older_peers(agent: CheckedAgent) -> None:
    agent.assign(assignment(plan_at(FLOW, "edge")))
    agent.submit("flow")
    (run,) = runs(agent.submit("flow"))
    body = encode_call(call_of(run, "token"))
    header = decode_call(body).header
    assert (header.stream, header.position) == (100, 1)
    frame = decode_value(body)
    assert isinstance(frame, dict)
    older = {name: value for name, value in frame["header"].items() if name not in {"stream", "position"}}
    header = decode_call(encode_value({**frame, "header": older})).header
    assert (header.stream, header.position) == (0, 0)


# --- what was kept --------------------------------------------------------------------------------

AFTER_LOCAL = {
    "again": (LOCAL, []),
    "remote": (REMOTE, ["q1"]),
    "other knobs of it": (configured(LOCAL, "track", reach=2), ["q1"]),
    "other knobs of another": (configured(LOCAL, "shrink", side=640), []),
    "another one moves": (plan_at(FLOW, SITE, SITE, "edge"), []),
    "refused, on its fallback": (None, []),
}


@pytest.mark.parametrize("change", AFTER_LOCAL)
def test_states_are_dropped_when_what_keeps_them_moves_or_changes(agent: CheckedAgent, change: str) -> None:
    plan, dropped = AFTER_LOCAL[change]
    agent.assign(assignment(LOCAL))
    assert forgets(agent.assign(assignment(plan, 2))) == dropped


def test_states_of_what_comes_back_are_dropped_too(agent: CheckedAgent) -> None:
    agent.assign(assignment(REMOTE))
    assert forgets(agent.assign(assignment(LOCAL, 2))) == ["q1"], "fallbacks left them"


def test_an_assignment_that_is_refused_drops_nothing(agent: CheckedAgent) -> None:
    agent.assign(assignment(LOCAL))
    assert forgets(agent.assign(replace(assignment(REMOTE, 2), workers={}))) == []


@pytest.mark.parametrize(("plan", "dropped"), [(LOCAL, []), (REMOTE, ["q1"])], ids=["same", "moved"])
def test_the_first_assignment_may_move_what_ran_without_one(
    agent: CheckedAgent, plan: Plan, dropped: list[str]
) -> None:
    assert forgets(agent.assign(assignment(plan))) == dropped


def test_states_of_a_withdrawn_assignment_are_dropped(agent: CheckedAgent) -> None:
    agent.assign(assignment(LOCAL))
    assert forgets(agent(ev.AssignmentArrived(query="q1", assignment=None))) == ["q1"]


def test_pipelines_without_state_have_nothing_to_forget() -> None:
    agent = CheckedAgent()
    agent.assign(assigned(CHAIN, plan_at(CHAIN, SITE)))
    assert forgets(agent.assign(assigned(CHAIN, plan_at(CHAIN, "edge"), epoch=(1, 2)))) == []
    assert forgets(agent(ev.AssignmentArrived(query="q1", assignment=None))) == []


# --- splits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (configured(REMOTE, "shrink", side=640), ""),
        (plan_at(FLOW, "edge"), ""),
        (LOCAL, "its requests are split over plans that run the operators with state differently"),
        (
            configured(REMOTE, "track", reach=2),
            "its requests are split over plans that run the operators with state differently",
        ),
    ],
    ids=["other knobs", "another one elsewhere", "state elsewhere", "state with other knobs"],
)
def test_requests_are_split_only_over_plans_that_keep_state_alike(
    agent: CheckedAgent, other: Plan, reason: str
) -> None:
    split = (PlanShare(plan=REMOTE, fraction=0.5), PlanShare(plan=other, fraction=0.5))
    (ack,) = sends(agent.assign(replace(assignment(REMOTE), split=split)))
    assert isinstance(ack.message, AckMessage)
    assert (ack.message.taken, ack.message.reason) == (not reason, reason)
    assert ack.message.epoch == Epoch(coordinator=1, sequence=1)
