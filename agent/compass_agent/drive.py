"""Driving an agent from another process: JSON commands on stdin, JSON events on stdout, a line each.

The demo and the benches use it to serve queries at their rates and to learn how every request ended.

    {"do": "declare", "queries": [...], "split": "heldout"}    make these this device's queries
    {"do": "serve", "phase": "compass", "seconds": 15, "seed": 7, "split": "heldout"}
    {"do": "stop"}

Requests arrive as a Poisson process, so that they meet each other as requests of independent users do.
Arrivals and inputs follow from the seed and the query's name: two phases with one seed see the same ones.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TextIO

import msgspec

from compass_agent.bundles import Bundle
from compass_agent.events import Outcome, QueryDeclared
from compass_agent.inputs import load_examples
from compass_agent.measure.scoring import score_of, share
from compass_agent.shell import AgentShell
from compass_shared.errors import CompassError, MessageError
from compass_shared.notices import Notice
from compass_shared.query import Query
from compass_shared.values import Example

Emit = Callable[[Mapping[str, Any]], None]


class DeclareCommand(msgspec.Struct, frozen=True, kw_only=True, tag_field="do", tag="declare"):
    """Make these this device's queries."""

    queries: tuple[Query, ...]
    split: str | None = None
    """Inputs to make ready, before requests are to carry them."""


class ServeCommand(msgspec.Struct, frozen=True, kw_only=True, tag_field="do", tag="serve"):
    """Send requests of every declared query at its rate."""

    phase: str
    seconds: float
    seed: int
    split: str
    rate_factor: float = 1.0


class StopCommand(msgspec.Struct, frozen=True, kw_only=True, tag_field="do", tag="stop"):
    """Stop the agent."""


_COMMANDS = msgspec.json.Decoder(DeclareCommand | ServeCommand | StopCommand)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request to come."""

    at_s: float
    """From the start of the phase."""
    index: int
    """Which of the query's requests it is."""
    example: int
    """Which input it carries."""


def arrivals(query: Query, *, seconds: float, seed: int, groups: Sequence[str]) -> list[Arrival]:
    """The requests of one query: the same for the same seed.

    Args:
        query: Its rate counts.
        seconds: How long to send.
        seed: Draws times and inputs.
        groups: Group of every input; each round of inputs takes the groups in turn, so that even a few
            requests see every group in proportion.
    """
    rng = random.Random(f"{seed}/{query.name}")  # noqa: S311  # a repeatable draw, not a secret
    # Of its own, so that when requests come does not depend on what they carry.
    order = _in_turns(groups, random.Random(f"{seed}/{query.name}/inputs"))  # noqa: S311
    found: list[Arrival] = []
    at_s = rng.expovariate(query.rate_hz)
    while at_s < seconds:
        found.append(Arrival(at_s=at_s, index=len(found), example=order[len(found) % len(order)]))
        at_s += rng.expovariate(query.rate_hz)
    return found


def _in_turns(groups: Sequence[str], rng: random.Random) -> list[int]:
    """Indices in a random order in which every stretch holds each group about as often as all do."""
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    spread: list[tuple[float, int]] = []
    for indices in members.values():
        rng.shuffle(indices)
        shift = rng.random()
        spread.extend(((rank + shift) / len(indices), index) for rank, index in enumerate(indices))
    return [index for _, index in sorted(spread)]


