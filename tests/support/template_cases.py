"""Small random pipelines over kinds of sites, and queries over them, for tests of plan templates.

Figures are small multiples of powers of two, so that every sum and product in an estimate without waiting is
exact, and so that ties are common. ``exact=False`` draws any floats, and loads that queries wait at.

    case = random_case(7, CaseShape(variants=(2, 2), kinds=(0, 1, 1)))
    templates = build_templates(case.pipeline, case.accuracy, case.kinds)
    case.estimate(templates.plan(0, case.sites))
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from compass_coordinator.planner.templates import Column, Kind, Quantity
from compass_shared.evaluate import evaluate_plan, paths
from compass_shared.pipeline import REQUEST, Operator, Pipeline, variant_key
from compass_shared.plan import Estimate, Plan
from compass_shared.problem import Problem, SiteLoad
from compass_shared.profile import Accuracy, AccuracyTable, OperatorProfile, SiteProfile
from compass_shared.query import Query, Slo
from compass_shared.queueing import wait_at
from compass_shared.segments import cut
from compass_shared.site import Link, Prices, Site, Tier

PIPELINE = "sort-mail"
CLASSES = ("python", "onnx-fp32")


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseShape:
    """How large a case is, and of what sort."""

    variants: tuple[int, ...] = (2, 2, 2)
    """Variants of each operator."""
    chain: bool = False
    """Whether each operator reads the one before it only; otherwise the DAG is random."""
    kinds: tuple[int, ...] = (0, 1, 2)
    """Kind of each role: equal numbers, equal kinds."""
    measured_share: float = 1.0
    """Of variants at each kind, and of configs in the accuracy table."""
    exact: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A pipeline over roles, and a problem with one site for each."""

    pipeline: Pipeline
    kinds: tuple[Kind, ...]
    sites: tuple[str, ...]
    """Of each role; the origin first."""
    problem: Problem

    @property
    def accuracy(self) -> AccuracyTable:
        """Of the pipeline's configs."""
        return self.problem.accuracy[self.pipeline.name]

    def mappings(self) -> Iterator[tuple[str, ...]]:
        """Every way to give each role a site of its kind."""
        keys = {site: kind.key for site, kind in zip(self.sites, self.kinds, strict=True)}
        for remote in itertools.permutations(self.sites[1:]):
            mapping = (self.sites[0], *remote)
            if all(keys[site] == kind.key for site, kind in zip(mapping, self.kinds, strict=True)):
                yield mapping

    def plans(self, max_remote: int | None = None) -> Iterator[Plan]:
        """Every plan that can be chosen, one by one."""
        kinds = dict(zip(self.sites, self.kinds, strict=True))
        most = len(self.sites) if max_remote is None else max_remote
        for config in self.pipeline.configs():
            if self.pipeline.config_key(config) not in self.accuracy.configs:
                continue
            for sites in itertools.product(self.sites, repeat=len(self.pipeline.operators)):
                names = [op.name for op in self.pipeline.operators]
                measured = all(
                    variant_key(name, config[name]) in kinds[site].operators
                    for name, site in zip(names, sites, strict=True)
                )
                if measured and len(set(sites) - {self.sites[0]}) <= most:
                    yield Plan(config=config, placement=dict(zip(names, sites, strict=True)))

    @property
    def query(self) -> Query:
        """The problem's only one; it may use all sites."""
        return self.problem.queries[0]

    def estimate(self, plan: Plan) -> Estimate:
        """By the book, at the problem's loads."""
        return evaluate_plan(self.problem, self.query, plan, self.problem.loads)

    def coefficients(self, column: Column, sites: Sequence[str]) -> tuple[float, float]:
        """What a column counts for in the mean and in the variance of a path, with these sites as roles."""
        site = self.problem.sites[sites[column.role]]
        profile = self.problem.profiles[site.name, PIPELINE]
        slowdown = profile.slowdowns.get(column.speed_class, 1.0)
        load = self.problem.loads.get(site.name, SiteLoad(utilisation=0.0, residual_s=0.0))
        wait = wait_at(load, site.cores)
        if column.role == 0:
            idle = {Quantity.VISITS: (wait.mean_s, wait.var_s2)}
        else:
            up = self.problem.links[sites[0], site.name]
            down = self.problem.links[site.name, sites[0]]
            idle = {
                Quantity.VISITS: (wait.mean_s + up.rtt_s, wait.var_s2 + up.rtt_var_s2),
                Quantity.UP: (1 / up.bandwidth_bps, 0.0),
                Quantity.DOWN: (1 / down.bandwidth_bps, 0.0),
                Quantity.UP_VAR: (0.0, 1 / up.bandwidth_bps**2),
                Quantity.DOWN_VAR: (0.0, 1 / down.bandwidth_bps**2),
                Quantity.UP_SQ: (0.0, (up.bandwidth_rel_sd / up.bandwidth_bps) ** 2),
                Quantity.DOWN_SQ: (0.0, (down.bandwidth_rel_sd / down.bandwidth_bps) ** 2),
            }
        known = {
            Quantity.WORK: (slowdown, 0.0),
            Quantity.CALLS: (profile.overhead_s, 0.0),
            Quantity.WORK_VAR: (0.0, slowdown**2),
            **idle,
        }
        return known[column.quantity]


