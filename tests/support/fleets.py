"""A whole fleet in one process: a real coordinator, a real worker on loopback, a real device, any broker."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import aiohttp
import numpy as np

from compass_agent import events as ev
from compass_agent.config import AgentConfig
from compass_agent.shell import AgentShell
from compass_coordinator.demo.broker import EmbeddedBroker
from compass_coordinator.shell import CoordinatorConfig, CoordinatorShell
from compass_shared import codec
from compass_shared.errors import CompassError
from compass_shared.messages import Message
from compass_shared.mqtt import MqttTransport
from compass_shared.notices import Notice as CoordinatorNotice
from compass_shared.pipeline_file import load_pipeline
from compass_shared.plan import Assignment
from compass_shared.query import Query, Slo
from compass_shared.site import Prices, Tier
from compass_shared.topics import Topics, parse
from compass_shared.transport import (
    Connected,
    InMemoryBroker,
    InMemoryTransport,
    Received,
    Transport,
    TransportEvent,
    WillOf,
)
from support.brokers import Mosquitto
from support.bundles import tiny_accuracy, write_tiny_bundle

Wanted = TypeVar("Wanted")

_NUMBERS = itertools.count()

PATIENCE_S = 30.0
"""For what has to happen; on a quiet machine each takes well under two seconds."""

ROWS = np.array([[1.0, 2.0], [3.0, -1.0]], np.float32)
TOTAL = float(ROWS.sum())

LOOSE = Slo(latency_p95_s=5.0, accuracy=0.9, cost_usd_per_1000=1e6)
"""Everything meets it but the less accurate model; of what does, the cheapest is chosen."""


class Broker(Protocol):
    """Where a fleet meets."""

    forgets: bool
    """Whether it keeps nothing when it goes down."""

    def transport(
        self,
        name: str,
        filters: Sequence[str],
        will: WillOf | None,
        *,
        limit_bytes: int = codec.MAX_MESSAGE_BYTES,
    ) -> Transport: ...

    async def down(self) -> None: ...

    async def up(self) -> None: ...


class BrokerInMemory:
    forgets = False

    def __init__(self) -> None:
        self._broker = InMemoryBroker(asyncio.get_running_loop().call_soon)
        self._transports: list[InMemoryTransport] = []
        self._is_up = True

    def transport(
        self,
        name: str,
        filters: Sequence[str],
        will: WillOf | None,
        *,
        limit_bytes: int = codec.MAX_MESSAGE_BYTES,
    ) -> Transport:
        transport = InMemoryTransport(self._broker, filters=filters, will=will, max_payload_bytes=limit_bytes)
        self._transports.append(transport)
        return transport

    async def down(self) -> None:
        for transport in self._transports:
            transport.sever()

    async def up(self) -> None:
        for transport in self._transports:
            transport.restore()


class BrokerProcess:
    """A real one; both kinds are started without anything that would outlast them."""

    forgets = True

    def __init__(self, process: EmbeddedBroker | Mosquitto) -> None:
        self._process = process

    def transport(
        self,
        name: str,
        filters: Sequence[str],
        will: WillOf | None,
        *,
        limit_bytes: int = codec.MAX_MESSAGE_BYTES,
    ) -> Transport:
        return MqttTransport(
            self._process.url,
            client_id=name,
            filters=filters,
            rng=random.Random(1),
            will=will,
            max_payload_bytes=limit_bytes,
        )

    async def down(self) -> None:
        await asyncio.to_thread(self._process.stop)

    async def up(self) -> None:
        await asyncio.to_thread(self._process.start)


async def until(condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait for something that the fleet brings about."""
    end_s = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end_s, f"waited in vain for: {what}"
        await asyncio.sleep(0.005)


async def retained_at(broker: Broker, root: str) -> dict[str, bytes]:
    """What a broker retains at a topic and below: topic -> payload."""
    found: dict[str, bytes] = {}
    heard: set[str] = set()

    def hear(event: TransportEvent) -> None:
        match event:
            case Connected():
                transport.publish(marker, b"now")
            case Received(retained=True):
                found[event.topic] = event.payload
            case Received():
                heard.add(event.topic)

    # What is retained comes before what was said after the subscription.
    marker = f"{root}/marker-{next(_NUMBERS)}"
    transport = broker.transport(f"reader-{next(_NUMBERS)}", [f"{root}/#"], None)
    transport.start(hear)
    try:
        await until(lambda: marker in heard, "an echo")
    finally:
        await transport.close()
    return found


