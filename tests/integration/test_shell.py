"""Agents as they run, on loopback: workers that get ready for a share, devices that do without a worker."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compass_agent import events as ev
from compass_agent.assignments import default_plan
from compass_agent.config import AgentConfig
from compass_agent.core import SERVED_EVERY
from compass_agent.emulate.link import Shape
from compass_agent.operators import OperatorHost
from compass_agent.probing import Measure, variants_of
from compass_agent.shell import AgentShell
from compass_shared import codec, topics
from compass_shared.messages import (
    AckMessage,
    AssignmentMessage,
    CoordinatorMessage,
    Message,
    ProbeMessage,
    ProfileMessage,
    ServedMessage,
    ShareMessage,
    StatusMessage,
    WorkerInfo,
)
from compass_shared.pipeline import Pipeline, variant_key
from compass_shared.plan import Assignment, Epoch, Plan, WorkerAccess
from compass_shared.site import Tier
from compass_shared.topics import Kind, Topics
from compass_shared.transport import InMemoryBroker, InMemoryTransport, Received, TransportEvent
from support.agents import estimate
from support.bundles import write_tiny_bundle

ROWS = np.array([[1.0, 2.0], [3.0, -1.0]], np.float32)
LABELS = {"labels": ["low", "high"], "total": 5.0}
TOPICS = Topics("default")


class Fleet:
    """Agents on one broker in memory, and the test in the coordinator's place."""

    def __init__(self, folder: Path) -> None:
        self.bundle = write_tiny_bundle(folder)
        self._cache = folder / "cache"
        self._broker = InMemoryBroker(asyncio.get_running_loop().call_soon)
        self._link = InMemoryTransport(self._broker, filters=["compass/1/default/agents/+/acks"])
        self.acks: asyncio.Queue[AckMessage] = asyncio.Queue()

    @asynccontextmanager
    async def agent(self, name: str, **settings: Any) -> AsyncIterator[AgentShell]:
        config = AgentConfig(
            name=name,
            bundles=(self.bundle,),
            cache_root=self._cache,
            broker="mqtt://in.memory",
            **{"measure": Measure.NOTHING, **settings},
        )
        shell = AgentShell(config, transport=self._transport)
        await shell.start()
        try:
            yield shell
        finally:
            await shell.close()

    def start(self) -> None:
        self._link.start(self._heard)

    def statuses(self, agent: str) -> list[StatusMessage]:
        """What an agent says of its presence, from now on."""
        heard: list[StatusMessage] = []

        def hear(event: TransportEvent) -> None:
            if isinstance(event, Received):
                message = codec.decode(Kind.STATUS, event.payload)
                assert isinstance(message, StatusMessage)
                heard.append(message)

        InMemoryTransport(self._broker, filters=[TOPICS.agent(Kind.STATUS, agent)]).start(hear)
        return heard

    def heard(self, kind: Kind, agent: str) -> asyncio.Queue[Message]:
        """What an agent says of that kind, from now on."""
        messages: asyncio.Queue[Message] = asyncio.Queue()

        def hear(event: TransportEvent) -> None:
            if isinstance(event, Received):
                messages.put_nowait(codec.decode(kind, event.payload))

        InMemoryTransport(self._broker, filters=[TOPICS.agent(kind, agent)]).start(hear)
        return messages

    def announce(self, status: CoordinatorMessage) -> None:
        self._link.publish(TOPICS.coordinator, codec.encode(status), retain=True)

    def ask(self, agent: str, probes: ProbeMessage) -> None:
        self._link.publish(TOPICS.agent(Kind.PROBE, agent), codec.encode(probes))

    def say(self, kind: Kind, agent: str, query: str, message: Message | None) -> None:
        payload = b"" if message is None else codec.encode(message)
        self._link.publish(TOPICS.query(kind, agent, query), payload, retain=True)

    def _transport(self, shell: AgentShell) -> InMemoryTransport:
        name = shell.config.name
        return InMemoryTransport(self._broker, filters=TOPICS.for_agent(name), will=shell.will)

    def _heard(self, event: TransportEvent) -> None:
        if isinstance(event, Received):
            message = codec.decode(topics.parse(event.topic).kind, event.payload)
            assert isinstance(message, AckMessage)
            self.acks.put_nowait(message)


@pytest.fixture
async def fleet(tmp_path: Path) -> Fleet:
    fleet = Fleet(tmp_path)
    fleet.start()
    return fleet


