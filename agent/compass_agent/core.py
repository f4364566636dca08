"""The agent's core: everything it decides, without I/O.

``AgentCore.handle(event, now_s)`` returns the actions that the shell has to carry out. It never reads a
clock, a socket or the environment, so tests feed it events and match actions.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from compass_agent import events as ev
from compass_agent.assignments import AssignmentBook
from compass_agent.probing import Measure, ProbeBook
from compass_agent.requests import RequestBook
from compass_agent.streams import Streams
from compass_shared.errors import ConfigError, DeadlineError
from compass_shared.messages import (
    AckMessage,
    CoordinatorMessage,
    HelloMessage,
    ProfileMessage,
    QueryCounters,
    QueryMessage,
    ServedMessage,
    StatusMessage,
    TelemetryMessage,
    WorkerInfo,
)
from compass_shared.names import checked_name
from compass_shared.pipeline import Pipeline
from compass_shared.plan import Assignment, Epoch
from compass_shared.query import Query, check_query
from compass_shared.site import Tier
from compass_shared.topics import Kind

_LATENCIES_KEPT = 200


@dataclass(slots=True)
class _Counters:
    answered: int = 0
    failed: int = 0
    expired: int = 0
    on_fallback: int = 0
    latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=_LATENCIES_KEPT))

    def count(self, outcome: ev.Outcome) -> None:
        if outcome.error is None:
            self.answered += 1
            self.latencies_s.append(outcome.latency_s)
        elif isinstance(outcome.error, DeadlineError):
            self.expired += 1
        else:
            self.failed += 1
        if outcome.source is not ev.Source.ASSIGNED:
            self.on_fallback += 1

    def frozen(self) -> QueryCounters:
        return QueryCounters(
            answered=self.answered,
            failed=self.failed,
            expired=self.expired,
            on_fallback=self.on_fallback,
            latency_p95_s=_quantile(sorted(self.latencies_s), 0.95),
        )


SERVED_EVERY = 12
"""Telemetry messages from one report of what serving took to the next."""

MAX_DEADLINE_S = 86_400.0
"""Longest that a request may be allowed."""

NOBODY = -1
"""Below every coordinator epoch."""


class AgentCore:
    """Decisions of one agent.

    Args:
        name: The agent's name, which is also its site's.
        session: Session epoch; higher at every start.
        pipelines: Installed pipelines by name.
        assignments: What was in force when the agent last stopped, from disk.
        measure: Which operators it measures.
        tier: Where its site stands.
    """

    def __init__(
        self,
        *,
        name: str,
        session: int,
        pipelines: Mapping[str, Pipeline],
        assignments: Mapping[str, Assignment] | None = None,
        measure: Measure = Measure.FULL,
        tier: Tier = Tier.DEVICE,
    ) -> None:
        self._name = name
        self._session = session
        self._pipelines = dict(pipelines)
        self._book = AssignmentBook(name, pipelines, assignments or {}, tier=tier)
        self._reported_to = self._book.coordinator_epoch
        """Highest coordinator epoch that was told what is not retained."""
        self._queries: dict[str, Query | None] = {}
        """Queries that the application declared here; None for one withdrawn that the broker still has."""
        self._connected = False
        self._hello: HelloMessage | None = None
        self._profiles: dict[str, ProfileMessage] = {}
        """Pipeline -> latest measurement."""
        self._probes = ProbeBook(pipelines, measure)
        self._telemetry_sent = 0
        self._workers: dict[str, WorkerInfo] = {}
        """Workers whose links were asked for, by site."""
        self._peers: tuple[str, ...] = ()
        """Addresses that were last named for models."""
        self._counters: dict[str, _Counters] = {}
        self._refused_messages = 0
        self._requests = RequestBook(name)
        self._streams = Streams(session)
        self._handlers: dict[type, Callable[[Any, float], list[ev.Action]]] = {
            ev.Started: self._started,
            ev.BrokerConnected: self._broker_connected,
            ev.BrokerLost: self._broker_lost,
            ev.HelloReady: self._hello_ready,
            ev.ProfileReady: self._profile_ready,
            ev.MeasuringDue: self._measuring_due,
            ev.MeasuringEnded: self._measuring_ended,
            ev.ProbesAsked: self._probes_asked,
            ev.TelemetryDue: self._telemetry_due,
            ev.ServedCounted: self._served_counted,
            ev.AssignmentArrived: self._assignment_arrived,
            ev.ShareArrived: self._share_arrived,
            ev.ShareReady: self._share_ready,
            ev.CoordinatorArrived: self._coordinator_arrived,
            ev.PipelineArrived: self._pipeline_arrived,
            ev.MessageRefused: self._message_refused,
            ev.QueryDeclared: self._query_declared,
            ev.RequestSubmitted: self._request_submitted,
            ev.SegmentDone: self._requests.segment_done,
            ev.SegmentFailed: self._requests.segment_failed,
            ev.AttemptOverdue: self._requests.attempt_overdue,
            ev.RequestOverdue: self._requests.request_overdue,
        }

    # --- what others may look at ------------------------------------------------------------------

    @property
    def assignments(self) -> Mapping[str, Assignment]:
        """Query -> assignment in force."""
        return self._book.in_force

    @property
    def in_flight(self) -> int:
        """Requests that have not ended."""
        return len(self._requests)

    @property
    def refused_messages(self) -> int:
        """Messages from the wire that could not be taken."""
        return self._refused_messages

    def handle(self, event: ev.Event, now_s: float) -> list[ev.Action]:
        """Take one event and decide.

        Args:
            event: What happened.
            now_s: Monotonic seconds.

        Returns:
            Actions for the shell, in order.

        Raises:
            ConfigError: A request or a declared query names what is not here, or makes no sense.
            RefusedError: A request's query cannot be served at all.
        """
        actions = self._handlers[type(event)](event, now_s)
        for action in actions:
            if isinstance(action, ev.Finish):
                self._counters.setdefault(action.outcome.query, _Counters()).count(action.outcome)
        return actions

    # --- presence ---------------------------------------------------------------------------------

    def _started(self, _event: ev.Started, _now_s: float) -> list[ev.Action]:
        return [self._open(query) for query in self._book.in_force]

    def _broker_connected(self, event: ev.BrokerConnected, _now_s: float) -> list[ev.Action]:
        self._connected = True
        self._session = event.session
        return self._introduce()

    def _broker_lost(self, _event: ev.BrokerLost, _now_s: float) -> list[ev.Action]:
        self._connected = False
        return []

    def _hello_ready(self, event: ev.HelloReady, _now_s: float) -> list[ev.Action]:
        self._hello = event.hello
        return self._introduce()

    def _introduce(self) -> list[ev.Action]:
        """Say everything again that a broker or coordinator without memory has to know."""
        if not self._connected or self._hello is None:
            return []
        online = StatusMessage(online=True, session=self._session)
        queries = [self._send_query(name, query) for name, query in self._queries.items()]
        self._queries = {name: query for name, query in self._queries.items() if query is not None}
        return [
            ev.Send(kind=Kind.STATUS, message=online, retain=True),
            ev.Send(kind=Kind.HELLO, message=self._hello, retain=True),
            *self._report(),
            *queries,
        ]

    def _report(self) -> list[ev.Action]:
        return [ev.Send(kind=Kind.PROFILE, message=profile) for profile in self._profiles.values()]

    def _send_query(self, name: str, query: Query | None) -> ev.Send:
        message = None if query is None else QueryMessage(query=query)
        return ev.Send(kind=Kind.QUERY, item=name, message=message, retain=True)

    def _profile_ready(self, event: ev.ProfileReady, _now_s: float) -> list[ev.Action]:
        self._profiles[event.profile.profile.pipeline] = event.profile
        return [ev.Send(kind=Kind.PROFILE, message=event.profile)] if self._connected else []

    def _telemetry_due(self, event: ev.TelemetryDue, _now_s: float) -> list[ev.Action]:
        if not self._connected:
            return []
        message = TelemetryMessage(
            session=self._session,
            cpu_share=event.cpu_share,
            memory_used_bytes=event.memory_used_bytes,
            memory_total_bytes=event.memory_total_bytes,
            battery=event.battery,
            temperature_c=event.temperature_c,
            links=event.links,
            overruns=event.overruns,
            queries={name: counters.frozen() for name, counters in self._counters.items()},
            epochs={name: assignment.epoch for name, assignment in self._book.in_force.items()},
        )
        self._telemetry_sent += 1
        served = [ev.CountServed()] if self._telemetry_sent % SERVED_EVERY == 0 else []
        return [ev.Send(kind=Kind.TELEMETRY, message=message, qos=0), *served]

    def _served_counted(self, event: ev.ServedCounted, _now_s: float) -> list[ev.Action]:
        if not self._connected:
            return []
        messages = [
            ServedMessage(
                session=self._session,
                pipeline=name,
                digest=self._pipelines[name].digest,
                operators=operators,
                over_s=event.over_s,
            )
            for name, operators in event.operators.items()
        ]
        return [ev.Send(kind=Kind.SERVED, message=message, qos=0) for message in messages]

    def _message_refused(self, _event: ev.MessageRefused, _now_s: float) -> list[ev.Action]:
        self._refused_messages += 1
        return []

    # --- what is measured -------------------------------------------------------------------------

    def _measuring_due(self, _event: ev.MeasuringDue, _now_s: float) -> list[ev.Action]:
        self._probes.begin()
        return self._measure_next()

    def _probes_asked(self, event: ev.ProbesAsked, _now_s: float) -> list[ev.Action]:
        if event.probes.epoch < self._book.coordinator_epoch or self._probes.ask(event.probes) is not None:
            self._refused_messages += 1
            return []
        return self._measure_next()

    def _measuring_ended(self, _event: ev.MeasuringEnded, _now_s: float) -> list[ev.Action]:
        self._probes.ended()
        return self._measure_next()

    def _measure_next(self) -> list[ev.Action]:
        wanted = self._probes.next()
        return [] if wanted is None else [wanted]

    # --- decisions of the coordinator -------------------------------------------------------------

    def _coordinator_arrived(self, event: ev.CoordinatorArrived, _now_s: float) -> list[ev.Action]:
        status = event.status
        if not status.online:
            # Whoever comes next may know nothing, even one that carries the same epoch again.
            self._reported_to = NOBODY
            return []
        if status.epoch < self._book.coordinator_epoch:
            return []
        self._book.coordinator_epoch = status.epoch
        actions: list[ev.Action] = []
        if (peers := _model_peers(status, self._name)) != self._peers:
            self._peers = peers
            actions.append(ev.UsePeers(addresses=peers))
        # Not the book's epoch: a new coordinator's assignment may arrive before its status.
        if status.epoch > self._reported_to and self._connected:
            # A new coordinator may know nothing: what is not retained is said again.
            self._reported_to = status.epoch
            actions.extend(self._report())
        workers = {name: worker for name, worker in status.workers.items() if name != self._name}
        self._book.places.tiers.update({name: worker.tier for name, worker in workers.items()})
        if workers != self._workers:
            self._workers = workers
            actions.append(ev.MeasureLinks(workers=workers))
        return actions

    def _pipeline_arrived(self, event: ev.PipelineArrived, _now_s: float) -> list[ev.Action]:
        # The digest of an assignment decides; the declaration itself is for people and for later roll-outs.
        if event.declaration.pipeline not in self._pipelines:
            self._refused_messages += 1
        return []

    def _assignment_arrived(self, event: ev.AssignmentArrived, _now_s: float) -> list[ev.Action]:
        assignment = event.assignment
        before = self._book.stateful_layout(event.query, "" if assignment is None else assignment.pipeline)
        if assignment is None:
            self._book.withdraw(event.query)
            return [self._save(), *_forgotten(event.query, before)]
        problem = self._book.take(event.query, assignment)
        ack = self._ack(event.query, assignment.epoch, problem)
        if problem:
            return [ack]
        moved = before != self._book.stateful_layout(event.query, assignment.pipeline)
        forgotten = _forgotten(event.query, before) if moved else []
        return [self._save(), ack, self._open(event.query), *forgotten]

    def _share_arrived(self, event: ev.ShareArrived, _now_s: float) -> list[ev.Action]:
        share = event.share
        if share is None:
            return [ev.HoldShare(query=event.query, share=None)]
        problem = self._book.share_problem(share.epoch, share.pipeline, share.digest, share.variants)
        if problem is not None:
            return [self._ack(event.query, share.epoch, problem, share=True)]
        self._book.coordinator_epoch = share.epoch.coordinator
        return [ev.HoldShare(query=event.query, share=share)]

    def _share_ready(self, event: ev.ShareReady, _now_s: float) -> list[ev.Action]:
        return [self._ack(event.query, event.epoch, event.problem, share=True)]

    def _ack(self, query: str, epoch: Epoch, problem: str | None, *, share: bool = False) -> ev.Send:
        ack = AckMessage(query=query, epoch=epoch, taken=problem is None, reason=problem or "", share=share)
        return ev.Send(kind=Kind.ACK, message=ack)

    def _open(self, query: str) -> ev.OpenModels:
        variants = self._book.local_variants(query)
        return ev.OpenModels(pipeline=self._book.in_force[query].pipeline, variants=variants)

    def _save(self) -> ev.SaveAssignments:
        return ev.SaveAssignments(assignments=dict(self._book.in_force))

    # --- the application --------------------------------------------------------------------------

    def _query_declared(self, event: ev.QueryDeclared, _now_s: float) -> list[ev.Action]:
        forgotten: list[ev.Action] = []
        if event.query is not None:
            self._check_declared(event.name, event.query)
        elif (known := self._queries.get(event.name)) is not None:
            self._streams.end(event.name)
            forgotten = _forgotten(event.name, self._book.stateful_layout(event.name, known.pipeline))
        if not self._connected:
            self._queries[event.name] = event.query
            return forgotten
        if event.query is None:
            self._queries.pop(event.name, None)
        else:
            self._queries[event.name] = event.query
        return [self._send_query(event.name, event.query), *forgotten]

    def _check_declared(self, name: str, query: Query) -> None:
        checked_name(name, "query")
        if (query.name, query.origin) != (name, self._name):
            raise ConfigError(
                f"query {name!r} must bear that name and start at {self._name!r}", field="query"
            )
        if query.pipeline not in self._pipelines:
            raise ConfigError(f"pipeline {query.pipeline!r} is not installed here", field="pipeline")
        check_query(query)

    def _request_submitted(self, event: ev.RequestSubmitted, now_s: float) -> list[ev.Action]:
        if event.deadline_s is not None and not 0 <= event.deadline_s <= MAX_DEADLINE_S:
            raise ConfigError(
                f"{event.deadline_s} must lie between 0 and {MAX_DEADLINE_S:g} s", field="deadline_s"
            )
        known = {*self._queries, *self._book.in_force}
        if event.query is not None and known and event.query not in known:
            names = ", ".join(sorted(known))
            raise ConfigError(f"no query is called {event.query!r} here; there are {names}", field="query")
        # Counted although it may be refused: it is missing in its stream then, and a new stream begins.
        stream, position = self._streams.next(self._book.query_of(event), new_stream=event.new_stream)
        routes, deadline_s = self._book.routes(event)
        return self._requests.start(
            event.request,
            event.value,
            routes,
            deadline_s=deadline_s if event.deadline_s is None else event.deadline_s,
            now_s=now_s,
            stream=stream,
            position=position,
        )


def _forgotten(query: str, layout: Mapping[str, object]) -> list[ev.Action]:
    """Drop what a query's stateful operators kept here, if it has any."""
    return [ev.ForgetStates(query=query)] if layout else []


def _model_peers(status: CoordinatorMessage, own: str) -> tuple[str, ...]:
    addresses = [] if status.model_address is None else [status.model_address]
    addresses += [worker.address for name, worker in status.workers.items() if name != own]
    return tuple(addresses)


def _quantile(ordered: list[float], share: float) -> float | None:
    """Nearest-rank quantile of sorted values."""
    if not ordered:
        return None
    return ordered[max(0, math.ceil(len(ordered) * share) - 1)]
