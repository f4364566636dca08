"""The demo's stage: broker, coordinator, workers and devices as real processes, and what they reported.

The order of starting matters on a small machine: workers measure themselves first and undisturbed, because
their speed is what all devices plan with; devices follow together.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from compass_coordinator.demo.children import Children
from compass_shared.device_profile import find_device_profile
from compass_shared.errors import ConfigError, TransportError
from compass_shared.fleet_file import AgentTable, Fleet
from compass_shared.query import Query
from compass_shared.site import Tier

Json = Mapping[str, Any]

AGENT = "compass_agent"
COORDINATOR = "compass_coordinator"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageConfig:
    """Settings of a demo's stage."""

    fleet: Fleet
    fleet_name: str
    """Name used on the broker; differs from the file's where the broker is shared."""
    broker: str
    bundle: Path
    accuracy: Path
    work: Path
    """Folder for state, logs and measurements."""
    cache_root: Path | None
    seed: int
    split: str = "heldout"
    measure_s: float = 20.0
    timeout_s: float = 240.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerCount:
    """What one worker counted since it started."""

    calls: Counter[tuple[str, str]]
    """(query, operator) -> how often it ran."""
    overruns: int
    """Emulated calls that took longer than they should have."""

    def since(self, before: WorkerCount | None) -> WorkerCount:
        """What it counted since an earlier look."""
        if before is None:
            return self
        return WorkerCount(calls=self.calls - before.calls, overruns=self.overruns - before.overruns)


@dataclass(slots=True)
class StageState:
    """What is known from events; the screen reads it."""

    stage: str = ""
    measuring: dict[str, str] = field(default_factory=dict)
    """Agent -> how far its measuring is."""
    measured: set[str] = field(default_factory=set)
    linked: dict[str, set[str]] = field(default_factory=dict)
    """Device -> workers whose link it measured."""
    links: dict[str, Json] = field(default_factory=dict)
    """Device -> its link reports."""
    addresses: dict[str, str] = field(default_factory=dict)
    """Worker -> data address."""
    planned: Json | None = None
    """The coordinator's last plan."""
    assignments: dict[str, Json] = field(default_factory=dict)
    """Query -> assignment that its device took."""
    requests: list[Json] = field(default_factory=list)
    """Of the phase that is being served."""
    loaded: set[str] = field(default_factory=set)
    """Devices that have their inputs."""
    served: dict[str, Json] = field(default_factory=dict)
    """Device -> its last "served" event."""
    notes: list[str] = field(default_factory=list)


