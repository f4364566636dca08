"""Fleet state: what is known of every agent and query, and the planning problem that it makes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from compass_coordinator.profiler.latency.completion import (
    Gap,
    Lack,
    lack_of,
    missing_of,
    prior_of,
    reference_of,
    variants_of,
)
from compass_coordinator.profiler.latency.feedback import Feedback
from compass_coordinator.sanity import profile_problem, served_problem
from compass_shared.device_profile import DeviceProfile
from compass_shared.messages import (
    HelloMessage,
    LinkReport,
    ProfileMessage,
    ServedMessage,
    StatusMessage,
    TelemetryMessage,
    WorkerInfo,
)
from compass_shared.pipeline import Pipeline
from compass_shared.problem import Problem
from compass_shared.profile import AccuracyTable, SiteProfile
from compass_shared.query import Query
from compass_shared.site import Link, Site, Tier


@dataclass(slots=True, kw_only=True)
class AgentState:
    """What one agent said of itself."""

    status: StatusMessage | None = None
    hello: HelloMessage | None = None
    profiles: dict[str, SiteProfile] = field(default_factory=dict)
    """Pipeline -> latest measurement."""
    links: dict[str, LinkReport] = field(default_factory=dict)
    """Worker -> latest measurement."""
    telemetry: TelemetryMessage | None = None
    hopeless: dict[str, frozenset[str]] = field(default_factory=dict)
    """Pipeline -> variants that it could not measure when it was asked to."""

    @property
    def online(self) -> bool:
        """Whether it is there; a status of an older session does not count."""
        if self.status is None or self.hello is None:
            return False
        return self.status.online or self.status.session < self.hello.session


class Fleet:
    """All agents and queries.

    Args:
        pipelines: Pipelines that the coordinator plans, by name.
        accuracy: Accuracy table of each.
        references: Pipeline -> profile to predict from what a site did not measure; without one it is that of
            a site that measured everything.
        devices: Device profiles that agents may name, for what is known of a device before it is measured.
    """

    def __init__(
        self,
        *,
        pipelines: Mapping[str, Pipeline],
        accuracy: Mapping[str, AccuracyTable],
        references: Mapping[str, SiteProfile] | None = None,
        devices: Mapping[str, DeviceProfile] | None = None,
    ) -> None:
        self.pipelines = dict(pipelines)
        self.accuracy = dict(accuracy)
        self.feedback = Feedback()
        self._references = dict(references or {})
        self._devices = dict(devices or {})
        self.agents: dict[str, AgentState] = {}
        self.queries: dict[str, Query] = {}
        self.gaps: dict[tuple[str, str], Gap] = {}
        """(Site, pipeline) -> what fills up a profile of the last problem that has not every variant."""
        self.lacks: dict[tuple[str, str], Lack] = {}
        """(Site, pipeline) -> why the last problem has no profile of it."""

    def agent(self, name: str) -> AgentState:
        """State of an agent, made on first sight."""
        return self.agents.setdefault(name, AgentState())

    def take_status(self, agent: str, status: StatusMessage) -> bool:
        """Take a status unless a later session already spoke; returns whether anything changed."""
        state = self.agent(agent)
        if state.status is not None and status.session < state.status.session:
            return False
        before = state.online
        state.status = status
        return state.online != before

    def take_hello(self, agent: str, hello: HelloMessage | None) -> bool:
        """Take a hello whose numbers were checked; returns whether anything changed."""
        state = self.agent(agent)
        if hello == state.hello or (hello and state.hello and hello.session < state.hello.session):
            return False
        if hello is None or state.hello is None or hello.session > state.hello.session:
            state.hopeless.clear()
        state.hello = hello
        return True

    def take_profile(self, agent: str, message: ProfileMessage, now_s: float) -> str | None:
        """Take a measurement.

        Returns:
            None, or why it was refused.
        """
        profile = message.profile
        if (problem := profile_problem(message)) is not None:
            return f"the profile of agent {agent!r} makes no sense: {problem}"
        if profile.site != agent:
            return f"agent {agent!r} sent a profile of {profile.site!r}"
        if (problem := self._not_of_this(agent, profile.pipeline, profile.digest)) is not None:
            return problem
        state = self.agent(agent)
        if state.hello is not None and message.session < state.hello.session:
            return f"a profile of an earlier session of agent {agent!r} came late"
        before = state.profiles.get(profile.pipeline)
        self.feedback.take_profile(message.session, before, profile, now_s)
        state.profiles[profile.pipeline] = profile
        # All of them are in every report: a link that is missing could not be measured any more.
        state.links = {link.target: link for link in message.links}
        return None

    def take_served(self, agent: str, message: ServedMessage, now_s: float) -> bool | str:
        """Take what serving took.

        Returns:
            Whether plans should be made again, or why it was refused.
        """
        if (problem := served_problem(message)) is not None:
            return f"what agent {agent!r} says of serving makes no sense: {problem}"
        if (problem := self._not_of_this(agent, message.pipeline, message.digest)) is not None:
            return problem
        known = variants_of(self.pipelines[message.pipeline])
        if strange := sorted(set(message.operators) - set(known)):
            return f"agent {agent!r} served {strange[0][:100]!r}, which {message.pipeline!r} does not have"
        state = self.agents.get(agent)
        if state is None or not state.online:
            return False  # it is said again
        return self.feedback.take_served(agent, message, state.profiles.get(message.pipeline), now_s)

    def _not_of_this(self, agent: str, name: str, digest: str) -> str | None:
        pipeline = self.pipelines.get(name)
        if pipeline is None:
            return f"agent {agent!r} measured pipeline {name!r}, which is not planned here"
        if pipeline.digest != digest:
            return (
                f"agent {agent!r} measured {name!r} {digest[:12]}, "
                f"planned is {pipeline.digest[:12]}: install the same bundle on both"
            )
        return None

    def workers(self) -> dict[str, WorkerInfo]:
        """Online workers by site name."""
        return {
            name: WorkerInfo(address=state.hello.data_address, tier=state.hello.tier)
            for name, state in sorted(self.agents.items())
            if state.online and state.hello is not None and state.hello.data_address is not None
        }

    def problem(self) -> tuple[Problem, dict[str, str]]:
        """The planning problem as things stand, from what was measured and what serving says since.

        Profiles hold what was measured, which is nothing yet where a device is foreseen; ``gaps`` says what
        fills them up.

        Returns:
            The problem, and for each query that is left out of it, why.
        """
        online = {name: state for name, state in sorted(self.agents.items()) if state.online}
        profiles = {
            (name, pipeline): self.feedback.applied(profile)
            for name, state in online.items()
            for pipeline, profile in state.profiles.items()
        }
        profiles |= self._foreseen(online)
        self._look_for_gaps(profiles)
        profiles = {key: profile for key, profile in profiles.items() if key not in self.lacks}
        left_out = {
            query.name: reason
            for query in self.queries.values()
            if (reason := self._not_plannable(query, online, profiles)) is not None
        }
        queries = tuple(q for _, q in sorted(self.queries.items()) if q.name not in left_out)
        problem = Problem(
            pipelines=self.pipelines,
            sites={
                name: _site(name, state.hello, self._device(name))
                for name, state in online.items()
                if state.hello
            },
            links=self._links(online),
            profiles=profiles,
            accuracy=self.accuracy,
            queries=queries,
            reachable=self._reachable(queries),
        )
        return problem, left_out

    def _not_plannable(
        self,
        query: Query,
        online: Mapping[str, AgentState],
        profiles: Mapping[tuple[str, str], SiteProfile],
    ) -> str | None:
        if query.pipeline not in self.pipelines:
            known = ", ".join(sorted(self.pipelines)) or "none"
            return f"pipeline {query.pipeline!r} is not planned here; planned: {known}"
        if query.pipeline not in self.accuracy:
            return f"pipeline {query.pipeline!r} has no accuracy profile"
        if query.origin not in online:
            return f"its origin {query.origin!r} is offline"
        if (lack := self.lacks.get((query.origin, query.pipeline))) is not None:
            return f"its origin {lack.reason}"
        if (query.origin, query.pipeline) not in profiles:
            return f"its origin {query.origin!r} has not measured {query.pipeline!r} yet"
        return None

    def missing(self, site: str, pipeline: str) -> tuple[str, ...]:
        """Variants that an agent did not measure."""
        return missing_of(self.pipelines[pipeline], self.agents[site].profiles[pipeline])

    def _look_for_gaps(self, profiles: Mapping[tuple[str, str], SiteProfile]) -> None:
        """Find out which profiles have to be filled up, and which cannot be."""
        references = {name: self._reference(name) for name in self.pipelines}
        self.gaps = {
            (site, pipeline): self._gap(site, references[pipeline], self.agents[site].hopeless.get(pipeline))
            for (site, pipeline), profile in profiles.items()
            if missing_of(self.pipelines[pipeline], profile)
        }
        found = {key: lack_of(self.pipelines[key[1]], profiles[key], gap) for key, gap in self.gaps.items()}
        self.lacks = {key: lack for key, lack in found.items() if lack is not None}

    def _foreseen(self, online: Mapping[str, AgentState]) -> dict[tuple[str, str], SiteProfile]:
        """Profiles of sites that measured nothing yet, where a device profile says how fast they are.

        All of such a profile is predicted, from a reference that the coordinator was given.
        """
        return {
            (name, pipeline): replace(
                reference,
                site=name,
                operators={},
                slowdowns={},
                overhead_s=0.0,
                emulated=None,
                provenance=None,
            )
            for name, state in online.items()
            for pipeline, reference in self._references.items()
            if pipeline not in state.profiles
            and self._device(name) is not None
            and state.hello is not None
            and (bundle := state.hello.bundles.get(pipeline)) is not None
            and bundle.digest == self.pipelines[pipeline].digest
        }

    def _reference(self, name: str) -> SiteProfile | None:
        if name in self._references:
            return self._references[name]
        profiles = [state.profiles[name] for state in self.agents.values() if name in state.profiles]
        return reference_of(self.pipelines[name], profiles)

    def _gap(self, site: str, reference: SiteProfile | None, hopeless: frozenset[str] | None) -> Gap:
        there = self._device(reference.site) if reference is not None else None
        return Gap(
            reference=reference,
            prior=prior_of(self._device(site), there),
            hopeless=hopeless or frozenset(),
        )

    def _device(self, site: str) -> DeviceProfile | None:
        """The device profile that a site's agent names, if there is one."""
        state = self.agents.get(site)
        hello = state.hello if state is not None else None
        return self._devices.get(hello.device_profile or "") if hello is not None else None

    def _reachable(self, queries: Sequence[Query]) -> dict[str, tuple[str, ...]]:
        """What queries of workers may use besides their origin: where the worker itself found a way to.

        The link that a device measured leads to a worker; back along it there is nobody to call.
        """
        workers = self.workers()
        return {
            query.name: tuple(self.agents[query.origin].links) for query in queries if query.origin in workers
        }

    def _links(self, online: Mapping[str, AgentState]) -> dict[tuple[str, str], Link]:
        links: dict[tuple[str, str], Link] = {}
        for name, state in online.items():
            for report in state.links.values():
                if report.target in online:
                    links[name, report.target] = _link(name, report.target, report, report.up_bps)
                    links[report.target, name] = _link(report.target, name, report, report.down_bps)
        return links


def _site(name: str, hello: HelloMessage, device: DeviceProfile | None) -> Site:
    memories = [float(hello.hardware.memory_bytes), *([device.memory_bytes.value] if device else [])]
    return Site(
        name=name,
        tier=hello.tier,
        cores=hello.cores,
        utilisation_cap=hello.utilisation_cap,
        prices=hello.prices,
        power_w=hello.power_w if hello.tier is Tier.DEVICE else 0.0,
        # An emulated device has what its profile says of the machine's; an agent that could not tell says 0.
        memory_bytes=min((known for known in memories if known > 0), default=math.inf),
    )


def _link(source: str, target: str, report: LinkReport, bandwidth_bps: float) -> Link:
    return Link(
        source=source,
        target=target,
        rtt_s=report.rtt_s,
        rtt_var_s2=report.rtt_var_s2,
        bandwidth_bps=bandwidth_bps,
        bandwidth_rel_sd=report.rel_sd,
    )
