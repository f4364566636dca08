"""How fast a machine is when it has worked for minutes: the same rounds of requests over and over.

A phone that starts fast may throttle, and not all of its operators alike: what is fastest in the first minute
need not be so in the thirtieth. Every round does exactly the same work (the same inputs through the same
variants), so that the times of one work differ by nothing but time. If they drift, the figures are those of
the last third.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from compass_agent.measure.passes import Passes
from compass_agent.measure.series import Hiccups, Sample, hiccups_of
from compass_agent.measure.speed import profiles_of, without_figures
from compass_agent.measure.trend import Trend, last_third, swaps, trend_of
from compass_agent.operators import OperatorHost
from compass_agent.pace import Pace
from compass_shared.clock import Clock
from compass_shared.errors import ProfileError
from compass_shared.framing import framed_size
from compass_shared.pipeline import Pipeline
from compass_shared.profile import SiteProfile
from compass_shared.values import Example

INPUTS = 4
"""Inputs of a round; more would make it longer, and fewer rounds fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """Two variants of one operator whose order changed while the machine worked."""

    first: str
    """Faster at the beginning."""
    last: str
    """Faster at the end."""

    def __str__(self) -> str:
        return f"{self.first} is faster than {self.last} at first, and slower in the end"


@dataclass(frozen=True, slots=True, kw_only=True)
class SustainedReport:
    """What minutes of work showed."""

    profile: SiteProfile
    hiccups: Hiccups
    trend: Trend | None
    """Of all calls together; None if too few rounds fitted into the time."""
    trends: Mapping[str, Trend]
    """Variant -> its own, where it was found; their rate of false alarms is that of one, all together."""
    swaps: tuple[Swap, ...]
    failed: Mapping[str, str]
    """Variants without a figure -> why."""


def measure_sustained(  # noqa: PLR0913  # keyword-only, each a thing of its own
    host: OperatorHost,
    pipeline: Pipeline,
    examples: Sequence[Example],
    *,
    site: str,
    pace: Pace,
    clock: Clock,
    duration_s: float,
    variants: Collection[str] | None = None,
    emulated: str | None = None,
    on_progress: Callable[[float], None] = lambda _share: None,
) -> SustainedReport:
    """Work for some minutes and see whether the machine keeps its speed.

    Args:
        host: Runs operators.
        pipeline: What to measure.
        examples: Inputs; the first few make up the rounds.
        site: Name of this site.
        pace: Speed to run at.
        clock: For the duration.
        duration_s: Time to work for; the round under way is finished.
        variants: Keys to measure; None: all.
        emulated: Name of the emulated device profile, for the record.
        on_progress: Told the share of the time that is over, after every pass.

    Raises:
        ConfigError: If there is no such variant.
        ModelLoadError: If no model of an operator can be had or opened.
        ProfileError: If there is no input, or all variants failed on every one.
    """
    if not examples:
        raise ProfileError(f"pipeline {pipeline.name!r} brings no inputs to measure with")
    examples = examples[:INPUTS]
    passes = Passes(host, pipeline, examples, pace=pace, clock=clock, variants=variants)
    passes.warm_up()
    samples: list[Sample] = []
    started_s = passes.elapsed_s
    while not samples or passes.elapsed_s - started_s < duration_s:
        ran = _round(passes, len(examples), lambda: on_progress((passes.elapsed_s - started_s) / duration_s))
        if not ran:
            raise ProfileError(f"pipeline {pipeline.name!r} failed on every input it was measured with")
        samples += ran
    trend, trends = trend_of(samples), _trends(samples)
    changes = (trend is not None and trend.found) or bool(trends)
    used = last_third(samples) if changes else samples
    sizes = [framed_size(value) for at in range(len(examples)) for value in passes.requests(at)]
    hiccups = hiccups_of(used)
    profile = SiteProfile(
        site=site,
        pipeline=pipeline.name,
        digest=pipeline.digest,
        operators=profiles_of(passes, used, hiccups),
        request_mean_bytes=float(np.mean(sizes)),
        request_var_bytes2=float(np.var(sizes, ddof=1)) if len(sizes) > 1 else 0.0,
        emulated=emulated,
    )
    return SustainedReport(
        profile=profile,
        hiccups=hiccups,
        trend=trend,
        trends=trends,
        swaps=tuple(_swaps(passes, samples)) if changes else (),
        failed=without_figures(passes, profile),
    )


def _round(passes: Passes, inputs: int, after: Callable[[], None]) -> list[Sample]:
    """The first variants on every input, then each other one in the place of its operator's first.

    So all variants of an operator are given the same, and can be compared.
    """
    samples: list[Sample] = []
    for chosen in _turns(passes.choices):
        for example in range(inputs):
            samples += passes.run(example, [chosen] * len(passes.requests(example))).samples
            after()
    return samples


def _turns(choices: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    first = {name: keys[0] for name, keys in choices.items()}
    return [first, *({**first, name: key} for name, keys in choices.items() for key in keys[1:])]


def _trends(samples: Sequence[Sample]) -> dict[str, Trend]:
    by_variant: dict[str, list[Sample]] = {}
    for sample in samples:
        by_variant.setdefault(sample.variant, []).append(sample)
    # Bonferroni: a hundred steady variants must not show a trend by their number.
    found = {
        key: replace(trend, p_value=min(1.0, trend.p_value * len(by_variant)))
        for key, own in by_variant.items()
        if (trend := trend_of(own)) is not None
    }
    return {key: trend for key, trend in found.items() if trend.found}


def _swaps(passes: Passes, samples: Sequence[Sample]) -> list[Swap]:
    start_s, end_s = min(sample.at_s for sample in samples), max(sample.at_s for sample in samples)
    early = _times([sample for sample in samples if sample.at_s <= start_s + (end_s - start_s) / 3])
    late = _times(last_third(samples))
    return [
        Swap(first=first, last=last)
        for keys in passes.choices.values()
        for first, last in swaps(_typical(early, keys), _typical(late, keys))
    ]


_Times: TypeAlias = dict[str, dict[Hashable, list[float]]]
"""Variant -> work -> times."""


def _times(samples: Sequence[Sample]) -> _Times:
    times: _Times = {}
    for sample in samples:
        times.setdefault(sample.variant, {}).setdefault(sample.work, []).append(sample.lasted_s)
    return times


def _typical(times: _Times, keys: Sequence[str]) -> dict[str, float]:
    """Variant of one operator -> sum of its median times, over the works that all of them did."""
    found = {key: times[key] for key in keys if key in times}
    common = set.intersection(*(set(works) for works in found.values())) if found else set()
    return {key: sum(float(np.median(works[work])) for work in common) for key, works in found.items()}
