"""What tests of the coordinator's core share: a small fleet in messages, and a ledger of what is retained.

The fleet: ``phone`` and ``tablet`` are slow and free, ``edge`` and ``cloud`` are faster, dearer workers. The
ledger sees every event and action and asserts what must hold whatever happened: an assignment is published
only once its workers took the very shares it needs, and no share is cleared while an assignment uses it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from compass_coordinator import events as ev
from compass_coordinator.core import CoordinatorCore
from compass_coordinator.fleet import Fleet
from compass_coordinator.planning import FleetPlan, plan_fleet
from compass_coordinator.profiler.latency.completion import Completions
from compass_coordinator.profiler.latency.next_probe import next_probes
from compass_shared.messages import (
    AckMessage,
    AssignmentMessage,
    BundleInfo,
    HardwareInfo,
    HelloMessage,
    LinkReport,
    Message,
    ProfileMessage,
    ShareMessage,
    StatusMessage,
)
from compass_shared.pipeline import REQUEST, variant_key
from compass_shared.plan import Epoch
from compass_shared.problem import Problem
from compass_shared.profile import Accuracy, AccuracyTable, OperatorProfile, SiteProfile
from compass_shared.query import Query, Slo
from compass_shared.site import Prices, Tier
from compass_shared.topics import Kind
from support.agents import pipeline_of, python_operator

PIPELINE = pipeline_of(
    "chain", python_operator("shrink", REQUEST, knobs={"side": (320, 640)}), python_operator("read", "shrink")
)
ACCURACY = AccuracyTable(
    pipeline="chain",
    metric="exact",
    split="profiling",
    configs={
        PIPELINE.config_key(config): Accuracy(mean=mean, standard_error=0.01, count=100)
        for config, mean in zip(PIPELINE.configs(), (0.7, 0.9), strict=True)
    },
)
TIERS = {"phone": Tier.DEVICE, "tablet": Tier.DEVICE, "edge": Tier.EDGE, "cloud": Tier.CLOUD}
WORK_S = {Tier.DEVICE: 0.2, Tier.EDGE: 0.05, Tier.CLOUD: 0.02}
"""Time of each operator."""
PRICES = {
    Tier.DEVICE: Prices(),
    Tier.EDGE: Prices(core_s_usd=1e-5),
    Tier.CLOUD: Prices(core_s_usd=1e-4, egress_byte_usd=1e-10),
}
EASY = Slo(latency_p95_s=5.0, accuracy=0.5, cost_usd_per_1000=1.0)
"""A device can do it, and so it does: nothing is cheaper."""
FAST = Slo(latency_p95_s=0.3, accuracy=0.5, cost_usd_per_1000=1.0)
"""Only a worker can do it."""
EXACT = Slo(latency_p95_s=5.0, accuracy=0.99, cost_usd_per_1000=1.0)
"""No config can do it."""


def address_of(worker: str) -> str | None:
    """Where a worker's data plane is; None for a device."""
    return None if TIERS[worker] is Tier.DEVICE else f"http://{worker}.example:8470"


def hello_of(agent: str, *, session: int = 100, digest: str = PIPELINE.digest) -> HelloMessage:
    """An agent's hello."""
    tier = TIERS[agent]
    return HelloMessage(
        session=session,
        tier=tier,
        agent_version="0.1.0",
        runtimes={"python": "3.11"},
        bundles={"chain": BundleInfo(version="1", digest=digest, code_sha256="c" * 64)},
        hardware=HardwareInfo(machine="x86_64", cores=4, memory_bytes=4 << 30),
        cores=2.0,
        utilisation_cap=0.7,
        prices=PRICES[tier],
        power_w=3.0,
        data_address=address_of(agent),
    )


VARIANTS = tuple(variant_key(op.name, knobs) for op in PIPELINE.operators for knobs in op.variants())


