"""The agent's shell: MQTT, HTTP, threads and disk around ``AgentCore``.

Everything that happens is turned into an event on one asyncio loop; every action that the core returns is
carried out here. There are no decisions in this file.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import aiohttp

from compass_agent import events as ev
from compass_agent import saved
from compass_agent.assignments import default_plan
from compass_agent.bundles import load_bundle
from compass_agent.config import AgentConfig
from compass_agent.core import AgentCore
from compass_agent.execution import LocalPool
from compass_agent.hello import hello_of
from compass_agent.inbox import event_of
from compass_agent.measure.telemetry import read_telemetry
from compass_agent.measuring import Measuring
from compass_agent.models import ModelStore
from compass_agent.operators import OperatorHost
from compass_agent.pace import Pace
from compass_agent.routes import LinkProxies
from compass_agent.running import SegmentRunner, as_compass_error
from compass_agent.served import Served
from compass_agent.serving import DataPlane
from compass_agent.shares import ShareTable
from compass_agent.worker import Worker
from compass_shared import codec
from compass_shared.background import Background
from compass_shared.broker_url import parse_address
from compass_shared.clock import Clock, MonotonicClock
from compass_shared.errors import CompassError, ConfigError, MessageError, TransportError
from compass_shared.messages import ProfileMessage, ShareMessage, StatusMessage, WorkerInfo
from compass_shared.model_cache import ModelCache
from compass_shared.notices import Notice, OnNotice, safely
from compass_shared.pipeline import variant_key
from compass_shared.site import Tier
from compass_shared.topics import Kind, Topics
from compass_shared.transport import Connected, Disconnected, Received, Transport, TransportEvent, Will
from compass_shared.values import Value

logger = logging.getLogger(__name__)

PEERS_PATIENCE_S = 3.0
"""A coordinator that has not said by then who has models is not waited for."""

_CLOSED = "the agent was closed"


class AgentShell:
    """A running agent.

    Args:
        config: Its settings.
        clock: Monotonic time.
        transport: Makes the connection to the broker; MQTT if not given.
        on_notice: Told what happens, on the event loop.
    """

    def __init__(
        self,
        config: AgentConfig,
        *,
        clock: Clock | None = None,
        transport: Callable[[AgentShell], Transport] | None = None,
        on_notice: OnNotice = lambda _notice: None,
    ) -> None:
        self.config = config
        self._clock = clock or MonotonicClock()
        self._notice = safely(on_notice)
        bundles = [load_bundle(folder) for folder in config.bundles]
        self.bundles = {bundle.pipeline.name: bundle for bundle in bundles}
        self.store = ModelStore(ModelCache(config.cache_root))
        self.host = OperatorHost(bundles, self.store)
        self.pace = Pace(config.slowdown)
        self.pool = LocalPool(config.cores, clock=self._clock)
        self.session = time.time_ns() // 1_000_000
        """Session epoch: higher at every start, whatever happened to the disk."""
        self.core = AgentCore(
            name=config.name,
            session=self.session,
            pipelines={name: bundle.pipeline for name, bundle in self.bundles.items()},
            assignments=saved.load(config.state_dir),
            measure=config.measure,
            tier=config.tier,
        )
        self._make_transport = transport or _mqtt
        self._transport: Transport | None = None
        self._connection = 0
        """Number of the latest connection to the broker."""
        self._topics = Topics(config.fleet)
        self._http: aiohttp.ClientSession | None = None
        self.shares = ShareTable()
        self._served = Served(rng=random.Random(), since_s=self._clock.now_s())  # noqa: S311  # a sample
        self._worker = Worker(
            site=config.name,
            tier=config.tier,
            host=self.host,
            shares=self.shares,
            pool=self.pool,
            pace=self.pace,
            clock=self._clock,
            served=self._served,
        )
        self._data_plane: DataPlane | None = None
        self._proxies = LinkProxies(config.shapes, rng=random.Random())  # noqa: S311  # jitter, not a secret
        self._running = SegmentRunner(
            host=self.host,
            pool=self.pool,
            pace=self.pace,
            proxies=self._proxies,
            clock=self._clock,
            served=self._served,
        )
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="compass-disk")
        self._opener = ThreadPoolExecutor(1, thread_name_prefix="compass-models")
        self._preparing: dict[str, asyncio.Task[None]] = {}
        """Query -> share whose models are being opened."""
        self._background = Background(logger)
        self._measuring = Measuring(
            config,
            host=self.host,
            pace=self.pace,
            store=self.store,
            proxies=self._proxies,
            pool=self.pool,
            clock=self._clock,
            on_notice=on_notice,
        )
        self._peers_known = asyncio.Event()
        """Set once a coordinator was heard, and with it who else has models."""
        self._waiting: dict[str, asyncio.Future[ev.Outcome]] = {}
        """Request -> who waits for its outcome."""
        self._timers: dict[str, list[asyncio.TimerHandle]] = {}
        self._closed = False

    # --- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start serving; measuring goes on in the background.

        Raises:
            ConfigError: If the broker's URL is wrong.
            TransportError: If the data plane's address is taken.
        """
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise

    async def _start(self) -> None:
        # Calls to one worker reuse its connections; a request's own deadline bounds each call.
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
            timeout=aiohttp.ClientTimeout(total=None),
        )
        if self.config.listen is not None:
            self._data_plane = DataPlane(self._worker, self.store.cache, advertise=self.config.data_address)
            await self._data_plane.start(*self.config.listen)
        if self.config.broker is not None:
            self._transport = self._make_transport(self)
            self._transport.start(self._on_transport)
            self._background.spawn(self._telemetry_loop(), "telemetry")
        self.handle(ev.Started())
        self._background.spawn(self._introduce(), "introduce")
        self._background.spawn(self._begin_measuring(), "measure")

    async def close(self) -> None:
        """Stop: requests in flight end with a TransportError, the status becomes offline."""
        self._closed = True
        self.host.close()
        await self._background.end()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(TransportError(_CLOSED))
        for handles in self._timers.values():
            for handle in handles:
                handle.cancel()
        if self._transport is not None:
            with contextlib.suppress(CompassError):
                # Of this very connection: a status of an earlier one would not count any more.
                offline = self.will(self._connection)
                self._transport.publish(offline.topic, offline.payload, retain=True)
            await self._transport.close()
        if self._data_plane is not None:
            await self._data_plane.close()
        await self._proxies.close()
        if self._http is not None:
            await self._http.close()
        self.pool.close()
        self._opener.shutdown(wait=False, cancel_futures=True)
        self._disk.shutdown(wait=True)

    @property
    def overruns(self) -> int:
        """Emulated operators here that took longer than they should have."""
        return self._running.overruns

    @property
    def data_address(self) -> str | None:
        """Base URL of the data plane, if this agent is a worker."""
        return self._data_plane.address if self._data_plane is not None else None

    async def open_models(self, pipeline: str) -> None:
        """Fetch and open the models that requests without an assignment need.

        Raises:
            ConfigError: The pipeline is not installed.
            ModelLoadError: A model cannot be had or opened.
        """
        plan = default_plan(self.host.pipeline(pipeline), self.config.name)
        variants = [variant_key(operator, knobs) for operator, knobs in plan.config.items()]
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._opener, self.host.preload, pipeline, variants)

    # --- requests ---------------------------------------------------------------------------------

    async def request(
        self,
        pipeline: str,
        value: Value,
        *,
        query: str | None = None,
        deadline_s: float | None = None,
        new_stream: bool = False,
    ) -> ev.Outcome:
        """Push one input through a pipeline; ``new_stream`` begins a new stream of its query.

        Returns:
            How it ended; ``outcome.error`` holds the error if it failed.

        Raises:
            ConfigError: The pipeline or the query is not known here.
            RefusedError: The query was refused by the coordinator.
            TransportError: The agent was closed.
        """
        if self._closed:
            raise TransportError(_CLOSED)
        request = uuid.uuid4().hex
        event = ev.RequestSubmitted(
            request=request,
            pipeline=pipeline,
            value=value,
            query=query,
            deadline_s=deadline_s,
            new_stream=new_stream,
        )
        future: asyncio.Future[ev.Outcome] = asyncio.get_running_loop().create_future()
        self._waiting[request] = future
        try:
            self.handle(event)
            return await future
        finally:
            self._waiting.pop(request, None)

    # --- events in, actions out -------------------------------------------------------------------

    def handle(self, event: ev.Event) -> None:
        """Hand an event to the core and carry out what it decides."""
        for action in self.core.handle(event, self._clock.now_s()):
            self._perform(action)

    def _perform(self, action: ev.Action) -> None:
        match action:
            case ev.Send():
                self._publish(action)
            case ev.RunSegment():
                self._running.begin(action)
                self._background.spawn(self._run_segment(action), f"segment {action.request}")
            case ev.Later():
                loop = asyncio.get_running_loop()
                handle = loop.call_later(action.delay_s, self.handle, action.event)
                self._timers.setdefault(action.event.request, []).append(handle)
            case ev.Finish():
                self._finish(action.outcome)
            case ev.SaveAssignments():
                self._disk.submit(saved.save, self.config.state_dir, action.assignments)
                self._notice(Notice(kind="assignment", data={"assignments": dict(action.assignments)}))
            case ev.HoldShare():
                self._hold(action)
            case ev.OpenModels():
                self._background.spawn(self._open_models(action), f"models of {action.pipeline}")
            case ev.ForgetStates():
                self._running.forget(action.query)
            case ev.UsePeers():
                self.store.peers = action.addresses
            case ev.MeasureOperators():
                self._background.spawn(self._measure_operators(action), f"measuring {action.pipeline}")
            case ev.CountServed():
                self.handle(self._served.counted(self._clock.now_s()))
            case ev.MeasureLinks():
                self._background.spawn(self._measure_links(action.workers), "links")

    def _hold(self, action: ev.HoldShare) -> None:
        if (unready := self._preparing.pop(action.query, None)) is not None:
            unready.cancel()
        if action.share is None:
            self._worker.withdraw(action.query)
            self._notice(Notice(kind="share", data={"query": action.query, "held": False}))
        else:
            work = self._prepare_share(action.share)
            self._preparing[action.query] = self._background.spawn(work, f"share of {action.query}")

    async def _prepare_share(self, share: ShareMessage) -> None:
        problem = await self._opened(share.pipeline, share.variants)
        # Nothing is awaited from here on, so that a newer share finds either all of this done or nothing.
        del self._preparing[share.query]
        problem = problem or self._worker.hold(share)
        if problem is None:
            self._notice(Notice(kind="share", data={"query": share.query, "held": True}))
        else:
            logger.warning("the share of query %s is not taken: %s", share.query, problem)
        self.handle(ev.ShareReady(query=share.query, epoch=share.epoch, problem=problem))

    async def _open_models(self, action: ev.OpenModels) -> None:
        if (problem := await self._opened(action.pipeline, action.variants)) is not None:
            logger.warning("requests through %s may fail here: %s", action.pipeline, problem)

    async def _opened(self, pipeline: str, variants: tuple[str, ...]) -> str | None:
        """Open models beside the loop; returns why that failed, or None."""
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._opener, self.host.preload, pipeline, variants)
        except Exception as error:  # a share has to be acknowledged whatever happened
            return str(as_compass_error(error))
        return None

    def _finish(self, outcome: ev.Outcome) -> None:
        for handle in self._timers.pop(outcome.request, ()):
            handle.cancel()
        self._running.end(outcome.request)
        future = self._waiting.get(outcome.request)
        if future is not None and not future.done():
            future.set_result(outcome)

    def _publish(self, action: ev.Send) -> None:
        if self._transport is None:
            return
        name = self.config.name
        topic = (
            self._topics.agent(action.kind, name)
            if action.item is None
            else self._topics.query(action.kind, name, action.item)
        )
        try:
            payload = b"" if action.message is None else codec.encode(action.message)
            self._transport.publish(topic, payload, qos=action.qos, retain=action.retain)
        except (MessageError, TransportError) as error:
            # What matters and fits is said again on reconnect.
            logger.warning("not published on %s: %s", topic, error)

    def _on_transport(self, event: TransportEvent) -> None:
        match event:
            case Connected():
                self._notice(Notice(kind="connected", data={"connection": event.connection}))
                self._connection = event.connection
                self.handle(ev.BrokerConnected(session=self.session + event.connection))
            case Disconnected():
                logger.warning("broker lost: %s", event.reason)
                self.handle(ev.BrokerLost(reason=event.reason))
            case Received():
                incoming = event_of(event.topic, event.payload)
                if isinstance(incoming, ev.MessageRefused):
                    logger.warning("refused a message on %s: %s", incoming.topic, incoming.problem)
                    self._notice(Notice(kind="refused-message", data={"problem": incoming.problem}))
                self.handle(incoming)
                if isinstance(incoming, ev.CoordinatorArrived):
                    self._peers_known.set()

    def will(self, connection: int) -> Will:
        """What the broker says when this connection breaks."""
        offline = StatusMessage(online=False, session=self.session + connection)
        topic = self._topics.agent(Kind.STATUS, self.config.name)
        return Will(topic=topic, payload=codec.encode(offline), retain=True)

    async def _run_segment(self, action: ev.RunSegment) -> None:
        assert self._http is not None
        self.handle(await self._running.run(action, self._http))

    # --- measuring --------------------------------------------------------------------------------

    async def _introduce(self) -> None:
        loop = asyncio.get_running_loop()
        describe = partial(
            hello_of,
            self.config,
            self.bundles,
            self.store.cache,
            session=self.session,
            data_address=self.data_address,
        )
        hello = await loop.run_in_executor(None, describe)
        self.handle(ev.HelloReady(hello=hello))

    async def _begin_measuring(self) -> None:
        if self.config.broker is not None:
            # Measuring fetches models: a fleet asks itself for them before a registry.
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._peers_known.wait(), PEERS_PATIENCE_S)
        self.handle(ev.MeasuringDue())

    async def _measure_operators(self, action: ev.MeasureOperators) -> None:
        try:
            await self._measuring.operators(action.pipeline, action.variants)
        except Exception as error:  # what else is to be measured is measured all the same
            problem = as_compass_error(error)
            logger.warning("pipeline %s could not be measured: %s", action.pipeline, problem)
        self._report()
        self.handle(ev.MeasuringEnded())

    async def _measure_links(self, workers: Mapping[str, WorkerInfo]) -> None:
        if self.config.tier is not Tier.DEVICE:
            return  # links start at the devices: the requests of a worker are served there
        assert self._http is not None
        await self._measuring.links_to(workers, self._http)
        self._report()

    def _report(self) -> None:
        links = tuple(self._measuring.links.values())
        for profile in self._measuring.profiles.values():
            message = ProfileMessage(session=self.session, profile=profile, links=links)
            self.handle(ev.ProfileReady(profile=message))

    async def _telemetry_loop(self) -> None:
        while True:
            await asyncio.sleep(self.config.telemetry_interval_s)
            reading = read_telemetry()
            self.handle(
                ev.TelemetryDue(
                    cpu_share=reading.cpu_share,
                    memory_used_bytes=reading.memory_used_bytes,
                    memory_total_bytes=reading.memory_total_bytes,
                    battery=reading.battery,
                    temperature_c=reading.temperature_c,
                    links=tuple(self._measuring.links.values()),
                    overruns=self._running.overruns,
                )
            )


def _mqtt(shell: AgentShell) -> Transport:
    from compass_shared.mqtt import MqttTransport  # noqa: PLC0415  # an agent that is alone needs no MQTT

    config = shell.config
    if config.broker is None:
        raise ConfigError("no broker was given", field="broker")
    return MqttTransport(
        config.broker,
        client_id=parse_address(config.broker).client_id(config.fleet, config.name),
        filters=Topics(config.fleet).for_agent(config.name),
        rng=random.Random(),  # noqa: S311  # spreads reconnects, not a secret
        will=shell.will,
    )
