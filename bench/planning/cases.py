"""A large fleet to plan: thousands of devices of a few kinds, hundreds of edge servers, three cloud pools.

Three pipelines, read-text among them in shape (five operators, 324 configs). Work is measured once, on a
reference machine; every site has slowdowns by speed class of its own, so all share one profile a pipeline.
Devices reach one or two edge servers and one or two clouds. SLOs are drawn around what the fleet can do:
accuracies and latencies that some queries meet anywhere, some only near by and a few nowhere. Shared cores
are a share (``level``) of what it would take if every query kept a twentieth of a core busy.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from compass_shared.pipeline import REQUEST, Operator, Pipeline, variant_key
from compass_shared.problem import Problem, SiteLoad
from compass_shared.profile import Accuracy, AccuracyTable, OperatorProfile, SiteProfile
from compass_shared.query import Query, Slo
from compass_shared.site import Link, Prices, Site, Tier

CLOUDS = 3
CLASSES = ("python", "onnx-fp32", "onnx-int8")

_KINDS = {
    "phone": (4.0, 4, {"python": 5.0, "onnx-fp32": 9.0, "onnx-int8": 5.0}),
    "jetson": (4.0, 6, {"python": 4.0, "onnx-fp32": 2.5, "onnx-int8": 2.0}),
    "laptop": (3.0, 8, {"python": 1.5, "onnx-fp32": 2.0, "onnx-int8": 1.6}),
    "camera": (2.0, 2, {"python": 10.0, "onnx-fp32": 25.0, "onnx-int8": 12.0}),
}
"""Kind of device -> watts, cores, slowdowns."""
_UPLINKS = ((0.004, 2.5e7), (0.012, 6e6), (0.045, 1.5e6))
"""Round trip and bytes/s of Ethernet, Wi-Fi, mobile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    """One operator: name, inputs, speed class, and work, megabytes out and accuracy lost by variant."""

    name: str
    inputs: tuple[str, ...]
    speed_class: str
    work_s: tuple[float, ...]
    out_mb: tuple[float, ...]
    lost: tuple[float, ...]


def _stages(name: str) -> tuple[_Stage, ...]:
    if name == "read-text":
        return (
            _stage("prepare", REQUEST, "python", 6, (0.004, 0.012), (0.5, 0.06), (0.0, 0.12)),
            _stage("detect", "prepare", "onnx-fp32", 9, (0.01, 0.16), (0.004, 0.004), (0.15, 0.0)),
            _stage("crop", ("prepare", "detect"), "python", 1, (0.004, 0.004), (0.12, 0.12), (0.0, 0.0)),
            _stage("orientation", "crop", "onnx-fp32", 2, (0.0005, 0.006), (0.12, 0.12), (0.03, 0.0)),
            _stage("recognise", "orientation", "onnx-fp32", 3, (0.02, 0.12), (0.001, 0.001), (0.12, 0.0)),
        )
    if name == "find-parts":
        return (
            _stage("prepare", REQUEST, "python", 4, (0.003, 0.01), (0.8, 0.08), (0.0, 0.1)),
            _stage("segment", "prepare", "onnx-fp32", 6, (0.03, 0.25), (0.03, 0.03), (0.15, 0.0)),
            _stage(
                "classify", ("prepare", "segment"), "onnx-int8", 4, (0.01, 0.06), (0.002, 0.002), (0.1, 0.0)
            ),
        )
    return (
        _stage("activity", REQUEST, "python", 2, (0.002, 0.004), (0.3, 0.2), (0.0, 0.03)),
        _stage("encode", "activity", "onnx-int8", 6, (0.05, 0.4), (0.02, 0.02), (0.2, 0.0)),
        _stage("speaker", "activity", "onnx-fp32", 3, (0.02, 0.1), (0.001, 0.001), (0.06, 0.0)),
        _stage("decode", ("encode", "speaker"), "onnx-fp32", 4, (0.03, 0.2), (0.001, 0.001), (0.1, 0.0)),
    )


def _stage(
    name: str,
    inputs: str | tuple[str, ...],
    speed_class: str,
    count: int,
    work_s: tuple[float, float],
    out_mb: tuple[float, float],
    lost: tuple[float, float],
) -> _Stage:
    """Variants between two ends, geometric in work and size; a zigzag keeps them off one line."""
    share = np.linspace(0, 1, count) if count > 1 else np.zeros(1)
    zigzag = np.where(np.arange(count) % 2 == 1, 1.15, 1.0)
    return _Stage(
        name=name,
        inputs=(inputs,) if isinstance(inputs, str) else inputs,
        speed_class=speed_class,
        work_s=tuple(zigzag * work_s[0] * (work_s[1] / work_s[0]) ** share),
        out_mb=tuple(out_mb[0] * (out_mb[1] / out_mb[0]) ** share),
        lost=tuple((lost[0] + (lost[1] - lost[0]) * np.sqrt(share)) / zigzag),
    )


