"""How fast this machine runs the operators of a pipeline: requests like any other, with knobs in turn.

Each pass takes, for every operator, the variant that was tried least among those whose mean is not yet known
well enough, so that each operator sees the spread of inputs, and of upstream choices, that requests will
bring. Passes go on until every mean is known, or the time is up; each variant is tried ``MIN_TRIES`` times in
any case. Before them every variant runs once, unmeasured, so that models are loaded and warm.

Of sequences a pass is a clip. A stateful operator keeps its variant all the way; others, which each request
finds as new, take turns from request to request, so that each meets whatever there is upstream. Requests of
one clip are alike: no mean counts as known before it was tried on as many requests as two clips have.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from compass_agent.measure.passes import Passes
from compass_agent.measure.series import Hiccups, Sample, distribution, hiccups_of, rested_ratio
from compass_agent.measure.turns import Turns
from compass_agent.operators import OperatorHost
from compass_agent.pace import Pace
from compass_shared.clock import Clock
from compass_shared.errors import ProfileError
from compass_shared.framing import framed_size
from compass_shared.items import items_of
from compass_shared.pipeline import Pipeline
from compass_shared.profile import OperatorProfile, SiteProfile, at_items
from compass_shared.values import Example

MAX_GAP_S = 2.0
"""A machine that idled for so long is as idle as it gets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedProgress:
    """How far a measurement is."""

    passes: int
    settled: int
    """Variants whose mean is known well enough."""
    variants: int
    spent_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Gaps:
    """What idle gaps do to calls, where they were measured."""

    rate_hz: float
    gap_s: float
    busy_share: float
    """Share of time for which requests at that rate keep the machine busy."""
    rested_ratio: float
    """How many times as long a call takes after the gap."""

    def __str__(self) -> str:
        return (
            f"after {self.gap_s:.2g} s of idling a call takes {self.rested_ratio:.2f} times as long; "
            f"at {self.rate_hz:g} requests/s {1 - self.busy_share:.0%} of the calls find the machine idle: "
            "the figures mix both in that proportion"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedReport:
    """A profile with what was found out about the machine on the way."""

    profile: SiteProfile
    samples: tuple[Sample, ...]
    hiccups: Hiccups
    gaps: Gaps | None = None
    failed: Mapping[str, str] = field(default_factory=dict)
    """Variants without a figure: they failed on every input, or never got one -> why."""


def measure_speed(  # noqa: PLR0913  # keyword-only, each a thing of its own
    host: OperatorHost,
    pipeline: Pipeline,
    examples: Sequence[Example],
    *,
    site: str,
    pace: Pace,
    clock: Clock,
    rng: random.Random,
    variants: Collection[str] | None = None,
    budget_s: float = 20.0,
    max_passes: int = 400,
    warm_up_runs: int = 1,
    batch: int = 1,
    rate_hz: float | None = None,
    emulated: str | None = None,
    rest: Callable[[float], object] = time.sleep,
    before_pass: Callable[[], object] = lambda: None,
    on_progress: Callable[[SpeedProgress], None] = lambda _progress: None,
) -> SpeedReport:
    """Measure operator variants of a pipeline here.

    Args:
        host: Runs operators.
        pipeline: What to measure.
        examples: Inputs to draw from.
        site: Name of this site.
        pace: Speed to run at.
        clock: For the time budget.
        rng: Draws examples and upstream configs.
        variants: Keys to measure; None: all. What merely feeds them runs with its first variant, and is in
            the profile as well.
        budget_s: No pass is started after this time, once every variant was tried ``MIN_TRIES`` times.
        max_passes: Enough passes, whatever is known by then.
        warm_up_runs: Most unmeasured runs of each variant.
        batch: Requests that are called for in one go; above 1 the times are those of the whole batch, and
            the profile is not one to plan with.
        rate_hz: Requests per second that the machine will serve: every pass is done back to back and again
            after the idle gap of that rate, and both are mixed as such requests would meet them. None: back
            to back alone.
        emulated: Name of the emulated device profile, for the record.
        rest: Waits for some seconds.
        before_pass: Called before every pass; may wait, which does not count.
        on_progress: Called after every pass.

    Raises:
        ConfigError: If there is no such variant.
        ModelLoadError: If no model of an operator can be had or opened.
        ProfileError: If there is no input, or all variants failed on every one (all that were asked for).
    """
    if not examples:
        raise ProfileError(f"pipeline {pipeline.name!r} brings no inputs to measure with")
    passes = Passes(host, pipeline, examples, pace=pace, clock=clock, variants=variants, batch=batch)
    passes.warm_up(warm_up_runs)
    gap_s, busy_share = _gap(passes, rate_hz)
    turns = Turns(passes, rng, longest=max(len(passes.requests(at)) for at in range(len(examples))))
    order = rng.sample(range(len(examples)), len(examples))
    samples: list[Sample] = []
    requests: list[int] = []
    waited_s = 0.0
    for done in range(1, max_passes + 1):
        began_s = clock.now_s()
        before_pass()
        waited_s += clock.now_s() - began_s
        example = order[(done - 1) % len(order)]
        requests += map(framed_size, passes.requests(example))
        choices = turns.choices(len(passes.requests(example)))
        ran = passes.run(example, choices)
        turns.count(ran)
        samples += ran.samples
        if gap_s > 0:
            samples += passes.run(example, choices, rest=partial(rest, gap_s)).samples
        spent_s = passes.elapsed_s - waited_s
        settled = turns.settled()
        on_progress(SpeedProgress(passes=done, settled=settled, variants=turns.variants, spent_s=spent_s))
        if turns.all_settled() or (turns.all_tried() and spent_s >= budget_s):
            break
    hiccups = hiccups_of(samples)
    profile = SiteProfile(
        site=site,
        pipeline=pipeline.name,
        digest=pipeline.digest,
        operators=profiles_of(passes, samples, hiccups, busy_share=busy_share),
        request_mean_bytes=float(np.mean(requests)),
        request_var_bytes2=_variance(requests),
        emulated=emulated,
    )
    ratio = rested_ratio(samples)
    gaps = None
    if rate_hz is not None and ratio is not None and busy_share is not None:
        gaps = Gaps(rate_hz=rate_hz, gap_s=gap_s, busy_share=busy_share, rested_ratio=ratio)
    return SpeedReport(
        profile=profile,
        samples=tuple(samples),
        hiccups=hiccups,
        gaps=gaps,
        failed=without_figures(passes, profile),
    )


def profiles_of(
    passes: Passes, samples: Sequence[Sample], hiccups: Hiccups, *, busy_share: float | None = None
) -> dict[str, OperatorProfile]:
    """Variant -> what its calls take and give out.

    Those that always fail are left out: the others are measured.

    Raises:
        ProfileError: If none that was wanted has a sample.
    """
    by_variant: dict[str, list[Sample]] = {}
    for sample in samples:
        by_variant.setdefault(sample.variant, []).append(sample)
    if not passes.wanted & by_variant.keys():
        raise ProfileError(f"{min(passes.wanted)} failed on every input it was measured with")
    profiles: dict[str, OperatorProfile] = {}
    for keys in passes.choices.values():
        found = {key: by_variant[key] for key in keys if key in by_variant}
        shared = _shared_items([sample for own in found.values() for sample in own])
        for key, own in found.items():
            profile = _profile(key, own, hiccups, busy_share)
            memory_bytes = float(passes.memory_bytes.get(key, 0))
            profiles[key] = replace(
                profile if shared is None else at_items(profile, *shared), memory_bytes=memory_bytes
            )
    return profiles


def _shared_items(samples: Sequence[Sample]) -> tuple[float, float] | None:
    """Mean and variance of the items that an operator was given, None if it is no fan-out.

    They are what there was upstream, whichever variant took its turn: the few calls of one were given more,
    or fewer, by chance.
    """
    counts = [sample.items for sample in samples if sample.items is not None]
    return (float(np.mean(counts)), _variance(counts)) if counts else None


def without_figures(passes: Passes, profile: SiteProfile) -> dict[str, str]:
    """Variants that were to be measured and could not be -> why."""
    failed = "it failed on every input it was measured with, or got none"
    missing = passes.wanted - profile.operators.keys()
    return {key: passes.unusable.get(key, failed) for key in sorted(missing)}


def _gap(passes: Passes, rate_hz: float | None) -> tuple[float, float | None]:
    """Idle gap between requests at a rate and the share of time in which they keep the machine busy."""
    if rate_hz is None or not rate_hz > 0:
        return 0.0, None
    requests = len(passes.requests(0))
    first = passes.run(0, [{name: keys[0] for name, keys in passes.choices.items()}] * requests)
    busy_s = sum(sample.lasted_s for sample in first.samples) / requests
    return min(MAX_GAP_S, max(0.0, 1 / rate_hz - busy_s)), min(1.0, rate_hz * busy_s)


def _profile(
    variant: str, samples: Sequence[Sample], hiccups: Hiccups, busy_share: float | None
) -> OperatorProfile:
    times = distribution(samples, hiccups, busy_share=busy_share)
    sizes = [sample.output_bytes for sample in samples]
    items = items_of([(sample.items, sample.lasted_s) for sample in samples])
    return OperatorProfile(
        variant=variant,
        mean_s=times.mean_s,
        var_s2=times.var_s2,
        p95_s=times.p95_s,
        count=times.count,
        output_mean_bytes=float(np.mean(sizes)),
        output_var_bytes2=_variance(sizes),
        mean_interval_s=times.mean_interval_s,
        p95_interval_s=times.p95_interval_s,
        items_mean=items.mean,
        items_var=items.var,
        item_s=items.item_s,
    )


def _variance(values: Sequence[float]) -> float:
    return float(np.var(values, ddof=1)) if len(values) > 1 else 0.0
