"""The coordinator's core: everything it decides, without I/O.

Decisions are published in an order that keeps every request safe: a worker gets its share and says that
it took it; only then does the agent get the assignment that uses it. Shares that nobody uses any more are
cleared last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from compass_coordinator import events as ev
from compass_coordinator.fleet import Fleet
from compass_coordinator.planning import FleetPlan
from compass_coordinator.probing import Probing
from compass_coordinator.publication import Decision, decisions_of
from compass_coordinator.sanity import hello_problem
from compass_shared.check import check_plan
from compass_shared.errors import ConfigError
from compass_shared.messages import (
    AssignmentMessage,
    CoordinatorMessage,
    HelloMessage,
    PipelineMessage,
    WorkerInfo,
)
from compass_shared.names import is_name
from compass_shared.plan import Epoch
from compass_shared.query import check_query
from compass_shared.topics import Kind

SETTLE_S = 0.7
"""Planning waits until the fleet has been quiet for this long ..."""
PATIENCE_S = 5.0
"""... but never longer than this after the first change."""
REJOIN_S = 0.5
"""After a broken connection what is retained is read first: a newer coordinator may be in charge by now."""
SHARE_TIMEOUT_S = 20.0
"""A worker that has not taken its share by then does not serve the query."""
RETRY_S = 30.0
"""What a worker refused, or was too late for, is planned again after this time."""


@dataclass(slots=True, kw_only=True)
class _Pending:
    """A decision whose workers have not all taken their shares yet."""

    decision: Decision
    since_s: float
    waiting: set[str]


@dataclass(slots=True, kw_only=True)
class _Standing:
    """What is published for one query."""

    agent: str
    decision: Decision | None = None
    """None for what an earlier coordinator left."""
    workers: set[str] = field(default_factory=set)
    """Workers that hold a retained share."""


class CoordinatorCore:
    """Decisions of the coordinator.

    Args:
        fleet: State to work on.
        stored_epoch: Last coordinator epoch used here, 0 if none.
        model_address: Where this coordinator serves models, if it does.
        new_token: Makes a random token for each query's share.
    """

    def __init__(
        self,
        *,
        fleet: Fleet,
        stored_epoch: int,
        new_token: Callable[[], str],
        model_address: str | None = None,
    ) -> None:
        self._fleet = fleet
        self._probing = Probing(fleet)
        self._epoch = stored_epoch
        self._sequence = 0
        self._new_token = new_token
        self._model_address = model_address
        self._started = False
        self._stopped = False
        self._rejoin_s: float | None = None
        """When to say everything again, after a broken connection."""
        self._workers: dict[str, WorkerInfo] = {}
        """Workers as last published."""
        self._changed_s: float | None = None
        """First change that no planning has seen yet."""
        self._last_change_s = 0.0
        self._planning: int | None = None
        """Version that is being planned."""
        self._version = 0
        self._retry_s: float | None = None
        """When to plan again what a worker did not take."""
        self._standing: dict[str, _Standing] = {}
        """Query -> what is published."""
        self._pending: dict[str, _Pending] = {}
        """Query -> what is to be published."""
        self.last_plan: FleetPlan | None = None
        self.left_out: dict[str, str] = {}
        """Query -> why it could not be planned yet."""
        self.refused_messages = 0
        self._handlers: dict[type, Callable[[Any, float], list[ev.Action]]] = {
            ev.Started: self._on_started,
            ev.BrokerConnected: self._on_connected,
            ev.AgentStatus: self._on_status,
            ev.AgentHello: self._on_hello,
            ev.AgentProfile: self._on_profile,
            ev.AgentServed: self._on_served,
            ev.AgentTelemetry: self._on_telemetry,
            ev.AgentAck: self._on_ack,
            ev.QuerySeen: self._on_query,
            ev.DecisionSeen: self._on_decision,
            ev.CoordinatorSeen: self._on_coordinator,
            ev.MessageRefused: self._on_refused,
            ev.Planned: self._on_planned,
            ev.PlanningFailed: self._on_failed,
            ev.Tick: self._on_tick,
        }

    @property
    def epoch(self) -> int:
        """Our coordinator epoch; final once Started was handled."""
        return self._epoch

    def handle(self, event: ev.Event, now_s: float) -> list[ev.Action]:
        """Take one event and decide.

        Args:
            event: What happened.
            now_s: Monotonic seconds.

        Returns:
            Actions for the shell, in order.
        """
        return [] if self._stopped else self._handlers[type(event)](event, now_s)

    # --- coming and going -------------------------------------------------------------------------

    def _on_started(self, _event: ev.Started, now_s: float) -> list[ev.Action]:
        self._started = True
        self._epoch += 1
        self._mark(now_s)
        return [ev.SaveEpoch(epoch=self._epoch), *self._announce(), *self._declare_pipelines()]

    def _on_connected(self, _event: ev.BrokerConnected, now_s: float) -> list[ev.Action]:
        if self._started:
            self._rejoin_s = now_s + REJOIN_S
        return []

    def _rejoin(self, now_s: float) -> list[ev.Action]:
        """Say everything again that a broker without memory has to know."""
        if self._rejoin_s is None or now_s < self._rejoin_s:
            return []
        self._rejoin_s = None
        return [*self._announce(), *self._declare_pipelines(), *self._republish()]

    def _announce(self) -> list[ev.Action]:
        self._workers = self._fleet.workers()
        status = CoordinatorMessage(
            online=True, epoch=self._epoch, model_address=self._model_address, workers=self._workers
        )
        return [ev.Send(kind=Kind.COORDINATOR, message=status)]

    def _declare_pipelines(self) -> list[ev.Action]:
        return [
            ev.Send(
                kind=Kind.PIPELINE,
                item=name,
                message=PipelineMessage(
                    pipeline=name,
                    version=pipeline.version,
                    digest=pipeline.digest,
                    document=msgspec.to_builtins(pipeline),
                ),
            )
            for name, pipeline in sorted(self._fleet.pipelines.items())
        ]

    def _on_coordinator(self, event: ev.CoordinatorSeen, _now_s: float) -> list[ev.Action]:
        if event.status.epoch <= self._epoch:
            return []
        if self._started:
            self._stopped = True
            return [
                ev.Stop(reason=f"a coordinator with epoch {event.status.epoch} > {self._epoch} is in charge")
            ]
        # Our store is older than the fleet's memory: start above it.
        self._epoch = event.status.epoch
        return []

    # --- what agents say --------------------------------------------------------------------------

    def _mark(self, now_s: float) -> None:
        if self._changed_s is None:
            self._changed_s = now_s
        self._last_change_s = now_s

    def _on_status(self, event: ev.AgentStatus, now_s: float) -> list[ev.Action]:
        if not self._fleet.take_status(event.agent, event.status):
            return []
        return self._presence_changed(now_s)

    def _on_hello(self, event: ev.AgentHello, now_s: float) -> list[ev.Action]:
        if event.hello is not None and (problem := hello_problem(event.hello)) is not None:
            self.refused_messages += 1
            return [ev.Note(text=f"the hello of {event.agent!r} makes no sense: {problem}", serious=True)]
        if not self._fleet.take_hello(event.agent, event.hello):
            return []
        return self._presence_changed(now_s) + _bundle_notes(event.agent, event.hello, self._fleet)

    def _presence_changed(self, now_s: float) -> list[ev.Action]:
        self._mark(now_s)
        announced = self._started and self._rejoin_s is None
        return self._announce() if announced and self._fleet.workers() != self._workers else []

    def _on_profile(self, event: ev.AgentProfile, now_s: float) -> list[ev.Action]:
        problem = self._fleet.take_profile(event.agent, event.profile, now_s)
        if problem is not None:
            self.refused_messages += 1
            return [ev.Note(text=problem, serious=True)]
        self._probing.measured(event.profile.profile)
        self._mark(now_s)
        return []

    def _on_served(self, event: ev.AgentServed, now_s: float) -> list[ev.Action]:
        moved = self._fleet.take_served(event.agent, event.served, now_s)
        if isinstance(moved, str):
            self.refused_messages += 1
            return [ev.Note(text=moved, serious=True)]
        if moved:
            self._mark(now_s)
        return []

    def _on_telemetry(self, event: ev.AgentTelemetry, _now_s: float) -> list[ev.Action]:
        self._fleet.agent(event.agent).telemetry = event.telemetry
        if not self._started:
            return []
        # An agent that was away when its query was withdrawn cannot tell: nothing retained says nothing.
        gone = sorted(set(event.telemetry.epochs) - set(self._fleet.queries) - set(self._standing))
        return [_clear(Kind.ASSIGNMENT, event.agent, query) for query in gone if is_name(query)]

    def _on_refused(self, event: ev.MessageRefused, _now_s: float) -> list[ev.Action]:
        self.refused_messages += 1
        return [ev.Note(text=f"refused a message on {event.topic}: {event.problem}", serious=True)]

    def _on_query(self, event: ev.QuerySeen, now_s: float) -> list[ev.Action]:
        known = self._fleet.queries.get(event.name)
        if event.query is None:
            if known is not None and known.origin == event.agent:
                del self._fleet.queries[event.name]
                self._mark(now_s)
            return []
        try:
            check_query(event.query)
        except ConfigError as error:
            self.refused_messages += 1
            return [ev.Note(text=f"query {event.name!r} of {event.agent!r} refused: {error}", serious=True)]
        if event.query.name != event.name or event.query.origin != event.agent:
            self.refused_messages += 1
            return [ev.Note(text=f"query {event.name!r} of {event.agent!r} names another", serious=True)]
        if known is not None and known.origin != event.agent:
            self.refused_messages += 1
            text = f"query {event.name!r} of {event.agent!r} refused: {known.origin!r} has one of that name"
            return [ev.Note(text=text, serious=True)]
        if known != event.query:
            self._fleet.queries[event.name] = event.query
            self._mark(now_s)
        return []

    def _on_decision(self, event: ev.DecisionSeen, _now_s: float) -> list[ev.Action]:
        """Remember what is retained, so that it can be cleared when its query is gone."""
        if not self._started:
            # What an earlier coordinator decided orders us even if its last status did not survive it.
            self._epoch = max(self._epoch, event.epoch.coordinator)
        if event.kind is Kind.ASSIGNMENT:
            self._standing.setdefault(event.query, _Standing(agent=event.agent))
            self._standing[event.query].agent = event.agent
        else:
            # A share alone does not name its query's origin; the assignment does.
            standing = self._standing.setdefault(event.query, _Standing(agent=""))
            standing.workers.add(event.agent)
        return []

    # --- planning ---------------------------------------------------------------------------------

    def _on_tick(self, _event: ev.Tick, now_s: float) -> list[ev.Action]:
        return [
            *self._rejoin(now_s),
            *self._give_up_on_workers(now_s),
            *self._plan_if_settled(now_s),
            *self._probing.due(now_s, self._epoch),
        ]

    def _plan_if_settled(self, now_s: float) -> list[ev.Action]:
        if not self._started or self._planning is not None or self._changed_s is None:
            return []
        quiet = now_s - self._last_change_s >= SETTLE_S or now_s - self._changed_s >= PATIENCE_S
        if not quiet:
            return []
        self._changed_s = None
        self._version += 1
        self._planning = self._version
        problem, self.left_out = self._fleet.problem()
        return [ev.StartPlanning(version=self._version, problem=problem, gaps=self._fleet.gaps)]

    def _on_failed(self, event: ev.PlanningFailed, _now_s: float) -> list[ev.Action]:
        self._planning = None
        return [ev.Note(text=f"planning failed, the fleet goes on as it is: {event.problem}", serious=True)]

    def _on_planned(self, event: ev.Planned, now_s: float) -> list[ev.Action]:
        self._planning = None
        violations = check_plan(event.problem, event.plan.plans, event.plan.split)
        if violations:
            text = "; ".join(violation.text for violation in violations[:3])
            return [ev.Note(text=f"a plan was not published, it breaks its own rules: {text}", serious=True)]
        self.last_plan = event.plan
        self._probing.wish(event.wishes)
        decisions = decisions_of(event.problem, event.plan)
        actions = self._clear_gone(set(decisions) | set(self.left_out))
        for query, decision in sorted(decisions.items()):
            actions.extend(self._publish(query, decision, now_s))
        return actions

    # --- publishing -------------------------------------------------------------------------------

    def _publish(self, query: str, decision: Decision, now_s: float) -> list[ev.Action]:
        pending = self._pending.get(query)
        standing = self._standing.get(query)
        workers = self._fleet.workers()
        latest = pending.decision if pending is not None else standing.decision if standing else None
        if latest is not None and latest.same_as(decision) and latest.reaches(workers):
            return []
        if not workers.keys() >= decision.shares.keys():
            return []  # a worker left since this was planned: the next plan, without it, is on its way
        self._sequence += 1
        epoch = Epoch(coordinator=self._epoch, sequence=self._sequence)
        stamped = decision.stamped(epoch, token=self._new_token(), workers=workers)
        waiting = set(stamped.shares)
        self._pending[query] = _Pending(decision=stamped, since_s=now_s, waiting=waiting)
        standing = self._standing.setdefault(query, _Standing(agent=stamped.agent))
        moved_from = standing.agent if standing.agent != stamped.agent else ""
        standing.agent = stamped.agent
        standing.workers |= waiting
        return [
            *([_clear(Kind.ASSIGNMENT, moved_from, query)] if moved_from else []),
            *_send_shares(query, stamped),
            *self._release(query),
        ]

    def _republish(self) -> list[ev.Action]:
        actions: list[ev.Action] = []
        for query, standing in sorted(self._standing.items()):
            pending = self._pending.get(query)
            newest = standing.decision if pending is None else pending.decision
            if newest is not None:
                actions.extend(_send_shares(query, newest))
            if standing.decision is not None:
                actions.append(_send_assignment(query, standing.decision))
        return actions

    def _on_ack(self, event: ev.AgentAck, now_s: float) -> list[ev.Action]:
        ack = event.ack
        pending = self._pending.get(ack.query)
        notes: list[ev.Action] = []
        if not ack.taken:
            what = "share" if ack.share else "assignment"
            text = f"{event.agent!r} refused the {what} of query {ack.query!r}: {ack.reason}"
            notes.append(ev.Note(text=text, serious=True))
        if pending is None or not ack.share or ack.epoch != pending.decision.assignment.epoch:
            return notes
        if event.agent not in pending.waiting:
            return notes  # it was not asked
        if not ack.taken:
            self._retry_s = now_s + RETRY_S
            return notes + self._without_plan(ack.query, f"worker {event.agent!r} refused: {ack.reason}")
        pending.waiting.discard(event.agent)
        return notes + self._release(ack.query)

    def _release(self, query: str) -> list[ev.Action]:
        """Publish a query's assignment if every worker it needs took its share."""
        pending = self._pending.get(query)
        if pending is None or pending.waiting:
            return []
        del self._pending[query]
        decision = pending.decision
        standing = self._standing[query]
        standing.decision = decision
        unused = sorted(standing.workers - set(decision.shares))
        standing.workers = set(decision.shares)
        return [
            _send_assignment(query, decision),
            *(_clear(Kind.SHARE, site, query) for site in unused),
        ]

    def _without_plan(self, query: str, reason: str) -> list[ev.Action]:
        pending = self._pending[query]
        nothing = replace(pending.decision.assignment, plan=None, split=(), workers={}, refusal=reason)
        pending.decision = replace(pending.decision, assignment=nothing, shares={})
        pending.waiting = set()
        return self._release(query)

    def _give_up_on_workers(self, now_s: float) -> list[ev.Action]:
        if self._retry_s is not None and now_s >= self._retry_s:
            self._retry_s = None
            self._mark(now_s)
        late = [q for q, p in self._pending.items() if now_s - p.since_s >= SHARE_TIMEOUT_S]
        actions: list[ev.Action] = []
        for query in late:
            names = ", ".join(sorted(self._pending[query].waiting))
            actions.append(ev.Note(text=f"query {query!r}: no answer from {names}", serious=True))
            self._retry_s = now_s + RETRY_S
            actions.extend(self._without_plan(query, f"worker {names} did not take its share in time"))
        return actions

    def _clear_gone(self, known: set[str]) -> list[ev.Action]:
        actions: list[ev.Action] = []
        for query in sorted(set(self._standing) - known):
            standing = self._standing.pop(query)
            self._pending.pop(query, None)
            if standing.agent:
                actions.append(_clear(Kind.ASSIGNMENT, standing.agent, query))
            actions.extend(_clear(Kind.SHARE, site, query) for site in sorted(standing.workers))
        return actions


def _clear(kind: Kind, agent: str, query: str) -> ev.Action:
    return ev.Send(kind=kind, agent=agent, item=query, message=None)


def _send_shares(query: str, decision: Decision) -> list[ev.Action]:
    return [
        ev.Send(kind=Kind.SHARE, agent=site, item=query, message=share)
        for site, share in sorted(decision.shares.items())
    ]


def _send_assignment(query: str, decision: Decision) -> ev.Action:
    message = AssignmentMessage(assignment=decision.assignment)
    return ev.Send(kind=Kind.ASSIGNMENT, agent=decision.agent, item=query, message=message)


def _bundle_notes(agent: str, hello: HelloMessage | None, fleet: Fleet) -> list[ev.Action]:
    if hello is None:
        return []
    return [
        ev.Note(
            text=f"agent {agent!r} has another version of {name!r} "
            f"({bundle.digest[:12]}, planned is {fleet.pipelines[name].digest[:12]})",
            serious=True,
        )
        for name, bundle in sorted(hello.bundles.items())
        if name in fleet.pipelines and bundle.digest != fleet.pipelines[name].digest
    ]
