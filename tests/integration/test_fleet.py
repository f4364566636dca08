"""A whole fleet: what is declared gets measured, planned and served; whoever leaves, requests end."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgpack
import pytest

from compass_agent import probing
from compass_agent.events import Source
from compass_agent.measure import network
from compass_agent.probing import Measure
from compass_coordinator import core as coordinator_core
from compass_coordinator import shell as coordinator_shell
from compass_coordinator.demo.broker import EmbeddedBroker
from compass_shared import codec
from compass_shared.messages import (
    AssignmentMessage,
    CoordinatorMessage,
    HelloMessage,
    ProfileMessage,
    QueryMessage,
    ShareMessage,
    StatusMessage,
)
from compass_shared.plan import Assignment, Epoch
from compass_shared.query import Slo
from compass_shared.topics import Kind, parse
from support.brokers import Mosquitto
from support.fleets import (
    LOOSE,
    ROWS,
    Broker,
    BrokerInMemory,
    BrokerProcess,
    FleetRig,
    Traffic,
    calls_of,
    counters,
    declare,
    planned_at,
    query_of,
    until,
    withdraw,
)

OPERATORS = ("scale", "classify", "label")


@pytest.fixture(scope="module")
def rumqttd() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as broker:
        yield broker


@pytest.fixture(scope="module")
def mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mosquitto]:
    with Mosquitto(tmp_path_factory.mktemp("mosquitto")) as broker:
        yield broker


@pytest.fixture(
    params=[
        "memory",
        pytest.param("rumqttd", marks=pytest.mark.broker),
        pytest.param("mosquitto", marks=pytest.mark.broker),
    ]
)
async def broker(request: pytest.FixtureRequest) -> Broker:
    if request.param == "memory":
        return BrokerInMemory()
    return BrokerProcess(request.getfixturevalue(request.param))


@pytest.fixture
async def fleet(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> AsyncIterator[FleetRig]:
    # Loopback needs no long transfers, and a fleet of two settles sooner than a real one.
    monkeypatch.setattr(network, "_TRANSFER_S", 0.002)
    monkeypatch.setattr(coordinator_core, "SETTLE_S", 0.1)
    monkeypatch.setattr(coordinator_shell, "RETAINED_QUIET_S", 0.3)
    monkeypatch.setattr(coordinator_shell, "TICK_S", 0.02)
    name = "".join(c if c.isalnum() else "-" for c in request.node.name.lower())[-60:].strip("-")
    rig = FleetRig(tmp_path, broker, name)
    try:
        yield rig
    finally:
        await rig.close()


async def test_a_query_is_measured_planned_assigned_served_and_withdrawn(fleet: FleetRig) -> None:
    coordinator = await fleet.coordinator()
    worker = await fleet.worker()
    device = await fleet.device()
    ear = fleet.ear()
    declare(device, query_of(device))
    declare(device, query_of(device, "picky", dataclasses.replace(LOOSE, accuracy=0.99)))
    await until(planned_at(device, "edge"), "an assignment to the worker")
    held = device.core.assignments["q1"]
    assert held.plan is not None
    assert held.plan.config["classify"]["model"] == "steep", "the other one is not accurate enough"
    assert held.fallback is not None
    assert set(held.fallback.placement.values()) == {"phone"}
    assert worker.shares.queries == ("q1",), "before the device was told"
    order = [parse(event.topic).kind for event in ear.heard if event.payload]
    assert order.index(Kind.SHARE) < len(order) - 1 - order[::-1].index(Kind.ASSIGNMENT)

    traffic = Traffic(device, "q1")
    outcomes = [await traffic.one() for _ in range(5)]
    traffic.check()
    assert {(o.source, o.attempts, o.epoch) for o in outcomes} == {(Source.ASSIGNED, 1, held.epoch)}
    assert {segment.site for o in outcomes for segment in o.segments} == {"edge"}
    assert calls_of(await counters(worker)) == dict.fromkeys(OPERATORS, 5)

    await until(lambda: "picky" in device.core.assignments, "a refusal")
    assert device.core.assignments["picky"].refusal is not None
    assert "accuracy" in device.core.assignments["picky"].refusal

    for name in ("q1", "picky"):
        withdraw(device, name)
    await until(lambda: not device.core.assignments, "the assignments to be cleared")
    await until(lambda: worker.shares.queries == (), "the share to be cleared")
    kinds = {parse(topic).kind for topic in await fleet.retained()}
    assert kinds == {Kind.STATUS, Kind.HELLO, Kind.COORDINATOR, Kind.PIPELINE}
    assert coordinator.core is not None
    assert coordinator.core.refused_messages == 0
    assert [m.core.refused_messages for m in (device, worker)] == [0, 0]


async def test_requests_end_while_the_worker_leaves_and_comes_back(fleet: FleetRig) -> None:
    coordinator = await fleet.coordinator()
    worker = await fleet.worker()
    device = await fleet.device()
    declare(device, query_of(device))
    await until(planned_at(device, "edge"), "an assignment to the worker")
    traffic = Traffic(device, "q1")
    async with traffic.flowing():
        await traffic.until(lambda o: o.source is Source.ASSIGNED, "an answer from the worker")

        # Nobody plans while the worker leaves: only the fallback is left.
        await fleet.stop(coordinator)
        await fleet.stop(worker)
        await traffic.until(lambda o: o.source is Source.FALLBACK, "an answer from the fallback")
        assert traffic.outcomes[-1].attempts == 2

        coordinator = await fleet.coordinator()
        await until(planned_at(device, "phone"), "a plan without the worker")
        await traffic.until(lambda o: o.source is Source.ASSIGNED, "an answer as planned")
        assert {segment.site for segment in traffic.outcomes[-1].segments} == {"phone"}

        worker = await fleet.worker()
        await until(planned_at(device, "edge"), "a plan with the worker")
        await traffic.until(lambda o: o.segments[-1].site == "edge", "an answer from the worker")

        await fleet.stop(worker)
        await until(planned_at(device, "phone"), "another plan without it")
    traffic.check()


async def test_a_worker_that_comes_back_at_once_is_found_at_its_new_address(fleet: FleetRig) -> None:
    await fleet.coordinator()
    worker = await fleet.worker()
    device = await fleet.device()
    declare(device, query_of(device))
    await until(planned_at(device, "edge"), "an assignment to the worker")
    traffic = Traffic(device, "q1")
    async with traffic.flowing():
        await fleet.stop(worker)
        worker = await fleet.worker()
        await traffic.until(
            lambda o: o.source is Source.ASSIGNED and o.segments[-1].site == "edge", "an answer from it"
        )
    traffic.check()
    assert calls_of(await counters(worker))


@pytest.mark.parametrize("state", [None, "coordinator"])
async def test_a_coordinator_that_comes_back_takes_over_under_a_higher_epoch(
    fleet: FleetRig, state: str | None
) -> None:
    coordinator = await fleet.coordinator(state=state)
    worker = await fleet.worker()
    device = await fleet.device()
    declare(device, query_of(device))
    await until(planned_at(device, "edge"), "an assignment to the worker")
    first = device.core.assignments["q1"].epoch
    traffic = Traffic(device, "q1")
    async with traffic.flowing():
        await fleet.stop(coordinator)
        await traffic.until(lambda o: o.source is Source.ASSIGNED, "an answer without any coordinator")
        coordinator = await fleet.coordinator(state=state)
        await until(lambda: device.core.assignments["q1"].epoch > first, "an assignment of the new one")
        await traffic.until(lambda o: o.epoch not in (None, first), "an answer under the new epoch")
    traffic.check()
    assert {outcome.source for outcome in traffic.outcomes} == {Source.ASSIGNED}
    assert {segment.site for outcome in traffic.outcomes for segment in outcome.segments} == {"edge"}
    assert coordinator.core is not None
    assert device.core.assignments["q1"].epoch.coordinator == coordinator.core.epoch == first.coordinator + 1
    assert worker.shares.queries == ("q1",)


async def test_what_an_earlier_coordinator_left_is_cleared(fleet: FleetRig) -> None:
    coordinator = await fleet.coordinator()
    worker = await fleet.worker()
    device = await fleet.device()
    declare(device, query_of(device))
    await until(planned_at(device, "edge"), "an assignment to the worker")
    await fleet.stop(coordinator)
    withdraw(device, "q1")
    await fleet.coordinator()
    await until(lambda: not device.core.assignments, "the assignment to be cleared")
    await until(lambda: worker.shares.queries == (), "the share to be cleared")


async def test_the_lower_of_two_coordinators_is_ignored_and_the_older_one_stops(fleet: FleetRig) -> None:
    coordinator = await fleet.coordinator()
    worker = await fleet.worker()
    device = await fleet.device()
    ear = fleet.ear()
    declare(device, query_of(device))
    await until(planned_at(device, "edge"), "an assignment to the worker")
    held = device.core.assignments["q1"]
    share = ear.last(ShareMessage)
    old = Epoch(coordinator=held.epoch.coordinator - 1, sequence=99)
    refusals = len(fleet.notes)
    ear.say(
        fleet.topics.query(Kind.ASSIGNMENT, "phone", "q1"),
        AssignmentMessage(assignment=dataclasses.replace(held, epoch=old, plan=held.fallback)),
    )
    ear.say(fleet.topics.query(Kind.SHARE, "edge", "q1"), dataclasses.replace(share, epoch=old, token="x"))
    ear.say(fleet.topics.coordinator, CoordinatorMessage(online=True, epoch=old.coordinator))
    await until(lambda: len(fleet.notes) >= refusals + 2, "both to be refused")
    assert all("older than" in note for note in fleet.notes[refusals:])
    assert device.core.assignments["q1"] == held
    traffic = Traffic(device, "q1")
    assert (await traffic.one()).source is Source.ASSIGNED, "the worker still knows the token"

    newer = await fleet.coordinator("another")
    reason = await asyncio.wait_for(coordinator.wait(), 30)
    assert f"epoch {held.epoch.coordinator + 1} > {held.epoch.coordinator}" in reason
    await until(lambda: device.core.assignments["q1"].epoch > held.epoch, "the newer one's assignment")
    await fleet.stop(coordinator)
    await until(planned_at(device, "edge"), "a plan")
    await traffic.one()
    traffic.check()
    assert newer.core is not None
    status = codec.decode(Kind.COORDINATOR, (await fleet.retained())[fleet.topics.coordinator])
    assert isinstance(status, CoordinatorMessage)
    assert (status.online, status.epoch) == (True, newer.core.epoch), "the older one left without a word"
    assert worker.shares.queries == ("q1",)


async def test_requests_end_without_the_broker_and_the_fleet_finds_together_again(fleet: FleetRig) -> None:
    await fleet.coordinator()
    worker = await fleet.worker()
    device = await fleet.device()
    declare(device, query_of(device))
    await until(planned_at(device, "edge"), "an assignment to the worker")
    traffic = Traffic(device, "q1")
    async with traffic.flowing():
        await fleet.broker.down()
        await traffic.until(lambda o: o.source is Source.ASSIGNED, "an answer from the worker")
        await fleet.stop(worker)
        await traffic.until(lambda o: o.source is Source.FALLBACK, "an answer from the fallback")
        declare(device, query_of(device, "q2"))
        ear = fleet.ear()
        await fleet.broker.up()
        worker = await fleet.worker()
        await until(planned_at(device, "edge", "q2"), "what was asked for meanwhile")
        await until(planned_at(device, "edge"), "an assignment to the worker")
        await traffic.until(
            lambda o: o.source is Source.ASSIGNED and o.segments[-1].site == "edge", "an answer from it"
        )
    traffic.check()
    # A broker without memory is told everything again: whoever comes now finds it.
    await until(lambda: any(e.topic == fleet.topics.pipeline("tiny") for e in ear.heard), "declarations")
    kinds = [parse(topic).kind for topic in await fleet.retained()]
    assert kinds.count(Kind.ASSIGNMENT) == kinds.count(Kind.SHARE) == kinds.count(Kind.QUERY) == 2


async def test_garbage_on_every_topic_is_counted_and_nothing_else(fleet: FleetRig) -> None:
    coordinator = await fleet.coordinator()
    worker = await fleet.worker()
    device = await fleet.device()
    ear = fleet.ear()
    declare(device, query_of(device))
    await until(planned_at(device, "edge"), "an assignment to the worker")
    held = device.core.assignments["q1"]

    to_agents = [
        topic
        for agent in ("phone", "edge")
        for topic in (
            fleet.topics.query(Kind.ASSIGNMENT, agent, "q1"),
            fleet.topics.query(Kind.SHARE, agent, "q1"),
        )
    ]
    to_both = [fleet.topics.pipeline("tiny"), fleet.topics.coordinator]
    to_coordinator = [
        fleet.topics.query(Kind.QUERY, "phone", "q1"),
        *(
            fleet.topics.agent(kind, "phone")
            for kind in (Kind.STATUS, Kind.HELLO, Kind.TELEMETRY, Kind.PROFILE, Kind.ACK)
        ),
    ]
    rng = random.Random(7)
    garbage = [
        b"\x00",
        rng.randbytes(500),
        b"\xc1" * 20,
        b"\x91" * 5_000,
        msgpack.packb([1, 2]),
        msgpack.packb({"schema": 99}),
        msgpack.packb({"schema": 1, "online": "perhaps", "query": 3, "session": {}, "epoch": []}),
        rng.randbytes(codec.MAX_MESSAGE_BYTES),
    ]
    oversize = bytes(codec.MAX_MESSAGE_BYTES + 1)  # dropped by the broker or on arrival, counted nowhere here
    for topic in (*to_agents, *to_both, *to_coordinator):
        for payload in (*garbage, oversize):
            ear.say(topic, payload)

    assert coordinator.core is not None
    core = coordinator.core
    # Assignments and shares are the coordinator's own words; it reads them, and can tell these are not.
    expected = len(garbage) * (len(to_agents) + len(to_coordinator) + 1)
    await until(lambda: core.refused_messages >= expected, "the coordinator to have counted them")
    for agent in (device, worker):
        count = agent.core
        await until(lambda: count.refused_messages >= 4 * len(garbage), "an agent to have counted them")  # noqa: B023
    assert core.refused_messages == expected
    assert [agent.core.refused_messages for agent in (device, worker)] == [4 * len(garbage)] * 2

    assert device.core.assignments == {"q1": held}
    traffic = Traffic(device, "q1")
    assert (await traffic.one()).source is Source.ASSIGNED
    declare(device, query_of(device, "q2"))
    await until(planned_at(device, "edge", "q2"), "a plan, as if nothing had happened")
    traffic.check()


def _with_number(message: ProfileMessage, site: str, number: float) -> ProfileMessage:
    """The profile of another site, measured as this number wherever there is one."""
    operators = {
        key: dataclasses.replace(found, mean_s=number, var_s2=number, output_mean_bytes=number)
        for key, found in message.profile.operators.items()
    }
    links = tuple(
        dataclasses.replace(
            link, rtt_s=number, rtt_var_s2=number, up_bps=number, down_bps=number, rel_sd=number
        )
        for link in message.links
    )
    profile = dataclasses.replace(message.profile, site=site, operators=operators, request_mean_bytes=number)
    return dataclasses.replace(message, profile=profile, links=links)


async def test_nonsense_of_one_agent_does_not_keep_the_others_from_their_plans(fleet: FleetRig) -> None:
    ear = fleet.ear()
    await fleet.coordinator()
    await fleet.worker()
    device = await fleet.device()
    declare(device, query_of(device))
    await until(planned_at(device, "edge"), "an assignment to the worker")
    hello, profile = ear.last(HelloMessage, "phone"), ear.last(ProfileMessage, "phone")
    assert profile.links
    for index, number in enumerate((math.nan, math.inf, -math.inf, -1.0, 0.0)):
        ghost = f"ghost-{index}"
        nonsense = _with_number(profile, ghost, number)
        ear.say(fleet.topics.agent(Kind.STATUS, ghost), StatusMessage(online=True, session=hello.session))
        ear.say(
            fleet.topics.agent(Kind.HELLO, ghost),
            dataclasses.replace(hello, cores=number, utilisation_cap=number, power_w=number),
        )
        ear.say(fleet.topics.agent(Kind.PROFILE, ghost), nonsense)
        ear.say(
            fleet.topics.query(Kind.QUERY, ghost, ghost),
            QueryMessage(query=query_of(device, ghost, origin=ghost)),
        )
    declare(device, query_of(device, "q2"))
    await until(planned_at(device, "edge", "q2"), "a plan, whatever the others say")
    assert not [note for note in fleet.notes if "planning failed" in note]


async def test_an_agent_with_another_version_of_the_bundle_is_refused_with_a_note(fleet: FleetRig) -> None:
    coordinator = await fleet.coordinator()
    pipeline = fleet.bundle / "pipeline.toml"
    as_planned = pipeline.read_text()
    pipeline.write_text(as_planned.replace('version = "1.0.0"', 'version = "1.0.1"'))
    stranger = await fleet.device("stranger")
    pipeline.write_text(as_planned)
    await fleet.worker()
    device = await fleet.device()
    for each in (stranger, device):
        declare(each, query_of(each, f"q-{each.config.name}"))
    await until(planned_at(device, "edge", "q-phone"), "a plan of the others")
    await until(lambda: any("install the same bundle" in note for note in fleet.notes), "a note")
    assert any("'stranger' has another version of 'tiny'" in note for note in fleet.notes)
    assert coordinator.core is not None
    assert "has not measured 'tiny' yet" in coordinator.core.left_out["q-stranger"]
    assert not stranger.core.assignments
    outcome = await stranger.request("tiny", ROWS, query="q-stranger")
    assert (outcome.source, outcome.error) == (Source.DEFAULT, None)


async def test_an_agent_alone_serves_from_what_it_saved(fleet: FleetRig) -> None:
    await fleet.coordinator()
    worker = await fleet.worker()
    state = fleet.folder / "phone"
    device = await fleet.device(state_dir=state)
    declare(device, query_of(device))
    await until(planned_at(device, "edge"), "an assignment to the worker")
    held: Assignment = device.core.assignments["q1"]
    await fleet.stop(device)
    await fleet.broker.down()
    try:
        device = await fleet.device(state_dir=state, measure=Measure.NOTHING)
        assert device.core.assignments == {"q1": held}
        traffic = Traffic(device, "q1")
        outcome = await traffic.one()
        assert (outcome.source, outcome.segments[-1].site) == (Source.ASSIGNED, "edge")
        await fleet.stop(worker)
        outcome = await traffic.one()
        assert (outcome.source, outcome.attempts) == (Source.FALLBACK, 2)
        await fleet.stop(device)

        device = await fleet.device(state_dir=state, measure=Measure.NOTHING, broker=None)
        alone = Traffic(device, "q1")
        outcome = await alone.one()
        assert (outcome.source, outcome.epoch) == (Source.FALLBACK, held.epoch)
        traffic.check()
        alone.check()
    finally:
        await fleet.broker.up()


async def test_a_refused_query_is_planned_when_it_asks_for_less(fleet: FleetRig) -> None:
    await fleet.coordinator()
    await fleet.worker()
    device = await fleet.device()
    declare(device, query_of(device, slo=Slo(latency_p95_s=1e-6, accuracy=0.9, cost_usd_per_1000=1e6)))
    await until(lambda: "q1" in device.core.assignments, "a refusal")
    assert "latency" in str(device.core.assignments["q1"].refusal)
    declare(device, query_of(device))
    await until(planned_at(device, "edge"), "a plan")


async def test_what_is_too_long_for_the_wire_is_left_out_and_the_rest_goes_on(fleet: FleetRig) -> None:
    pipeline = fleet.bundle / "pipeline.toml"
    text = f'description = "{"long " * 40_000}"'
    pipeline.write_text(pipeline.read_text().replace('output = "label"', f'output = "label"\n{text}'))
    await fleet.coordinator()
    await fleet.worker()
    device = await fleet.device()
    declare(device, query_of(device))
    await until(planned_at(device, "edge"), "a plan, though the declaration cannot be sent")
    assert fleet.topics.pipeline("tiny") not in await fleet.retained()
    traffic = Traffic(device, "q1")
    await traffic.one()
    traffic.check()


@pytest.mark.parametrize("broker", ["memory"], indirect=True)
async def test_a_device_that_measures_a_few_variants_is_planned_with(
    fleet: FleetRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The coordinator predicts the others from the worker's, and asks for those that matter."""
    monkeypatch.setattr(probing, "first_probes", lambda _pipeline: ("classify[model=plain]",))
    await fleet.coordinator()
    await fleet.worker()
    device = await fleet.device(measure=Measure.PROBES)
    declare(device, query_of(device))
    await until(planned_at(device, "edge"), "a plan from a few probes")
    assert device.core.refused_messages == 0
    traffic = Traffic(device, "q1")
    assert (await traffic.one()).source is Source.ASSIGNED
