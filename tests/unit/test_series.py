"""From timed calls to distributions: quantiles, intervals, weights, hiccups."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from compass_agent.measure.series import (
    Hiccups,
    Sample,
    distribution,
    hiccup_of,
    hiccups_of,
    rested_ratio,
    waited_unusually,
)


def sample(lasted_s: float, *, busy_s: float | None = None, **changes: Any) -> Sample:
    one = Sample(
        variant="read",
        work="page",
        at_s=0.0,
        lasted_s=lasted_s,
        busy_s=lasted_s if busy_s is None else busy_s,
        output_bytes=10,
    )
    return replace(one, **changes)


def test_without_hiccups_it_is_the_samples_own_distribution() -> None:
    rng = np.random.default_rng(3)
    for count in (1, 2, 7, 400):
        times = rng.gamma(3.0, 0.1, count)
        found = distribution([sample(float(value)) for value in times])
        assert found.mean_s == pytest.approx(times.mean())
        assert found.var_s2 == pytest.approx(times.var(ddof=1) if count > 1 else 0.0)
        assert found.p95_s == pytest.approx(np.quantile(times, 0.95))
        assert found.count == count


def test_calls_meet_hiccups_by_how_long_they_work() -> None:
    """Ten variants, one of which was hit: all get their share, and the sum is what was measured."""
    hiccups = Hiccups(sizes_s=(1.0, 3.0), busy_s=1000.0)
    short, long = (distribution([sample(work_s)] * 5, hiccups) for work_s in (0.01, 1.0))
    assert short.mean_s - 0.01 == pytest.approx(0.01 * 0.002 * 2.0, rel=1e-3)
    assert long.mean_s - 1.0 == pytest.approx(1.0 * 0.002 * 2.0, rel=1e-3)
    assert short.p95_s == pytest.approx(0.01), "far rarer than one call in twenty"
    assert long.var_s2 == pytest.approx(0.002 * (1 + 9) / 2 * 5 / 4, rel=0.01)


def test_hiccups_that_hit_many_calls_show_in_the_quantile() -> None:
    found = distribution([sample(1.0)] * 50, Hiccups(sizes_s=(0.5,), busy_s=5.0))
    assert found.p95_s > 1.3, "18% of the calls are hit"


def test_hiccups_are_pooled_over_variants() -> None:
    samples = [sample(2.0), sample(1.0, hiccup_s=0.3), sample(1.0, variant="find", hiccup_s=0.1)]
    assert hiccups_of(samples) == Hiccups(sizes_s=(0.3, 0.1), busy_s=4.0)
    assert hiccups_of([sample(2.0, busy_s=0.0)]).rate_hz == 0.0


@pytest.mark.parametrize(
    ("lasted_s", "busy_s", "usual_s", "unusual"),
    [
        (5.0, 5.0, 0.0, False),
        (5.0, 1.0, 0.0, True),
        (5.0, 1.0, 3.5, False),
        (0.0009, 0.0, 0.0, False),
        (1.0, 0.9, 0.0, False),
    ],
    ids=["heavy", "held up", "always waits", "too short to matter", "a little"],
)
def test_what_is_worth_a_repeat(lasted_s: float, busy_s: float, usual_s: float, unusual: bool) -> None:
    assert waited_unusually(lasted_s, busy_s, usual_s) is unusual


def test_what_comes_again_is_the_inputs_own() -> None:
    assert hiccup_of(5.0, 4.5) == 0.0
    assert hiccup_of(5.0, 1.0) == 4.0


def test_gaps_weigh_by_how_often_they_are_met() -> None:
    samples = [sample(1.0), sample(1.0), sample(1.0), sample(2.0, rested=True)]
    assert distribution(samples, busy_share=0.25).mean_s == pytest.approx(0.25 * 1 + 0.75 * 2)
    assert distribution(samples).mean_s == pytest.approx(1.25)
    assert distribution(samples[:3], busy_share=0.25).mean_s == 1.0


def test_the_cost_of_a_gap_is_seen_on_the_same_work() -> None:
    """Heavy pages after gaps, light ones back to back: that is no cost of gaps."""
    samples = [sample(1.0, work=1), sample(9.0, work=2, rested=True)]
    assert rested_ratio(samples) is None
    both = [*samples, sample(1.5, work=1, rested=True), sample(6.0, work=2)]
    assert rested_ratio(both) == pytest.approx(1.5)


def test_intervals_hold_what_they_promise() -> None:
    rng = np.random.default_rng(5)
    held_mean = held_p95 = 0
    rounds = 150
    for _ in range(rounds):
        times = rng.gamma(4.0, 0.25, 120)
        found = distribution([sample(float(value)) for value in times])
        assert found.mean_interval_s is not None
        assert found.p95_interval_s is not None
        held_mean += found.mean_interval_s[0] <= 1.0 <= found.mean_interval_s[1]
        held_p95 += found.p95_interval_s[0] <= 1.93842 <= found.p95_interval_s[1]
    # 95%, and what 150 rounds can tell: three standard deviations are 5 points.
    assert held_mean / rounds > 0.9
    assert held_p95 / rounds > 0.9


def test_few_calls_bound_no_quantile() -> None:
    rng = random.Random(0)
    assert distribution([sample(rng.random()) for _ in range(20)]).p95_interval_s is None
    assert distribution([sample(1.0)]).mean_interval_s is None