def random_case(seed: int, shape: CaseShape | None = None, *, sites_seed: int = 0) -> Case:
    """A case of that shape, the same for the same seeds; ``sites_seed`` changes sites and links only."""
    shape = CaseShape() if shape is None else shape
    draw = _Draw(rng=Random(seed), exact=shape.exact)
    pipeline = _pipeline(draw.rng, shape)
    by_number = {number: _kind(draw, pipeline, shape) for number in sorted(set(shape.kinds))}
    kinds = tuple(by_number[number] for number in shape.kinds)
    accuracy = _accuracy(draw.rng, pipeline, shape)
    draw = _Draw(rng=Random(f"{seed} {sites_seed}"), exact=shape.exact)
    sites = tuple(f"site-{role}" for role in range(len(kinds)))
    problem = Problem(
        pipelines={PIPELINE: pipeline},
        sites={name: _site(draw, name, role) for role, name in enumerate(sites)},
        links={(one, other): _link(draw, one, other) for one, other in itertools.permutations(sites, 2)},
        profiles={
            (name, PIPELINE): _profile(draw, name, kind) for name, kind in zip(sites, kinds, strict=True)
        },
        accuracy={PIPELINE: accuracy},
        queries=(_query(draw, sites[0]),),
        loads={} if shape.exact else {name: _load(draw.rng) for name in sites},
    )
    return Case(pipeline=pipeline, kinds=kinds, sites=sites, problem=problem)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draw:
    rng: Random
    exact: bool

    def number(self, high: int, unit: float) -> float:
        """Up to ``high`` units, and often none: plans then differ in few figures, and many are dominated."""
        if self.rng.random() < 0.6:
            return 0.0
        return self.rng.randint(0, high) * unit if self.exact else self.rng.uniform(0, high) * unit

    def positive(self, high: int, unit: float) -> float:
        """The same, but never none."""
        return unit + self.number(high - 1, unit)

    def power(self, low: int, high: int) -> float:
        """A power of two between two exponents; dividing by it is exact."""
        return 2.0 ** (self.rng.randint(low, high) if self.exact else self.rng.uniform(low, high))


def _pipeline(rng: Random, shape: CaseShape) -> Pipeline:
    operators: list[Operator] = []
    for index, count in enumerate(shape.variants):
        names = [REQUEST, *(operator.name for operator in operators)]
        inputs = names[-1:] if shape.chain else rng.sample(names, rng.randint(1, min(3, len(names))))
        knobs = {"level": tuple(range(count))} if count > 1 else {}
        operators.append(Operator(name=f"op{index}", inputs=tuple(inputs), runtime="python", knobs=knobs))
    output = operators[-1].name if rng.random() < 0.8 else rng.choice(operators).name
    return Pipeline(
        name=PIPELINE,
        version="1",
        description="made up",
        operators=tuple(operators),
        output=output,
        digest="made-up",
    )


def _kind(draw: _Draw, pipeline: Pipeline, shape: CaseShape) -> Kind:
    variants = [variant_key(op.name, knobs) for op in pipeline.operators for knobs in op.variants()]
    known = [variant for variant in variants if draw.rng.random() <= shape.measured_share]
    return Kind(
        operators={variant: _operator(draw, variant) for variant in known},
        request_mean_bytes=draw.number(8, 2.0**12),
        request_var_bytes2=draw.number(4, 2.0**20),
    )


def _operator(draw: _Draw, variant: str) -> OperatorProfile:
    mean_s = draw.number(6, 2.0**-6)
    return OperatorProfile(
        variant=variant,
        mean_s=mean_s,
        # Often larger than the square of the mean: the slowest path on average is then not the worst.
        var_s2=draw.number(8, 2.0**-10),
        p95_s=2 * mean_s,
        count=20,
        output_mean_bytes=draw.number(6, 2.0**11),
        output_var_bytes2=draw.number(4, 2.0**18),
        speed_class=CLASSES[sum(variant.encode()) % 2],
    )


def _profile(draw: _Draw, site: str, kind: Kind) -> SiteProfile:
    return SiteProfile(
        site=site,
        pipeline=PIPELINE,
        digest="made-up",
        operators=kind.operators,
        request_mean_bytes=kind.request_mean_bytes,
        request_var_bytes2=kind.request_var_bytes2,
        slowdowns={name: draw.positive(8, 0.25) for name in CLASSES},
        overhead_s=draw.number(3, 2.0**-8),
    )


def _site(draw: _Draw, name: str, role: int) -> Site:
    return Site(
        name=name,
        tier=Tier.DEVICE if role == 0 else Tier.EDGE,
        cores=4,
        prices=Prices(
            core_s_usd=draw.number(8, 2.0**-12), egress_byte_usd=draw.number(4, 2.0**-30), energy_j_usd=0.0
        ),
    )


