"""How fast this machine runs the operators of a pipeline: requests like any other, with knobs in turn.

A pass runs the pipeline once on an example of the bundle's input set, operator after operator, as a request
would: what ran before has left its traces in the caches, and each operator sees the spread of inputs, and of
upstream choices, that requests will bring. (Running all variants of one operator in a row is quicker, and
measured up to a fifth less CPU time than the same calls took while serving.) Each pass takes, for every
operator, the variant that was tried least among those whose mean is not yet known well enough. Passes go on
until every mean is known, or the time is up; each variant is tried ``MIN_TRIES`` times in any case. Before
them every variant runs once, unmeasured, so that models are loaded and warm.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np

from compass_agent.operators import OperatorHost
from compass_agent.pace import Pace
from compass_shared.clock import Clock
from compass_shared.errors import InferenceError, ProfileError
from compass_shared.framing import framed_size
from compass_shared.pipeline import REQUEST, Knobs, Operator, Pipeline, variant_key
from compass_shared.profile import OperatorProfile, SiteProfile
from compass_shared.values import Example, Value

MIN_TRIES = 4
SETTLED_REL_SE = 0.04
"""A mean is known well enough when its standard error is this small beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedProgress:
    """How far a measurement is."""

    passes: int
    settled: int
    """Variants whose mean is known well enough."""
    variants: int
    spent_s: float


@dataclass(slots=True)
class _Samples:
    tries: int = 0
    lasted_s: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    @property
    def settled(self) -> bool:
        """Whether the mean is known well enough, or cannot be."""
        count = len(self.lasted_s)
        if self.tries < MIN_TRIES or count == 0:
            return self.tries >= MIN_TRIES
        return math.sqrt(_variance(self.lasted_s) / count) <= SETTLED_REL_SE * float(np.mean(self.lasted_s))


_Table: TypeAlias = dict[str, dict[int, _Samples]]
"""Operator -> index of the variant -> samples."""


def measure_speed(  # noqa: PLR0913  # keyword-only, each a thing of its own
    host: OperatorHost,
    pipeline: Pipeline,
    examples: Sequence[Example],
    *,
    site: str,
    pace: Pace,
    clock: Clock,
    rng: random.Random,
    budget_s: float = 20.0,
    max_passes: int = 400,
    emulated: str | None = None,
    on_progress: Callable[[SpeedProgress], None] = lambda _progress: None,
) -> SiteProfile:
    """Measure every operator variant of a pipeline here.

    Args:
        host: Runs operators.
        pipeline: What to measure.
        examples: Inputs to draw from.
        site: Name of this site.
        pace: Speed to run at.
        clock: For the time budget.
        rng: Draws examples and upstream configs.
        budget_s: No pass is started after this time, once every variant was tried ``MIN_TRIES`` times.
        max_passes: Enough passes, whatever is known by then.
        emulated: Name of the emulated device profile, for the record.
        on_progress: Called after every pass.

    Raises:
        ProfileError: If a variant failed on every input.
    """
    if not examples:
        raise ProfileError(f"pipeline {pipeline.name!r} brings no inputs to measure with")
    started_s = clock.now_s()
    _warm_up(host, pipeline, examples[0])
    table: _Table = {
        op.name: {index: _Samples() for index, _ in enumerate(op.variants())} for op in pipeline.operators
    }
    everything = [samples for variants in table.values() for samples in variants.values()]
    order = rng.sample(list(examples), len(examples))
    requests: list[int] = []
    for done in range(1, max_passes + 1):
        example = order[(done - 1) % len(order)]
        requests.append(framed_size(example.value))
        _pass(host, pipeline, example, pace, rng, table)
        spent_s = clock.now_s() - started_s
        settled = sum(samples.settled for samples in everything)
        on_progress(SpeedProgress(passes=done, settled=settled, variants=len(everything), spent_s=spent_s))
        tried = all(samples.tries >= MIN_TRIES for samples in everything)
        if settled == len(everything) or (tried and spent_s >= budget_s):
            break
    return SiteProfile(
        site=site,
        pipeline=pipeline.name,
        digest=pipeline.digest,
        operators=_summaries(pipeline, table),
        request_mean_bytes=float(np.mean(requests)),
        request_var_bytes2=_variance(requests),
        emulated=emulated,
    )


def _warm_up(host: OperatorHost, pipeline: Pipeline, example: Example) -> None:
    """Load every model and run it once, at full speed."""
    full_speed = Pace()
    upstream: dict[str, Value] = {REQUEST: example.value}
    for operator in pipeline.operators:
        value: Value = None
        for knobs in operator.variants():
            value, _ = _run(host, pipeline, operator, knobs, upstream, full_speed) or (value, 0.0)
        upstream[operator.name] = value


def _pass(
    host: OperatorHost, pipeline: Pipeline, example: Example, pace: Pace, rng: random.Random, table: _Table
) -> None:
    """Run the pipeline once; it ends early where an operator fails on what it was given."""
    upstream: dict[str, Value] = {REQUEST: example.value}
    for operator in pipeline.operators:
        index = _next_variant(table[operator.name], rng)
        samples = table[operator.name][index]
        samples.tries += 1
        result = _run(host, pipeline, operator, list(operator.variants())[index], upstream, pace)
        if result is None:
            return
        value, lasted_s = result
        samples.lasted_s.append(lasted_s)
        samples.sizes.append(framed_size(value))
        upstream[operator.name] = value


def _next_variant(variants: Mapping[int, _Samples], rng: random.Random) -> int:
    """The least tried of those that are not settled; any, when all are."""
    open_ones = [index for index, samples in variants.items() if not samples.settled] or list(variants)
    fewest = min(variants[index].tries for index in open_ones)
    return rng.choice([index for index in open_ones if variants[index].tries == fewest])


def _run(
    host: OperatorHost,
    pipeline: Pipeline,
    operator: Operator,
    knobs: Knobs,
    upstream: Mapping[str, Value],
    pace: Pace,
) -> tuple[Value, float] | None:
    """Run one variant; None if it fails on this input."""
    call = host.bind(pipeline.name, operator.name, knobs)
    inputs = {name: upstream[name] for name in operator.inputs}
    try:
        done = pace.run(operator.speed_class, partial(call, inputs))
    except InferenceError:
        return None
    return done.value, done.device_s


def _summaries(pipeline: Pipeline, table: _Table) -> dict[str, OperatorProfile]:
    summaries = {}
    for operator in pipeline.operators:
        for index, knobs in enumerate(operator.variants()):
            key = variant_key(operator.name, knobs)
            found = table[operator.name][index]
            if not found.lasted_s:
                raise ProfileError(f"{key} failed on every input it was measured with")
            summaries[key] = _summary(key, found)
    return summaries


def _summary(variant: str, found: _Samples) -> OperatorProfile:
    return OperatorProfile(
        variant=variant,
        mean_s=float(np.mean(found.lasted_s)),
        var_s2=_variance(found.lasted_s),
        p95_s=float(np.quantile(found.lasted_s, 0.95)),
        count=len(found.lasted_s),
        output_mean_bytes=float(np.mean(found.sizes)),
        output_var_bytes2=_variance(found.sizes),
    )


def _variance(values: Sequence[float]) -> float:
    return float(np.var(values, ddof=1)) if len(values) > 1 else 0.0
