"""The coordinator's shell: MQTT, threads, disk and the model server around ``CoordinatorCore``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from aiohttp import web

from compass_coordinator import events as ev
from compass_coordinator.core import CoordinatorCore
from compass_coordinator.fleet import Fleet
from compass_coordinator.inbox import event_of
from compass_coordinator.planner.fleet import TemplateCache
from compass_coordinator.planner.policy import POLICIES
from compass_coordinator.planning import plan_fleet
from compass_coordinator.profiler.latency.completion import Completions
from compass_coordinator.profiler.latency.next_probe import Wish, next_probes
from compass_coordinator.store import FileStore
from compass_shared import codec
from compass_shared.background import Background
from compass_shared.broker_url import parse_address
from compass_shared.clock import Clock, MonotonicClock
from compass_shared.device_profile import known_device_profiles
from compass_shared.errors import CompassError, MessageError, TransportError
from compass_shared.messages import CoordinatorMessage
from compass_shared.model_cache import ModelCache
from compass_shared.model_ref import is_loopback
from compass_shared.model_routes import model_routes
from compass_shared.mqtt import MqttTransport
from compass_shared.notices import Notice, OnNotice, safely
from compass_shared.pipeline import Pipeline
from compass_shared.profile import AccuracyTable, SiteProfile
from compass_shared.topics import Kind, Topics
from compass_shared.transport import Connected, Disconnected, Received, Transport, TransportEvent, Will

logger = logging.getLogger(__name__)

TICK_S = 0.1
RETAINED_QUIET_S = 0.5
"""The fleet's retained state counts as read when nothing more of it came for this long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorConfig:
    """Settings of a coordinator."""

    broker: str
    pipelines: Mapping[str, Pipeline]
    accuracy: Mapping[str, AccuracyTable]
    fleet: str = "default"
    policy: str = "compass"
    state_dir: Path | None = None
    cache_root: Path | None = None
    """Model cache to serve from; None serves no models."""
    listen: tuple[str, int] = ("127.0.0.1", 0)
    model_address: str | None = None
    """Base URL under which agents reach the model server, if not the one it listens on."""
    client_id: str = "coordinator"
    references: Mapping[str, SiteProfile] = field(default_factory=dict)
    """Pipeline -> profile to predict from what agents did not measure; else that of one who measured all."""


