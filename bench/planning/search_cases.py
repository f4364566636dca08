"""Large configuration spaces to search: a chain of 12 operators x 6 variants over four sites.

Accuracy is a product of what every operator keeps, times what pairs of operators cost each other, pulled down
further by the worst operator: neither a sum nor a product over operators. A third of the operators list their
variants in no useful order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from compass_coordinator.estimator import Floats, Indices
from compass_coordinator.planner.search.relaxation import complete
from compass_coordinator.planner.search.tables import MEAN, build_tables
from compass_shared.pipeline import REQUEST, Config, Operator, Pipeline, variant_key
from compass_shared.problem import Problem
from compass_shared.profile import OperatorProfile, SiteProfile
from compass_shared.query import Query, Slo
from compass_shared.site import Link, Prices, Site, Tier

OPERATORS, VARIANTS, PAIRS = 12, 6, 12
SAMPLE = 4000
"""Random configs that SLOs are drawn from."""
_SITES = (
    ("phone", Tier.DEVICE, 4.0, 2, 0.0),
    ("edge", Tier.EDGE, 1.5, 4, 6e-6),
    ("cloud-a", Tier.CLOUD, 1.0, 64, 2.4e-5),
    ("cloud-b", Tier.CLOUD, 0.7, 64, 5e-5),
)
"""Name, tier, slowdown, cores, US dollars a core second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One query over a space that is too large to enumerate."""

    name: str
    problem: Problem
    query: Query
    kept: Floats
    """(operators, variants) share of accuracy that each variant keeps."""
    together: tuple[tuple[int, int, Floats], ...]
    """Pairs of operators with what their variants keep together (variants, variants)."""

    def accuracies(self, choices: Indices) -> Floats:
        """Accuracy of configs (B, operators)."""
        each = np.stack([self.kept[op][choices[:, op]] for op in range(OPERATORS)])
        product = each.prod(axis=0)
        for left, right, kept in self.together:
            product = product * kept[choices[:, left], choices[:, right]]
        return np.asarray(product * (0.5 + 0.5 * each.min(axis=0)))

    def accuracy(self, config: Config) -> float:
        """Accuracy of one config: what a profiler would measure."""
        choice = np.array([[int(knobs["level"]) for knobs in config.values()]])
        return float(self.accuracies(choice)[0])


def make_case(seed: int, accurate: float, haste: float) -> Case:
    """A case whose SLOs are as hard as that.

    Args:
        seed: Of the pipeline, its profiles and its accuracies.
        accurate: Share of random configs that are not accurate enough.
        haste: Latency allowed, relative to the median least mean latency of the accurate ones.
    """
    rng = np.random.default_rng(seed)
    pipeline = _pipeline()
    problem = Problem(
        pipelines={pipeline.name: pipeline},
        sites={name: _site(name, tier, cores, price) for name, tier, _, cores, price in _SITES},
        links={(link.source, link.target): link for link in _links()},
        profiles=_profiles(rng, pipeline),
        accuracy={},
        queries=(),
    )
    case = Case(
        name=f"{accurate:g} / {haste:g}",
        problem=problem,
        query=Query(
            name="q",
            origin="phone",
            pipeline=pipeline.name,
            rate_hz=0.5,
            slo=Slo(latency_p95_s=1e6, accuracy=0.0, cost_usd_per_1000=1e6),
        ),
        kept=_kept(rng),
        together=tuple(_together(rng)),
    )
    choices = rng.integers(VARIANTS, size=(SAMPLE, OPERATORS))
    found = case.accuracies(choices)
    enough = float(np.quantile(found, accurate))
    tables = build_tables(problem, case.query, {})
    fastest_s = complete(tables, choices[found >= enough], {MEAN: 1.0}).least
    limit_s = haste * float(np.median(fastest_s))
    slo = Slo(latency_p95_s=limit_s, accuracy=enough, cost_usd_per_1000=1e3)
    return replace(case, query=replace(case.query, slo=slo))


def _pipeline() -> Pipeline:
    names = [f"op{at}" for at in range(OPERATORS)]
    operators = tuple(
        Operator(
            name=name,
            inputs=(before,),
            runtime="python",
            knobs={"level": tuple(range(VARIANTS))},
        )
        for name, before in zip(names, [REQUEST, *names], strict=False)
    )
    return Pipeline(name="long", version="1", description="made up", operators=operators, output=names[-1])


def _site(name: str, tier: Tier, cores: int, price: float) -> Site:
    egress = 0.0 if tier is Tier.DEVICE else 9e-11
    return Site(name=name, tier=tier, cores=cores, prices=Prices(core_s_usd=price, egress_byte_usd=egress))


def _links() -> list[Link]:
    links = []
    for name, tier, *_ in _SITES[1:]:
        far = tier is Tier.CLOUD
        for source, target in (("phone", name), (name, "phone")):
            links.append(
                Link(
                    source=source,
                    target=target,
                    rtt_s=0.04 if far else 0.006,
                    rtt_var_s2=1e-4 if far else 4e-6,
                    bandwidth_bps=4e6 if far else 1.2e7,
                    bandwidth_rel_sd=0.1,
                )
            )
    return links


def _profiles(rng: np.random.Generator, pipeline: Pipeline) -> dict[tuple[str, str], SiteProfile]:
    work_s = np.sort(rng.uniform(0.004, 0.05, size=(OPERATORS, VARIANTS)), axis=1)
    sizes = rng.uniform(1e3, 2e5, size=(OPERATORS, VARIANTS))
    profiles = {}
    for name, _, slowdown, *_ in _SITES:
        measured = {}
        for at, operator in enumerate(pipeline.operators):
            for level, knobs in enumerate(operator.variants()):
                mean_s = float(work_s[at, level] * slowdown * rng.uniform(0.8, 1.25))
                variant = variant_key(operator.name, knobs)
                measured[variant] = OperatorProfile(
                    variant=variant,
                    mean_s=mean_s,
                    var_s2=(0.2 * mean_s) ** 2,
                    p95_s=1.4 * mean_s,
                    count=20,
                    output_mean_bytes=float(sizes[at, level]),
                    output_var_bytes2=float(0.1 * sizes[at, level]) ** 2,
                )
        profiles[name, pipeline.name] = SiteProfile(
            site=name, pipeline=pipeline.name, digest="", operators=measured, request_mean_bytes=3e5
        )
    return profiles


def _kept(rng: np.random.Generator) -> Floats:
    depth = rng.uniform(0.0, 0.12, size=(OPERATORS, 1))
    steepness = rng.uniform(0.3, 1.0, size=(OPERATORS, 1))
    kept = 1 - depth * np.exp(-steepness * np.arange(VARIANTS)) - rng.uniform(0, 0.01, (OPERATORS, VARIANTS))
    for op in rng.choice(OPERATORS, OPERATORS // 3, replace=False):
        kept[op] = rng.permutation(kept[op])
    return np.asarray(kept)


def _together(rng: np.random.Generator) -> list[tuple[int, int, Floats]]:
    every = [(left, right) for right in range(OPERATORS) for left in range(right)]
    found = []
    for at in rng.choice(len(every), PAIRS, replace=False):
        left, right = every[at]
        found.append((left, right, 1 - rng.uniform(0, 0.04) * rng.random((VARIANTS, VARIANTS))))
    return found
