"""Accuracy of a whole knob grid on one input, with every shared upstream result computed once.

Configs are walked in product order, the last operator's knobs fastest. Nothing is kept from one input to the
next, so memory is bounded by one input's results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from compass_agent.measure.results_cache import ResultsCache
from compass_agent.measure.scoring import MetricFunction, score_of
from compass_agent.measure.walk import RunOperator, Walk, request_of
from compass_shared.measured import OperatorRun, Score, filled
from compass_shared.pipeline import Config, Pipeline
from compass_shared.values import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class InputResult:
    """Scores of every config on one input."""

    name: str
    group: str
    scores: tuple[float, ...]
    """In the order of the configs asked for; a config whose operator failed scores 0."""
    failures: int
    """Operator runs that failed."""
    seconds: Mapping[str, float]
    """Variant -> thread CPU seconds spent in it, each shared result counted once."""
    runs: Mapping[str, int]
    """Variant -> how often it really ran; of a clip each request counts."""
    denominators: tuple[float, ...] = ()
    """Of a ratio metric, what the scores are to be divided by; of others empty."""
    others: Mapping[str, tuple[tuple[float, float], ...]] = field(default_factory=dict)
    """Extra metric -> numerator and denominator of every config."""


def measure_input(
    pipeline: Pipeline,
    configs: Sequence[Config],
    example: Example,
    *,
    run: RunOperator,
    score: MetricFunction,
    extra: Mapping[str, MetricFunction] = MappingProxyType({}),
) -> InputResult:
    """Score every config on one input.

    Args:
        pipeline: What is measured.
        configs: Which of its configs; neighbours in product order share the most.
        example: Input and ground truth.
        run: Runs one operator.
        score: The pipeline's metric, ``score(output, truth)``.
        extra: Its further metrics by name.

    Raises:
        MessageError: The input cannot be framed.
        ProfileError: A metric failed, or gave what is no score.
    """
    kind = "mean" if pipeline.metric is None else pipeline.metric.kind
    kinds = {metric.name: metric.kind for metric in pipeline.extra_metrics}
    walk = Walk(pipeline, run=run, cache=ResultsCache())
    request = request_of(pipeline, example)
    scored: dict[bytes, tuple[Score, ...]] = {}
    found: dict[str, tuple[Score, ...] | None] = {}
    for config in configs:
        output = walk.output(request, config)
        if output.problem is None and output.digest not in scored:
            value = walk.value(pipeline.output, output)
            scored[output.digest] = (
                score_of(score, kind, value, example),
                *(score_of(function, kinds[name], value, example) for name, function in extra.items()),
            )
        found[pipeline.config_key(config)] = None if output.problem is not None else scored[output.digest]
    keys = [pipeline.config_key(config) for config in configs]
    ordered, *others = (_filled(found, keys, at) for at in range(1 + len(extra)))
    seconds, runs = _summed(walk.runs)
    return InputResult(
        name=example.name,
        group=example.group,
        scores=tuple(one.numerator for one in ordered),
        failures=sum(run.failed for run in walk.runs),
        seconds=seconds,
        runs=runs,
        denominators=tuple(one.denominator for one in ordered) if kind == "ratio" else (),
        others={
            name: tuple((one.numerator, one.denominator) for one in scores)
            for name, scores in zip(extra, others, strict=True)
        },
    )


def _filled(found: Mapping[str, tuple[Score, ...] | None], keys: Sequence[str], metric: int) -> list[Score]:
    """Scores of one metric in the order of these configs, 0 for those without an output."""
    scores = filled({key: None if every is None else every[metric] for key, every in found.items()})
    return [scores[key] for key in keys]


def _summed(done: Sequence[OperatorRun]) -> tuple[dict[str, float], dict[str, int]]:
    """CPU seconds and number of runs of each variant."""
    seconds: dict[str, float] = {}
    runs: dict[str, int] = {}
    for run in done:
        seconds[run.variant] = seconds.get(run.variant, 0.0) + run.cpu_s
        runs[run.variant] = runs.get(run.variant, 0) + (len(run.each) or 1)
    return seconds, runs