def _share(pipeline: Pipeline, *, sequence: int = 1, **changes: Any) -> ShareMessage:
    share = ShareMessage(
        query="q1",
        origin="phone",
        pipeline=pipeline.name,
        digest=pipeline.digest,
        epoch=Epoch(coordinator=1, sequence=sequence),
        variants=tuple(variant_key(op.name, knobs) for op in pipeline.operators for knobs in op.variants()),
        rate_hz=10.0,
        cores=1.0,
        token=f"secret-{sequence}",
    )
    return dataclasses.replace(share, **changes)


class Gate:
    """Stands before the opening of models, so that a test sees what happens meanwhile."""

    def __init__(self, shell: AgentShell, monkeypatch: pytest.MonkeyPatch) -> None:
        self._open = threading.Event()
        self._preload = shell.host.preload
        self.asked: list[tuple[str, tuple[str, ...]]] = []
        monkeypatch.setattr(shell.host, "preload", self._gated)

    def _gated(self, pipeline: str, variants: tuple[str, ...]) -> None:
        self.asked.append((pipeline, variants))
        assert self._open.wait(30)
        self._preload(pipeline, variants)

    def open(self) -> None:
        self._open.set()


# --- coming and going -----------------------------------------------------------------------------


async def test_a_goodbye_is_of_the_session_that_came_online(fleet: Fleet) -> None:
    """A status of an earlier session would not count any more: the agent would seem to be there for ever."""
    heard = fleet.statuses("phone")
    async with fleet.agent("phone"):
        await _until(lambda: len(heard) == 1)
    await _until(lambda: len(heard) == 2)
    online, offline = heard
    assert (online.online, offline.online) == (True, False)
    assert offline.session >= online.session


# --- a worker's shares ----------------------------------------------------------------------------


async def test_a_share_is_taken_once_its_models_are_open(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fleet.agent("edge", tier=Tier.EDGE, listen=("127.0.0.1", 0)) as worker:
        gate = Gate(worker, monkeypatch)
        fleet.say(Kind.SHARE, "edge", "q1", _share(worker.bundles["tiny"].pipeline))
        await _until(lambda: bool(gate.asked))
        assert fleet.acks.empty()
        assert not worker.shares.queries
        gate.open()
        ack = await fleet.acks.get()
        assert (ack.query, ack.epoch.sequence, ack.taken, ack.share) == ("q1", 1, True, True)
        assert worker.shares.queries == ("q1",)
        assert "scale[factor=1.0]" in gate.asked[0][1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cores": 0.0}, "must be positive"),
        ({"digest": "0" * 64}, "update the bundle"),
        ({"variants": ("scale[factor=9.0]",)}, "no variant"),
    ],
)
async def test_a_share_that_cannot_be_served_is_refused(
    fleet: Fleet, changes: dict[str, Any], said: str
) -> None:
    async with fleet.agent("edge", tier=Tier.EDGE, listen=("127.0.0.1", 0)) as worker:
        fleet.say(Kind.SHARE, "edge", "q1", _share(worker.bundles["tiny"].pipeline, **changes))
        ack = await fleet.acks.get()
        assert (ack.taken, ack.share) == (False, True)
        assert said in ack.reason
        assert not worker.shares.queries


async def test_a_share_whose_model_is_broken_is_refused_and_the_one_before_stays(fleet: Fleet) -> None:
    (fleet.bundle / "steep.onnx").write_bytes(b"no model")
    async with fleet.agent("edge", tier=Tier.EDGE, listen=("127.0.0.1", 0)) as worker:
        pipeline = worker.bundles["tiny"].pipeline
        fleet.say(Kind.SHARE, "edge", "q1", _share(pipeline, variants=("classify[model=plain]",)))
        assert (await fleet.acks.get()).taken
        fleet.say(Kind.SHARE, "edge", "q1", _share(pipeline, sequence=2))
        ack = await fleet.acks.get()
        assert (ack.epoch.sequence, ack.taken) == (2, False)
        assert "steep" in ack.reason
        assert worker.shares.knows("q1", "secret-1", 0.0)


