"""The planning problem that files describe: a fleet, pipelines, profiles and accuracy tables put together."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from compass_coordinator.measurements import KindWork, MeasurementsDocument, SiteWork, operators_of
from compass_shared.device_profile import find_device_profile
from compass_shared.errors import ConfigError, ProfileError
from compass_shared.evaluate import unknown_metric
from compass_shared.fleet_file import AgentTable, Fleet
from compass_shared.fleet_links import Links
from compass_shared.fleet_sites import DescribedSite
from compass_shared.pipeline import Pipeline, variant_key
from compass_shared.problem import Problem
from compass_shared.profile import AccuracyTable, OperatorProfile, SiteProfile
from compass_shared.profile_file import check_models
from compass_shared.site import Site, Tier


def problem_from(
    fleet: Fleet,
    pipelines: Mapping[str, Pipeline],
    measured: Sequence[MeasurementsDocument],
    accuracy: Mapping[str, AccuracyTable],
) -> Problem:
    """The planning problem of a fleet file with profiles.

    Args:
        fleet: Sites, links and queries; queries of other pipelines are left out.
        pipelines: Name -> pipeline.
        measured: Profiles; of several tables for the same, the last one counts.
        accuracy: Pipeline -> table.

    Returns:
        A problem in which the sites of one kind share one mapping of operators.

    Raises:
        ConfigError: If a device profile, a table of work or a link is missing, or a query sets a floor for a
            metric that is not known.
        ProfileError: If profiles are of another version of a pipeline or of variants that it does not have.
    """
    sites = {agent.name: site_of(agent) for agent in fleet.agents}
    sites.update({described.site.name: described.site for described in fleet.sites})
    links = {(link.source, link.target): link.link() for document in measured for link in document.links}
    links.update(fleet.links)
    _check_reach(fleet, links)
    profiles: dict[tuple[str, str], SiteProfile] = {}
    for pipeline in pipelines.values():
        profiles.update(_profiles(fleet, pipeline, measured))
    _check_profiled(fleet, profiles, measured)
    queries = tuple(query for query in fleet.queries if query.pipeline in pipelines)
    reachable = {query.name: fleet.reach[query.origin] for query in queries if query.origin in fleet.reach}
    # An agent on a device serves its own queries alone, even where the link to a worker is known both ways.
    devices = {agent.name for agent in fleet.agents if agent.tier is Tier.DEVICE}
    serving = tuple(name for name in sites if name not in devices)
    reachable.update({query.name: serving for query in queries if devices - {query.origin}} | reachable)
    problem = Problem(
        pipelines=dict(pipelines),
        sites=sites,
        links=links,
        profiles=profiles,
        accuracy=dict(accuracy),
        queries=queries,
        reachable=reachable,
    )
    for query in queries:
        if (unknown := unknown_metric(problem, query)) is not None:
            raise ConfigError(f"query {query.name!r}: {unknown}", field="slo.metrics")
    return problem


def site_of(agent: AgentTable) -> Site:
    """The site of an agent of a fleet file, as its device profile describes it."""
    profile = find_device_profile(agent.profile)
    return Site(
        name=agent.name,
        tier=agent.tier,
        cores=float(int(agent.cores or max(1.0, profile.cores.value))),
        utilisation_cap=agent.utilisation_cap or profile.utilisation_cap,
        prices=profile.prices(),
        power_w=profile.power_w.value if agent.tier is Tier.DEVICE else 0.0,
        memory_bytes=profile.memory_bytes.value,
    )


def _profiles(
    fleet: Fleet, pipeline: Pipeline, measured: Sequence[MeasurementsDocument]
) -> Iterator[tuple[tuple[str, str], SiteProfile]]:
    classes = _speed_classes(pipeline)
    kinds: dict[str, _Kind] = {}
    named = {described.kind for described in fleet.sites}
    for document in measured:
        for kind in document.works():
            if kind.kind in named and kind.pipeline == pipeline.name:
                _check_work(kind, f"kind {kind.kind!r}", pipeline, classes)
                kinds[kind.kind] = _Kind(kind, operators_of(kind.operators, classes))
    sites = {profile.site: profile for profile in site_profiles(pipeline, measured)}
    for described in fleet.sites:
        if described.kind in kinds and described.site.name not in sites:
            sites[described.site.name] = kinds[described.kind].at(described, pipeline)
    for name, profile in sites.items():
        yield (name, pipeline.name), profile


def site_profiles(pipeline: Pipeline, measured: Sequence[MeasurementsDocument]) -> Iterator[SiteProfile]:
    """Profiles of single sites, in the files' order; a site may be in several.

    Raises:
        ProfileError: If one was measured with another pipeline or other models.
    """
    classes = _speed_classes(pipeline)
    for document in measured:
        for site in document.sites:
            if site.pipeline == pipeline.name:
                _check_work(site, f"site {site.site!r}", pipeline, classes)
                yield _measured_at(site, pipeline, operators_of(site.operators, classes))


def _speed_classes(pipeline: Pipeline) -> dict[str, str]:
    """Variant -> speed class of its operator."""
    return {
        variant_key(op.name, knobs): op.speed_class for op in pipeline.operators for knobs in op.variants()
    }


@dataclass(slots=True)
class _Kind:
    """A table of work, and what its sites share: few tables of slowdowns serve thousands of sites."""

    work: KindWork
    operators: Mapping[str, OperatorProfile]
    _slowdowns: dict[int, dict[str, float]] = field(default_factory=dict)

    def at(self, described: DescribedSite, pipeline: Pipeline) -> SiteProfile:
        """The profile of one site of the kind."""
        return SiteProfile(
            site=described.site.name,
            pipeline=pipeline.name,
            digest=pipeline.digest,
            operators=self.operators,
            request_mean_bytes=self.work.request_mean_bytes,
            request_var_bytes2=self.work.request_var_bytes2,
            slowdowns=self._slowed(described.slowdowns),
            overhead_s=described.overhead_s,
            provenance=self.work.provenance,
        )

    def _slowed(self, given: Mapping[str, float]) -> dict[str, float]:
        """Slowdown of every class there is; sites of one ``[[sites]]`` table bring the same mapping."""
        if id(given) not in self._slowdowns:
            default = given.get("default", 1.0)
            classes = {found.speed_class for found in self.operators.values()}
            self._slowdowns[id(given)] = {name: given.get(name, default) for name in sorted(classes)}
        return self._slowdowns[id(given)]


def _measured_at(work: SiteWork, pipeline: Pipeline, operators: Mapping[str, OperatorProfile]) -> SiteProfile:
    return SiteProfile(
        site=work.site,
        pipeline=pipeline.name,
        digest=pipeline.digest,
        operators=operators,
        request_mean_bytes=work.request_mean_bytes,
        request_var_bytes2=work.request_var_bytes2,
        emulated=work.emulated,
        slowdowns=work.slowdowns,
        overhead_s=work.overhead_s,
        provenance=work.provenance,
    )


def _check_work(
    work: KindWork | SiteWork, owner: str, pipeline: Pipeline, variants: Mapping[str, str]
) -> None:
    if work.provenance is not None:
        check_models(work.provenance.models, pipeline, source=f"{owner}, pipeline {pipeline.name!r}")
    if work.digest and work.digest != pipeline.digest:
        raise ProfileError(
            f"{owner} measured {pipeline.name!r} {work.digest[:12]}, "
            f"the pipeline is {pipeline.digest[:12]}: measure again"
        )
    for key in work.operators:
        if key not in variants:
            close = difflib.get_close_matches(key, variants, n=1) or [next(iter(variants))]
            raise ProfileError(
                f"{owner}: pipeline {pipeline.name!r} has no variant {key!r}; did you mean {close[0]!r}?"
            )


def _check_profiled(
    fleet: Fleet,
    profiles: Mapping[tuple[str, str], SiteProfile],
    measured: Sequence[MeasurementsDocument],
) -> None:
    """A described site that could run nothing is a slip of the pen; an agent may just not be measured yet."""
    own = {described.site.name for described in fleet.sites}
    known = sorted({kind.kind for document in measured for kind in document.works()} - own)
    listed = ", ".join(known) or "none"
    profiled = {site for site, _ in profiles}
    for described in fleet.sites:
        name, kind = described.site.name, described.kind
        if kind is not None and kind not in known:
            raise ConfigError(
                f"site {name!r}: the profiles have no kind {kind!r}; they have {listed}", field="kind"
            )
        if kind is None and name not in profiled:
            raise ConfigError(
                f"site {name!r} is not in the profiles: give it a kind of theirs ({listed})", field="kind"
            )


def _check_reach(fleet: Fleet, links: Links) -> None:
    for origin, reach in fleet.reach.items():
        for target in reach:
            if (origin, target) not in links or (target, origin) not in links:
                raise ConfigError(
                    f"{origin!r} reaches {target!r}, but neither [[links]] nor the profiles know the way; "
                    "add a [[links]] table",
                    field="links",
                )