class Ear:
    """Hears everything that is said in a fleet, and can say anything.

    Args:
        fleet: Whose.
        name: Client id on the broker.
    """

    def __init__(self, fleet: FleetRig, name: str) -> None:
        self._transport = fleet.broker.transport(
            name, [f"compass/1/{fleet.name}/#"], None, limit_bytes=2 * codec.MAX_MESSAGE_BYTES
        )
        self._topics = fleet.topics
        self.retained: dict[str, bytes] = {}
        """Topic -> what the broker held when this ear connected."""
        self.heard: list[Received] = []
        """The rest, in order."""

    def start(self) -> None:
        self._transport.start(self._hear)

    def _hear(self, event: TransportEvent) -> None:
        if isinstance(event, Received):
            if event.retained:
                self.retained[event.topic] = event.payload
            else:
                self.heard.append(event)

    def last(self, wanted: type[Wanted], agent: str | None = None) -> Wanted:
        """The last message of a type, of one agent if said."""
        for event in reversed(self.heard):
            topic = parse(event.topic)
            if event.payload and agent in (None, topic.agent):
                message = codec.decode(topic.kind, event.payload)
                if isinstance(message, wanted):
                    return message
        raise AssertionError(f"no {wanted.__name__} was heard")

    def say(self, topic: str, message: Message | bytes | None, *, retain: bool = False) -> None:
        payload = b"" if message is None else message if isinstance(message, bytes) else codec.encode(message)
        self._transport.publish(topic, payload, retain=retain)

    async def close(self) -> None:
        await self._transport.close()


@dataclass(slots=True)
class Traffic:
    """Requests of one query at a device, one after the other, and how each ended."""

    device: AgentShell
    query: str
    outcomes: list[ev.Outcome] = field(default_factory=list)
    refused: list[CompassError] = field(default_factory=list)
    """Those that were turned away before they began."""

    async def one(self) -> ev.Outcome:
        outcome = await self.device.request("tiny", ROWS, query=self.query)
        self.outcomes.append(outcome)
        return outcome

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        """Send on and on while the block lasts."""
        stop = asyncio.Event()

        async def flow() -> None:
            while not stop.is_set():
                await self.one()
                await asyncio.sleep(0.02)

        task = asyncio.create_task(flow())
        try:
            yield
        finally:
            stop.set()
            await task

    async def until(self, condition: Callable[[ev.Outcome], bool], what: str) -> None:
        """Wait for an outcome of a request from now on."""
        begun = len(self.outcomes)
        await until(lambda: any(map(condition, self.outcomes[begun:])), what)

    def check(self) -> None:
        """Assert that every request was answered, with the right answer."""
        assert self.outcomes
        assert [outcome.error for outcome in self.outcomes if outcome.error is not None] == []
        # The factor is a knob of the plan.
        totals = {outcome.value["total"] for outcome in self.outcomes if isinstance(outcome.value, dict)}
        assert totals <= {TOTAL, 2 * TOTAL}


