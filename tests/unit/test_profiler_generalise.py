"""How far accuracies carry over to new inputs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from compass_coordinator.profiler.statistics.generalise import (
    betting_interval,
    bootstrap_interval,
    student_interval,
)
from support.score_tables import populations


def test_new_inputs_from_the_same_source_are_covered() -> None:
    print("seed 21")
    rng = np.random.default_rng(21)
    source = populations()["measured"]
    draws = rng.choice(source, size=(150, 50))
    truth = source.mean()
    student = [student_interval(scores, alpha=0.1) for scores in draws]
    bootstrap = [bootstrap_interval(scores, alpha=0.1, rng=rng, resamples=200) for scores in draws]
    for found in (student, bootstrap):
        missed = sum(not one.low <= truth <= one.high for one in found)
        assert missed <= stats.binom.ppf(1 - 1e-4, 150, 0.1)
        # And not by being vast: a method that never misses at 90% says too little.
        assert missed >= stats.binom.ppf(1e-3, 150, 0.1)


def test_betting_holds_and_is_the_widest() -> None:
    print("seed 22")
    scores = np.random.default_rng(22).choice(populations()["bimodal"], size=60)
    betting, student = betting_interval(scores, alpha=0.1), student_interval(scores, alpha=0.1)
    assert betting.low < student.low < student.high < betting.high
    assert betting.low <= populations()["bimodal"].mean() <= betting.high


def test_student_agrees_with_the_textbook() -> None:
    scores = np.array([0.2, 0.4, 0.5, 0.5, 0.9])
    low, high = stats.ttest_1samp(scores, 0).confidence_interval(0.95)
    found = student_interval(scores, alpha=0.05)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_ratios_weigh_inputs_by_their_counts() -> None:
    rng = np.random.default_rng(23)
    below = rng.integers(10, 50, 80).astype(np.float64)
    above = np.round(below * rng.uniform(0.5, 1.0, 80))
    truth = above.sum() / below.sum()
    student = student_interval(above, below, alpha=0.05)
    resampled = bootstrap_interval(above, below, alpha=0.05, rng=rng)
    assert (student.low + student.high) / 2 == pytest.approx(truth)
    assert (resampled.low, resampled.high) == pytest.approx((student.low, student.high), abs=0.01)


def test_all_inputs_of_the_set_still_leave_doubt() -> None:
    scores = populations()["measured"]
    assert student_interval(scores, alpha=0.05).width > 0.1


@pytest.mark.parametrize("scores", [[], [0.7]])
def test_one_input_says_nothing_of_its_source(scores: list[float]) -> None:
    for found in (
        student_interval(scores, alpha=0.05),
        bootstrap_interval(scores, alpha=0.05, rng=np.random.default_rng(1)),
    ):
        assert (found.low, found.high) == (0.0, 1.0)


def test_equal_scores_deceive_all_but_the_bettor() -> None:
    assert student_interval([1.0] * 20, alpha=0.05).width == 0
    assert betting_interval([1.0] * 20, alpha=0.05).low < 0.9
