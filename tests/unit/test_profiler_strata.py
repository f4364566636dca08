"""Strata: how inputs are grouped and ordered, and that estimates are unbiased, exactly."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compass_coordinator.profiler.statistics.sequential import Labels
from compass_coordinator.profiler.statistics.strata import (
    FLOOR,
    Strata,
    estimated,
    ordered,
    spreads_within,
    stratified,
)

SIZES = (4, 3)
LABELS = np.repeat([0, 1], SIZES)


def _rng(seed: int = 5) -> np.random.Generator:
    return np.random.default_rng(seed)


DRAWN = [0, 0, 1, 1]
"""Two inputs from each stratum."""
SAMPLES = np.array([[*a, *b] for a in combinations(range(4), 2) for b in combinations(range(4, 7), 2)])
"""All samples there are: what is unbiased is so over these, exactly."""


def test_inputs_that_differ_are_told_apart() -> None:
    features = np.array([[1e6, 3.0], [2.0, 3.0], [1e6 + 5, 3.0], [1.0, 3.0], [5e5, 3.0]])
    found = stratified(features, 3, _rng())
    assert found.labels.tolist() == [0, 1, 0, 1, 2]
    assert found.sizes.tolist() == [2, 2, 1]


@pytest.mark.parametrize(
    "features",
    [
        np.zeros((1, 2)),
        np.full((6, 2), 7.5),
        np.column_stack((np.full(6, 1e9 / 3), [1.0, 2.0, np.nan, 4.0, np.inf, 6.0])),
        np.empty((6, 0)),
    ],
)
def test_one_stratum_where_no_feature_tells_inputs_apart(features: np.ndarray) -> None:
    found = stratified(features, 4, _rng())
    assert found.labels.tolist() == [0] * len(features)
    assert found.sizes.tolist() == [len(features)]


def test_no_more_strata_than_distinct_inputs_and_none_empty() -> None:
    features = np.array([[1.0], [1.0], [2.0], [2.0], [2.0]])
    assert stratified(features, 4, _rng()).sizes.tolist() == [2, 3]


def test_the_same_seed_makes_the_same_strata_and_order() -> None:
    features = _rng(1).normal(size=(60, 3))
    first, second = (stratified(features, 5, _rng(2)) for _ in range(2))
    assert np.array_equal(first.labels, second.labels)
    assert np.array_equal(ordered(first, _rng(3)), ordered(second, _rng(3)))
    assert not np.array_equal(ordered(first, _rng(3)), ordered(first, _rng(4)))


def _drawn(sizes: npt.ArrayLike, spreads: npt.ArrayLike, total: int) -> Labels:
    """How many inputs of each stratum the order has among its first."""
    counts = np.asarray(sizes, dtype=np.intp)
    strata = Strata(labels=np.repeat(np.arange(len(counts)), counts), sizes=counts)
    order = ordered(strata, _rng(), spreads=spreads)
    assert sorted(order.tolist()) == list(range(len(order)))
    return np.bincount(strata.labels[order[:total]], minlength=len(counts))


def test_neyman_allocation_follows_size_times_spread() -> None:
    assert _drawn([50, 50], [3.0, 1.0], 40).tolist() == [30, 10]
    assert _drawn([90, 10], [1.0, 1.0], 50).tolist() == [45, 5]
    assert _drawn([60, 40], [0.0, 0.0], 10).tolist() == [6, 4]
    # What a stratum does not have goes to the others; one without spread keeps its floor.
    assert _drawn([10, 90], [20.0, 1.0], 50).tolist() == [10, 40]
    assert _drawn([50, 50], [1.0, 0.0], 20).tolist() == [18, 2]


@given(
    strata=st.lists(st.tuples(st.integers(1, 30), st.floats(0, 5)), min_size=1, max_size=6),
    total=st.integers(0, 120),
)
@settings(max_examples=40)
def test_every_prefix_has_its_floor_of_all_strata_first(strata: list[tuple[int, float]], total: int) -> None:
    sizes, spreads = np.array([s for s, _ in strata]), np.array([spread for _, spread in strata])
    counts, floors = _drawn(sizes, spreads, total), np.minimum(sizes, FLOOR)
    assert counts.sum() == min(total, sizes.sum())
    assert np.all(counts >= floors) if total >= floors.sum() else np.all(counts <= floors)


@given(spread=st.floats(0.2, 5))
@settings(max_examples=25)
def test_every_prefix_is_within_one_input_of_its_share(spread: float) -> None:
    for count in range(13, 21):
        # Beyond the floor of both, and before either is used up.
        wanted = np.array([spread, 1.0]) / (spread + 1) * count
        if wanted.min() >= FLOOR:
            assert np.abs(_drawn([20, 20], [spread, 1.0], count) - wanted).max() <= 1


def test_what_was_seen_keeps_its_place_when_the_rest_is_ordered_anew() -> None:
    strata = Strata(labels=np.repeat([0, 1], [30, 30]), sizes=np.array([30, 30]))
    seen = ordered(strata, _rng())[:20]
    order = ordered(strata, _rng(6), spreads=[4.0, 1.0], seen=seen)
    assert order[:20].tolist() == seen.tolist()
    assert sorted(order.tolist()) == list(range(60))
    # Ten of each so far; thirty-four in all are wanted as 27 to 7, so all that follow are of the first.
    assert strata.labels[order[20:34]].tolist() == [0] * 14


def test_within_a_stratum_every_input_comes_first_equally_often() -> None:
    strata = Strata(labels=np.array([0, 1, 0, 1, 0]), sizes=np.array([3, 2]))
    print("seed 7")
    rng = _rng(7)
    first = [next(i for i in ordered(strata, rng) if strata.labels[i] == 0) for _ in range(600)]
    assert np.bincount(first)[[0, 2, 4]] == pytest.approx(200, abs=4 * np.sqrt(600 * 2 / 9))


@given(values=st.lists(st.floats(0, 1), min_size=7, max_size=7))
@settings(max_examples=50)
def test_mean_and_variance_are_unbiased_over_all_samples(values: list[float]) -> None:
    scores = np.array(values)
    found = estimated(scores[SAMPLES], DRAWN, SIZES)
    assert found.mean.mean() == pytest.approx(scores.mean(), abs=1e-12)
    assert found.variance.mean() == pytest.approx(found.mean.var(), abs=1e-12)


def test_all_inputs_leave_no_variance() -> None:
    scores = _rng().random((3, 7))
    found = estimated(scores, LABELS, SIZES)
    assert found.mean == pytest.approx(scores.mean(axis=1))
    assert found.variance == pytest.approx(0)


def test_a_single_input_is_its_own_stratum() -> None:
    found = estimated([0.25], [0], [1])
    assert (found.mean[0], found.variance[0]) == (0.25, 0.0)


def test_a_single_sample_borrows_the_pooled_variance() -> None:
    found = estimated([0.2, 0.6, 0.5], [0, 0, 1], [10, 10])
    assert found.variance[0] == pytest.approx(0.25 * (0.8 * 0.08 / 2 + 0.9 * 0.08))


def test_a_stratum_without_samples_has_no_estimate() -> None:
    with pytest.raises(ValueError, match="no sample of stratum 1"):
        estimated([0.5, 0.5], [0, 0], [2, 2])


def test_spreads_of_few_samples_are_drawn_to_the_pooled_one() -> None:
    rng = _rng()
    wide, narrow = rng.normal(0, 3, 4000), rng.normal(0, 1, 4000)
    many = spreads_within(np.r_[wide, narrow], np.repeat([0, 1], 4000), 3)
    assert many[:2] == pytest.approx([3, 1], rel=0.05)
    few = spreads_within(np.r_[wide[:4], narrow[:4]], np.repeat([0, 1], 4), 3)
    assert few[0] / few[1] < np.std(wide[:4], ddof=1) / np.std(narrow[:4], ddof=1)
    # One that was never looked at is taken for an average one.
    assert few[2] == pytest.approx(np.sqrt((np.var(wide[:4], ddof=1) + np.var(narrow[:4], ddof=1)) / 2))
