"""The demo: stages the fleet, serves the same queries under several policies, and sums up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from compass_coordinator.connecting import visiting
from compass_coordinator.demo.accounting import Calls, accounting_problems
from compass_coordinator.demo.agents import StageConfig
from compass_coordinator.demo.broker import EmbeddedBroker
from compass_coordinator.demo.children import Children
from compass_coordinator.demo.clearing import clear_fleet
from compass_coordinator.demo.downloads import fetch_models
from compass_coordinator.demo.livecheck import check_accuracy, measure_afresh
from compass_coordinator.demo.options import DemoOptions
from compass_coordinator.demo.scores import PhaseTotal, Served, phase_total, totals_by_pipeline
from compass_coordinator.demo.screen import rows_of
from compass_coordinator.demo.stage import Stage
from compass_coordinator.demo.state import StageState
from compass_shared.errors import ConfigError
from compass_shared.fleet_file import Fleet, load_fleet, scaled
from compass_shared.model_cache import ModelCache, default_cache_dir
from compass_shared.pipeline import Pipeline
from compass_shared.pipeline_file import load_pipeline
from compass_shared.query import Query

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseResult:
    """One phase."""

    phase: str
    planned: Json
    rows: Mapping[str, Served]
    total: PhaseTotal
    by_pipeline: Mapping[str, PhaseTotal]
    """Pipeline -> the same for its queries alone; only where the fleet has several pipelines."""
    requests: tuple[Json, ...]
    worker_calls: Mapping[str, Calls]
    """Worker -> how often it ran each (query, operator), as it counted itself."""
    overruns: int
    problems: tuple[str, ...]
    """What did not add up; see ``accounting``."""
    replanned: tuple[str, ...]
    """Queries whose plan was another one in the end: serving took other times than had been measured."""


@dataclass(slots=True, kw_only=True)
class DemoResult:
    """Everything that the demo found out."""

    options: DemoOptions
    pipelines: Mapping[str, Pipeline]
    queries: tuple[Query, ...] = ()
    accuracy_checks: list[Json] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    """Why accuracies of a pipeline were not checked, a sentence each."""
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
    pipelines = {name: load_pipeline(folder) for name, folder in options.bundles.items()}
    fleet = load_fleet(options.fleet_file)
    queries = scaled(fleet.queries, options.rate_factor)
    fleet = msgspec.structs.replace(fleet, queries=queries)
    _check_origins(fleet, options.fleet_file)
    result = DemoResult(options=options, pipelines=pipelines, queries=queries)
    state = StageState(clips=_clips(pipelines))
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(_shown(lambda: show(state, state.phase, queries)))
        await _fetch(result, state)
        accuracy = await _accuracy(result, state)
        broker, fleet_name = await _broker(options, fleet.name, stack)
        config = StageConfig(
            fleet=fleet,
            fleet_name=fleet_name,
            broker=broker,
            bundles=options.bundles,
            accuracy=accuracy,
            work=options.work,
            cache_root=options.cache_root,
            seed=options.seed,
            measure_s=options.measure_s,
        )
        children = await stack.enter_async_context(Children(options.work / "logs"))
        stage = Stage(config, children, state)
        await _prepare(stage, options.phases[0], result)
        for phase in options.phases:
            result.phases.append(await _phase(stage, phase, options.seconds, result))
    return result


def _clips(pipelines: Mapping[str, Pipeline]) -> frozenset[str]:
    """Those whose inputs are clips."""
    return frozenset(
        name
        for name, pipeline in pipelines.items()
        if pipeline.inputs is not None and pipeline.inputs.sequences
    )


def _check_origins(fleet: Fleet, file: Path) -> None:
    agents = {agent.name for agent in fleet.agents}
    for query in fleet.queries:
        if query.origin not in agents:
            raise ConfigError(
                f"query {query.name!r} starts at {query.origin!r}, which is none of the [[agents]]", file=file
            )


async def _fetch(result: DemoResult, state: StageState) -> None:
    options = result.options

    def tell(line: str) -> None:
        state.stage = line

    with _timed(result, "models"):
        cache = ModelCache(options.cache_root or default_cache_dir(os.environ))
        await fetch_models(options.bundles, result.pipelines, cache=cache, on_line=tell)


async def _accuracy(result: DemoResult, state: StageState) -> Mapping[str, Path]:
    """The accuracy tables to plan with: the bundles', checked live on a few configs, or fresh ones."""
    options = result.options
    with _timed(result, "accuracy"):
        if options.profile_now:
            state.stage = f"Measuring the accuracy of {options.profile_now} configs afresh"
            return {
                name: await measure_afresh(options, pipeline) for name, pipeline in result.pipelines.items()
            }
        for name in result.pipelines if options.check_configs else ():
            state.stage = f"Checking the accuracy profile of {name} on a few configs"
            found = await check_accuracy(options, name)
            if isinstance(found, str):
                result.unchecked.append(found)
            else:
                result.accuracy_checks.extend(found)
    return options.accuracy


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
    state.phase = phase
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
        by_pipeline=totals_by_pipeline(phase, stage.queries, rows, planned["queries"], seconds),
        requests=requests,
        worker_calls=calls,
        overruns=sum(event["overruns"] for event in state.served.values())
        + sum(count.overruns for count in counted.values()),
        problems=tuple(accounting_problems(requests, planned["queries"], calls, state.given)),
        replanned=_replanned(planned, state.planned),
    )


def _replanned(first: Json, last: Json | None) -> tuple[str, ...]:
    """Queries with another plan, or without one, in a later planning."""

    def decided(planned: Json, query: str) -> object:
        plan = planned["queries"].get(query, {}).get("plan")
        return None if plan is None else (plan["config"], plan["placement"])

    if last is None:
        return ()
    return tuple(query for query in first["queries"] if decided(first, query) != decided(last, query))


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
