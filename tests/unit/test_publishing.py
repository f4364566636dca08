"""What the coordinator's core publishes, in which order, and when it says it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from compass_coordinator import events as ev
from compass_coordinator.core import REJOIN_S, SHARE_TIMEOUT_S, CoordinatorCore
from compass_coordinator.fleet import Fleet
from compass_coordinator.planner import POLICIES
from compass_coordinator.planning import plan_fleet
from compass_shared.evaluate import estimate_at_load
from compass_shared.messages import (
    AckMessage,
    AssignmentMessage,
    CoordinatorMessage,
    HardwareInfo,
    HelloMessage,
    ShareMessage,
    StatusMessage,
)
from compass_shared.plan import PlanShare
from compass_shared.problem import Problem
from compass_shared.query import Query
from compass_shared.site import Prices, Tier
from compass_shared.splitting import in_parts
from compass_shared.topics import Kind
from support.problems import LOOSE, FleetShape, random_problem, with_queries

HELLO = HelloMessage(
    session=1,
    tier=Tier.CLOUD,
    agent_version="0.1.0",
    runtimes={},
    bundles={},
    hardware=HardwareInfo(machine="x86_64", cores=4, memory_bytes=4 << 30),
    cores=4.0,
    utilisation_cap=0.7,
    prices=Prices(),
    data_address="http://192.0.2.1:8470",
)
WORKER, DEVICE, OTHER = "cloud-0", "device-0", "device-1"


class Coordinator:
    """A core that has started, with one worker online and one query to be served there."""

    def __init__(self) -> None:
        problem = random_problem(3, FleetShape(devices=2, edges=0, clouds=1, queries=1))
        query = replace(problem.queries[0], slo=LOOSE, rate_hz=0.1)
        self.problem = with_queries(problem, query)
        self.query = query
        fleet = Fleet(pipelines=problem.pipelines, accuracy=problem.accuracy)
        tokens = iter(range(100))
        self.core = CoordinatorCore(fleet=fleet, stored_epoch=4, new_token=lambda: f"token-{next(tokens)}")
        self.now_s = 0.0
        self.said: list[ev.Send] = []
        """By the latest event."""
        self(ev.Started())
        self.worker_at("http://192.0.2.1:8470", session=1)

    def __call__(self, *events: ev.Event, after_s: float = 0.0) -> list[ev.Action]:
        self.now_s += after_s
        actions = [action for event in events for action in self.core.handle(event, self.now_s)]
        self.said = [action for action in actions if isinstance(action, ev.Send)]
        return actions

    def worker_at(self, address: str, *, session: int) -> None:
        hello = replace(HELLO, session=session, data_address=address)
        status = StatusMessage(online=True, session=session)
        self(ev.AgentHello(agent=WORKER, hello=hello), ev.AgentStatus(agent=WORKER, status=status))

    def planned(self, policy: str = "cloud", problem: Problem | None = None) -> list[ev.Action]:
        """The planner finished."""
        problem = problem or self.problem
        plan = plan_fleet(problem, POLICIES[policy])
        assert len(plan.plans) == len(problem.queries)
        return self(ev.Planned(version=1, problem=problem, plan=plan))

    def acked(self, share: ShareMessage, *, problem: str | None = None) -> list[ev.Action]:
        ack = AckMessage(
            query=share.query, epoch=share.epoch, taken=problem is None, reason=problem or "", share=True
        )
        return self(ev.AgentAck(agent=WORKER, ack=ack))

    def served(self) -> AssignmentMessage:
        """Plan, and let the worker take its share."""
        self.planned()
        self.acked(_share(self.said))
        return _assignment(self.said)


def _share(said: Sequence[ev.Send]) -> ShareMessage:
    (share,) = (send.message for send in said if send.kind is Kind.SHARE and send.message is not None)
    assert isinstance(share, ShareMessage)
    return share


def _assignment(said: Sequence[ev.Send]) -> AssignmentMessage:
    (message,) = (send.message for send in said if send.kind is Kind.ASSIGNMENT and send.message is not None)
    assert isinstance(message, AssignmentMessage)
    return message


def _topics(said: Sequence[ev.Send]) -> list[tuple[Kind, str | None]]:
    return [(send.kind, send.agent) for send in said]


def test_a_worker_has_its_share_before_the_agent_is_told() -> None:
    coordinator = Coordinator()
    coordinator.planned()
    assert _topics(coordinator.said) == [(Kind.SHARE, WORKER)]
    share = _share(coordinator.said)
    coordinator.acked(share)
    assert _topics(coordinator.said) == [(Kind.ASSIGNMENT, DEVICE)]
    told = _assignment(coordinator.said).assignment
    assert (told.epoch, told.epoch.coordinator) == (share.epoch, 5)
    assert told.workers[WORKER].token == share.token


def test_the_same_plan_is_not_published_again() -> None:
    coordinator = Coordinator()
    coordinator.served()
    assert coordinator.planned() == []


def test_a_worker_with_a_new_address_is_told_of_though_the_plan_is_the_same() -> None:
    coordinator = Coordinator()
    before = coordinator.served().assignment
    coordinator.worker_at("http://192.0.2.1:9000", session=2)
    coordinator.planned()
    coordinator.acked(_share(coordinator.said))
    after = _assignment(coordinator.said).assignment
    assert before.workers[WORKER].address == "http://192.0.2.1:8470"
    assert after.workers[WORKER].address == "http://192.0.2.1:9000"
    assert after.epoch > before.epoch
    assert (after.plan and after.plan.placement) == (before.plan and before.plan.placement)


def test_shares_that_nobody_uses_any_more_are_cleared_last() -> None:
    coordinator = Coordinator()
    coordinator.served()
    coordinator.planned("device")
    assert _topics(coordinator.said) == [(Kind.ASSIGNMENT, DEVICE), (Kind.SHARE, WORKER)]
    assert coordinator.said[1].message is None


@pytest.mark.parametrize("refused", [True, False])
def test_without_the_worker_the_query_has_no_plan_and_knows_why(refused: bool) -> None:
    coordinator = Coordinator()
    coordinator.planned()
    if refused:
        coordinator.acked(_share(coordinator.said), problem="no such model")
    else:
        coordinator(ev.Tick(), after_s=SHARE_TIMEOUT_S - 0.1)
        assert coordinator.said == []
        coordinator(ev.Tick(), after_s=0.1)
    told = _assignment(coordinator.said).assignment
    assert told.plan is None
    assert told.fallback is not None
    assert ("no such model" if refused else "did not take its share in time") in str(told.refusal)
    assert (Kind.SHARE, WORKER) in _topics([send for send in coordinator.said if send.message is None])


def _split(coordinator: Coordinator) -> tuple[ev.Planned, float]:
    """Plans of one divisible query: a quarter of its requests in the cloud, the rest on the device."""
    query = replace(coordinator.query, divisible=True)
    problem = with_queries(coordinator.problem, query)
    whole = {
        policy: plan_fleet(problem, POLICIES[policy]).plans[query.name] for policy in ("cloud", "device")
    }
    fractions = {"cloud": 0.25, "device": 0.75}
    parts, running = in_parts(
        problem,
        {},
        {query.name: [PlanShare(plan=whole[name], fraction=part) for name, part in fractions.items()]},
    )
    plans = {name: replace(plan, estimate=None) for name, plan in running.items()}
    estimates = estimate_at_load(parts, plans)
    shares = tuple(
        PlanShare(plan=replace(plans[name], estimate=estimates[name]), fraction=fraction)
        for name, fraction in zip(plans, fractions.values(), strict=True)
    )
    fleet = replace(plan_fleet(problem), plans={}, split={query.name: shares})
    cores = estimates[next(iter(plans))].demand["cores@" + WORKER]
    return ev.Planned(version=1, problem=problem, plan=fleet), cores


def test_a_split_query_has_one_share_a_worker_and_all_its_plans() -> None:
    coordinator = Coordinator()
    planned, cores = _split(coordinator)
    coordinator(planned)
    share = _share(coordinator.said)
    assert share.rate_hz == pytest.approx(0.25 * coordinator.query.rate_hz)
    assert share.cores == pytest.approx(cores)
    coordinator.acked(share)
    told = _assignment(coordinator.said).assignment
    assert [part.fraction for part in told.split] == [0.25, 0.75]
    assert told.plan == told.split[1].plan, "an agent that knows no splits runs the larger part"
    assert coordinator(planned) == []


def test_a_split_query_whose_worker_refuses_has_no_plan_at_all() -> None:
    coordinator = Coordinator()
    planned, _ = _split(coordinator)
    coordinator(planned)
    coordinator.acked(_share(coordinator.said), problem="no such model")
    told = _assignment(coordinator.said).assignment
    assert (told.plan, told.split) == (None, ())


def test_an_answer_to_an_earlier_share_is_not_one_to_this() -> None:
    coordinator = Coordinator()
    coordinator.planned()
    early = _share(coordinator.said)
    coordinator.worker_at("http://192.0.2.1:9000", session=2)
    coordinator.planned()
    assert _share(coordinator.said).epoch > early.epoch
    assert coordinator.acked(early) == []


def test_everything_is_said_again_after_a_broken_connection() -> None:
    coordinator = Coordinator()
    told = coordinator.served()
    coordinator(ev.BrokerConnected(), ev.Tick())
    assert coordinator.said == [], "first what is retained is read"
    coordinator(ev.Tick(), after_s=REJOIN_S - 0.1)
    assert coordinator.said == []
    coordinator(ev.Tick(), after_s=0.1)
    assert _topics(coordinator.said) == [
        (Kind.COORDINATOR, None),
        (Kind.PIPELINE, None),
        (Kind.SHARE, WORKER),
        (Kind.ASSIGNMENT, DEVICE),
    ]
    assert _assignment(coordinator.said) == told
    coordinator(ev.Tick(), after_s=0.1)
    assert coordinator.said == []


def test_a_share_that_waits_is_said_again_without_the_one_before_it() -> None:
    coordinator = Coordinator()
    told = coordinator.served()
    coordinator.worker_at("http://192.0.2.1:9000", session=2)
    coordinator.planned()
    waiting = _share(coordinator.said)
    coordinator(ev.BrokerConnected())
    coordinator(ev.Tick(), after_s=REJOIN_S)
    assert (_share(coordinator.said), _assignment(coordinator.said)) == (waiting, told)


def test_a_coordinator_that_finds_a_newer_one_stops_and_says_no_more() -> None:
    coordinator = Coordinator()
    coordinator.served()
    coordinator(ev.BrokerConnected())
    newer = ev.CoordinatorSeen(status=CoordinatorMessage(online=True, epoch=6))
    (stop,) = coordinator(newer)
    assert stop == ev.Stop(reason="a coordinator with epoch 6 > 5 is in charge")
    assert coordinator(ev.Tick(), newer, after_s=10.0) == []
    assert coordinator.planned("device") == []


@pytest.mark.parametrize("epoch", [1, 5])
def test_older_coordinators_and_our_own_echo_change_nothing(epoch: int) -> None:
    coordinator = Coordinator()
    status = CoordinatorMessage(online=True, epoch=epoch)
    assert coordinator(ev.CoordinatorSeen(status=status)) == []


def test_a_query_belongs_to_who_asked_first() -> None:
    coordinator = Coordinator()
    name, fleet = coordinator.query.name, coordinator.core._fleet
    assert coordinator(_asks(coordinator.query)) == []
    (note,) = coordinator(_asks(replace(coordinator.query, origin=OTHER)))
    assert isinstance(note, ev.Note)
    assert f"'{DEVICE}' has one of that name" in note.text
    coordinator(ev.QuerySeen(agent=OTHER, name=name, query=None))
    assert fleet.queries == {name: coordinator.query}
    coordinator(ev.QuerySeen(agent=DEVICE, name=name, query=None))
    assert fleet.queries == {}


def test_a_query_that_moves_leaves_nothing_behind() -> None:
    coordinator = Coordinator()
    coordinator.served()
    moved = replace(coordinator.query, origin=OTHER)
    coordinator.planned("device", with_queries(coordinator.problem, moved))
    cleared = [send for send in coordinator.said if send.message is None]
    assert _topics(cleared) == [(Kind.ASSIGNMENT, DEVICE), (Kind.SHARE, WORKER)]
    assert _topics([send for send in coordinator.said if send.message]) == [(Kind.ASSIGNMENT, OTHER)]


def test_a_withdrawn_query_is_cleared_everywhere() -> None:
    coordinator = Coordinator()
    coordinator.served()
    coordinator.planned(problem=with_queries(coordinator.problem))
    assert [(send.kind, send.agent, send.message) for send in coordinator.said] == [
        (Kind.ASSIGNMENT, DEVICE, None),
        (Kind.SHARE, WORKER, None),
    ]


def _asks(query: Query) -> ev.QuerySeen:
    return ev.QuerySeen(agent=query.origin, name=query.name, query=query)
