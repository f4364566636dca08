"""The SDK: push inputs through pipelines from your own program.

    async with Agent(name="phone", bundles=["read_text"], broker="mqtt://192.0.2.1") as agent:
        text = await agent.request("read-text", image)

Without a broker the agent runs every operator itself. ``BlockingAgent`` is the same for programs without
asyncio.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from compass_agent.config import AgentConfig
from compass_agent.events import Outcome, QueryDeclared
from compass_agent.probing import Measure
from compass_agent.shell import AgentShell
from compass_shared.model_cache import default_cache_dir
from compass_shared.query import Query, Slo, check_query

if TYPE_CHECKING:
    from compass_shared.values import Value

Result = TypeVar("Result")


class Agent:
    """A Compass agent inside your program.

    Args:
        name: The agent's name in its fleet, ``[a-z0-9-]{1,64}``.
        bundles: Folders of the installed pipelines.
        broker: ``mqtt://host:port`` or ``mqtts://...``; None: the agent is alone.
        fleet: Name of the fleet.
        settings: Any other field of ``AgentConfig``.

    Raises:
        ConfigError: If a setting or a bundle is wrong.
    """

    def __init__(
        self,
        *,
        name: str,
        bundles: Sequence[str | Path],
        broker: str | None = None,
        fleet: str = "default",
        **settings: Any,
    ) -> None:
        settings.setdefault("cache_root", default_cache_dir(os.environ))
        settings.setdefault("measure", Measure.NOTHING if broker is None else Measure.FULL)
        config = AgentConfig(
            name=name, bundles=tuple(Path(b) for b in bundles), broker=broker, fleet=fleet, **settings
        )
        self.shell = AgentShell(config)

    async def __aenter__(self) -> Agent:
        await self.shell.start()
        return self

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        await self.shell.close()

    async def open_models(self, pipeline: str) -> None:
        """Fetch and open what an agent that is alone runs, so that no request waits for a download.

        Models of an assignment are opened when it arrives.

        Raises:
            ConfigError: The pipeline is not installed.
            ModelLoadError: A model cannot be had or opened.
        """
        await self.shell.open_models(pipeline)

    async def request(
        self,
        pipeline: str,
        value: Value,
        *,
        query: str | None = None,
        deadline_s: float | None = None,
        new_stream: bool = False,
    ) -> Value:
        """Push one input through a pipeline and return its output.

        Args:
            pipeline: Name of an installed pipeline.
            value: The input: bytes, text, numbers, arrays, or lists and maps of these.
            query: Which query it belongs to, where the pipeline serves several here.
            deadline_s: Time allowed; the assignment's own if None.
            new_stream: Whether it begins a new stream (a clip, a conversation, a scene): operators that keep
                state from request to request start again. The first request of a query always does.

        Raises:
            CompassError: The request failed; see ``compass_shared.errors``.
        """
        outcome = await self.outcome(
            pipeline, value, query=query, deadline_s=deadline_s, new_stream=new_stream
        )
        if outcome.error is not None:
            raise outcome.error
        return outcome.value

    async def outcome(
        self,
        pipeline: str,
        value: Value,
        *,
        query: str | None = None,
        deadline_s: float | None = None,
        new_stream: bool = False,
    ) -> Outcome:
        """Like ``request``, but returns how it went: value or error, latency, plan, and every segment.

        Raises:
            ConfigError: The pipeline or the query is not known here.
            RefusedError: The coordinator refused the query.
        """
        return await self.shell.request(
            pipeline, value, query=query, deadline_s=deadline_s, new_stream=new_stream
        )

    def declare(  # noqa: PLR0913  # a query is that many numbers, all by name
        self,
        name: str,
        pipeline: str,
        *,
        rate_hz: float,
        latency_p95_s: float,
        accuracy: float,
        cost_usd_per_1000: float,
        weight: float = 1.0,
        divisible: bool = False,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Ask the coordinator to serve a query of this device.

        ``divisible`` allows it to split the requests over several plans, or to serve only a part of them;
        ``metrics`` are the least means of the pipeline's extra metrics.

        Raises:
            ConfigError: If a number makes no sense or the pipeline is not installed.
        """
        slo = Slo(
            latency_p95_s=latency_p95_s,
            accuracy=accuracy,
            cost_usd_per_1000=cost_usd_per_1000,
            metrics=dict(metrics or {}),
        )
        query = Query(
            name=name,
            origin=self.shell.config.name,
            pipeline=pipeline,
            rate_hz=rate_hz,
            slo=slo,
            weight=weight,
            divisible=divisible,
        )
        self.shell.handle(QueryDeclared(name=name, query=check_query(query)))

    def withdraw(self, name: str) -> None:
        """Take a declared query back."""
        self.shell.handle(QueryDeclared(name=name, query=None))


class BlockingAgent:
    """An ``Agent`` for programs without asyncio; it has a thread of its own. Arguments as for ``Agent``."""

    def __init__(self, **arguments: Any) -> None:
        self._arguments = arguments
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="compass-agent", daemon=True)
        self._agent: Agent | None = None
        self._lock = threading.Lock()
        """Held while a request is handed in: none comes after the one that closes the agent."""

    def __enter__(self) -> BlockingAgent:
        self._thread.start()
        try:
            self._agent = self._call(_opened(self._arguments))
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        with self._lock:
            agent, self._agent = self._agent, None
        assert agent is not None
        try:
            self._call(agent.__aexit__(None, None, None))
        finally:
            self._stop()

    def open_models(self, pipeline: str) -> None:
        """As ``Agent.open_models``."""
        self._ask(lambda agent: agent.open_models(pipeline))

    def request(
        self,
        pipeline: str,
        value: Value,
        *,
        query: str | None = None,
        deadline_s: float | None = None,
        new_stream: bool = False,
    ) -> Value:
        """As ``Agent.request``; any number of threads may call it at once."""
        return self._ask(
            lambda agent: agent.request(
                pipeline, value, query=query, deadline_s=deadline_s, new_stream=new_stream
            )
        )

    def _ask(self, what: Callable[[Agent], Coroutine[Any, Any, Result]]) -> Result:
        with self._lock:
            if self._agent is None:
                raise RuntimeError("use it in a with statement: with BlockingAgent(...) as agent")
            future = asyncio.run_coroutine_threadsafe(what(self._agent), self._loop)
        return future.result()

    def _call(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _stop(self) -> None:
        self._call(_last_words())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _last_words() -> None:
    """Let every request that is still waited for end, with the error that closing gave it."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others, return_exceptions=True)


async def _opened(arguments: dict[str, Any]) -> Agent:
    return await Agent(**arguments).__aenter__()
