"""The agent's core: events in, actions out, and the invariants of requests after every one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from compass_agent import events as ev
from compass_shared.errors import ConfigError, DeadlineError, InferenceError, RefusedError, TransportError
from compass_shared.messages import (
    AckMessage,
    CoordinatorMessage,
    HardwareInfo,
    HelloMessage,
    LinkReport,
    PipelineMessage,
    ProfileMessage,
    QueryCounters,
    QueryMessage,
    ShareMessage,
    StatusMessage,
    TelemetryMessage,
    WorkerInfo,
)
from compass_shared.plan import Epoch
from compass_shared.profile import SiteProfile
from compass_shared.query import Query, Slo
from compass_shared.site import Prices, Tier
from compass_shared.topics import Kind
from support.agents import (
    CHAIN,
    DIAMOND,
    SITE,
    CheckedAgent,
    assigned,
    done,
    failed,
    made_by,
    outcome_of,
    plan_at,
    runs,
    sends,
    timers,
)

HELLO = HelloMessage(
    session=100,
    tier=Tier.DEVICE,
    agent_version="0.1.0",
    runtimes={},
    bundles={},
    hardware=HardwareInfo(machine="aarch64", cores=4, memory_bytes=4 << 30),
    cores=2.0,
    utilisation_cap=0.7,
    prices=Prices(),
)
LINK = LinkReport(target="edge", rtt_s=0.01, rtt_var_s2=0.0, up_bps=1e6, down_bps=1e6)
QUERY = Query(
    name="q1",
    origin=SITE,
    pipeline="chain",
    rate_hz=1.0,
    slo=Slo(latency_p95_s=1.0, accuracy=0.5, cost_usd_per_1000=1.0),
)
SHARE = ShareMessage(
    query="q9",
    origin="tablet",
    pipeline="chain",
    digest=CHAIN.digest,
    epoch=Epoch(coordinator=1, sequence=1),
    variants=("find", "read"),
    rate_hz=1.0,
    cores=0.5,
    token="secret",
)
REMOTE = plan_at(CHAIN, SITE, "edge", "edge")
LOCAL = plan_at(CHAIN, SITE, p95_s=2.0)
ASSIGNED = assigned(CHAIN, REMOTE, fallback=LOCAL)
TELEMETRY_DUE = ev.TelemetryDue(cpu_share=0.5, memory_used_bytes=1, memory_total_bytes=2)
EDGE_INFO = WorkerInfo(address="http://127.0.0.1:8001", tier=Tier.EDGE)
CLOUD_INFO = WorkerInfo(address="http://127.0.0.1:8002", tier=Tier.CLOUD)


@pytest.fixture
def agent() -> CheckedAgent:
    return CheckedAgent()


@pytest.fixture
def online(agent: CheckedAgent) -> CheckedAgent:
    """An agent that introduced itself."""
    agent(ev.HelloReady(hello=HELLO))
    agent(ev.BrokerConnected(session=101))
    return agent


def profile(pipeline: str = "chain", *links: LinkReport) -> ProfileMessage:
    site_profile = SiteProfile(site=SITE, pipeline=pipeline, digest="", operators={}, request_mean_bytes=1.0)
    return ProfileMessage(session=100, profile=site_profile, links=links)


def coordinator(
    epoch: int, workers: Mapping[str, WorkerInfo] | None = None, *, is_online: bool = True
) -> ev.CoordinatorArrived:
    return ev.CoordinatorArrived(
        status=CoordinatorMessage(online=is_online, epoch=epoch, workers=workers or {})
    )


def heard(agent: CheckedAgent, event: ev.CoordinatorArrived) -> list[ev.Action]:
    """What follows from a coordinator's status, but for the peers that are asked for models."""
    return [action for action in agent(event) if not isinstance(action, ev.UsePeers)]


def telemetry(agent: CheckedAgent) -> TelemetryMessage:
    (send,) = sends(agent(TELEMETRY_DUE))
    assert (send.kind, send.retain, send.qos) == (Kind.TELEMETRY, False, 0)
    assert isinstance(send.message, TelemetryMessage)
    return send.message


# --- presence -------------------------------------------------------------------------------------


@pytest.mark.parametrize("hello_first", [True, False])
def test_an_agent_introduces_itself_when_it_is_connected_and_knows_itself(
    agent: CheckedAgent, hello_first: bool
) -> None:
    events: list[ev.Event] = [ev.HelloReady(hello=HELLO), ev.BrokerConnected(session=101)]
    first, second = events if hello_first else reversed(events)
    assert agent(first) == []
    assert agent(second) == [
        ev.Send(kind=Kind.STATUS, message=StatusMessage(online=True, session=101), retain=True),
        ev.Send(kind=Kind.HELLO, message=HELLO, retain=True),
    ]