class FleetRig:
    """Starts and stops the members of one fleet.

    Args:
        folder: For bundle, cache and state.
        broker: Where they meet.
        name: Of the fleet.
    """

    def __init__(self, folder: Path, broker: Broker, name: str) -> None:
        self.broker = broker
        self.name = name
        self.topics = Topics(name)
        self.folder = folder
        self.bundle = write_tiny_bundle(folder)
        self.notes: list[str] = []
        """What coordinators noted."""
        self._running: list[AgentShell | CoordinatorShell | Ear] = []

    async def worker(self, name: str = "edge", **settings: Any) -> AgentShell:
        """Start a worker that costs nothing."""
        return await self._agent(name, tier=Tier.EDGE, listen=("127.0.0.1", 0), **settings)

    async def device(self, name: str = "phone", **settings: Any) -> AgentShell:
        """Start a device whose own compute is so dear that the cheapest plan runs elsewhere."""
        return await self._agent(name, prices=Prices(core_s_usd=1.0), **settings)

    async def _agent(self, name: str, **settings: Any) -> AgentShell:
        config = AgentConfig(
            **{
                "name": name,
                "bundles": (self.bundle,),
                "cache_root": self.folder / "cache",
                "fleet": self.name,
                "broker": "mqtt://127.0.0.1",  # stands for the one below
                "cores": 2,
                "telemetry_interval_s": 0.5,
                "measure_budget_s": 0.05,
                **settings,
            }
        )
        shell = AgentShell(config, transport=self._agents_transport)
        await shell.start()
        self._running.append(shell)
        return shell

    def _agents_transport(self, shell: AgentShell) -> Transport:
        name = shell.config.name
        return self.broker.transport(name, self.topics.for_agent(name), shell.will)

    async def coordinator(
        self, client_id: str = "coordinator", *, state: str | None = None, **settings: Any
    ) -> CoordinatorShell:
        """Start a coordinator; without state it knows only what the fleet retains."""
        pipeline = load_pipeline(self.bundle)
        config = CoordinatorConfig(
            broker="mqtt://127.0.0.1",
            pipelines={pipeline.name: pipeline},
            accuracy={pipeline.name: tiny_accuracy(self.bundle)},
            fleet=self.name,
            client_id=client_id,
            state_dir=None if state is None else self.folder / state,
            **settings,
        )
        shell = CoordinatorShell(
            config, transport=self._coordinators_transport, on_notice=self._on_coordinators_notice
        )
        await shell.start()
        self._running.append(shell)
        return shell

    def _coordinators_transport(self, shell: CoordinatorShell) -> Transport:
        return self.broker.transport(shell.config.client_id, self.topics.for_coordinator(), shell.will)

    def _on_coordinators_notice(self, notice: CoordinatorNotice) -> None:
        if notice.kind == "note":
            self.notes.append(notice.data["text"])

    def ear(self) -> Ear:
        """Listen in."""
        ear = Ear(self, f"ear-{next(_NUMBERS)}")
        ear.start()
        self._running.append(ear)
        return ear

    async def retained(self) -> dict[str, bytes]:
        """What the broker retains of this fleet now."""
        return await retained_at(self.broker, f"compass/1/{self.name}")

    async def stop(self, member: AgentShell | CoordinatorShell | Ear) -> None:
        """Stop one member in order."""
        self._running.remove(member)
        await member.close()

    async def close(self) -> None:
        """Stop everything that still runs."""
        for member in reversed(self._running):
            await member.close()
        self._running.clear()


def query_of(device: AgentShell, name: str = "q1", slo: Slo = LOOSE, **changes: Any) -> Query:
    """A query of a device."""
    query = Query(name=name, origin=device.config.name, pipeline="tiny", rate_hz=100.0, slo=slo)
    return replace(query, **changes)


def declare(device: AgentShell, query: Query) -> None:
    """Let the device ask for it."""
    device.handle(ev.QueryDeclared(name=query.name, query=query))


def withdraw(device: AgentShell, name: str) -> None:
    """Let the device take it back."""
    device.handle(ev.QueryDeclared(name=name, query=None))


def planned_at(device: AgentShell, site: str, query: str = "q1") -> Callable[[], Assignment | None]:
    """Condition: the device holds a plan of the query that runs everything at one site."""

    def condition() -> Assignment | None:
        held = device.core.assignments.get(query)
        found = held is not None and held.plan is not None and set(held.plan.placement.values()) == {site}
        return held if found else None

    return condition


async def counters(worker: AgentShell) -> dict[str, Any]:
    """What the worker says it did."""
    async with aiohttp.ClientSession() as session, session.get(f"{worker.data_address}/counters") as reply:
        document: dict[str, Any] = await reply.json()
        return document


def calls_of(counted: dict[str, Any], query: str = "q1") -> dict[str, int]:
    """Operator -> how often the worker ran it for a query."""
    rows = counted["queries"].get(query, {}).get("operators", {})
    return {operator: row["calls"] for operator, row in rows.items()}
