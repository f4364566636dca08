"""Plans of all queries at once: the project's own estimates, as products of features and coefficients.

Every query may run a stretch of operators, one after the other, at an edge server or in the cloud, and the
rest on its own device. All operators lie on one path, so a plan's mean and variance of latency, and its
cost, are linear in features that no query changes, with coefficients that no plan changes. That is what
``compass_coordinator.plan_space`` computes plan by plan; ``largest_difference`` compares the two.

Shapes: Q queries, C configs, V operator variants, P placements (the device alone, then stretches at the edge,
then the same stretches in the cloud). Shared sites are judged without load.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import numpy as np

from compass_coordinator.estimator import Floats, Indices, Waits, latency
from compass_coordinator.plan_space import build_space
from compass_shared.pipeline import REQUEST, Pipeline
from compass_shared.plan import Placement
from compass_shared.problem import Z95, Problem
from compass_shared.profile import OperatorProfile, SiteProfile
from compass_shared.query import Query
from compass_shared.segments import cut
from compass_shared.site import Link, Site
from profiling.truth import choices_of, variants_of

DEVICE = "device"
REMOTE = ("edge", "cloud")
CHUNK = 64
"""Queries at a time, so that arrays stay in the processor's cache."""
ROUNDING = 1e-9

_Features: TypeAlias = tuple[Floats, Floats, Floats]
"""Of mean and variance of latency and of cost, by stretch: (features, stretches, C) each."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Figures:
    """What is known of operator variants, each (V,); nan where nothing is."""

    mean_s: Floats
    var_s2: Floats
    mean_bytes: Floats
    """Encoded size of the output."""
    var_bytes2: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """A query with the only sites it reaches."""

    query: Query
    sites: Mapping[str, Site]
    """``device``, and ``edge`` or ``cloud`` or both."""
    links: Mapping[tuple[str, str], Link]
    slowdowns: Mapping[str, Mapping[str, float]]
    """Site -> speed class -> slowdown."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Priced:
    """For every query and config the cheapest placement that meets latency and cost."""

    cost: Floats
    """(Q, C) USD per 1,000 requests; inf where no placement serves or a variant is unknown."""
    placement: Indices
    """(Q, C)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Plans:
    """Prices the plans of a fixed list of queries whenever figures of operators change."""

    pipeline: Pipeline
    wishes: tuple[Wish, ...]
    request_bytes: tuple[float, float]
    """Mean and variance."""
    classes: tuple[str, ...] = field(init=False)
    stretches: tuple[frozenset[str], ...] = field(init=False)
    """Operators that run at the remote site; the first is none."""

    def __post_init__(self) -> None:
        names = [op.name for op in self.pipeline.operators]
        ends = itertools.combinations(range(len(names) + 1), 2)
        stretches = (frozenset(), *(frozenset(names[start:stop]) for start, stop in ends))
        object.__setattr__(self, "stretches", stretches)
        object.__setattr__(self, "classes", tuple(sorted({op.speed_class for op in self.pipeline.operators})))

    def priced(self, figures: Figures) -> Priced:
        """Cheapest placements under these figures."""
        features = self._features(figures)
        shape = (len(self.wishes), self.pipeline.config_count())
        cost, placement = np.full(shape, np.inf), np.zeros(shape, np.int64)
        for rows, cost_usd, p95_s in self._chunks(features):
            late = ~(p95_s <= self._latency_s[rows, np.newaxis, np.newaxis])
            cost_usd[late | ~(cost_usd <= self._budget[rows, np.newaxis, np.newaxis])] = np.inf
            placement[rows] = best = cost_usd.argmin(axis=1)
            cost[rows] = np.take_along_axis(cost_usd, best[:, np.newaxis], axis=1)[:, 0]
        return Priced(cost=cost, placement=placement)

    def unlimited(self, figures: Figures) -> Iterator[tuple[Indices, Floats, Floats]]:
        """Query indices (q,), cost (q, P, C) and p95 latency (q, P, C) of all plans, SLOs aside."""
        yield from self._chunks(self._features(figures))

    def serving(self, figures: Figures, config: Indices, placement: Indices) -> Floats:
        """Cost (Q,) of one plan a query under these figures; inf where it misses latency or cost."""
        features = self._features(figures)
        count, rows = len(self.stretches) - 1, np.arange(len(self.wishes))
        stretch = np.where(placement > 0, 1 + (placement - 1) % count, 0)
        site = np.maximum(placement - 1, 0) // count
        mean_s, var_s2, cost_usd = (
            np.einsum("qf,fq->q", coefficients[site, rows], found[:, stretch, config])
            for coefficients, found in zip(self._coefficients, features, strict=True)
        )
        p95_s, cost_usd = mean_s + Z95 * np.sqrt(var_s2), 1000 * cost_usd
        # A plan that just meets its limits may not miss them for the order in which numbers were added.
        serves = (p95_s <= self._latency_s * (1 + ROUNDING)) & (cost_usd <= self._budget * (1 + ROUNDING))
        return np.where(serves & (self._reached[site, rows] | (stretch == 0)), cost_usd, np.inf)

    def placement(self, index: int) -> Placement:
        """Sites of one placement."""
        count = len(self.stretches) - 1
        away = self.stretches[1 + (index - 1) % count] if index else frozenset()
        site = REMOTE[(index - 1) // count]
        return {op.name: site if op.name in away else DEVICE for op in self.pipeline.operators}

    def problem(self, at: int, figures: Figures) -> Problem:
        """One query as the project's own problem."""
        wish = self.wishes[at]
        operators = _operators(self.pipeline, figures)
        profiles = {
            (name, self.pipeline.name): SiteProfile(
                site=name,
                pipeline=self.pipeline.name,
                digest=self.pipeline.digest,
                operators=operators,
                request_mean_bytes=self.request_bytes[0],
                request_var_bytes2=self.request_bytes[1],
                slowdowns=wish.slowdowns[name],
            )
            for name in wish.sites
        }
        return Problem(
            pipelines={self.pipeline.name: self.pipeline},
            sites=wish.sites,
            links=wish.links,
            profiles=profiles,
            accuracy={},
            queries=(wish.query,),
        )

    def _chunks(self, features: _Features) -> Iterator[tuple[Indices, Floats, Floats]]:
        n_local = 1
        for start in range(0, len(self.wishes), CHUNK):
            rows = np.arange(start, min(start + CHUNK, len(self.wishes)))
            costs, latencies = [], []
            for site in range(len(REMOTE)):
                # The device alone is the same beside either remote site.
                taken = slice(0 if site == 0 else n_local, None)
                mean, var, cost = (
                    np.tensordot(coefficients[site, rows], found[:, taken], axes=1)
                    for coefficients, found in zip(self._coefficients, features, strict=True)
                )
                p95_s = mean + Z95 * np.sqrt(var)
                p95_s[~self._reached[site, rows], n_local if site == 0 else 0 :] = np.inf
                latencies.append(p95_s)
                costs.append(1000 * cost)
            yield rows, np.concatenate(costs, axis=1), np.concatenate(latencies, axis=1)

    def _features(self, figures: Figures) -> _Features:
        found = [self._stretch_features(figures, away) for away in self.stretches]
        mean, var, cost = (np.stack(each, axis=1) for each in zip(*found, strict=True))
        return mean, var, cost

    def _stretch_features(self, figures: Figures, away: frozenset[str]) -> tuple[Floats, Floats, Floats]:
        operators, choices = self.pipeline.operators, choices_of(self.pipeline)
        zero = np.zeros(len(choices))
        column = {op.name: choices[:, at] for at, op in enumerate(operators)}

        def by_class(values: Floats) -> list[Floats]:
            return [
                np.asarray(
                    sum(
                        (
                            values[column[op.name]]
                            for op in operators
                            if (op.name in away) is remote and op.speed_class == name
                        ),
                        zero,
                    )
                )
                for remote in (False, True)
                for name in self.classes
            ]

        def moved(names: Sequence[str]) -> tuple[Floats, Floats]:
            mean, var = zero, zero
            for name in names:
                known = name != REQUEST
                mean = mean + (figures.mean_bytes[column[name]] if known else self.request_bytes[0])
                var = var + (figures.var_bytes2[column[name]] if known else self.request_bytes[1])
            return mean, var

        needs, exports = self._crossing(away)
        (up, up_var), (down, down_var) = moved(needs), moved(exports)
        call = zero + (1.0 if away else 0.0)
        work = by_class(figures.mean_s)
        mean = np.stack([*work, call, up, down])
        var = np.stack([*by_class(figures.var_s2), call, up_var, down_var, up**2, down**2])
        return mean, var, np.stack([*work, up, down])

    def _crossing(self, away: frozenset[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What a call sends and returns."""
        placement = {op.name: REMOTE[0] if op.name in away else DEVICE for op in self.pipeline.operators}
        calls = [part for part in cut(self.pipeline, placement, DEVICE) if part.site != DEVICE]
        assert len(calls) <= 1, "operators that follow one another are one call"
        return (calls[0].needs, calls[0].exports) if calls else ((), ())

    @cached_property
    def _coefficients(self) -> tuple[Floats, Floats, Floats]:
        """Of mean, variance and cost, each (remote sites, Q, features)."""
        rows = [[self._row(wish, site) for wish in self.wishes] for site in REMOTE]
        mean, var, cost = (
            np.array([[found[part] for found in each] for each in rows], np.float64) for part in range(3)
        )
        return mean, var, cost

    def _row(self, wish: Wish, remote: str) -> tuple[list[float], list[float], list[float]]:
        device = wish.sites[DEVICE]
        slow = [wish.slowdowns[DEVICE].get(name, 1.0) for name in self.classes]
        own = [each * device.compute_s_usd for each in slow]
        if remote not in wish.sites:  # marked as not reached
            zero = [0.0] * len(slow)
            squares = [each**2 for each in slow]
            return [*slow, *zero, 0, 0, 0], [*squares, *zero, 0, 0, 0, 0, 0], [*own, *zero, 0, 0]
        site = wish.sites[remote]
        there, back = wish.links[DEVICE, remote], wish.links[remote, DEVICE]
        up, down = 1 / there.bandwidth_bps, 1 / back.bandwidth_bps
        far = [wish.slowdowns[remote].get(name, 1.0) for name in self.classes]
        spread = [(up * there.bandwidth_rel_sd) ** 2, (down * back.bandwidth_rel_sd) ** 2]
        squares = [each**2 for each in (*slow, *far)]
        rent = [each * site.compute_s_usd for each in far]
        return (
            [*slow, *far, there.rtt_s, up, down],
            [*squares, there.rtt_var_s2, up**2, down**2, *spread],
            [*own, *rent, device.prices.egress_byte_usd, site.prices.egress_byte_usd],
        )

    @cached_property
    def _reached(self) -> np.ndarray:
        return np.array([[site in wish.sites for wish in self.wishes] for site in REMOTE])

    @cached_property
    def _latency_s(self) -> Floats:
        return np.array([wish.query.slo.latency_p95_s for wish in self.wishes])

    @cached_property
    def _budget(self) -> Floats:
        return np.array([wish.query.slo.cost_usd_per_1000 for wish in self.wishes])


def largest_difference(plans: Plans, figures: Figures, count: int = 5) -> float:
    """Largest relative difference of cost or p95 to the project's own estimator, over some queries."""
    worst = 0.0
    for rows, cost_usd, p95_s in plans.unlimited(figures):
        for at, row in enumerate(rows[:count]):
            wish, problem = plans.wishes[row], plans.problem(int(row), figures)
            reached = np.flatnonzero(np.isfinite(p95_s[at]).all(axis=1))
            space = build_space(problem, wish.query, [plans.placement(int(index)) for index in reached])
            idle = np.zeros((len(space.sites), 1))
            expected_s = latency(space, Waits(mean_s=idle, var_s2=idle))[2]
            for ours, theirs in ((cost_usd, 1000 * space.cost_usd), (p95_s, expected_s)):
                apart = np.abs(ours[at, reached].ravel() / theirs - 1)
                worst = max(worst, float(apart.max()))
        break
    return worst


def _operators(pipeline: Pipeline, figures: Figures) -> Mapping[str, OperatorProfile]:
    return {
        key: OperatorProfile(
            variant=key,
            mean_s=float(figures.mean_s[at]),
            var_s2=float(figures.var_s2[at]),
            p95_s=float(figures.mean_s[at] + Z95 * np.sqrt(figures.var_s2[at])),
            count=1,
            output_mean_bytes=float(figures.mean_bytes[at]),
            output_var_bytes2=float(figures.var_bytes2[at]),
            speed_class=pipeline.operator(key.partition("[")[0]).speed_class,
        )
        for at, key in enumerate(variants_of(pipeline))
    }