async def test_a_share_that_is_withdrawn_while_it_gets_ready_is_never_held(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fleet.agent("edge", tier=Tier.EDGE, listen=("127.0.0.1", 0)) as worker:
        gate = Gate(worker, monkeypatch)
        pipeline = worker.bundles["tiny"].pipeline
        fleet.say(Kind.SHARE, "edge", "q1", _share(pipeline))
        await _until(lambda: bool(gate.asked))
        fleet.say(Kind.SHARE, "edge", "q1", None)
        fleet.say(Kind.SHARE, "edge", "q2", _share(pipeline, query="q2"))
        gate.open()
        assert (await fleet.acks.get()).query == "q2", "the models were opened for both, one after the other"
        assert worker.shares.queries == ("q2",)


async def test_a_newer_share_takes_the_place_of_one_that_gets_ready(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fleet.agent("edge", tier=Tier.EDGE, listen=("127.0.0.1", 0)) as worker:
        gate = Gate(worker, monkeypatch)
        pipeline = worker.bundles["tiny"].pipeline
        fleet.say(Kind.SHARE, "edge", "q1", _share(pipeline))
        await _until(lambda: bool(gate.asked))
        fleet.say(Kind.SHARE, "edge", "q1", _share(pipeline, sequence=2))
        gate.open()
        ack = await fleet.acks.get()
        assert (ack.epoch.sequence, ack.taken) == (2, True)
        assert not worker.shares.knows("q1", "secret-1", 0.0)


# --- a device's plans -----------------------------------------------------------------------------


def _assignment(pipeline: Pipeline, address: str, *, deadline_s: float, p95_s: float = 0.01) -> Assignment:
    local = dataclasses.replace(default_plan(pipeline, "phone"), estimate=estimate(p95_s))
    remote = Plan(config=local.config, placement=dict.fromkeys(local.placement, "edge"))
    return Assignment(
        query="q1",
        pipeline=pipeline.name,
        digest=pipeline.digest,
        epoch=Epoch(coordinator=1, sequence=1),
        plan=remote,
        fallback=local,
        workers={"edge": WorkerAccess(address=address, token="secret-1")},
        deadline_s=deadline_s,
    )


@asynccontextmanager
async def _assigned(
    fleet: Fleet, address: str, *, deadline_s: float, p95_s: float = 0.01, **settings: Any
) -> AsyncIterator[AgentShell]:
    """A device whose query is to run all of its operators at ``address``."""
    async with fleet.agent("phone", **settings) as device:
        pipeline = device.bundles["tiny"].pipeline
        assignment = _assignment(pipeline, address, deadline_s=deadline_s, p95_s=p95_s)
        fleet.say(Kind.ASSIGNMENT, "phone", "q1", AssignmentMessage(assignment=assignment))
        assert (await fleet.acks.get()).taken
        yield device


async def test_a_worker_serves_a_device(fleet: Fleet) -> None:
    async with fleet.agent("edge", tier=Tier.EDGE, listen=("127.0.0.1", 0)) as worker:
        fleet.say(Kind.SHARE, "edge", "q1", _share(worker.bundles["tiny"].pipeline))
        assert (await fleet.acks.get()).taken
        assert worker.data_address is not None
        async with _assigned(fleet, worker.data_address, deadline_s=30.0) as device:
            outcome = await device.request("tiny", ROWS)
    assert (outcome.value, outcome.source, outcome.attempts) == (LABELS, ev.Source.ASSIGNED, 1)
    (trace,) = outcome.segments
    assert trace.site == "edge"
    assert trace.sent_bytes > ROWS.nbytes


async def test_what_a_plan_and_its_fallback_run_here_is_opened_before_a_request_comes(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fleet.agent("phone") as device:
        gate = Gate(device, monkeypatch)
        pipeline = device.bundles["tiny"].pipeline
        assignment = _assignment(pipeline, "http://127.0.0.1:9", deadline_s=1.0)
        fleet.say(Kind.ASSIGNMENT, "phone", "q1", AssignmentMessage(assignment=assignment))
        assert (await fleet.acks.get()).taken, "which does not wait for the models"
        gate.open()
        await _until(lambda: bool(gate.asked))
        assert gate.asked == [("tiny", ("scale[factor=1.0]", "classify[model=plain]", "label"))]


async def test_what_saved_assignments_run_here_is_opened_at_the_start(
    fleet: Fleet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    asked: list[tuple[str, ...]] = []
    async with _assigned(fleet, "http://127.0.0.1:9", deadline_s=1.0, state_dir=state):
        pass
    fleet.say(Kind.ASSIGNMENT, "phone", "q1", None)  # the broker forgot it
    monkeypatch.setattr(OperatorHost, "preload", lambda _host, _pipeline, variants: asked.append(variants))
    async with fleet.agent("phone", state_dir=state):
        await _until(lambda: bool(asked))
    assert asked == [("scale[factor=1.0]", "classify[model=plain]", "label")]


@contextlib.contextmanager
def _black_hole() -> Iterator[str]:
    """The address of a listener that answers no one: its queue of connections is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            caller = stack.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


async def test_a_closed_port_is_done_without_at_once(fleet: Fleet, free_port: int) -> None:
    async with _assigned(fleet, f"http://127.0.0.1:{free_port}", deadline_s=60.0) as device:
        outcome = await device.request("tiny", ROWS)
    assert (outcome.value, outcome.source, outcome.attempts) == (LABELS, ev.Source.FALLBACK, 2)
    assert outcome.latency_s < 30.0


async def test_a_worker_that_does_not_answer_the_door_is_done_without_early(fleet: Fleet) -> None:
    # The fallback is predicted to be so quick that it would start at 59.985 s, were connecting not limited.
    with _black_hole() as address:
        async with _assigned(fleet, address, deadline_s=60.0) as device:
            outcome = await device.request("tiny", ROWS)
    assert (outcome.value, outcome.source, outcome.attempts) == (LABELS, ev.Source.FALLBACK, 2)
    assert outcome.latency_s < 30.0


async def test_a_link_that_goes_dark_is_done_without_before_the_deadline(fleet: Fleet) -> None:
    async with fleet.agent("edge", tier=Tier.EDGE, listen=("127.0.0.1", 0)) as worker:
        fleet.say(Kind.SHARE, "edge", "q1", _share(worker.bundles["tiny"].pipeline))
        assert (await fleet.acks.get()).taken
        address = worker.data_address
        assert address is not None
        shapes = {Tier.EDGE: Shape(delay_s=0.001)}
        async with _assigned(fleet, address, deadline_s=4.0, p95_s=2.0, shapes=shapes) as device:
            proxies = device._proxies
            info = WorkerInfo(address=address, tier=Tier.EDGE)
            assert await proxies.through(info) != address
            before = await device.request("tiny", ROWS, deadline_s=30.0)
            proxies._proxies[address].stall()
            after = await device.request("tiny", ROWS)
    assert (before.source, before.value) == (ev.Source.ASSIGNED, LABELS)
    assert (after.source, after.value, after.attempts) == (ev.Source.FALLBACK, LABELS, 2)
    assert after.latency_s < 4.0


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # pytest's timeout ends it
        await asyncio.sleep(0.001)


# --- probes ---------------------------------------------------------------------------------------


async def test_an_agent_measures_what_it_is_asked_and_says_all_it_knows(fleet: Fleet) -> None:
    profiles = fleet.heard(Kind.PROFILE, "phone")
    async with fleet.agent("phone", measure=Measure.PROBES, measure_budget_s=0.0) as phone:
        digest = phone.bundles["tiny"].pipeline.digest
        fleet.announce(CoordinatorMessage(online=True, epoch=1))
        first = await asyncio.wait_for(profiles.get(), 20)
        assert isinstance(first, ProfileMessage)
        everything = set(variants_of(phone.bundles["tiny"].pipeline))
        asked = next(iter(everything - {"scale[factor=1.0]"}))
        probes = ProbeMessage(pipeline="tiny", digest=digest, variants=(asked,), epoch=1)
        fleet.ask("phone", probes)
        second = await asyncio.wait_for(profiles.get(), 20)
        assert isinstance(second, ProfileMessage)
        assert second.profile.operators.keys() >= {*first.profile.operators, asked}
        assert phone.core.refused_messages == 0


async def test_what_requests_took_is_counted_by_variant(fleet: Fleet) -> None:
    served = fleet.heard(Kind.SERVED, "phone")
    async with fleet.agent("phone") as phone:
        outcome = await phone.request("tiny", ROWS)
        assert outcome.error is None
        phone.handle(ev.BrokerConnected(session=1))
        for _ in range(SERVED_EVERY):
            phone.handle(ev.TelemetryDue(cpu_share=0.0, memory_used_bytes=0, memory_total_bytes=0))
        message = await asyncio.wait_for(served.get(), 20)
    assert isinstance(message, ServedMessage)
    assert {key.partition("[")[0] for key in message.operators} == {"scale", "classify", "label"}
    assert all(found.count == 1 and found.output_mean_bytes > 0 for found in message.operators.values())