class Driver:
    """Carries out commands on one agent.

    Args:
        shell: The agent.
        emit: Takes events.
    """

    def __init__(self, shell: AgentShell, emit: Emit) -> None:
        self._shell = shell
        self._emit = emit
        self._queries: tuple[Query, ...] = ()
        self._examples: dict[tuple[str, str], Sequence[Example]] = {}
        """(pipeline, split) -> inputs."""

    async def run(self, line: bytes) -> bool:
        """Carry out one command.

        Returns:
            Whether to go on.
        """
        try:
            command = _COMMANDS.decode(line)
        except msgspec.MsgspecError as error:
            self._emit({"event": "error", "problem": f"not a command: {error}"})
            return True
        try:
            match command:
                case StopCommand():
                    return False
                case DeclareCommand():
                    self._declare(command.queries)
                    await self._make_ready(command)
                case ServeCommand():
                    await self._serve(command)
        except CompassError as error:
            self._emit({"event": "error", "problem": str(error)})
        return True

    def _declare(self, queries: tuple[Query, ...]) -> None:
        for old in self._queries:
            if old.name not in {query.name for query in queries}:
                self._shell.handle(QueryDeclared(name=old.name, query=None))
        for query in queries:
            self._shell.handle(QueryDeclared(name=query.name, query=query))
        self._queries = queries

    async def _make_ready(self, command: DeclareCommand) -> None:
        if command.split is None:
            return
        for query in command.queries:
            await self._load(query.pipeline, command.split)
        self._emit({"event": "loaded"})

    async def _load(self, pipeline: str, split: str) -> None:
        if (pipeline, split) not in self._examples:
            self._examples[pipeline, split] = await asyncio.to_thread(
                load_examples, self._shell.bundles[pipeline], split, self._shell.store
            )

    async def _serve(self, command: ServeCommand) -> None:
        for query in self._queries:
            await self._load(query.pipeline, command.split)
        overruns = self._shell.overruns
        started_s = time.monotonic()
        self._emit({"event": "serving", "phase": command.phase})
        await asyncio.gather(*(self._serve_query(query, command, started_s) for query in self._queries))
        self._emit(
            {
                "event": "served",
                "phase": command.phase,
                "seconds": time.monotonic() - started_s,
                "overruns": self._shell.overruns - overruns,
            }
        )

    async def _serve_query(self, query: Query, command: ServeCommand, started_s: float) -> None:
        examples = self._examples[query.pipeline, command.split]
        plan = arrivals(
            replace(query, rate_hz=query.rate_hz * command.rate_factor),
            seconds=command.seconds,
            seed=command.seed,
            groups=[example.group for example in examples],
        )
        running = []
        for arrival in plan:
            await asyncio.sleep(started_s + arrival.at_s - time.monotonic())
            work = self._one(query, command, arrival, examples[arrival.example])
            running.append(asyncio.ensure_future(work))
        await asyncio.gather(*running)

    async def _one(self, query: Query, command: ServeCommand, arrival: Arrival, example: Example) -> None:
        bundle = self._shell.bundles[query.pipeline]
        base = {
            "event": "request",
            "phase": command.phase,
            "query": query.name,
            "index": arrival.index,
            "input": example.name,
        }
        try:
            outcome = await self._shell.request(query.pipeline, example.value, query=query.name)
        except CompassError as error:
            self._emit({**base, "error": type(error).__name__, "problem": str(error)})
            return
        score = None if outcome.error is not None else await self._score(bundle, outcome, example)
        self._emit({**base, **describe(outcome), "score": score})

    async def _score(self, bundle: Bundle, outcome: Outcome, example: Example) -> float:
        try:
            kind = bundle.pipeline.metric.kind if bundle.pipeline.metric is not None else "mean"
            score = await asyncio.to_thread(score_of, bundle.metric(), kind, outcome.value, example)
            return share(score)
        except CompassError as error:
            self._emit({"event": "error", "problem": str(error)})
            return 0.0


def describe(outcome: Outcome) -> dict[str, Any]:
    """An outcome as JSON, without what was sent or answered."""
    error = outcome.error
    return {
        "request": outcome.request,
        "error": None if error is None else type(error).__name__,
        "problem": None if error is None else str(error),
        "latency_s": outcome.latency_s,
        "source": outcome.source.value,
        "attempts": outcome.attempts,
        "epoch": msgspec.to_builtins(outcome.epoch),
        "segments": msgspec.to_builtins(outcome.segments),
    }


def notice_event(notice: Notice) -> dict[str, Any]:
    """A notice as JSON."""
    return {"event": notice.kind, **msgspec.to_builtins(dict(notice.data))}


def emitter(stream: TextIO) -> Emit:
    """Writes events to a stream, one JSON document a line, each flushed."""

    def emit(event: Mapping[str, Any]) -> None:
        stream.write(json.dumps(event, separators=(",", ":")) + "\n")
        stream.flush()

    return emit


async def commands_from_stdin() -> asyncio.StreamReader:
    """Stdin as a stream of lines.

    Raises:
        MessageError: If stdin cannot be read without blocking.
    """
    reader = asyncio.StreamReader(limit=1024 * 1024)
    try:
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
    except ValueError as error:
        raise MessageError(f"--drive needs a pipe on stdin: {error}") from error
    return reader