def test_everything_is_said_again_at_every_connect(online: CheckedAgent) -> None:
    online(ev.ProfileReady(profile=profile("chain")))
    online(ev.ProfileReady(profile=profile("chain", LINK)))
    online(ev.ProfileReady(profile=profile("diamond")))
    online(ev.QueryDeclared(name="q1", query=QUERY))
    online(ev.BrokerLost(reason="gone"))
    assert online(ev.BrokerConnected(session=102)) == [
        ev.Send(kind=Kind.STATUS, message=StatusMessage(online=True, session=102), retain=True),
        ev.Send(kind=Kind.HELLO, message=HELLO, retain=True),
        ev.Send(kind=Kind.PROFILE, message=profile("chain", LINK)),
        ev.Send(kind=Kind.PROFILE, message=profile("diamond")),
        ev.Send(kind=Kind.QUERY, item="q1", message=QueryMessage(query=QUERY), retain=True),
    ]


def test_while_the_broker_is_gone_nothing_is_sent(online: CheckedAgent) -> None:
    online(ev.BrokerLost(reason="gone"))
    assert online(TELEMETRY_DUE) == []
    assert online(ev.ProfileReady(profile=profile())) == []
    assert online(ev.QueryDeclared(name="q1", query=QUERY)) == []
    assert online(ev.HelloReady(hello=HELLO)) == []


def test_a_profile_goes_out_when_it_is_ready(online: CheckedAgent) -> None:
    message = profile("chain", LINK)
    assert online(ev.ProfileReady(profile=message)) == [ev.Send(kind=Kind.PROFILE, message=message)]


# --- queries --------------------------------------------------------------------------------------


def test_a_query_is_declared_and_withdrawn_at_once(online: CheckedAgent) -> None:
    said = ev.Send(kind=Kind.QUERY, item="q1", message=QueryMessage(query=QUERY), retain=True)
    assert online(ev.QueryDeclared(name="q1", query=QUERY)) == [said]
    cleared = replace(said, message=None)
    assert online(ev.QueryDeclared(name="q1", query=None)) == [cleared]
    assert Kind.QUERY not in {send.kind for send in sends(online(ev.BrokerConnected(session=102)))}


def test_a_query_withdrawn_while_the_broker_was_gone_is_cleared_once_it_is_back(online: CheckedAgent) -> None:
    online(ev.QueryDeclared(name="q1", query=QUERY))
    online(ev.BrokerLost(reason="gone"))
    online(ev.QueryDeclared(name="q1", query=None))
    cleared = ev.Send(kind=Kind.QUERY, item="q1", message=None, retain=True)
    assert cleared in online(ev.BrokerConnected(session=102))
    # Somebody may declare it in our name from now on: it is not for us to clear that again.
    assert cleared not in online(ev.BrokerConnected(session=103))


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("q1", {"pipeline": "other"}, "'other' is not installed"),
        ("q1", {"rate_hz": -1.0}, "must lie between"),
        ("q2", {}, "must bear that name"),
        ("q1", {"origin": "tablet"}, f"start at '{SITE}'"),
        ("Q/1", {"name": "Q/1"}, "must match"),
    ],
)
def test_a_query_that_makes_no_sense_is_refused_here(
    online: CheckedAgent, name: str, changes: dict[str, str], problem: str
) -> None:
    query = replace(QUERY, **changes)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=problem):
        online(ev.QueryDeclared(name=name, query=query))
    assert Kind.QUERY not in {send.kind for send in sends(online(ev.BrokerConnected(session=102)))}


# --- the coordinator ------------------------------------------------------------------------------


def test_a_new_coordinator_is_told_what_is_not_retained(online: CheckedAgent) -> None:
    online(ev.ProfileReady(profile=profile()))
    told = [ev.Send(kind=Kind.PROFILE, message=profile())]
    assert heard(online, coordinator(1)) == told
    assert heard(online, coordinator(1)) == []
    assert heard(online, coordinator(2)) == told
    assert heard(online, coordinator(1)) == [], "an older one is not listened to"


def test_a_new_coordinator_is_told_even_if_its_assignment_came_first(online: CheckedAgent) -> None:
    online(ev.ProfileReady(profile=profile()))
    online.assign(assigned(CHAIN, LOCAL, epoch=(2, 1)))
    assert heard(online, coordinator(2)) == [ev.Send(kind=Kind.PROFILE, message=profile())]


