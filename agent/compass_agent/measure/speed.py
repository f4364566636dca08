"""How fast this machine runs the operators of a pipeline: a few repeats of every variant on real inputs.

Each round takes one example of the bundle's input set and a config drawn at random, runs the pipeline once
with it, and then every variant of every operator on what that run left upstream of it. So each variant
sees the spread of inputs, and of upstream choices, that requests will bring. A variant whose mean is known
well enough is left out of later rounds unless something below it needs its output: a detector takes the same
time on every page and is done soon, a recogniser's time goes with the lines of text and needs many pages.
Rounds go on until every mean is known, or the time is up; at least ``MIN_ROUNDS`` are made. Before them every
variant runs once, unmeasured, so that models are loaded and warm.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from compass_agent.operators import OperatorHost
from compass_agent.pace import Pace
from compass_shared.clock import Clock
from compass_shared.errors import InferenceError, ProfileError
from compass_shared.framing import framed_size
from compass_shared.pipeline import REQUEST, Knobs, Operator, Pipeline, variant_key
from compass_shared.profile import OperatorProfile, SiteProfile
from compass_shared.values import Example, Value

MIN_ROUNDS = 4
SETTLED_REL_SE = 0.04
"""A mean is known well enough when its standard error is this small beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedProgress:
    """How far a measurement is."""

    rounds: int
    max_rounds: int
    spent_s: float


@dataclass(slots=True)
class _Samples:
    lasted_s: list[float] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    @property
    def settled(self) -> bool:
        """Whether the mean is known well enough."""
        count = len(self.lasted_s)
        if count < MIN_ROUNDS:
            return False
        return math.sqrt(_variance(self.lasted_s) / count) <= SETTLED_REL_SE * float(np.mean(self.lasted_s))


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
    max_rounds: int = 60,
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
        budget_s: No round is started after this time, once there are ``MIN_ROUNDS``.
        max_rounds: Enough rounds, whatever is known by then.
        emulated: Name of the emulated device profile, for the record.
        on_progress: Called after every round.

    Raises:
        ProfileError: If a variant failed on every input.
    """
    if not examples:
        raise ProfileError(f"pipeline {pipeline.name!r} brings no inputs to measure with")
    started_s = clock.now_s()
    _warm_up(host, pipeline, examples[0])
    samples: dict[str, _Samples] = {}
    requests: list[int] = []
    drawn = rng.sample(list(examples), min(max_rounds, len(examples)))
    for done, example in enumerate(drawn, start=1):
        requests.append(framed_size(example.value))
        _round(host, pipeline, example, pace, rng, samples)
        spent_s = clock.now_s() - started_s
        on_progress(SpeedProgress(rounds=done, max_rounds=len(drawn), spent_s=spent_s))
        if done >= MIN_ROUNDS and (spent_s >= budget_s or all(found.settled for found in samples.values())):
            break
    return SiteProfile(
        site=site,
        pipeline=pipeline.name,
        digest=pipeline.digest,
        operators={key: _summary(key, found) for key, found in _complete(pipeline, samples).items()},
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


def _round(
    host: OperatorHost,
    pipeline: Pipeline,
    example: Example,
    pace: Pace,
    rng: random.Random,
    samples: dict[str, _Samples],
) -> None:
    upstream: dict[str, Value] = {REQUEST: example.value}
    for operator in pipeline.operators:
        variants = list(operator.variants())
        taken = rng.randrange(len(variants))
        for index, knobs in enumerate(variants):
            found = samples.setdefault(variant_key(operator.name, knobs), _Samples())
            if found.settled and index != taken:
                continue
            result = _run(host, pipeline, operator, knobs, upstream, pace)
            if result is None:
                if index == taken:
                    return  # nothing below can run on this example
                continue
            value, lasted_s = result
            found.lasted_s.append(lasted_s)
            found.sizes.append(framed_size(value))
            if index == taken:
                upstream[operator.name] = value


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


def _complete(pipeline: Pipeline, samples: Mapping[str, _Samples]) -> Mapping[str, _Samples]:
    for operator in pipeline.operators:
        for knobs in operator.variants():
            key = variant_key(operator.name, knobs)
            if key not in samples or not samples[key].lasted_s:
                raise ProfileError(f"{key} failed on every input it was measured with")
    return samples


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