def _link(draw: _Draw, source: str, target: str) -> Link:
    return Link(
        source=source,
        target=target,
        rtt_s=draw.number(6, 2.0**-7),
        rtt_var_s2=draw.number(6, 2.0**-12),
        bandwidth_bps=draw.power(16, 22),
        bandwidth_rel_sd=draw.number(4, 0.125),
    )


def _accuracy(rng: Random, pipeline: Pipeline, shape: CaseShape) -> AccuracyTable:
    levels = [0.5, 0.75, 0.75, 0.75, 1.0]
    keys = [pipeline.config_key(config) for config in pipeline.configs()]
    kept = rng.sample(keys, max(1, round(shape.measured_share * len(keys))))
    return AccuracyTable(
        pipeline=PIPELINE,
        metric="made up",
        split="profile",
        configs={
            key: Accuracy(
                mean=rng.choice(levels) if shape.exact else rng.uniform(0.5, 1), standard_error=0.0, count=50
            )
            for key in sorted(kept)
        },
    )


def _query(draw: _Draw, origin: str) -> Query:
    slo = Slo(latency_p95_s=1e6, accuracy=0.0, cost_usd_per_1000=1e6)
    return Query(name="query", origin=origin, pipeline=PIPELINE, rate_hz=draw.positive(8, 0.5), slo=slo)


def _load(rng: Random) -> SiteLoad:
    return SiteLoad(utilisation=rng.uniform(0, 0.95), residual_s=rng.uniform(0, 0.1))


def features(case: Case, plan: Plan, columns: Sequence[Column]) -> list[list[float]]:
    """By the book: of the whole plan first, then of each path through its segments."""
    kinds = dict(zip(case.sites, case.kinds, strict=True))
    measured = {
        name: kinds[site].operators[variant_key(name, plan.config[name])]
        for name, site in plan.placement.items()
    }
    sizes = {name: (found.output_mean_bytes, found.output_var_bytes2) for name, found in measured.items()}
    sizes[REQUEST] = (case.kinds[0].request_mean_bytes, case.kinds[0].request_var_bytes2)
    segments = cut(case.pipeline, plan.placement, case.sites[0])
    steps = []
    for segment in segments:
        role = case.sites.index(segment.site)
        step = defaultdict(float, {Column(role, Quantity.VISITS): 1.0})
        for name in segment.operators:
            step[Column(role, Quantity.CALLS)] += 1.0
            step[Column(role, Quantity.WORK, measured[name].speed_class)] += measured[name].mean_s
            step[Column(role, Quantity.WORK_VAR, measured[name].speed_class)] += measured[name].var_s2
        for values, mean, var, square in (
            (segment.needs, Quantity.UP, Quantity.UP_VAR, Quantity.UP_SQ),
            (segment.exports, Quantity.DOWN, Quantity.DOWN_VAR, Quantity.DOWN_SQ),
        ):
            if role > 0:
                step[Column(role, mean)] += sum(sizes[name][0] for name in values)
                step[Column(role, var)] += sum(sizes[name][1] for name in values)
                step[Column(role, square)] += sum(sizes[name][0] for name in values) ** 2
        steps.append(step)
    ways = [range(len(steps)), *paths(segments)]
    return [[sum(steps[index][column] for index in way) for column in columns] for way in ways]


def best(estimates: Iterable[Estimate], slo: Slo, prices: Mapping[str, float]) -> float:
    """Least cost and price of the demand among plans that meet the objectives; inf if none does."""
    return min(
        (
            estimate.cost_usd_per_1000 + demand_price(estimate, prices)
            for estimate in estimates
            if estimate.latency_p95_s <= slo.latency_p95_s
            and estimate.accuracy >= slo.accuracy
            and estimate.cost_usd_per_1000 <= slo.cost_usd_per_1000
        ),
        default=math.inf,
    )


def binding_slo(rng: Random, estimates: Sequence[Estimate]) -> Slo:
    """Objectives each of which some plan just meets, or that every plan meets."""
    latency, accuracy, cost = (rng.choice(estimates) for _ in range(3))
    return Slo(
        latency_p95_s=rng.choice([latency.latency_p95_s, math.inf]),
        accuracy=rng.choice([accuracy.accuracy, 0.0]),
        cost_usd_per_1000=rng.choice([cost.cost_usd_per_1000, math.inf]),
    )


def demand_price(estimate: Estimate, prices: Mapping[str, float]) -> float:
    """What a plan's demand costs at some resource prices."""
    return sum(prices[resource] * amount for resource, amount in sorted(estimate.demand.items()))


def resource_prices(rng: Random, estimates: Sequence[Estimate]) -> dict[str, float]:
    """Small integer prices of all resources that any of the plans asks for; some are free."""
    resources = sorted({resource for estimate in estimates for resource in estimate.demand})
    return {resource: float(rng.choice([0, 0, 1, 2, 5])) for resource in resources}