class CoordinatorShell:
    """A running coordinator.

    Args:
        config: Its settings.
        clock: Monotonic time.
        transport: Makes the connection to the broker; MQTT if not given.
        on_notice: Told what happens, on the event loop.
    """

    def __init__(
        self,
        config: CoordinatorConfig,
        *,
        clock: Clock | None = None,
        transport: Callable[[CoordinatorShell], Transport] | None = None,
        on_notice: OnNotice = lambda _notice: None,
    ) -> None:
        self.config = config
        self._clock = clock or MonotonicClock()
        self._notice = safely(on_notice)
        self._templates = TemplateCache()
        self._completions = Completions()
        self._store = FileStore(config.state_dir)
        self._topics = Topics(config.fleet)
        self._make_transport = transport or _mqtt
        self._transport: Transport | None = None
        self._runner: web.AppRunner | None = None
        self._background = Background(logger, on_failure=self._on_failure)
        self._last_retained_s = 0.0
        """Time of the latest retained message, or of the connection if none came."""
        self._connected = False
        self._stopped: asyncio.Future[str] | None = None
        self.fleet = Fleet(
            pipelines=config.pipelines,
            accuracy=config.accuracy,
            references=config.references,
            devices=known_device_profiles(),
        )
        self.core: CoordinatorCore | None = None

    async def start(self) -> None:
        """Start deciding.

        Raises:
            ConfigError: If the store is damaged.
            TransportError: If the model server's address is taken.
        """
        self._stopped = asyncio.get_running_loop().create_future()
        model_address = await self._serve_models()
        self.core = CoordinatorCore(
            fleet=self.fleet,
            stored_epoch=self._store.epoch(),
            new_token=partial(secrets.token_urlsafe, 16),
            model_address=model_address,
        )
        self._transport = self._make_transport(self)
        self._transport.start(self._on_transport)
        self._background.spawn(self._run(), "coordinator")

    async def wait(self) -> str:
        """Wait until another coordinator takes over.

        Returns:
            Why this one stopped.
        """
        assert self._stopped is not None
        return await self._stopped

    async def close(self) -> None:
        """Say goodbye and stop; the fleet goes on with its assignments."""
        await self._background.end()
        if self._transport is not None:
            if self._stopped is None or not self._stopped.done():
                with contextlib.suppress(CompassError):
                    offline = self.will(0)
                    self._transport.publish(offline.topic, offline.payload, retain=True)
            await self._transport.close()
        if self._runner is not None:
            await self._runner.cleanup()

    def will(self, _connection: int) -> Will:
        """What the broker says when the connection breaks."""
        epoch = self.core.epoch if self.core is not None else 0
        message = CoordinatorMessage(online=False, epoch=epoch)
        return Will(topic=self._topics.coordinator, payload=codec.encode(message), retain=True)

    # --- events in, actions out -------------------------------------------------------------------

    def handle(self, event: ev.Event) -> None:
        """Hand an event to the core and carry out what it decides."""
        assert self.core is not None
        for action in self.core.handle(event, self._clock.now_s()):
            self._perform(action)

    def _perform(self, action: ev.Action) -> None:
        match action:
            case ev.Send():
                self._publish(action)
            case ev.StartPlanning():
                self._notice(Notice(kind="planning", data={"queries": len(action.problem.queries)}))
                self._background.spawn(self._plan(action), "planning")
            case ev.SaveEpoch():
                self._store.save_epoch(action.epoch)
            case ev.Note():
                logger.log(logging.WARNING if action.serious else logging.INFO, "%s", action.text)
                self._notice(Notice(kind="note", data={"text": action.text, "serious": action.serious}))
            case ev.Stop():
                logger.error("stopping: %s", action.reason)
                if self._stopped is not None and not self._stopped.done():
                    self._stopped.set_result(action.reason)

    def _publish(self, action: ev.Send) -> None:
        assert self._transport is not None
        if action.kind is Kind.COORDINATOR:
            topic = self._topics.coordinator
        elif action.kind is Kind.PIPELINE:
            topic = self._topics.pipeline(action.item or "")
        elif action.kind is Kind.PROBE:
            topic = self._topics.agent(action.kind, action.agent or "")
        else:
            topic = self._topics.query(action.kind, action.agent or "", action.item or "")
        try:
            payload = b"" if action.message is None else codec.encode(action.message)
            self._transport.publish(topic, payload, retain=action.kind is not Kind.PROBE)
        except (MessageError, TransportError) as error:
            logger.warning("not published on %s: %s", topic, error)

    def _on_transport(self, event: TransportEvent) -> None:
        match event:
            case Connected():
                self._connected = True
                self._last_retained_s = self._clock.now_s()
                self.handle(ev.BrokerConnected())
            case Disconnected():
                self._connected = False
                logger.warning("broker lost: %s", event.reason)
            case Received():
                if event.retained:
                    self._last_retained_s = self._clock.now_s()
                incoming = event_of(event.topic, event.payload)
                if isinstance(incoming, ev.DecisionSeen) and not event.retained:
                    return  # our own, coming back
                if incoming is not None:
                    self.handle(incoming)

    async def _run(self) -> None:
        await self._read_retained()
        self.handle(ev.Started())
        assert self.core is not None
        self._notice(Notice(kind="started", data={"epoch": self.core.epoch}))
        while True:
            await asyncio.sleep(TICK_S)
            self.handle(ev.Tick())

    async def _read_retained(self) -> None:
        # A broker does not say when the last retained message was sent: quiet is the only sign.
        while not self._is_quiet():  # noqa: ASYNC110  # waits for the absence of events
            await asyncio.sleep(TICK_S)

    def _is_quiet(self) -> bool:
        return self._connected and self._clock.now_s() - self._last_retained_s >= RETAINED_QUIET_S

    async def _plan(self, action: ev.StartPlanning) -> None:
        started_s = self._clock.now_s()
        try:
            planned = await asyncio.to_thread(self._solve, action)
        except Exception as error:
            # Even a planner's bug leaves the fleet serving what it has.
            logger.exception("planning failed")
            self.handle(ev.PlanningFailed(version=action.version, problem=f"{type(error).__name__}: {error}"))
            return
        self._notice(
            Notice(
                kind="planned",
                data={
                    "problem": planned.problem,
                    "plan": planned.plan,
                    "epoch": self.core.epoch if self.core is not None else 0,
                    "seconds": self._clock.now_s() - started_s,
                    "left_out": dict(self.core.left_out) if self.core is not None else {},
                },
            )
        )
        self.handle(planned)

    def _solve(self, asked: ev.StartPlanning) -> ev.Planned:
        """Plan in a thread; one planning is under way at a time."""
        policy = POLICIES[self.config.policy]
        problem, predicted = self._completions.fill(asked.problem, asked.gaps)
        plan = plan_fleet(problem, policy, timer=time.perf_counter, templates=self._templates)
        wishes: tuple[Wish, ...] = ()
        try:
            wishes = next_probes(problem, plan, predicted, policy=policy)
        except Exception:
            logger.exception("nothing is asked of agents: what is worth a probe was not found")
        return ev.Planned(version=asked.version, problem=problem, plan=plan, wishes=wishes)

    async def _serve_models(self) -> str | None:
        if self.config.cache_root is None:
            return None
        app = web.Application()
        app.add_routes(model_routes(ModelCache(self.config.cache_root)))
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        host, port = self.config.listen
        site = web.TCPSite(self._runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise TransportError(f"cannot listen on {host}:{port}: {error.strerror}") from error
        if self.config.model_address is not None:
            return self.config.model_address
        if is_loopback(host) and not is_loopback(parse_address(self.config.broker).host):
            return None  # agents elsewhere could not reach it
        return f"http://{host}:{self._runner.addresses[0][1]}"

    def _on_failure(self, task: str, error: BaseException) -> None:
        if task == "coordinator" and self._stopped is not None and not self._stopped.done():
            self._stopped.set_exception(error)


def _mqtt(shell: CoordinatorShell) -> Transport:
    config = shell.config
    return MqttTransport(
        config.broker,
        client_id=parse_address(config.broker).client_id(config.fleet, config.client_id),
        filters=Topics(config.fleet).for_coordinator(),
        rng=random.Random(),  # noqa: S311  # spreads reconnects, not a secret
        will=shell.will,
    )
