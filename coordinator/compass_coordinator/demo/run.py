"""The demo: stages the fleet, serves the same queries under several policies, and sums up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import platform
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psutil

from compass_coordinator.connecting import visiting
from compass_coordinator.demo.accounting import Calls, accounting_problems
from compass_coordinator.demo.broker import EmbeddedBroker
from compass_coordinator.demo.children import Children
from compass_coordinator.demo.clearing import clear_fleet
from compass_coordinator.demo.livecheck import check_accuracy, measure_afresh
from compass_coordinator.demo.options import DemoOptions
from compass_coordinator.demo.scores import PhaseTotal, Served, phase_total
from compass_coordinator.demo.screen import rows_of
from compass_coordinator.demo.stage import Stage, StageConfig, StageState
from compass_shared import __version__
from compass_shared.fleet_file import load_fleet, scaled
from compass_shared.query import Query

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseResult:
    """One phase."""

    phase: str
    planned: Json
    rows: Mapping[str, Served]
    total: PhaseTotal
    requests: tuple[Json, ...]
    worker_calls: Mapping[str, Calls]
    """Worker -> how often it ran each (query, operator), as it counted itself."""
    overruns: int
    problems: tuple[str, ...]
    """What did not add up; see ``accounting``."""


@dataclass(slots=True, kw_only=True)
class DemoResult:
    """Everything that the demo found out."""

    options: DemoOptions
    queries: tuple[Query, ...] = ()
    accuracy_checks: list[Json] = field(default_factory=list)
    phases: list[PhaseResult] = field(default_factory=list)
    timings_s: dict[str, float] = field(default_factory=dict)
    """Step of the demo -> how long it took."""
    links: dict[str, Json] = field(default_factory=dict)


OnState = Callable[[StageState, str, Sequence[Query]], None]
"""Shows the state: (state, phase, queries)."""


async def run_demo(options: DemoOptions, show: OnState) -> DemoResult:
    """Run the whole demo.

    Raises:
        ConfigError: If a file or option is wrong.
        TransportError: If a process ended or something took too long.
    """
    fleet = load_fleet(options.fleet_file)
    queries = scaled(fleet.queries, options.rate_factor)
    fleet = msgspec.structs.replace(fleet, queries=queries)
    result = DemoResult(options=options, queries=queries)
    accuracy = await _accuracy(options, result)
    async with contextlib.AsyncExitStack() as stack:
        broker, fleet_name = await _broker(options, fleet.name, stack)
        config = StageConfig(
            fleet=fleet,
            fleet_name=fleet_name,
            broker=broker,
            bundle=options.bundle,
            accuracy=accuracy,
            work=options.work,
            cache_root=options.cache_root,
            seed=options.seed,
            measure_s=options.measure_s,
        )
        children = await stack.enter_async_context(Children(options.work / "logs"))
        stage = Stage(config, children)
        async with _shown(lambda: show(stage.state, stage.phase, queries)):
            await _prepare(stage, options.phases[0], result)
            for phase in options.phases:
                result.phases.append(await _phase(stage, phase, options.seconds, result))
    return result


async def _prepare(stage: Stage, policy: str, result: DemoResult) -> None:
    with _timed(result, "coordinator and workers"):
        stage.state.stage = "Starting the coordinator and the workers; they measure themselves"
        await stage.start_coordinator(policy)
        await stage.start_workers()
    with _timed(result, "devices"):
        stage.state.stage = "Starting the devices; they measure themselves and their links"
        await stage.start_devices()
    result.links = dict(stage.state.links)
    stage.declare(stage.queries)


async def _phase(stage: Stage, phase: str, seconds: float, result: DemoResult) -> PhaseResult:
    state = stage.state
    stage.phase = phase
    state.requests = []
    with _timed(result, f"{phase}: planning"):
        state.stage = f"{phase}: planning and assigning"
        if result.phases:
            await stage.stop_coordinator()
            await stage.start_coordinator(phase)
        planned = await stage.planned()
    before = await stage.counters()
    with _timed(result, f"{phase}: serving"):
        state.stage = f"{phase}: serving for {seconds:g} s"
        await stage.serve(phase, seconds)
    after = await stage.counters()
    counted = {name: count.since(before.get(name)) for name, count in after.items()}
    calls = {name: count.calls for name, count in counted.items()}
    rows = rows_of(stage.queries, state)
    requests = tuple(state.requests)
    return PhaseResult(
        phase=phase,
        planned=planned,
        rows=rows,
        total=phase_total(phase, stage.queries, rows, planned["queries"], seconds),
        requests=requests,
        worker_calls=calls,
        overruns=sum(event["overruns"] for event in state.served.values())
        + sum(count.overruns for count in counted.values()),
        problems=tuple(accounting_problems(requests, planned["queries"], calls)),
    )


async def _accuracy(options: DemoOptions, result: DemoResult) -> Path:
    """The accuracy table to plan with: the bundle's, checked live on a few configs, or a fresh one."""
    with _timed(result, "accuracy"):
        if options.profile_now:
            table = options.work / "accuracy.json"
            await measure_afresh(options, options.profile_now, table)
            return table
        if options.check_configs:
            result.accuracy_checks = await check_accuracy(options, options.check_configs)
    return options.accuracy