def test_a_coordinator_that_goes_down_changes_nothing(online: CheckedAgent) -> None:
    online.assign(ASSIGNED)
    assert heard(online, coordinator(7, is_online=False)) == []
    assert online.core.assignments == {"q1": ASSIGNED}
    assert online.assign(replace(ASSIGNED, epoch=Epoch(coordinator=1, sequence=2))) != []


def test_links_are_measured_when_workers_come_move_and_go(online: CheckedAgent) -> None:
    moved = replace(EDGE_INFO, address="http://127.0.0.1:9001")
    both = {"edge": moved, "cloud": CLOUD_INFO}
    steps: list[tuple[ev.CoordinatorArrived, list[ev.Action]]] = [
        (coordinator(1, {"edge": EDGE_INFO}), [ev.MeasureLinks(workers={"edge": EDGE_INFO})]),
        (coordinator(1, {"edge": EDGE_INFO}), []),
        (coordinator(1, {"edge": moved}), [ev.MeasureLinks(workers={"edge": moved})]),
        (coordinator(1, both), [ev.MeasureLinks(workers=both)]),
        (coordinator(1), [ev.MeasureLinks(workers={})]),
    ]
    for event, actions in steps:
        assert heard(online, event) == actions


def test_a_worker_does_not_measure_the_way_to_itself(online: CheckedAgent) -> None:
    assert heard(online, coordinator(1, {SITE: EDGE_INFO})) == []


def test_models_are_asked_for_at_the_coordinator_and_then_at_the_other_workers(online: CheckedAgent) -> None:
    workers = {"edge": EDGE_INFO, SITE: CLOUD_INFO}
    status = CoordinatorMessage(online=True, epoch=1, workers=workers, model_address="http://127.0.0.1:8000")
    both = ev.UsePeers(addresses=("http://127.0.0.1:8000", EDGE_INFO.address))
    assert both in online(ev.CoordinatorArrived(status=status))
    alone = ev.UsePeers(addresses=(EDGE_INFO.address,))
    assert alone in online(ev.CoordinatorArrived(status=replace(status, model_address=None)))


def test_an_assignment_is_saved_acknowledged_and_its_models_opened(online: CheckedAgent) -> None:
    """Those of the plan that run here, and of the fallback, in case it is needed."""
    other_side = replace(LOCAL, config={**LOCAL.config, "shrink": {"side": 640}})
    assignment = replace(ASSIGNED, fallback=other_side)
    ack = AckMessage(query="q1", epoch=ASSIGNED.epoch, taken=True)
    variants = ("shrink[side=320]", "shrink[side=640]", "find", "read")
    assert online.assign(assignment) == [
        ev.SaveAssignments(assignments={"q1": assignment}),
        ev.Send(kind=Kind.ACK, message=ack),
        ev.OpenModels(pipeline="chain", variants=variants),
    ]


def test_an_assignment_that_does_not_fit_is_refused_with_the_reason(online: CheckedAgent) -> None:
    online(coordinator(2))
    reason = "coordinator epoch 1 is older than 2"
    ack = AckMessage(query="q1", epoch=ASSIGNED.epoch, taken=False, reason=reason)
    assert online.assign(ASSIGNED) == [ev.Send(kind=Kind.ACK, message=ack)]
    assert online.core.assignments == {}


def test_what_is_withdrawn_is_forgotten_on_disk_too(online: CheckedAgent) -> None:
    online.assign(ASSIGNED)
    withdrawn = ev.AssignmentArrived(query="q1", assignment=None)
    assert online(withdrawn) == [ev.SaveAssignments(assignments={})]
    assert outcome_source(online) is ev.Source.DEFAULT


def outcome_source(agent: CheckedAgent) -> ev.Source:
    return agent.finish(agent.submit()).source


def test_an_agent_that_is_alone_serves_from_what_was_saved() -> None:
    agent = CheckedAgent(assignments={"q1": ASSIGNED})
    assert agent.core.assignments == {"q1": ASSIGNED}
    variants = ("shrink[side=320]", "find", "read")
    assert agent(ev.Started()) == [ev.OpenModels(pipeline="chain", variants=variants)]
    assert outcome_source(agent) is ev.Source.ASSIGNED


@pytest.mark.parametrize("problem", [None, "model 'det' is nowhere to be had"])
def test_a_share_is_acknowledged_when_it_is_ready_or_cannot_be(
    online: CheckedAgent, problem: str | None
) -> None:
    hold = ev.HoldShare(query="q9", share=SHARE)
    assert online(ev.ShareArrived(query="q9", share=SHARE)) == [hold]
    ack = AckMessage(query="q9", epoch=SHARE.epoch, taken=problem is None, reason=problem or "", share=True)
    ready = ev.ShareReady(query="q9", epoch=SHARE.epoch, problem=problem)
    assert online(ready) == [ev.Send(kind=Kind.ACK, message=ack)]


