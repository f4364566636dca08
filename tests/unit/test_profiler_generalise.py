"""How far accuracies carry over to new inputs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from compass_coordinator.profiler.statistics.generalise import betting_interval, student_interval
from support.score_tables import populations

ONES = np.ones(60)
"""Denominators of a mean."""


def test_new_inputs_from_the_same_source_are_covered() -> None:
    print("seed 21")
    rng = np.random.default_rng(21)
    source = populations()["measured"]
    draws = rng.choice(source, size=(150, 50))
    truth = source.mean()
    found = [student_interval(scores, ONES[:50], alpha=0.1) for scores in draws]
    missed = sum(not one.low <= truth <= one.high for one in found)
    assert missed <= stats.binom.ppf(1 - 1e-4, 150, 0.1)
    # And not by being vast: a method that never misses at 90% says too little.
    assert missed >= stats.binom.ppf(1e-3, 150, 0.1)


@pytest.mark.parametrize("name", list(populations()))
def test_bets_cover_whenever_one_looks(name: str) -> None:
    print("seed 24")
    source = populations()[name]
    draws = np.random.default_rng(24).choice(source, size=(100, 40))
    missed = 0
    for scores in draws:
        looks = [betting_interval(scores[:count], alpha=0.1) for count in range(1, 41, 3)]
        missed += any(not one.low <= source.mean() <= one.high for one in looks)
    assert missed <= stats.binom.ppf(1 - 1e-4, 100, 0.1)


def test_bets_of_little_at_stake_miss() -> None:
    """The simulation above would notice capital that is asked for too little."""
    print("seed 25")
    source = populations()["skewed"]
    found = [
        betting_interval(scores, alpha=0.95)
        for scores in np.random.default_rng(25).choice(source, size=(100, 40))
    ]
    missed = sum(not one.low <= source.mean() <= one.high for one in found)
    assert missed > stats.binom.ppf(1 - 1e-4, 100, 0.1)


@pytest.mark.parametrize("scores", [[-0.1], [0.5, 1.1], [np.nan]])
def test_bets_on_more_than_everything_are_refused(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="outside"):
        betting_interval(scores, alpha=0.05)


def test_right_and_wrong_are_mirror_images() -> None:
    scores = populations()["measured"]
    right, wrong = betting_interval(scores, alpha=0.05), betting_interval(1 - scores, alpha=0.05)
    assert (wrong.low, wrong.high) == pytest.approx((1 - right.high, 1 - right.low), abs=1e-5)


def test_bets_on_nothing_leave_everything_possible() -> None:
    found = betting_interval([], alpha=0.05)
    assert (found.low, found.high) == pytest.approx((0.0, 1.0), abs=1e-5)


def test_betting_holds_and_is_the_widest() -> None:
    print("seed 22")
    scores = np.random.default_rng(22).choice(populations()["bimodal"], size=60)
    betting, student = betting_interval(scores, alpha=0.1), student_interval(scores, ONES, alpha=0.1)
    assert betting.low < student.low < student.high < betting.high
    assert betting.low <= populations()["bimodal"].mean() <= betting.high


def test_student_agrees_with_the_textbook() -> None:
    scores = np.array([0.2, 0.4, 0.5, 0.5, 0.9])
    low, high = stats.ttest_1samp(scores, 0).confidence_interval(0.95)
    found = student_interval(scores, ONES[:5], alpha=0.05)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_ratios_weigh_inputs_by_their_counts() -> None:
    rng = np.random.default_rng(23)
    below = rng.integers(10, 50, 80).astype(np.float64)
    above = np.round(below * rng.uniform(0.5, 1.0, 80))
    truth = above.sum() / below.sum()
    student = student_interval(above, below, alpha=0.05)
    assert (student.low + student.high) / 2 == pytest.approx(truth)
    seen = rng.integers(0, 80, size=(2000, 80))
    resampled = np.quantile(above[seen].sum(axis=1) / below[seen].sum(axis=1), (0.025, 0.975))
    assert resampled == pytest.approx((student.low, student.high), abs=0.01)


def test_all_inputs_of_the_set_still_leave_doubt() -> None:
    scores = populations()["measured"]
    found = student_interval(scores, ONES[:40], alpha=0.05)
    assert found.high - found.low > 0.1


@pytest.mark.parametrize("scores", [[], [0.7]])
def test_one_input_says_nothing_of_its_source(scores: list[float]) -> None:
    found = student_interval(scores, ONES[: len(scores)], alpha=0.05)
    assert (found.low, found.high) == (0.0, 1.0)


def test_equal_scores_deceive_all_but_the_bettor() -> None:
    student = student_interval(ONES[:20], ONES[:20], alpha=0.05)
    assert student.low == student.high == 1.0
    assert betting_interval([1.0] * 20, alpha=0.05).low < 0.9