async def _broker(options: DemoOptions, name: str, stack: contextlib.AsyncExitStack) -> tuple[str, str]:
    """URL of the broker and the fleet's name on it."""
    if options.broker is None:
        embedded = EmbeddedBroker()
        await asyncio.to_thread(embedded.start)
        stack.callback(embedded.stop)
        return embedded.url, name
    async with visiting(options.broker):
        pass  # a broker out of reach is better known before everything is measured
    # On somebody's own broker the demo keeps to a name of its own, and leaves nothing behind.
    fleet_name = f"{name}-{secrets.token_hex(3)}"
    stack.push_async_callback(clear_fleet, options.broker, fleet_name)
    return options.broker, fleet_name


@contextlib.asynccontextmanager
async def _shown(show: Callable[[], None]) -> AsyncIterator[None]:
    async def loop() -> None:
        while True:
            show()
            await asyncio.sleep(0.5)

    task = asyncio.create_task(loop(), name="screen")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.contextmanager
def _timed(result: DemoResult, step: str) -> Iterator[None]:
    started_s = time.monotonic()
    yield
    result.timings_s[step] = time.monotonic() - started_s


def document_of(result: DemoResult) -> dict[str, Any]:
    """The result as JSON, with the fleet file in it."""
    options = result.options
    return {
        "schema": 1,
        "kind": "demo",
        "compass": __version__,
        "python": platform.python_version(),
        "machine": {
            "machine": platform.machine(),
            "cores": psutil.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
        },
        "seconds": options.seconds,
        "seed": options.seed,
        "rate_factor": options.rate_factor,
        "fleet_file": options.fleet_file.read_text(encoding="utf-8"),
        "queries": msgspec.to_builtins(result.queries),
        "links": result.links,
        "accuracy_checks": result.accuracy_checks,
        "timings_s": result.timings_s,
        "phases": [
            {
                "phase": phase.phase,
                "total": msgspec.to_builtins(phase.total),
                "queries": {name: msgspec.to_builtins(row) for name, row in phase.rows.items()},
                "planned": phase.planned,
                "worker_calls": {name: _by_query(calls) for name, calls in phase.worker_calls.items()},
                "overruns": phase.overruns,
                "accounting_problems": list(phase.problems),
                "requests": list(phase.requests),
            }
            for phase in result.phases
        ],
    }


def _by_query(calls: Calls) -> dict[str, dict[str, int]]:
    nested: dict[str, dict[str, int]] = {}
    for (query, operator), count in sorted(calls.items()):
        nested.setdefault(query, {})[operator] = count
    return nested


def write_document(path: Path, result: DemoResult) -> None:
    """Write the result as JSON."""
    path.write_text(json.dumps(document_of(result), indent=1) + "\n", encoding="utf-8")