def test_a_share_that_is_withdrawn_is_given_up(online: CheckedAgent) -> None:
    online(ev.ShareArrived(query="q9", share=SHARE))
    assert online(ev.ShareArrived(query="q9", share=None)) == [ev.HoldShare(query="q9", share=None)]


def test_a_share_for_other_code_is_refused(online: CheckedAgent) -> None:
    (send,) = sends(online(ev.ShareArrived(query="q9", share=replace(SHARE, digest="0" * 64))))
    assert isinstance(send.message, AckMessage)
    assert (send.message.taken, send.message.share) == (False, True)
    assert "update the bundle" in send.message.reason


def test_a_share_shows_that_its_coordinator_is_in_charge(online: CheckedAgent) -> None:
    """A worker may have no assignments of its own to learn it from."""
    newer = replace(SHARE, epoch=Epoch(coordinator=3, sequence=1))
    online(ev.ShareArrived(query="q9", share=newer))
    (send,) = sends(online(ev.ShareArrived(query="q8", share=replace(SHARE, query="q8"))))
    assert isinstance(send.message, AckMessage)
    assert send.message.reason == "coordinator epoch 1 is older than 3"


def test_what_is_not_for_this_agent_is_counted_and_never_fatal(online: CheckedAgent) -> None:
    assert online(ev.MessageRefused(topic="compass/1/f/agents/phone/hello", problem="not for an agent")) == []
    declared = PipelineMessage(pipeline="chain", version="1", digest=CHAIN.digest, document={})
    assert online(ev.PipelineArrived(declaration=declared)) == []
    assert online(ev.PipelineArrived(declaration=replace(declared, pipeline="other"))) == []
    assert online.core.refused_messages == 2


# --- requests -------------------------------------------------------------------------------------


def test_a_request_follows_its_assignment_from_site_to_site(agent: CheckedAgent) -> None:
    agent.assign(ASSIGNED)
    outcome = agent.finish(agent.submit())
    assert (outcome.value, outcome.source) == (made_by("r1", 1, "read"), ev.Source.ASSIGNED)
    assert (outcome.query, outcome.epoch) == ("q1", ASSIGNED.epoch)
    assert [trace.site for trace in outcome.segments] == [SITE, "edge"]


def test_a_worker_that_is_gone_means_the_fallback(agent: CheckedAgent) -> None:
    agent.assign(ASSIGNED)
    (here,) = runs(agent.submit())
    (there,) = runs(agent(done(here)))
    outcome = agent.finish(agent(failed(there, TransportError("gone"))))
    assert (outcome.source, outcome.attempts, outcome.error) == (ev.Source.FALLBACK, 2, None)


def test_a_request_goes_on_with_the_plan_it_started_with(agent: CheckedAgent) -> None:
    agent.assign(ASSIGNED)
    (here,) = runs(agent.submit())
    agent.assign(replace(ASSIGNED, plan=None, fallback=None, epoch=Epoch(coordinator=1, sequence=2)))
    assert agent.finish(agent(done(here))).epoch == ASSIGNED.epoch


def test_requests_in_flight_do_not_meet(agent: CheckedAgent) -> None:
    agent.assign(ASSIGNED)
    agent.assign(assigned(DIAMOND, plan_at(DIAMOND, SITE, "edge", "cloud", SITE), query="q2", epoch=(1, 2)))
    submitted = [agent.submit("chain"), agent.submit("diamond"), agent.submit("chain")]
    assert agent.core.in_flight == 3
    outcomes = [agent.finish(actions) for actions in reversed(submitted)]
    assert [outcome.value for outcome in outcomes] == [
        made_by("r3", 1, "read"),
        made_by("r2", 1, "join"),
        made_by("r1", 1, "read"),
    ]
    assert agent.core.in_flight == 0


def test_the_caller_may_allow_less_time_than_the_assignment(agent: CheckedAgent) -> None:
    agent.assign(ASSIGNED)
    assert [timer.delay_s for timer in timers(agent.submit())] == [10.0, 7.0]
    assert [timer.delay_s for timer in timers(agent.submit(deadline_s=1.0))] == [1.0, 0.5]


def test_a_request_that_cannot_be_served_is_refused_at_once(agent: CheckedAgent) -> None:
    agent.assign(replace(ASSIGNED, plan=None, fallback=None, refusal="accuracy cannot be met"))
    with pytest.raises(RefusedError, match="accuracy cannot be met"):
        agent.submit()
    with pytest.raises(ConfigError, match="not installed"):
        agent.submit("other")
    assert agent.core.in_flight == 0