PIPELINES = ("read-text", "find-parts", "take-notes")


def make_fleet(queries: int, *, seed: int = 0, level: float = 0.3, devices: int | None = None) -> Problem:
    """A fleet with so many queries over three pipelines.

    Args:
        queries: How many.
        seed: The same seed always gives the same fleet.
        level: Shared cores, as a share of a twentieth of a core for every query.
        devices: How many; a third of the queries by default.
    """
    rng = np.random.default_rng([seed, queries])
    devices = max(1, queries // 3) if devices is None else devices
    edges = int(np.clip(queries // 50, 2, 400))
    stages = {name: _stages(name) for name in PIPELINES}
    busy = level * queries * 0.05
    sites = {site.name: site for site in _sites(rng, devices, edges, busy)}
    reach = _reach(rng, devices, edges)
    return Problem(
        pipelines={name: _pipeline(name, stages[name]) for name in PIPELINES},
        sites=sites,
        links=dict(_links(rng, reach)),
        profiles=dict(_profiles(rng, sites, stages)),
        accuracy={name: _accuracy(name, stages[name]) for name in PIPELINES},
        queries=tuple(_queries(rng, queries, devices)),
        reachable={f"query-{at}": reach[at % devices] for at in range(queries)},
    )


def typical_loads(problem: Problem) -> Mapping[str, SiteLoad]:
    """Every shared site at its cap, devices idle."""
    return {
        site.name: SiteLoad(utilisation=site.utilisation_cap, residual_s=0.05)
        for site in problem.sites.values()
        if site.tier is not Tier.DEVICE
    }


def _pipeline(name: str, stages: tuple[_Stage, ...]) -> Pipeline:
    operators = tuple(
        Operator(
            name=stage.name,
            inputs=stage.inputs,
            runtime="python" if stage.speed_class == "python" else "onnx",
            knobs={"level": tuple(range(len(stage.work_s)))} if len(stage.work_s) > 1 else {},
            speed_class=stage.speed_class,
        )
        for stage in stages
    )
    return Pipeline(
        name=name,
        version="1",
        description="made up",
        operators=operators,
        output=stages[-1].name,
        digest=name,
    )


def _variants(stage: _Stage) -> Iterator[tuple[str, int]]:
    for level in range(len(stage.work_s)):
        yield variant_key(stage.name, {"level": level} if len(stage.work_s) > 1 else {}), level


def _accuracy(name: str, stages: tuple[_Stage, ...]) -> AccuracyTable:
    table = {}
    for chosen in itertools.product(*(tuple(_variants(stage)) for stage in stages)):
        kept = 0.97
        for stage, (_, level) in zip(stages, chosen, strict=True):
            kept *= 1 - stage.lost[level]
        key = ";".join(variant for variant, _ in chosen)
        table[key] = Accuracy(mean=float(kept), standard_error=0.01, count=100)
    return AccuracyTable(pipeline=name, metric="made up", split="profile", configs=table)


def _sites(rng: np.random.Generator, devices: int, edges: int, busy: float) -> Iterator[Site]:
    kinds = tuple(_KINDS)
    for at in range(devices):
        power_w, cores, _ = _KINDS[kinds[at % len(kinds)]]
        prices = Prices(energy_j_usd=8e-8)
        yield Site(name=f"device-{at}", tier=Tier.DEVICE, cores=cores, prices=prices, power_w=power_w)
    share = rng.dirichlet(np.full(edges, 3.0))
    for at in range(edges):
        yield Site(
            name=f"edge-{at}",
            tier=Tier.EDGE,
            cores=float(np.ceil(0.6 * busy * share[at] / 0.7)),
            prices=Prices(core_s_usd=float(rng.uniform(1e-6, 5e-6)), egress_byte_usd=0.0),
        )
    for at in range(CLOUDS):
        yield Site(
            name=f"cloud-{at}",
            tier=Tier.CLOUD,
            cores=float(np.ceil(0.4 * busy / CLOUDS / 0.7)),
            prices=Prices(core_s_usd=(8e-6, 1.4e-5, 2.5e-5)[at], egress_byte_usd=9e-11),
        )


def _reach(rng: np.random.Generator, devices: int, edges: int) -> list[tuple[str, ...]]:
    """Of every device: one or two edge servers, one or two clouds."""
    near = rng.integers(edges, size=devices)
    clouds = rng.permuted(np.tile(np.arange(CLOUDS), (devices, 1)), axis=1)
    counts = rng.integers(1, 3, size=(devices, 2))
    return [
        (
            *(f"edge-{(near[at] + step) % edges}" for step in range(counts[at, 0])),
            *(f"cloud-{cloud}" for cloud in clouds[at, : counts[at, 1]]),
        )
        for at in range(devices)
    ]


def _links(rng: np.random.Generator, reach: list[tuple[str, ...]]) -> Iterator[tuple[tuple[str, str], Link]]:
    uplink = rng.integers(len(_UPLINKS), size=len(reach))
    spread = rng.lognormal(0.0, 0.25, size=(len(reach), 4)).tolist()
    for at, names in enumerate(reach):
        rtt_s, bandwidth_bps = _UPLINKS[uplink[at]]
        for which, name in enumerate(names):
            far_s = 0.025 if name.startswith("cloud") else 0.0
            factor = spread[at][which]
            for source, target, share in ((f"device-{at}", name, 1.0), (name, f"device-{at}", 2.0)):
                yield (
                    (source, target),
                    Link(
                        source=source,
                        target=target,
                        rtt_s=rtt_s * factor + far_s,
                        rtt_var_s2=(0.3 * rtt_s) ** 2,
                        bandwidth_bps=bandwidth_bps * share / factor,
                        bandwidth_rel_sd=0.15,
                    ),
                )


def _profiles(
    rng: np.random.Generator, sites: Mapping[str, Site], stages: Mapping[str, tuple[_Stage, ...]]
) -> Iterator[tuple[tuple[str, str], SiteProfile]]:
    kinds = tuple(_KINDS)
    spread = rng.lognormal(0.0, 0.12, size=len(sites)).tolist()
    for name, listed in stages.items():
        operators = {
            variant: OperatorProfile(
                variant=variant,
                mean_s=stage.work_s[level],
                var_s2=(0.25 * stage.work_s[level]) ** 2,
                p95_s=1.5 * stage.work_s[level],
                count=50,
                output_mean_bytes=1e6 * stage.out_mb[level],
                output_var_bytes2=(2e5 * stage.out_mb[level]) ** 2,
                speed_class=stage.speed_class,
                memory_bytes=2e8 * (1 + level),
            )
            for stage in listed
            for variant, level in _variants(stage)
        }
        for at, site in enumerate(sites.values()):
            base = {
                Tier.DEVICE: _KINDS[kinds[at % len(kinds)]][2],
                Tier.EDGE: {"python": 1.2, "onnx-fp32": 1.1, "onnx-int8": 1.0},
                Tier.CLOUD: {"python": 1.0, "onnx-fp32": 0.6, "onnx-int8": 0.6},
            }[site.tier]
            yield (
                (site.name, name),
                SiteProfile(
                    site=site.name,
                    pipeline=name,
                    digest=name,
                    operators=operators,
                    request_mean_bytes=1.2e6,
                    request_var_bytes2=1e10,
                    slowdowns={speed_class: value * spread[at] for speed_class, value in base.items()},
                    overhead_s=0.002,
                ),
            )


def _queries(rng: np.random.Generator, queries: int, devices: int) -> Iterator[Query]:
    pipelines = rng.integers(len(PIPELINES), size=queries).tolist()
    rates = rng.choice([0.2, 0.5, 1.0], size=queries).tolist()
    latencies = np.exp(rng.uniform(np.log(0.25), np.log(2.5), size=queries)).tolist()
    accuracies = rng.choice([0.7, 0.75, 0.8, 0.85, 0.9], size=queries).tolist()
    costs = rng.choice([0.003, 0.01, 0.05], size=queries).tolist()
    weights = rng.choice([1.0, 1.0, 2.0, 4.0], size=queries).tolist()
    for at in range(queries):
        yield Query(
            name=f"query-{at}",
            origin=f"device-{at % devices}",
            pipeline=PIPELINES[pipelines[at]],
            rate_hz=rates[at],
            slo=Slo(latency_p95_s=latencies[at], accuracy=accuracies[at], cost_usd_per_1000=costs[at]),
            weight=weights[at],
        )