def profile_of(
    agent: str, *, digest: str = PIPELINE.digest, variants: Sequence[str] = VARIANTS
) -> ProfileMessage:
    """An agent's measurements, perhaps of some variants only; devices know the way to every worker."""
    mean_s = WORK_S[TIERS[agent]]
    operators = {
        variant: OperatorProfile(
            variant=variant,
            mean_s=mean_s,
            var_s2=(0.1 * mean_s) ** 2,
            p95_s=1.2 * mean_s,
            count=20,
            output_mean_bytes=1000.0,
        )
        for variant in variants
    }
    workers = ("edge", "cloud") if TIERS[agent] is Tier.DEVICE else ()
    return ProfileMessage(
        session=100,
        profile=SiteProfile(
            site=agent, pipeline="chain", digest=digest, operators=operators, request_mean_bytes=10_000.0
        ),
        links=tuple(
            LinkReport(target=worker, rtt_s=0.01, rtt_var_s2=1e-6, up_bps=1e7, down_bps=2e7, count=5)
            for worker in workers
        ),
    )


def query_of(name: str, slo: Slo = EASY, *, origin: str = "phone", rate_hz: float = 1.0) -> Query:
    """A query at one of the devices."""
    return Query(name=name, origin=origin, pipeline="chain", rate_hz=rate_hz, slo=slo)


def status_of(agent: str, *, online: bool = True, session: int = 101) -> ev.AgentStatus:
    """An agent's status as it arrives."""
    return ev.AgentStatus(agent=agent, status=StatusMessage(online=online, session=session))


def declared(query: Query) -> ev.QuerySeen:
    """A query as it arrives."""
    return ev.QuerySeen(agent=query.origin, name=query.name, query=query)


def taken(site: str, share: ShareMessage, problem: str | None = None) -> ev.AgentAck:
    """A worker's answer to a share; a refusal if there is a problem."""
    ack = AckMessage(
        query=share.query, epoch=share.epoch, taken=problem is None, reason=problem or "", share=True
    )
    return ev.AgentAck(agent=site, ack=ack)


class Retained:
    """What the broker retains of the coordinator's messages, and what must hold of it."""

    def __init__(self) -> None:
        self.messages: dict[tuple[Kind, str, str], Message | None] = {}
        """(kind, agent, item) -> message; None for a decision of an earlier coordinator."""
        self._taken: set[tuple[str, str, Epoch]] = set()
        """(worker, query, epoch) of shares that were taken."""
        self._newest: dict[str, Epoch] = {}
        """Query -> epoch of its latest assignment."""
        self._stopped = False

    def assignments(self) -> dict[str, AssignmentMessage]:
        """Query -> what is retained for it."""
        return {
            query: message
            for (kind, _, query), message in self.messages.items()
            if kind is Kind.ASSIGNMENT and isinstance(message, AssignmentMessage)
        }

    def shares(self) -> dict[tuple[str, str], ShareMessage]:
        """(Worker, query) -> what is retained for it."""
        return {
            (site, query): message
            for (kind, site, query), message in self.messages.items()
            if kind is Kind.SHARE and isinstance(message, ShareMessage)
        }

    def left(self, event: ev.DecisionSeen) -> None:
        """Note what an earlier coordinator left."""
        self.messages[event.kind, event.agent, event.query] = None

    def check(self, event: ev.Event, actions: Sequence[ev.Action], *, epoch: int) -> None:
        """Assert what must hold after ``event`` led to ``actions`` of a coordinator with this epoch."""
        if isinstance(event, ev.AgentAck) and event.ack.share and event.ack.taken:
            self._taken.add((event.agent, event.ack.query, event.ack.epoch))
        for action in actions:
            assert not self._stopped, "a coordinator that stopped says no more"
            if isinstance(action, ev.Send):
                self._send(action, epoch)
            self._stopped = self._stopped or isinstance(action, ev.Stop)
        for query, message in self.assignments().items():
            for site in self._remote(query, message):
                assert (site, query) in self.shares(), "a share stays while its assignment does"

    def _send(self, send: ev.Send, epoch: int) -> None:
        if send.kind is Kind.PROBE:
            return  # it is not retained
        key = send.kind, send.agent or "", send.item or ""
        if send.message is None:
            self.messages.pop(key, None)
            return
        self.messages[key] = send.message
        if isinstance(send.message, AssignmentMessage):
            self._check_assignment(send.message, send.agent, epoch)

    def _check_assignment(self, message: AssignmentMessage, agent: str | None, epoch: int) -> None:
        assignment = message.assignment
        assert assignment.epoch.coordinator == epoch
        newest = self._newest.get(assignment.query)
        if assignment.epoch == newest:
            return  # said again; its share may have a successor that is not in force yet
        assert newest is None or assignment.epoch > newest, "epochs only grow"
        self._newest[assignment.query] = assignment.epoch
        assert (assignment.plan is None) == (assignment.refusal is not None)
        assert 0 < assignment.deadline_s < float("inf")
        for site in self._remote(assignment.query, message):
            share = self.shares()[site, assignment.query]
            assert (site, assignment.query, assignment.epoch) in self._taken, "first the share, then the plan"
            assert share.origin == agent
            assert assignment.workers[site].token == share.token
            assert assignment.workers[site].address == address_of(site)
        if assignment.fallback is not None:
            assert set(assignment.fallback.placement.values()) == {agent}

    def _remote(self, query: str, message: AssignmentMessage) -> set[str]:
        plan = message.assignment.plan
        (agent,) = {
            agent for (kind, agent, item) in self.messages if (kind, item) == (Kind.ASSIGNMENT, query)
        }
        return set() if plan is None else set(plan.placement.values()) - {agent}


