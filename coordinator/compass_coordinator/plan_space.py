"""Building a ``PlanSpace``: pricing every config at every given placement from the profiles."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from compass_coordinator.estimator import Floats, Indices, PlanSpace
from compass_shared.errors import PlanningError
from compass_shared.evaluate import pipeline_of
from compass_shared.pipeline import REQUEST, Pipeline, variant_key
from compass_shared.plan import Placement
from compass_shared.problem import Problem
from compass_shared.profile import Accuracy, SiteProfile
from compass_shared.query import Query
from compass_shared.segments import Segment, cut
from compass_shared.site import cores_resource, link_resource

MAX_PLANS = 4_000_000
"""Above this the arrays would take gigabytes; such spaces are searched, not enumerated."""


def build_space(problem: Problem, query: Query, placements: Iterable[Placement]) -> PlanSpace:
    """Price every config of a query's pipeline at each of some placements.

    Args:
        problem: Profiles, links, prices, accuracy.
        query: Gives pipeline, origin and usable sites; its rate and SLO do not matter here.
        placements: Usable site of every operator, as a placement policy yields them.

    Returns:
        ``placements x configs`` plans, placement-major.

    Raises:
        PlanningError: If the origin or pipeline is unknown, or there are more than ``MAX_PLANS`` plans.
    """
    pipeline = pipeline_of(problem, query)
    listed = tuple(placements)
    count = pipeline.config_count() * len(listed)
    if count > MAX_PLANS:
        raise PlanningError(
            f"pipeline {pipeline.name!r} has {count} plans from {query.origin!r}, too many to enumerate "
            f"({MAX_PLANS}): give it fewer knob values or reachable sites"
        )
    return _Pricer(problem, pipeline, query.origin, problem.sites_for(query)).price(listed)


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Encoded size of a value: mean and variance, each ``(configs,)``."""

    mean: Floats
    var: Floats


@dataclass(frozen=True, slots=True)
class _Step:
    """One segment of a placement under all configs; arrays are ``(configs,)``."""

    segment: Segment
    site: int
    compute_s: Floats
    compute_var_s2: Floats
    latency_s: Floats
    """Without waiting: compute and, for a remote segment, the call."""
    latency_var_s2: Floats
    up_bytes: Floats
    down_bytes: Floats


