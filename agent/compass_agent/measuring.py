"""When a running agent measures what: its operators at the start, its links as workers become known."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import aiohttp

from compass_agent.bundles import Bundle
from compass_agent.config import AgentConfig
from compass_agent.execution import LocalPool
from compass_agent.inputs import load_examples, split_for_probes
from compass_agent.measure.network import measure_link
from compass_agent.measure.speed import SpeedProgress, SpeedReport, measure_speed
from compass_agent.models import ModelStore
from compass_agent.operators import OperatorHost
from compass_agent.pace import Pace
from compass_agent.routes import LinkProxies
from compass_shared.clock import Clock
from compass_shared.errors import TransportError
from compass_shared.messages import LinkReport, WorkerInfo
from compass_shared.notices import Notice, OnNotice
from compass_shared.profile import SiteProfile

logger = logging.getLogger(__name__)


PATIENCE_S = 10.0
"""Time that one measurement waits, all in all, for moments in which no request runs here."""


class Patience:
    """Waits for moments in which the pool is idle, until the time for that is used up.

    Args:
        pool: Where requests run.
        limit_s: Time to wait, all in all: a machine that is never idle is measured in the end as it is.
    """

    def __init__(self, pool: LocalPool, limit_s: float) -> None:
        self._pool = pool
        self._left_s = limit_s

    def wait(self) -> None:
        """Return when the pool is idle, or the time is up."""
        started_s = self._pool.clock.now_s()
        self._pool.wait_idle(max(0.0, self._left_s))
        self._left_s -= self._pool.clock.now_s() - started_s


def merged(known: SiteProfile | None, measured: SiteProfile) -> SiteProfile:
    """What is known of a site with what was just measured there, which counts where both have a variant.

    Of memory the more counts: what was open already when it was measured takes no more.
    """
    if known is None:
        return measured
    operators = dict(known.operators)
    for key, found in measured.operators.items():
        before = operators[key].memory_bytes if key in operators else 0.0
        operators[key] = replace(found, memory_bytes=max(before, found.memory_bytes))
    return replace(measured, operators=operators)


class Measuring:
    """Measures one thing at a time, so that nothing disturbs what is measured, and keeps what it found.

    Args:
        config: The agent's settings.
        host: Its operators.
        pace: Speed that it runs at.
        store: Where the inputs' assets come from.
        proxies: Ways to the workers.
        pool: Where requests run: nothing is measured beside them.
        clock: The time.
        on_notice: Told of progress.
    """

    def __init__(
        self,
        config: AgentConfig,
        *,
        host: OperatorHost,
        pace: Pace,
        store: ModelStore,
        proxies: LinkProxies,
        pool: LocalPool,
        clock: Clock,
        on_notice: OnNotice,
    ) -> None:
        self._config = config
        self._host = host
        self._pace = pace
        self._store = store
        self._proxies = proxies
        self._pool = pool
        self._clock = clock
        self._notice = on_notice
        self._lock = asyncio.Lock()
        self.profiles: dict[str, SiteProfile] = {}
        """Pipeline -> how fast its operators are here."""
        self.links: dict[str, LinkReport] = {}
        """Worker's site -> the way there."""

    async def operators(self, pipeline: str, variants: Collection[str] | None = None) -> None:
        """Measure operators of one pipeline, beside the loop, and add them to what is known of it.

        Args:
            pipeline: Name of an installed pipeline.
            variants: What to measure; None: every variant.

        Raises:
            CompassError: If its inputs cannot be had or all variants fail on all of them.
        """
        bundle = self._host.bundles[pipeline]
        inputs = bundle.pipeline.inputs
        if inputs is None:
            logger.warning("pipeline %s brings no inputs to be measured with", pipeline)
            return
        split = split_for_probes(inputs)
        loop = asyncio.get_running_loop()

        def progress(now: SpeedProgress) -> None:
            data = {"pipeline": pipeline, "settled": now.settled, "variants": now.variants}
            loop.call_soon_threadsafe(self._notice, Notice(kind="measuring", data=data))

        async with self._lock:
            patience = Patience(self._pool, PATIENCE_S)
            measured = loop.run_in_executor(None, self._measured, bundle, split, variants, patience, progress)
            report = await measured
            self.profiles[pipeline] = merged(self.profiles.get(pipeline), report.profile)
        for variant, why in report.failed.items():
            logger.warning("%s of pipeline %s is left out: %s", variant, pipeline, why)
        self._notice(Notice(kind="measured", data={"pipeline": pipeline, "failed": dict(report.failed)}))

    def _measured(
        self,
        bundle: Bundle,
        split: str,
        variants: Collection[str] | None,
        patience: Patience,
        on_progress: Callable[[SpeedProgress], None],
    ) -> SpeedReport:
        return measure_speed(
            self._host,
            bundle.pipeline,
            load_examples(bundle, split, self._store),
            site=self._config.name,
            pace=self._pace,
            clock=self._clock,
            # The same inputs everywhere: sites are compared, not samples.
            rng=random.Random(0),  # noqa: S311
            variants=variants,
            budget_s=self._config.measure_budget_s,
            emulated=self._config.emulated,
            before_pass=patience.wait,
            on_progress=on_progress,
        )

    async def links_to(self, workers: Mapping[str, WorkerInfo], session: aiohttp.ClientSession) -> None:
        """Measure the way to each of these; one that cannot be measured counts as none.

        Args:
            workers: Site name -> worker.
            session: The connections that requests use.
        """
        for name, worker in workers.items():
            async with self._lock:
                await self._link_to(name, worker, session)
        self._notice(Notice(kind="links", data={"links": dict(self.links)}))

    async def _link_to(self, name: str, worker: WorkerInfo, session: aiohttp.ClientSession) -> None:
        try:
            address = await self._proxies.through(worker)
            self.links[name] = await measure_link(session, address, target=name)
        except TransportError as error:
            self.links.pop(name, None)
            logger.warning("the link to %s could not be measured: %s", name, error)
