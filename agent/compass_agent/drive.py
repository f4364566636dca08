"""Driving an agent from another process: JSON commands on stdin, JSON events on stdout, a line each.

The demo and the benches use it to serve queries at their rates and to learn how every request ended.

    {"do": "declare", "queries": [...], "split": "heldout"}    make these this device's queries
    {"do": "serve", "phase": "compass", "seconds": 15, "seed": 7, "split": "heldout"}
    {"do": "stop"}

Requests arrive as a Poisson process, so that they meet each other as requests of independent users do. Those
of a pipeline whose inputs are clips come evenly, clip after clip, each clip a stream of its own; a clip is
scored as a whole when its last request has ended, and its requests are reported then.
Arrivals and inputs follow from the seed and the query's name: two phases with one seed see the same ones.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TextIO

import msgspec

from compass_agent.events import QueryDeclared
from compass_agent.inputs import load_examples
from compass_agent.playing import Emit, Player
from compass_agent.shell import AgentShell
from compass_shared.errors import CompassError, MessageError
from compass_shared.notices import Notice
from compass_shared.query import Query
from compass_shared.values import Example


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
        players = [self._player(query, command, started_s) for query in self._queries]
        await asyncio.gather(*(p.play(seconds=command.seconds, seed=command.seed) for p in players))
        self._emit(
            {
                "event": "served",
                "phase": command.phase,
                "seconds": time.monotonic() - started_s,
                "overruns": self._shell.overruns - overruns,
            }
        )

    def _player(self, query: Query, command: ServeCommand, started_s: float) -> Player:
        return Player(
            self._shell,
            self._emit,
            query=replace(query, rate_hz=query.rate_hz * command.rate_factor),
            phase=command.phase,
            examples=self._examples[query.pipeline, command.split],
            started_s=started_s,
        )


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
