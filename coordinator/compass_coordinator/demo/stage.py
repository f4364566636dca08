"""The demo's stage: broker, coordinator, workers and devices as real processes, and what they reported.

The order of starting matters on a small machine: workers measure themselves first and undisturbed, because
their speed is what all devices plan with; devices follow together.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from compass_coordinator.demo.accounting import assignment_key
from compass_coordinator.demo.agents import StageConfig, agent_options, cache_options, needed_bundles
from compass_coordinator.demo.children import Child, Children
from compass_coordinator.demo.state import StageState, WorkerCount
from compass_shared.errors import TransportError
from compass_shared.fleet_file import AgentTable
from compass_shared.query import Query
from compass_shared.site import Tier

Json = Mapping[str, Any]

AGENT = "compass_agent"
COORDINATOR = "compass_coordinator"


class Stage:
    """Runs the processes and keeps what they say.

    Args:
        config: Settings.
        children: Where processes are started.
        state: Where it is kept.
    """

    def __init__(self, config: StageConfig, children: Children, state: StageState) -> None:
        self.config = config
        self.state = state
        self._children = children
        self._changed = asyncio.Event()
        self._agents: dict[str, Child] = {}

    @property
    def queries(self) -> Sequence[Query]:
        """All queries of the fleet."""
        return self.config.fleet.queries

    @property
    def origins(self) -> set[str]:
        """Agents that have queries, devices and workers alike: those that are driven."""
        return {query.origin for query in self.queries}

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
                *(word for folder in config.bundles.values() for word in ("--bundle", str(folder))),
                *(word for table in config.accuracy.values() for word in ("--accuracy", str(table))),
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
        await self._until(lambda: self._measured(workers), "measuring the workers")

    async def start_devices(self) -> None:
        """Start all devices and wait until they measured themselves and their links."""
        config = self.config
        devices = [agent for agent in config.fleet.agents if agent.tier is Tier.DEVICE]
        workers = {agent.name for agent in config.fleet.agents if agent.tier is not Tier.DEVICE}
        for agent in devices:
            await self._start_agent(agent)
        await self._until(
            lambda: (
                self._measured(devices)
                and all(self.state.linked.get(agent.name, set()) >= workers for agent in devices)
            ),
            "measuring the devices and their links",
        )

    def declare(self, queries: Sequence[Query]) -> None:
        """Let every origin declare its queries."""
        for name in self.origins:
            own = [msgspec.to_builtins(query) for query in queries if query.origin == name]
            self._agents[name].send({"do": "declare", "queries": own, "split": self.config.split})

    async def planned(self) -> Json:
        """Wait for a plan of everything, and until every origin holds what it says."""
        await self._until(
            lambda: self.state.loaded >= self.origins and self._all_in_force(), "planning and assigning"
        )
        assert self.state.planned is not None
        return self.state.planned

    async def serve(self, phase: str, seconds: float, *, rate_factor: float = 1.0) -> None:
        """Let all origins send requests for a while, and wait until all of them ended."""
        self.state.requests = []
        self.state.served = {}
        for name in self.origins:
            self._agents[name].send(
                {
                    "do": "serve",
                    "phase": phase,
                    "seconds": seconds,
                    "seed": self.config.seed,
                    "split": self.config.split,
                    "rate_factor": rate_factor,
                }
            )
        await self._until(lambda: set(self.state.served) == self.origins, "serving", seconds + 60)

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
        self.state.measuring[child] = f"{event['pipeline']} {event['settled']}/{event['variants']}"

    def _on_measured(self, child: str, event: Json) -> None:
        self.state.measured.setdefault(child, set()).add(event["pipeline"])
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
            self.state.given[assignment_key(query, assignment["epoch"])] = assignment["plan"]

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

    def _measured(self, agents: Sequence[AgentTable]) -> bool:
        return all(
            self.state.measured.get(agent.name, set()) >= set(self._bundles_of(agent)) for agent in agents
        )

    def _bundles_of(self, agent: AgentTable) -> Mapping[str, Path]:
        return needed_bundles(agent, self.config.bundles, self.queries)

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

    async def _start_agent(self, agent: AgentTable) -> None:
        options = agent_options(agent, self.config, self._bundles_of(agent))
        self._agents[agent.name] = await self._children.start(agent.name, AGENT, options, self.on_event)

    def _cache_options(self) -> list[str]:
        return cache_options(self.config.cache_root)


def _same_plan(assignment: Json | None, decision: Json, epoch: int) -> bool:
    """Whether a device holds what the coordinator last decided, from that very coordinator."""
    if assignment is None or assignment["epoch"]["coordinator"] != epoch:
        return False
    held, decided = assignment["plan"], decision["plan"]
    if held is None or decided is None:
        return held is None and decided is None
    return bool(held["config"] == decided["config"] and held["placement"] == decided["placement"])
