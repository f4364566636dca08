"""Small random planning problems for tests and benchmarks, made from a seed.

``random_problem(seed, ...)`` gives a whole problem; ``FleetShape`` says how large. Accuracy rises with the
knob values and so does work, so that plans really trade one for the other; sites get faster and dearer from
device to cloud. The same seed and shape always give the same problem.

    problem = random_problem(7, FleetShape(devices=2, queries=4))
    query = problem.queries[0]
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from compass_shared.pipeline import REQUEST, Operator, Pipeline, variant_key
from compass_shared.plan import Plan
from compass_shared.problem import Problem, SiteLoad
from compass_shared.profile import Accuracy, AccuracyTable, OperatorProfile, SiteProfile
from compass_shared.query import Query, Slo
from compass_shared.site import Link, Prices, Site, Tier

PIPELINE = "sort-mail"
LOOSE = Slo(latency_p95_s=1e6, accuracy=0.0, cost_usd_per_1000=1e6)
"""Every plan meets it."""

_SLOWDOWN = {Tier.DEVICE: 4.0, Tier.EDGE: 1.5, Tier.CLOUD: 1.0}
_CORES = {Tier.DEVICE: (1, 2), Tier.EDGE: (1, 4), Tier.CLOUD: (2, 8)}
_CORE_S_USD = {Tier.DEVICE: 0.0, Tier.EDGE: 5e-6, Tier.CLOUD: 2e-5}


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetShape:
    """How large a random problem is, and how hard."""

    variants: tuple[int, ...] = (2, 1, 3)
    """Variants of each operator; their product is the number of configs."""
    chain: bool = True
    """Whether each operator reads the one before it; otherwise the DAG is random."""
    devices: int = 1
    edges: int = 1
    clouds: int = 1
    queries: int = 2
    measured_share: float = 1.0
    """Share of the configs that are in the accuracy table."""
    loaded: bool = False
    """Whether the problem states a load at its sites."""
    tightness: float = 1.0
    """Divides the latency that SLOs allow; larger is harder."""


def random_problem(seed: int, shape: FleetShape | None = None) -> Problem:
    """A problem of that shape, the same for the same seed."""
    rng = Random(seed)
    shape = FleetShape() if shape is None else shape
    pipeline = _pipeline(rng, shape)
    sites = {site.name: site for site in _sites(rng, shape)}
    work = {
        variant_key(op.name, knobs): rng.uniform(0.5, 1.5) * 0.01 * (1 + at)
        for op in pipeline.operators
        for at, knobs in enumerate(op.variants())
    }
    sizes = {variant: rng.uniform(1e3, 2e5) for variant in work}
    return Problem(
        pipelines={pipeline.name: pipeline},
        sites=sites,
        links={(link.source, link.target): link for link in _links(rng, sites)},
        profiles={
            (site.name, pipeline.name): _profile(rng, site, pipeline, work, sizes) for site in sites.values()
        },
        accuracy={pipeline.name: _accuracy(rng, pipeline, shape)},
        queries=tuple(_queries(rng, sites, shape)),
        loads={name: _load(rng) for name in sites} if shape.loaded else {},
    )


def random_plan(problem: Problem, query: Query, seed: int) -> Plan:
    """Some plan of a query with a measured config, whether or not it meets the SLO."""
    rng = Random(seed)
    pipeline = problem.pipelines[query.pipeline]
    table = problem.accuracy[query.pipeline].configs
    config = rng.choice([config for config in pipeline.configs() if pipeline.config_key(config) in table])
    sites = problem.sites_for(query)
    return Plan(config=config, placement={op.name: rng.choice(sites) for op in pipeline.operators})


def with_queries(problem: Problem, *queries: Query) -> Problem:
    """The same problem with these queries instead."""
    return replace(problem, queries=queries)


def with_slo(query: Query, **fields: Any) -> Query:
    """The same query with some objectives changed: ``with_slo(query, accuracy=0.9)``."""
    return replace(query, slo=replace(query.slo, **fields))


def _pipeline(rng: Random, shape: FleetShape) -> Pipeline:
    operators: list[Operator] = []
    for index, count in enumerate(shape.variants):
        names = [REQUEST, *(operator.name for operator in operators)]
        inputs = names[-1:] if shape.chain else rng.sample(names, rng.randint(1, min(3, len(names))))
        operators.append(
            Operator(
                name=f"op{index}",
                inputs=tuple(inputs),
                runtime="python" if index == 0 else "onnx",
                knobs={"level": tuple(range(count))} if count > 1 else {},
            )
        )
    return Pipeline(
        name=PIPELINE,
        version="1",
        description="made up",
        operators=tuple(operators),
        output=operators[-1].name,
        digest="made-up",
    )


def _sites(rng: Random, shape: FleetShape) -> Iterator[Site]:
    for tier, count in ((Tier.DEVICE, shape.devices), (Tier.EDGE, shape.edges), (Tier.CLOUD, shape.clouds)):
        for index in range(count):
            yield Site(
                name=f"{tier.value}-{index}",
                tier=tier,
                cores=rng.randint(*_CORES[tier]),
                utilisation_cap=rng.uniform(0.6, 0.9),
                prices=Prices(
                    core_s_usd=_CORE_S_USD[tier] * rng.uniform(0.5, 2),
                    egress_byte_usd=0.0 if tier is Tier.DEVICE else rng.uniform(0, 1e-10),
                    energy_j_usd=rng.uniform(0, 1e-7),
                ),
                power_w=rng.uniform(1, 5),
            )


def _links(rng: Random, sites: Mapping[str, Site]) -> Iterator[Link]:
    for source in sites.values():
        for target in sites.values():
            if source is not target:
                far = Tier.CLOUD in {source.tier, target.tier}
                yield Link(
                    source=source.name,
                    target=target.name,
                    rtt_s=rng.uniform(0.02, 0.06) if far else rng.uniform(0.001, 0.01),
                    rtt_var_s2=rng.uniform(0, 1e-4),
                    bandwidth_bps=rng.uniform(1e6, 2e7),
                    bandwidth_rel_sd=rng.uniform(0, 0.3),
                )


def _profile(
    rng: Random, site: Site, pipeline: Pipeline, work: Mapping[str, float], sizes: Mapping[str, float]
) -> SiteProfile:
    slowdown = _SLOWDOWN[site.tier] * rng.uniform(0.7, 1.4)
    operators = {}
    for variant, work_s in work.items():
        mean_s = work_s * slowdown * rng.uniform(0.9, 1.1)
        sd_s = mean_s * rng.uniform(0.05, 0.5)
        operators[variant] = OperatorProfile(
            variant=variant,
            mean_s=mean_s,
            var_s2=sd_s**2,
            p95_s=mean_s + 1.6449 * sd_s,
            count=20,
            output_mean_bytes=sizes[variant],
            output_var_bytes2=(sizes[variant] * rng.uniform(0, 0.3)) ** 2,
        )
    return SiteProfile(
        site=site.name,
        pipeline=pipeline.name,
        digest=pipeline.digest,
        operators=operators,
        request_mean_bytes=rng.uniform(1e5, 5e5),
        request_var_bytes2=rng.uniform(0, 1e9),
    )


def _accuracy(rng: Random, pipeline: Pipeline, shape: FleetShape) -> AccuracyTable:
    steepness = {operator.name: rng.uniform(0.3, 1.5) for operator in pipeline.operators}
    table = {}
    for config in pipeline.configs():
        misses = sum(
            0.1 * steepness[name] * math.exp(-float(knobs["level"]))
            for name, knobs in config.items()
            if knobs
        )
        mean = max(0.0, 0.99 - misses + rng.gauss(0, 0.005))
        table[pipeline.config_key(config)] = Accuracy(mean=min(1.0, mean), standard_error=0.01, count=50)
    kept = rng.sample(sorted(table), max(1, round(shape.measured_share * len(table))))
    return AccuracyTable(
        pipeline=pipeline.name,
        metric="made up",
        split="profile",
        configs={key: table[key] for key in sorted(kept)},
    )


def _queries(rng: Random, sites: Mapping[str, Site], shape: FleetShape) -> Iterator[Query]:
    origins = [site.name for site in sites.values() if site.tier is Tier.DEVICE] or list(sites)
    for index in range(shape.queries):
        yield Query(
            name=f"query-{index}",
            origin=origins[index % len(origins)],
            pipeline=PIPELINE,
            rate_hz=rng.uniform(0.5, 4.0),
            slo=Slo(
                latency_p95_s=rng.uniform(0.1, 0.6) / shape.tightness,
                accuracy=rng.uniform(0.75, 0.97),
                cost_usd_per_1000=rng.uniform(2e-4, 5e-3),
            ),
            weight=rng.choice([1.0, 1.0, 2.0, 3.0]),
        )


def _load(rng: Random) -> SiteLoad:
    return SiteLoad(utilisation=rng.uniform(0, 0.95), residual_s=rng.uniform(0, 0.1))