@dataclass(slots=True)
class _Pricer:
    problem: Problem
    pipeline: Pipeline
    origin: str
    sites: tuple[str, ...]
    _tables: dict[tuple[str, str], tuple[Floats, Floats, _Sizes]] = field(default_factory=dict)

    def price(self, placements: tuple[Placement, ...]) -> PlanSpace:
        """Fill the arrays of a space, one placement at a time."""
        cuts = [cut(self.pipeline, placement, self.origin) for placement in placements]
        ways = [tuple(_paths(segments)) for segments in cuts]
        configs = tuple(self.pipeline.configs())
        resources = self._resources()
        column = {name: index for index, name in enumerate(resources)}
        n_paths = max((len(found) for found in ways), default=1)
        shape = (len(placements), len(configs))
        cost_usd = np.zeros(shape)
        usage = np.zeros((len(resources), *shape))
        second_moment_s2 = np.zeros((len(self.sites), *shape))
        path_mean_s = np.full((n_paths, *shape), -np.inf)
        path_var_s2 = np.zeros((n_paths, *shape))
        path_visits = np.zeros((n_paths, len(self.sites), *shape))
        for at, (placement, segments, found) in enumerate(zip(placements, cuts, ways, strict=True)):
            steps = [self._step(placement, segment) for segment in segments]
            for step in steps:
                cost_usd[at] += self._cost_usd(step)
                second_moment_s2[step.site, at] += step.compute_var_s2 + step.compute_s**2
                for name, amount in self._usage(step):
                    usage[column[name], at] += amount
            for way, indices in enumerate(found):
                path_mean_s[way, at] = np.sum([steps[index].latency_s for index in indices], axis=0)
                path_var_s2[way, at] = np.sum([steps[index].latency_var_s2 for index in indices], axis=0)
                for index in indices:
                    path_visits[way, steps[index].site, at] += 1
        return PlanSpace(
            pipeline=self.pipeline,
            origin=self.origin,
            sites=self.sites,
            resources=resources,
            configs=configs,
            placements=placements,
            config_of=np.tile(np.arange(len(configs)), len(placements)),
            placement_of=np.repeat(np.arange(len(placements)), len(configs)),
            accuracy=np.tile(self._accuracy(self._table_configs()), len(placements)),
            metrics={
                name: np.tile(self._accuracy(known), len(placements))
                for name, known in self._others().items()
            },
            serial_s=self._serial_s(placements).reshape(-1),
            cost_usd=cost_usd.reshape(-1),
            usage=np.ascontiguousarray(usage.reshape(len(resources), -1).T),
            busy_s=usage[: len(self.sites)].reshape(len(self.sites), -1),
            second_moment_s2=second_moment_s2.reshape(len(self.sites), -1),
            path_mean_s=path_mean_s.reshape(n_paths, -1),
            path_var_s2=path_var_s2.reshape(n_paths, -1),
            path_visits=path_visits.reshape(n_paths, len(self.sites), -1),
        )

    def _resources(self) -> tuple[str, ...]:
        """Cores of every site, in their order, then the links of the remote ones."""
        remote = [site for site in self.sites if site != self.origin]
        links = [
            link_resource(*ends) for site in remote for ends in ((self.origin, site), (site, self.origin))
        ]
        return (*(cores_resource(site) for site in self.sites), *links)

    def _step(self, placement: Placement, segment: Segment) -> _Step:
        tables = [self._table(name, segment.site) for name in segment.operators]
        compute_s = _total([mean for mean, _, _ in tables])
        compute_var_s2 = _total([var for _, var, _ in tables])
        if segment.site == self.origin:
            nothing = np.zeros_like(compute_s)
            call_s, call_var_s2, up, down = nothing, nothing, nothing, nothing
        else:
            needs = [self._size(name, placement) for name in segment.needs]
            exports = [self._size(name, placement) for name in segment.exports]
            call_s, call_var_s2 = self._call(segment.site, needs, exports, np.zeros_like(compute_s))
            up = _total([size.mean for size in needs], compute_s)
            down = _total([size.mean for size in exports], compute_s)
        return _Step(
            segment=segment,
            site=self.sites.index(segment.site),
            compute_s=compute_s,
            compute_var_s2=compute_var_s2,
            latency_s=compute_s + call_s,
            latency_var_s2=compute_var_s2 + call_var_s2,
            up_bytes=up,
            down_bytes=down,
        )

    def _call(
        self, site: str, needs: Sequence[_Sizes], exports: Sequence[_Sizes], zero: Floats
    ) -> tuple[Floats, Floats]:
        """Mean and variance of the round trip and both transfers of a remote segment."""
        there = self.problem.links[self.origin, site]
        back = self.problem.links[site, self.origin]
        mean_s, var_s2 = zero + there.rtt_s, zero + there.rtt_var_s2
        for link, sizes in ((there, needs), (back, exports)):
            transfer_s = _total([size.mean for size in sizes], zero) / link.bandwidth_bps
            spread = _total([size.var for size in sizes], zero) / link.bandwidth_bps**2
            mean_s = mean_s + transfer_s
            var_s2 = var_s2 + spread + (transfer_s * link.bandwidth_rel_sd) ** 2
        return mean_s, var_s2

    def _cost_usd(self, step: _Step) -> Floats:
        site = self.problem.sites[step.segment.site]
        origin = self.problem.sites[self.origin]
        egress = step.up_bytes * origin.prices.egress_byte_usd + step.down_bytes * site.prices.egress_byte_usd
        return np.asarray(step.compute_s * site.compute_s_usd + egress)

    def _usage(self, step: _Step) -> Iterator[tuple[str, Floats]]:
        site = step.segment.site
        yield cores_resource(site), step.compute_s
        if site != self.origin:
            yield link_resource(self.origin, site), step.up_bytes
            yield link_resource(site, self.origin), step.down_bytes

    def _serial_s(self, placements: Sequence[Placement]) -> Floats:
        """(placements, configs) longest mean time of an operator with state, over its site's cap."""
        worst = np.zeros((len(placements), self.pipeline.config_count()))
        for op in self.pipeline.operators:
            for at, placement in enumerate(placements if op.stateful else ()):
                cap = self.problem.sites[placement[op.name]].utilisation_cap
                mean_s = self._table(op.name, placement[op.name])[0]
                worst[at] = np.maximum(worst[at], mean_s / cap if cap > 0 else np.inf)
        return worst

    def _table_configs(self) -> Mapping[str, Accuracy]:
        table = self.problem.accuracy.get(self.pipeline.name)
        return table.configs if table is not None else {}

    def _others(self) -> Mapping[str, Mapping[str, Accuracy]]:
        table = self.problem.accuracy.get(self.pipeline.name)
        return table.others if table is not None else {}

    def _accuracy(self, known: Mapping[str, Accuracy]) -> Floats:
        keys = [self.pipeline.config_key(config) for config in self.pipeline.configs()]
        return np.array([known[key].mean if key in known else np.nan for key in keys])

    def _size(self, name: str, placement: Placement) -> _Sizes:
        if name != REQUEST:
            return self._table(name, placement[name])[2]
        zero = np.zeros(self.pipeline.config_count())
        profile = self._profile(self.origin)
        mean = profile.request_mean_bytes if profile is not None else np.nan
        return _Sizes(zero + mean, zero + (profile.request_var_bytes2 if profile is not None else np.nan))

    def _table(self, operator: str, site: str) -> tuple[Floats, Floats, _Sizes]:
        """Compute mean, compute variance and output size of one operator at one site, by config."""
        if (operator, site) not in self._tables:
            profile = self._profile(site)
            figures = np.full((4, len(list(self.pipeline.operator(operator).variants()))), np.nan)
            for at, knobs in enumerate(self.pipeline.operator(operator).variants()):
                found = profile.measured(variant_key(operator, knobs)) if profile is not None else None
                if found is not None:
                    figures[:, at] = (
                        found.mean_s,
                        found.var_s2,
                        found.output_mean_bytes,
                        found.output_var_bytes2,
                    )
            mean, var, size_mean, size_var = figures[:, self._variant_of(operator)]
            self._tables[operator, site] = mean, var, _Sizes(size_mean, size_var)
        return self._tables[operator, site]

    def _variant_of(self, operator: str) -> Indices:
        """Which of the operator's variants each config has."""
        counts = [len(list(op.variants())) for op in self.pipeline.operators]
        position = [op.name for op in self.pipeline.operators].index(operator)
        return np.unravel_index(np.arange(int(np.prod(counts))), counts)[position]

    def _profile(self, site: str) -> SiteProfile | None:
        return self.problem.profiles.get((site, self.pipeline.name))


def _total(arrays: Sequence[Floats], like: Floats | None = None) -> Floats:
    """Sum of arrays of one shape; zeros shaped ``like`` where there are none."""
    if not arrays:
        if like is None:
            raise PlanningError("a segment has no operators")
        return np.zeros_like(like)
    return np.asarray(np.sum(arrays, axis=0), dtype=np.float64)


def _paths(segments: Sequence[Segment]) -> Iterator[tuple[int, ...]]:
    """Every source-to-sink path of the segment graph, as indices in order."""
    partial: list[list[tuple[int, ...]]] = []
    has_follower = {before for segment in segments for before in segment.after}
    for segment in segments:
        grown = [(*path, segment.index) for before in segment.after for path in partial[before]]
        partial.append(grown or [(segment.index,)])
        if segment.index not in has_follower:
            yield from partial[segment.index]