class Stage:
    """Runs the processes and keeps what they say.

    Args:
        config: Settings.
        children: Where processes are started.
    """

    def __init__(self, config: StageConfig, children: Children) -> None:
        self.config = config
        self.state = StageState()
        self.phase = ""
        """The phase that is prepared or served."""
        self._children = children
        self._changed = asyncio.Event()
        self._devices: dict[str, Any] = {}

    @property
    def queries(self) -> Sequence[Query]:
        """All queries of the fleet."""
        return self.config.fleet.queries

    def on_event(self, child: str, event: Json) -> None:
        """Take one event of one child."""
        take = getattr(self, f"_on_{str(event.get('event')).replace('-', '_')}", None)
        if take is not None:
            take(child, event)
        self._changed.set()

    # --- steps ------------------------------------------------------------------------------------

    async def start_coordinator(self, policy: str) -> None:
        """Start the coordinator, or another in its place."""
        config = self.config
        self.state.planned = None
        await self._children.start(
            "coordinator",
            COORDINATOR,
            [
                *("coordinator", "--broker", config.broker, "--fleet", config.fleet_name, "--events"),
                *("--bundle", str(config.bundle), "--accuracy", str(config.accuracy)),
                *("--policy", policy, "--state", str(config.work / "coordinator")),
                *("--save-profiles", str(config.work / "measured.json")),
                *self._cache_options(),
            ],
            self.on_event,
        )

    async def stop_coordinator(self) -> None:
        """Stop the coordinator; agents keep what they were told."""
        await self._children.stop("coordinator")

    async def start_workers(self) -> None:
        """Start all workers and wait until they measured themselves."""
        workers = [agent for agent in self.config.fleet.agents if agent.tier is not Tier.DEVICE]
        for agent in workers:
            await self._start_agent(agent)
        await self._until(lambda: {a.name for a in workers} <= self.state.measured, "measuring the workers")

    async def start_devices(self) -> None:
        """Start all devices and wait until they measured themselves and their links."""
        config = self.config
        devices = [agent for agent in config.fleet.agents if agent.tier is Tier.DEVICE]
        workers = {agent.name for agent in config.fleet.agents if agent.tier is not Tier.DEVICE}
        for agent in devices:
            self._devices[agent.name] = await self._start_agent(agent)
        names = {agent.name for agent in devices}
        await self._until(
            lambda: (
                names <= self.state.measured
                and all(self.state.linked.get(name, set()) >= workers for name in names)
            ),
            "measuring the devices and their links",
        )

    def declare(self, queries: Sequence[Query]) -> None:
        """Let every device declare its queries."""
        for name, device in self._devices.items():
            own = [msgspec.to_builtins(query) for query in queries if query.origin == name]
            device.send({"do": "declare", "queries": own, "split": self.config.split})

    async def planned(self) -> Json:
        """Wait for a plan of everything, and until every device holds what it says."""
        await self._until(
            lambda: self.state.loaded >= set(self._devices) and self._all_in_force(), "planning and assigning"
        )
        assert self.state.planned is not None
        return self.state.planned

    async def serve(self, phase: str, seconds: float, *, rate_factor: float = 1.0) -> None:
        """Let all devices send requests for a while, and wait until all of them ended."""
        self.state.requests = []
        self.state.served = {}
        for device in self._devices.values():
            device.send(
                {
                    "do": "serve",
                    "phase": phase,
                    "seconds": seconds,
                    "seed": self.config.seed,
                    "split": self.config.split,
                    "rate_factor": rate_factor,
                }
            )
        await self._until(lambda: set(self.state.served) == set(self._devices), "serving", seconds + 60)

    async def counters(self) -> dict[str, WorkerCount]:
        """What every worker counted so far."""
        found: dict[str, WorkerCount] = {}
        async with aiohttp.ClientSession() as session:
            for name, address in self.state.addresses.items():
                try:
                    async with session.get(f"{address}/counters") as response:
                        document = await response.json()
                except aiohttp.ClientError as error:
                    raise TransportError(f"worker {name} does not answer: {error}") from error
                calls = {
                    (query, operator): row["calls"]
                    for query, counted in document["queries"].items()
                    for operator, row in counted["operators"].items()
                }
                found[name] = WorkerCount(calls=Counter(calls), overruns=document["overruns"])
        return found

    # --- events -----------------------------------------------------------------------------------

    def _on_up(self, child: str, event: Json) -> None:
        if event["address"] is not None:
            self.state.addresses[child] = event["address"]

    def _on_measuring(self, child: str, event: Json) -> None:
        self.state.measuring[child] = f"{event['settled']}/{event['variants']}"

    def _on_measured(self, child: str, _event: Json) -> None:
        self.state.measured.add(child)
        self.state.measuring.pop(child, None)

    def _on_links(self, child: str, event: Json) -> None:
        self.state.linked[child] = set(event["links"])
        self.state.links[child] = event["links"]

    def _on_planned(self, _child: str, event: Json) -> None:
        self.state.planned = event

    def _on_assignment(self, child: str, event: Json) -> None:
        gone = [q for q, a in self.state.assignments.items() if a["device"] == child]
        for query in gone:
            del self.state.assignments[query]
        for query, assignment in event["assignments"].items():
            self.state.assignments[query] = {"device": child, **assignment}

    def _on_request(self, _child: str, event: Json) -> None:
        self.state.requests.append(event)

    def _on_loaded(self, child: str, _event: Json) -> None:
        self.state.loaded.add(child)

    def _on_served(self, child: str, event: Json) -> None:
        self.state.served[child] = event

    def _on_note(self, child: str, event: Json) -> None:
        if event["serious"]:
            self.state.notes.append(f"{child}: {event['text']}")

    def _on_error(self, child: str, event: Json) -> None:
        self.state.notes.append(f"{child}: {event['problem']}")

    # --- helpers ----------------------------------------------------------------------------------

    def _all_in_force(self) -> bool:
        planned = self.state.planned
        if planned is None or planned["left_out"]:
            return False
        if set(planned["profiled"]) != {agent.name for agent in self.config.fleet.agents}:
            return False
        if set(planned["queries"]) != {query.name for query in self.queries}:
            return False
        return all(
            _same_plan(self.state.assignments.get(name), decision, planned["epoch"])
            for name, decision in planned["queries"].items()
        )

    async def _until(self, condition: Any, what: str, timeout_s: float | None = None) -> None:
        deadline_s = asyncio.get_running_loop().time() + (timeout_s or self.config.timeout_s)
        while not condition():
            self._changed.clear()
            if condition():
                return
            left_s = deadline_s - asyncio.get_running_loop().time()
            await self._children.until(self._changed, what, max(0.0, left_s))

    async def _start_agent(self, agent: AgentTable) -> Any:
        config = self.config
        worker = agent.tier is not Tier.DEVICE
        options = [
            *("worker" if worker else "run", "--name", agent.name, "--fleet", config.fleet_name, "--drive"),
            *("--broker", config.broker, "--bundle", str(config.bundle)),
            *("--emulate" if agent.emulate else "--profile", agent.profile),
            *("--measure-seconds", str(config.measure_s)),
            *("--state", str(config.work / agent.name)),
            *self._cache_options(),
        ]
        if worker:
            options += ["--listen", "127.0.0.1:0", "--tier", agent.tier.value]
        if agent.cores is not None:
            options += ["--cores", str(int(agent.cores))]
        if agent.utilisation_cap is not None:
            options += ["--cap", str(agent.utilisation_cap)]
        for option in shape_options(agent):
            options += ["--shape", option]
        return await self._children.start(agent.name, AGENT, options, self.on_event)

    def _cache_options(self) -> list[str]:
        return [] if self.config.cache_root is None else ["--cache", str(self.config.cache_root)]


