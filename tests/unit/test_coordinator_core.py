"""The coordinator's core: events in, actions out, and what must hold of the retained decisions after each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from compass_coordinator import events as ev
from compass_coordinator.core import PATIENCE_S, RETRY_S, SETTLE_S, SHARE_TIMEOUT_S
from compass_coordinator.planning import FleetPlan, plan_fleet
from compass_shared.messages import (
    AssignmentMessage,
    CoordinatorMessage,
    PipelineMessage,
    TelemetryMessage,
    WorkerInfo,
)
from compass_shared.plan import Epoch
from compass_shared.problem import Problem
from compass_shared.query import Slo
from compass_shared.site import Tier
from compass_shared.topics import Kind
from support.coordinators import (
    EASY,
    EXACT,
    FAST,
    PIPELINE,
    TIERS,
    CheckedCoordinator,
    address_of,
    declared,
    hello_of,
    profile_of,
    query_of,
    status_of,
    taken,
)

EDGE = {"edge": WorkerInfo(address=str(address_of("edge")), tier=Tier.EDGE)}
OLD = Epoch(coordinator=3, sequence=9)


@pytest.fixture
def coordinator() -> CheckedCoordinator:
    """One that has started over an empty fleet, and planned it."""
    coordinator = CheckedCoordinator()
    coordinator(ev.Started())
    coordinator.settle()
    return coordinator


@pytest.fixture
def fleet(coordinator: CheckedCoordinator) -> CheckedCoordinator:
    """One whose fleet has a phone and an edge server, nothing to serve yet."""
    coordinator.join("phone", "edge")
    coordinator.settle()
    return coordinator


def notes(actions: Sequence[ev.Action]) -> list[str]:
    """What people should read; nothing else may come with it."""
    assert all(isinstance(action, ev.Note) and action.serious for action in actions)
    return [action.text for action in actions if isinstance(action, ev.Note)]


def assignment_of(coordinator: CheckedCoordinator, query: str) -> AssignmentMessage:
    return coordinator.retained.assignments()[query]


def coordinator_seen(epoch: int) -> ev.CoordinatorSeen:
    return ev.CoordinatorSeen(status=CoordinatorMessage(online=True, epoch=epoch))


# --- coming and going -----------------------------------------------------------------------------


def test_it_starts_above_its_stored_epoch_and_says_so_once_that_is_kept() -> None:
    coordinator = CheckedCoordinator(stored_epoch=6)
    saved, status, pipeline = coordinator(ev.Started())
    assert saved == ev.SaveEpoch(epoch=7)
    assert status == ev.Send(kind=Kind.COORDINATOR, message=CoordinatorMessage(online=True, epoch=7))
    assert isinstance(pipeline, ev.Send)
    assert isinstance(pipeline.message, PipelineMessage)
    assert (pipeline.item, pipeline.message.digest) == ("chain", PIPELINE.digest)
    assert coordinator.core.epoch == 7


@pytest.mark.parametrize(
    "memory",
    [
        coordinator_seen(9),
        ev.DecisionSeen(agent="phone", kind=Kind.SHARE, query="q1", epoch=replace(OLD, coordinator=9)),
    ],
    ids=["status", "decision"],
)
def test_with_an_older_store_it_starts_above_what_the_fleet_remembers(memory: ev.Event) -> None:
    coordinator = CheckedCoordinator(stored_epoch=2)
    assert coordinator(memory) == []
    assert coordinator(coordinator_seen(4)) == []
    assert coordinator(ev.Started())[0] == ev.SaveEpoch(epoch=10)


def test_before_it_has_started_it_only_listens() -> None:
    coordinator = CheckedCoordinator()
    coordinator.join("phone", "edge")
    coordinator(declared(query_of("q1")))
    coordinator(ev.BrokerConnected())
    assert coordinator.tick(100.0) == []


def test_workers_are_announced_when_they_come_and_when_they_go(coordinator: CheckedCoordinator) -> None:
    def announced(event: ev.Event) -> list[dict[str, WorkerInfo]]:
        sends = [action for action in coordinator(event) if isinstance(action, ev.Send)]
        return [dict(s.message.workers) for s in sends if isinstance(s.message, CoordinatorMessage)]

    assert announced(ev.AgentHello(agent="edge", hello=hello_of("edge"))) == []
    assert announced(status_of("edge")) == [EDGE]
    assert announced(status_of("edge")) == []
    assert announced(ev.AgentHello(agent="phone", hello=hello_of("phone"))) == []
    assert announced(status_of("phone")) == [], "a device is no worker"
    assert announced(status_of("edge", online=False)) == [{}]
    assert announced(status_of("edge", session=102)) == [EDGE]
    assert announced(ev.AgentHello(agent="edge", hello=None)) == [{}]


def test_a_late_last_will_of_an_earlier_connection_is_ignored(fleet: CheckedCoordinator) -> None:
    fleet(status_of("edge", session=102))
    assert fleet(status_of("edge", online=False, session=101)) == []
    assert "edge" in fleet.fleet.workers()
    fleet(status_of("edge", online=False, session=102))
    assert fleet.fleet.workers() == {}


# --- what agents say ------------------------------------------------------------------------------


def test_a_profile_of_another_version_is_refused_with_a_note(coordinator: CheckedCoordinator) -> None:
    (note,) = notes(coordinator(ev.AgentProfile(agent="phone", profile=profile_of("phone", digest="0" * 64))))
    assert "measured 'chain' 000000000000, planned is digest-of-ch" in note
    assert coordinator.core.refused_messages == 1
    assert coordinator.fleet.agents == {}


def test_an_agent_with_another_version_of_the_bundle_is_noted(coordinator: CheckedCoordinator) -> None:
    hello = hello_of("phone", digest="0" * 64)
    (note,) = notes(coordinator(ev.AgentHello(agent="phone", hello=hello)))
    assert "agent 'phone' has another version of 'chain' (000000000000, planned is digest-of-ch)" in note
    assert coordinator(ev.AgentHello(agent="phone", hello=hello)) == [], "once"


@pytest.mark.parametrize(
    ("event", "problem"),
    [
        (ev.QuerySeen(agent="tablet", name="q1", query=query_of("q1")), "names another"),
        (ev.QuerySeen(agent="phone", name="q2", query=query_of("q1")), "names another"),
        (declared(query_of("q1", rate_hz=-1.0)), "must lie between"),
        (declared(query_of("q1", replace(EASY, accuracy=2.0))), "must lie in [0, 1]"),
    ],
    ids=["from another agent", "under another name", "rate", "accuracy"],
)
def test_a_query_that_cannot_be_is_refused(
    coordinator: CheckedCoordinator, event: ev.Event, problem: str
) -> None:
    (note,) = notes(coordinator(event))
    assert problem in note
    assert coordinator.fleet.queries == {}
    assert coordinator.core.refused_messages == 1
    assert coordinator.tick(100.0) == [], "and nothing is planned for it"


def test_telemetry_is_kept_and_changes_nothing(fleet: CheckedCoordinator) -> None:
    telemetry = TelemetryMessage(session=101, cpu_share=0.5, memory_used_bytes=1, memory_total_bytes=2)
    assert fleet(ev.AgentTelemetry(agent="phone", telemetry=telemetry)) == []
    assert fleet.fleet.agents["phone"].telemetry == telemetry
    assert fleet.tick(100.0) == []


def test_what_is_no_message_is_counted_and_never_fatal(coordinator: CheckedCoordinator) -> None:
    (note,) = notes(coordinator(ev.MessageRefused(topic="somewhere", problem="not MessagePack")))
    assert "somewhere" in note
    assert coordinator.core.refused_messages == 1


# --- planning -------------------------------------------------------------------------------------


def test_planning_waits_until_the_fleet_is_quiet(fleet: CheckedCoordinator) -> None:
    fleet(declared(query_of("q1")))
    assert fleet.tick(SETTLE_S - 0.1) == []
    fleet(declared(query_of("q2")))
    assert fleet.tick(SETTLE_S - 0.1) == []
    (start,) = fleet.tick(0.1)
    assert isinstance(start, ev.StartPlanning)
    assert [query.name for query in start.problem.queries] == ["q1", "q2"]
    assert fleet.tick(100.0) == [], "not again while it is planned, nor without a change"


def test_a_fleet_that_is_never_quiet_is_planned_all_the_same(fleet: CheckedCoordinator) -> None:
    started_s = fleet.now_s
    starts: list[ev.Action] = []
    while not starts:
        fleet(declared(query_of("q1", rate_hz=1.0 + fleet.now_s)))
        starts = fleet.tick(SETTLE_S / 2)
        assert fleet.now_s - started_s <= PATIENCE_S + SETTLE_S
    assert fleet.now_s - started_s >= PATIENCE_S


def test_what_changes_meanwhile_is_planned_next(fleet: CheckedCoordinator) -> None:
    fleet(declared(query_of("q1")))
    fleet.tick(10.0)
    fleet(declared(query_of("q2")))
    assert fleet.tick(10.0) == []
    fleet.planned()
    assert set(fleet.retained.assignments()) == {"q1"}
    fleet.settle()
    assert set(fleet.retained.assignments()) == {"q1", "q2"}


def test_the_same_query_said_again_is_no_change(fleet: CheckedCoordinator) -> None:
    fleet(declared(query_of("q1")))
    fleet.settle()
    assert fleet(declared(query_of("q1"))) == []
    assert fleet.tick(100.0) == []


def test_queries_that_cannot_be_planned_yet_are_left_out_with_the_reason(
    coordinator: CheckedCoordinator,
) -> None:
    coordinator.join("phone")
    coordinator(ev.AgentHello(agent="tablet", hello=hello_of("tablet")))
    coordinator(status_of("tablet"))
    coordinator(declared(query_of("ready")))
    coordinator(declared(query_of("unmeasured", origin="tablet")))
    coordinator(declared(query_of("offline", origin="edge")))
    coordinator.settle()
    assert set(coordinator.retained.assignments()) == {"ready"}
    assert coordinator.core.left_out == {
        "unmeasured": "its origin 'tablet' has not measured 'chain' yet",
        "offline": "its origin 'edge' is offline",
    }


def test_a_planner_that_fails_leaves_the_fleet_as_it_is(fleet: CheckedCoordinator) -> None:
    fleet(declared(query_of("q1")))
    fleet.settle()
    before = dict(fleet.retained.messages)
    fleet(declared(query_of("q2")))
    fleet.tick(10.0)
    assert fleet.planning is not None
    failed = ev.PlanningFailed(version=fleet.planning.version, problem="too many plans")
    fleet.planning = None
    (note,) = notes(fleet(failed))
    assert "too many plans" in note
    assert fleet.retained.messages == before
    fleet(declared(query_of("q3")))
    fleet.settle()
    assert set(fleet.retained.assignments()) == {"q1", "q2", "q3"}


def test_a_plan_that_breaks_its_own_rules_is_not_published(fleet: CheckedCoordinator) -> None:
    fleet(declared(query_of("q1", FAST)))
    fleet.tick(10.0)
    asked, fleet.planning = fleet.planning, None
    assert asked is not None
    plan = plan_fleet(asked.problem)
    wrong = {"q1": replace(plan.plans["q1"], placement={"shrink": "phone", "read": "phone"})}
    actions = fleet(ev.Planned(version=asked.version, problem=asked.problem, plan=replace(plan, plans=wrong)))
    (note,) = notes(actions)
    assert "breaks its own rules" in note
    assert fleet.core.last_plan is not plan


# --- decisions ------------------------------------------------------------------------------------


def test_a_query_that_its_device_can_serve_needs_nobody(fleet: CheckedCoordinator) -> None:
    fleet(declared(query_of("q1", EASY)))
    fleet.settle()
    assignment = assignment_of(fleet, "q1").assignment
    assert assignment.plan is not None
    assert set(assignment.plan.placement.values()) == {"phone"}
    assert (assignment.epoch, assignment.workers, assignment.refusal) == (
        Epoch(coordinator=1, sequence=1),
        {},
        None,
    )
    assert fleet.retained.shares() == {}


def test_a_query_that_needs_a_worker_is_told_once_the_worker_is_ready(fleet: CheckedCoordinator) -> None:
    fleet(declared(query_of("q1", FAST)))
    fleet.settle()
    assert fleet.retained.assignments() == {}
    ((site, query), share), *_ = fleet.retained.shares().items()
    assert (site, query, share.origin) == ("edge", "q1", "phone")
    fleet(taken("edge", share))
    assert assignment_of(fleet, "q1").assignment.epoch == share.epoch


def test_a_worker_that_left_while_it_was_planned_with_is_not_asked(fleet: CheckedCoordinator) -> None:
    """An agent could not reach it, and would have to refuse the assignment."""
    fleet(declared(query_of("q1", FAST)))
    fleet.tick(10.0)
    fleet(status_of("edge", online=False))
    assert fleet.planned() == []
    fleet.settle()
    assert "latency" in str(assignment_of(fleet, "q1").assignment.refusal)
    fleet(status_of("edge", session=102))
    fleet.settle()
    fleet.take_all()
    assert assignment_of(fleet, "q1").assignment.plan is not None


def test_a_query_withdrawn_while_its_worker_gets_ready_is_not_assigned(fleet: CheckedCoordinator) -> None:
    fleet(declared(query_of("q1", FAST)))
    fleet.settle()
    fleet(ev.QuerySeen(agent="phone", name="q1", query=None))
    fleet.settle()
    assert fleet.take_all() == []
    assert (fleet.retained.assignments(), fleet.retained.shares()) == ({}, {})


@pytest.mark.parametrize("answers", [False, True], ids=["too late", "refused"])
def test_what_a_worker_did_not_take_is_planned_again(fleet: CheckedCoordinator, answers: bool) -> None:
    fleet(declared(query_of("q1", FAST)))
    fleet.settle()
    _, share = fleet.asked[-1]
    if answers:
        fleet(taken("edge", share, "no such model"))
    else:
        fleet.tick(SHARE_TIMEOUT_S)
    assert assignment_of(fleet, "q1").assignment.plan is None
    fleet.tick(RETRY_S - 1.0)
    assert fleet.planning is None, "not at once, and not over and over"
    fleet.tick(1.0)
    fleet.settle()
    fleet.take_all()
    assert assignment_of(fleet, "q1").assignment.plan is not None


def test_an_agent_that_was_away_when_its_query_was_withdrawn_is_told_at_its_next_telemetry(
    fleet: CheckedCoordinator,
) -> None:
    fleet(declared(query_of("q1")))
    fleet.settle()
    telemetry = TelemetryMessage(
        session=101,
        cpu_share=0.5,
        memory_used_bytes=1,
        memory_total_bytes=2,
        epochs={"q1": OLD, "gone": OLD},
    )
    (cleared,) = fleet(ev.AgentTelemetry(agent="phone", telemetry=telemetry))
    assert cleared == ev.Send(kind=Kind.ASSIGNMENT, agent="phone", item="gone", message=None)


def test_a_query_that_nobody_can_serve_is_told_why(fleet: CheckedCoordinator) -> None:
    fleet(declared(query_of("q1", EXACT)))
    fleet.settle()
    assignment = assignment_of(fleet, "q1").assignment
    assert (assignment.plan, assignment.fallback) == (None, None)
    assert "accuracy" in str(assignment.refusal)


def test_a_device_that_is_too_slow_still_has_deadlines_that_end(fleet: CheckedCoordinator) -> None:
    """Its fallback would never catch up: the estimate of its latency is infinite, the deadline is not."""
    fleet(declared(query_of("q1", FAST, rate_hz=6.0)))
    fleet.settle()
    fleet.take_all()
    assignment = assignment_of(fleet, "q1").assignment
    assert assignment.fallback is not None
    assert assignment.fallback.estimate is not None
    assert assignment.fallback.estimate.latency_p95_s == float("inf")
    assert assignment.deadline_s == 1.0


@pytest.mark.parametrize("turn", [1, -1], ids=["assignment first", "assignment last"])
def test_what_an_earlier_coordinator_left_for_nobody_is_cleared(turn: int) -> None:
    coordinator = CheckedCoordinator()
    left = (("phone", Kind.ASSIGNMENT), ("edge", Kind.SHARE), ("cloud", Kind.SHARE))
    for agent, kind in left[::turn]:
        coordinator(ev.DecisionSeen(agent=agent, kind=kind, query="old", epoch=OLD))
    coordinator(ev.DecisionSeen(agent="edge", kind=Kind.SHARE, query="orphan", epoch=OLD))
    coordinator(ev.Started())
    coordinator.join("phone", "edge")
    coordinator(declared(query_of("q1")))
    coordinator.settle()
    assert set(coordinator.retained.assignments()) == {"q1"}
    assert coordinator.retained.shares() == {}
    assert None not in coordinator.retained.messages.values()


def test_what_an_earlier_coordinator_left_stays_until_it_is_replaced() -> None:
    coordinator = CheckedCoordinator()
    assignment = ev.DecisionSeen(agent="phone", kind=Kind.ASSIGNMENT, query="q1", epoch=OLD)
    share = ev.DecisionSeen(agent="cloud", kind=Kind.SHARE, query="q1", epoch=OLD)
    coordinator(assignment)
    coordinator(share)
    coordinator(ev.Started())
    coordinator.join("edge")
    coordinator(declared(query_of("q1", FAST)))
    coordinator.settle()
    left = {key for key, message in coordinator.retained.messages.items() if message is None}
    assert left == {(Kind.ASSIGNMENT, "phone", "q1"), (Kind.SHARE, "cloud", "q1")}, "its origin is offline"
    coordinator.join("phone")
    coordinator.settle()
    coordinator.take_all()
    assert None not in coordinator.retained.messages.values()
    assert assignment_of(coordinator, "q1").assignment.epoch.coordinator == OLD.coordinator + 1


# --- any order of events --------------------------------------------------------------------------

_solved: dict[str, FleetPlan] = {}


def solve(problem: Problem) -> FleetPlan:
    """The real planner; the same few problems come again and again."""
    key = repr(problem)
    if key not in _solved:
        _solved[key] = plan_fleet(problem)
    return _solved[key]


QUERIES = st.sampled_from(["q1", "q2", "q3"])


class CoordinatorMachine(RuleBasedStateMachine):
    """Agents come and go, queries too, workers answer late or never; the ledger checks every step."""

    def __init__(self) -> None:
        super().__init__()
        self.checked = CheckedCoordinator(solve=solve)
        self.sessions = dict.fromkeys(TIERS, 101)
        self.checked(ev.DecisionSeen(agent="tablet", kind=Kind.ASSIGNMENT, query="q3", epoch=OLD))
        self.checked(ev.DecisionSeen(agent="cloud", kind=Kind.SHARE, query="q3", epoch=OLD))
        self.checked(ev.DecisionSeen(agent="edge", kind=Kind.SHARE, query="gone", epoch=OLD))
        self.checked(ev.Started())
        self.checked.join("phone", "edge")

    @rule(agent=st.sampled_from(list(TIERS)))
    def join(self, agent: str) -> None:
        self.sessions[agent] += 1
        self.checked.join(agent)
        self.checked(status_of(agent, session=self.sessions[agent]))

    @rule(agent=st.sampled_from(list(TIERS)), late=st.booleans())
    def leave(self, agent: str, late: bool) -> None:
        self.checked(status_of(agent, online=False, session=self.sessions[agent] - late))

    @rule(name=QUERIES, slo=st.sampled_from([EASY, FAST, FAST, EXACT]), rate_hz=st.sampled_from([1.0, 6.0]))
    def declare(self, name: str, slo: Slo, rate_hz: float) -> None:
        origin = "tablet" if name == "q3" else "phone"
        self.checked(declared(query_of(name, slo, origin=origin, rate_hz=rate_hz)))

    @rule(name=QUERIES)
    def withdraw(self, name: str) -> None:
        self.checked(ev.QuerySeen(agent="tablet" if name == "q3" else "phone", name=name, query=None))

    @rule(seconds=st.sampled_from([0.1, 1.0, 6.0, 30.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.checked.tick(seconds)

    @precondition(lambda self: self.checked.planning is not None)
    @rule(fails=st.sampled_from([False, False, False, True]))
    def finish_planning(self, fails: bool) -> None:
        if not fails:
            self.checked.planned()
            return
        asked, self.checked.planning = self.checked.planning, None
        assert asked is not None
        self.checked(ev.PlanningFailed(version=asked.version, problem="out of memory"))

    @precondition(lambda self: self.checked.asked)
    @rule(data=st.data(), problem=st.sampled_from([None, None, "no such model"]))
    def answer_a_share(self, data: st.DataObject, problem: str | None) -> None:
        site, share = data.draw(st.sampled_from(self.checked.asked[-4:]))
        self.checked(taken(site, share, problem))

    @rule()
    def reconnect(self) -> None:
        self.checked(ev.BrokerConnected())

    @invariant()
    def shares_have_a_query(self) -> None:
        """Whose assignment is either there, or on its way."""
        known = self.checked.core._standing
        assert {query for _, query in self.checked.retained.shares()} <= set(known)

    def teardown(self) -> None:
        """Once everybody is there and answers, all that is asked for is decided and nothing else is left."""
        for agent in TIERS:
            self.join(agent)
        self.checked(declared(query_of("last")))
        for _ in range(4):
            self.checked.tick(10.0)
            if self.checked.planning is not None:
                self.checked.planned()
            self.checked.take_all()
        retained = self.checked.retained
        assert set(retained.assignments()) == set(self.checked.fleet.queries)
        assert None not in retained.messages.values(), "nothing of an earlier coordinator is left"
        used = {
            (site, query)
            for query, message in retained.assignments().items()
            if message.assignment.plan is not None
            for site in set(message.assignment.plan.placement.values()) - {"phone", "tablet"}
        }
        assert set(retained.shares()) == used


TestAnyOrder = CoordinatorMachine.TestCase
TestAnyOrder.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
