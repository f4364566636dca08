"""Pipelines that declare more than operators: placement constraints, state, extra metrics, a fixed split.

``declared(problem, seed)`` adds some of each to a problem of ``support.problems``: constraints that some
queries can keep and others cannot, floors that some configs reach, rates that some operators with state keep
up with, and queries that arise at workers. The same seed always adds the same.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from compass_shared.pipeline import Metric, Pipeline, variant_key
from compass_shared.problem import Problem
from compass_shared.profile import Accuracy, AccuracyTable
from compass_shared.query import Query

METRICS = ("privacy", "recall")
_PLACES = ((), (), ("origin",), ("device",), ("edge", "cloud"), ("cloud",), ("origin", "cloud"))


def declared(problem: Problem, seed: int) -> Problem:
    """The same problem with more declared of its pipeline, and queries that make use of it."""
    rng = Random(seed)
    (pipeline,) = problem.pipelines.values()
    pipeline = _pipeline(rng, pipeline)
    table = _with_metrics(rng, problem.accuracy[pipeline.name])
    origins = [query.origin for query in problem.queries] * 3 + sorted(problem.sites)
    problem = replace(
        problem,
        pipelines={pipeline.name: pipeline},
        accuracy={pipeline.name: table},
        queries=tuple(
            replace(_with_floors(rng, query, table), origin=rng.choice(origins)) for query in problem.queries
        ),
    )
    return _hurried(rng, problem) if pipeline.stateful and rng.random() < 0.5 else problem


def _hurried(rng: Random, problem: Problem) -> Problem:
    """Rates that operators with state hardly keep up with, and room for everything else."""
    (pipeline,) = problem.pipelines.values()
    keys = [
        variant_key(op.name, knobs) for op in pipeline.operators if op.stateful for knobs in op.variants()
    ]
    times_s = sorted(
        found.mean_s
        for profile in problem.profiles.values()
        for key in keys
        if (found := profile.measured(key))
    )
    return replace(
        problem,
        sites={name: replace(site, cores=32.0) for name, site in problem.sites.items()},
        links={ends: replace(link, bandwidth_bps=1e9) for ends, link in problem.links.items()},
        queries=tuple(
            replace(
                query,
                rate_hz=0.75 / rng.choice(times_s) * rng.uniform(0.9, 1.1),
                slo=replace(query.slo, latency_p95_s=1e3, cost_usd_per_1000=1e3),
            )
            for query in problem.queries
        ),
    )


def _pipeline(rng: Random, pipeline: Pipeline) -> Pipeline:
    tiers = ("device", "edge", "cloud")
    return replace(
        pipeline,
        digest="declared",
        operators=tuple(
            replace(op, must_run_on=rng.choice(_PLACES), stateful=rng.random() < 0.3)
            for op in pipeline.operators
        ),
        extra_metrics=tuple(Metric(name=name, function="made:up") for name in METRICS),
        fixed_split={op.name: rng.choice(tiers) for op in pipeline.operators},
    )


def _with_metrics(rng: Random, table: AccuracyTable) -> AccuracyTable:
    """Values of each extra metric that have nothing to do with accuracy, of most configs."""
    others = {
        name: {
            key: Accuracy(mean=rng.choice([0.25, 0.5, 0.75, 1.0]), standard_error=0.0, count=10)
            for key in table.configs
            if rng.random() < 0.9
        }
        for name in METRICS
    }
    return replace(table, others=others)


def _with_floors(rng: Random, query: Query, table: AccuracyTable) -> Query:
    """A floor for some of the metrics, and a rate of up to a hundred times as much."""
    floors = {name: rng.choice([0.25, 0.5, 0.75]) for name in table.others if rng.random() < 0.4}
    rate_hz = query.rate_hz * rng.choice([1.0, 3.0, 10.0])
    return replace(query, slo=replace(query.slo, metrics=floors), rate_hz=rate_hz)