def shape_options(agent: AgentTable) -> list[str]:
    """``--shape`` options of an agent: figures, or those of a link in its device profile.

    Raises:
        ConfigError: If the profile has no such link.
    """
    options = []
    for tier, shape in agent.shape.items():
        delay_s, up_bps, down_bps = shape.delay_s, shape.up_bps, shape.down_bps
        if shape.link is not None:
            profile = find_device_profile(agent.profile)
            if shape.link not in profile.links:
                known = ", ".join(profile.links) or "none"
                raise ConfigError(
                    f"device profile {profile.name!r} has no link {shape.link!r}; it has {known}"
                )
            figures = profile.links[shape.link]
            delay_s, up_bps, down_bps = (
                figures.rtt_s.value / 2,
                figures.up_bps.value,
                figures.down_bps.value,
            )
        options.append(f"{tier}={delay_s},{up_bps or 0},{down_bps or 0}")
    return options


def _same_plan(assignment: Json | None, decision: Json, epoch: int) -> bool:
    """Whether a device holds what the coordinator last decided, from that very coordinator."""
    if assignment is None or assignment["epoch"]["coordinator"] != epoch:
        return False
    held, decided = assignment["plan"], decision["plan"]
    if held is None or decided is None:
        return held is None and decided is None
    return bool(held["config"] == decided["config"] and held["placement"] == decided["placement"])