class CheckedCoordinator:
    """A coordinator's core with a ledger beside it, a clock that the test sets, and a real planner.

    Args:
        stored_epoch: Last epoch that its store knows.
        solve: The planner.
    """

    def __init__(self, *, stored_epoch: int = 0, solve: Callable[[Problem], FleetPlan] = plan_fleet) -> None:
        self.fleet = Fleet(pipelines={"chain": PIPELINE}, accuracy={"chain": ACCURACY})
        tokens = itertools.count(1)
        self.core = CoordinatorCore(
            fleet=self.fleet, stored_epoch=stored_epoch, new_token=lambda: f"token-{next(tokens)}"
        )
        self.retained = Retained()
        self.now_s = 0.0
        self.asked: list[tuple[str, ShareMessage]] = []
        """Every share ever sent, with its worker."""
        self.planning: ev.StartPlanning | None = None
        """What the planner was asked and has not answered."""
        self._solve = solve
        self._completions = Completions()

    def __call__(self, event: ev.Event) -> list[ev.Action]:
        """Hand over an event and check what follows from it."""
        if isinstance(event, ev.DecisionSeen):
            self.retained.left(event)
        actions = self.core.handle(event, self.now_s)
        self.retained.check(event, actions, epoch=self.core.epoch)
        for action in actions:
            if isinstance(action, ev.StartPlanning):
                assert self.planning is None, "one planning at a time"
                self.planning = action
            if isinstance(action, ev.Send) and isinstance(action.message, ShareMessage):
                self.asked.append((action.agent or "", action.message))
        return actions

    def join(self, *agents: str, variants: Sequence[str] = VARIANTS) -> None:
        """Agents come online and send their measurements, perhaps of some variants only."""
        for agent in agents:
            self(ev.AgentHello(agent=agent, hello=hello_of(agent)))
            self(status_of(agent))
            self(ev.AgentProfile(agent=agent, profile=profile_of(agent, variants=variants)))

    def tick(self, after_s: float = 0.0) -> list[ev.Action]:
        """Let time pass."""
        self.now_s += after_s
        return self(ev.Tick())

    def planned(self) -> list[ev.Action]:
        """The planner answers."""
        asked, self.planning = self.planning, None
        assert asked is not None
        problem, predicted = self._completions.fill(asked.problem, asked.gaps)
        plan = self._solve(problem)
        wishes = next_probes(problem, plan, predicted)
        return self(ev.Planned(version=asked.version, problem=problem, plan=plan, wishes=wishes))

    def settle(self) -> list[ev.Action]:
        """Let the fleet be quiet until the planner was asked, and let it answer."""
        self.tick(10.0)
        return self.planned()

    def take_all(self) -> list[ev.Action]:
        """Workers take every share they were ever sent."""
        return [action for site, share in list(self.asked) for action in self(taken(site, share))]