def test_two_queries_of_one_pipeline_need_a_name(agent: CheckedAgent) -> None:
    agent.assign(ASSIGNED)
    agent.assign(assigned(CHAIN, LOCAL, query="q2", epoch=(1, 2)))
    with pytest.raises(ConfigError, match="name one: q1, q2"):
        agent.submit()
    assert agent.finish(agent.submit(query="q2")).query == "q2"


# --- telemetry ------------------------------------------------------------------------------------


def test_telemetry_counts_how_requests_ended(online: CheckedAgent) -> None:
    online.assign(ASSIGNED)
    for latency_s in (0.25, 0.5):
        actions = online.submit()
        online.now_s += latency_s
        online.finish(actions)
    (run,) = runs(online.submit())
    online.finish(online(failed(run)))
    (run,) = runs(online.submit())
    assert isinstance(outcome_of(online(failed(run, InferenceError("shrink", "bad")))).error, InferenceError)
    actions = online.submit()
    online.now_s += 10.0
    assert isinstance(outcome_of(online(timers(actions)[0].event)).error, DeadlineError)
    message = telemetry(online)
    assert message.queries == {
        "q1": QueryCounters(answered=3, failed=1, expired=1, on_fallback=1, latency_p95_s=0.5)
    }
    assert message.epochs == {"q1": ASSIGNED.epoch}
    assert (message.session, message.cpu_share) == (101, 0.5)


def test_requests_before_any_assignment_count_under_their_pipeline(online: CheckedAgent) -> None:
    online.finish(online.submit("diamond"))
    assert telemetry(online).queries == {
        "diamond": QueryCounters(answered=1, on_fallback=1, latency_p95_s=0.0)
    }


def test_the_p95_is_over_recent_answers(online: CheckedAgent) -> None:
    for latency_s in [9.0] * 5 + [1.0] * 200:
        actions = online.submit()
        online.now_s += latency_s
        online.finish(actions)
    counters = telemetry(online).queries["chain"]
    assert (counters.answered, counters.latency_p95_s) == (205, 1.0)


@pytest.mark.parametrize(("count", "p95"), [(1, 1.0), (19, 19.0), (20, 19.0), (100, 95.0)])
def test_the_p95_is_the_nearest_rank(online: CheckedAgent, count: int, p95: float) -> None:
    for latency_s in range(1, count + 1):
        actions = online.submit(deadline_s=1000.0)
        online.now_s += latency_s
        online.finish(actions)
    assert telemetry(online).queries["chain"].latency_p95_s == p95


def test_every_request_of_a_rough_day_ends_and_is_counted(online: CheckedAgent) -> None:
    online.assign(ASSIGNED)
    waiting: list[ev.RunSegment] = []
    for step in range(100):
        waiting.extend(runs(online.pass_until(step * 0.25)))
        waiting.extend(runs(online.submit(("chain", "diamond")[step % 2])))
        for run in (waiting.pop(step % len(waiting)) for _ in range(step % 3)):
            waiting.extend(runs(online(failed(run) if step % 5 == 0 else done(run))))
        if step % 10 == 5:
            online(ev.BrokerLost(reason="gone"))
            online(ev.BrokerConnected(session=102 + step))
            online(coordinator(2 + step))
    online.pass_until(1000.0)
    assert online.core.in_flight == 0
    counters = telemetry(online).queries.values()
    ended = {
        "answered": sum(counter.answered for counter in counters),
        "failed": sum(counter.failed for counter in counters),
        "expired": sum(counter.expired for counter in counters),
    }
    assert sum(ended.values()) == len(online.ledger.finished) == 100
    assert all(ended.values()), "of each some"


@pytest.mark.parametrize("deadline_s", [float("nan"), float("inf"), -1.0, 1e9])
def test_a_deadline_that_makes_no_sense_is_refused(online: CheckedAgent, deadline_s: float) -> None:
    event = ev.RequestSubmitted(request="r1", pipeline=CHAIN.name, value=b"", deadline_s=deadline_s)
    with pytest.raises(ConfigError, match="deadline_s"):
        online(event)


def test_a_query_that_nobody_declared_or_assigned_is_refused(
    online: CheckedAgent,
) -> None:
    online.assign(ASSIGNED)
    with pytest.raises(ConfigError, match="no query is called 'typo' here; there are q1"):
        online(ev.RequestSubmitted(request="r1", pipeline=CHAIN.name, value=b"", query="typo"))
