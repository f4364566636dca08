"""What accuracies certainly are not, and what a config's own scores say of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from compass_coordinator.profiler.selective.alone import UNKNOWN_VAR, believe_alone
from compass_coordinator.profiler.selective.certain import FEWEST, bounds
from compass_coordinator.profiler.selective.score_model import Scores
from compass_coordinator.profiler.selective.space import Floats, Indices
from compass_coordinator.profiler.statistics.sequential import Intervals
from compass_coordinator.profiler.statistics.strata import Strata, ordered
from support.score_tables import score_table

INPUTS = 60
TABLE = score_table(4, INPUTS).T
"""(inputs, configs)."""
LABELS = np.digitize(TABLE.mean(axis=1), [0.6, 0.85])
STRATA = Strata(labels=LABELS, sizes=np.bincount(LABELS))
LEVELS = np.arange(4)[:, np.newaxis]
SEEN = np.array([INPUTS, 40, 20, 10])


def _seen(table: Floats, order: Indices, seen: Indices) -> Scores:
    values = np.where(np.arange(INPUTS)[:, np.newaxis] < seen, table[order], np.nan)
    features = np.zeros((INPUTS, 0))
    return Scores(values=values, seen=seen, features=features, labels=LABELS[order], levels=LEVELS)


ANYTHING = Intervals(low=np.zeros(4), high=np.ones(4))


def _bounds(scores: Scores, so_far: Intervals = ANYTHING) -> Intervals:
    return bounds(scores, 0.05, so_far, np.flatnonzero(scores.seen))


@pytest.mark.parametrize("spreads", [None, [0.1, 0.5, 0.2]])
def test_bounds_do_not_exclude_the_truth(spreads: list[float] | None) -> None:
    """In an order balanced over strata, evenly or not; measured whole or not, paired or not."""
    rng = np.random.default_rng(3)
    truth, missed, width = TABLE.mean(axis=0), 0, np.zeros(4)
    for seen in (SEEN, np.array([0, 40, 20, 10])):
        for _ in range(8):
            order = ordered(STRATA, rng, spreads=spreads)
            found = _bounds(_seen(TABLE, order, seen))
            missed += int(((truth < found.low - 1e-9) | (truth > found.high + 1e-9)).sum())
            width += (found.high - found.low) / 16
    # 48 intervals at 5%, conservative: 2.4 would be the mean of exact ones.
    assert missed <= 1
    assert (width[1:] < 0.95).all()
    assert width[1] < width[2] < width[3]


def test_bounds_of_what_was_measured_whole_are_the_accuracy_and_of_little_are_none() -> None:
    order = ordered(STRATA, np.random.default_rng(0))
    found = _bounds(_seen(TABLE, order, np.array([INPUTS, FEWEST - 1, 0, INPUTS])))
    assert found.low[[0, 3]] == pytest.approx(TABLE[:, [0, 3]].mean(axis=0))
    assert np.array_equal(found.low[[0, 3]], found.high[[0, 3]])
    assert found.low[1:3].tolist() == [0.0, 0.0]
    assert found.high[1:3].tolist() == [1.0, 1.0]


def test_differences_to_a_config_that_is_known_narrow_bounds() -> None:
    order = ordered(STRATA, np.random.default_rng(1))
    hits = (np.arange(INPUTS) % 3 > 0).astype(np.float64)
    twin = np.column_stack([hits, 0.98 * hits, TABLE[:, 2], TABLE[:, 3]])
    paired = _bounds(_seen(twin, order, np.array([INPUTS, 30, 0, 0])))
    alone = _bounds(_seen(twin, order, np.array([0, 30, 0, 0])))
    assert paired.high[1] - paired.low[1] < 0.8 * (alone.high[1] - alone.low[1])
    assert paired.low[1] <= twin[:, 1].mean() <= paired.high[1]


def test_bounds_only_become_narrower_and_only_those_of_what_was_measured_since() -> None:
    order = ordered(STRATA, np.random.default_rng(4))
    first = _bounds(_seen(TABLE, order, np.array([0, 20, 20, 10])))
    now = _seen(TABLE, order, np.array([0, 40, 40, 10]))
    later = bounds(now, 0.05, first, np.array([1]))
    assert (later.low >= first.low).all()
    assert (later.high <= first.high).all()
    assert (later.high - later.low)[1] < (first.high - first.low)[1]
    assert np.array_equal(later.low[2:], first.low[2:])
    assert np.array_equal(later.high[2:], first.high[2:])


# --- alone ----------------------------------------------------------------------------------------


def test_alone_a_config_is_its_own_sample() -> None:
    order = np.random.default_rng(2).permutation(INPUTS)
    scores = _seen(TABLE, order, np.array([INPUTS, 30, 1, 0]))
    found = believe_alone(scores)
    assert found.mean[0] == pytest.approx(scores.values[:, 0].mean())
    strata = [scores.values[:30, 1][scores.labels[:30] == stratum].mean() for stratum in range(3)]
    assert found.mean[1] == pytest.approx(np.average(strata, weights=STRATA.sizes))
    assert found.mean[2] == scores.values[0, 2], "of one stratum nothing is known of the others"
    assert found.mean[3] == 0.5
    assert found.spread[0] == 0.0
    assert found.spread[3] == pytest.approx(np.sqrt(UNKNOWN_VAR))
    own = np.nanstd(scores.values[:, 1], ddof=1)
    assert 0.5 * own * np.sqrt(0.5 / 30) < found.spread[1] < own * np.sqrt(0.5 / 30)
    assert 0 < found.spread[2] <= found.spread[3]
    assert not (found.covariance - np.diag(np.diag(found.covariance))).any(), "nothing about others"


def test_alone_before_anything_was_measured() -> None:
    found = believe_alone(_seen(TABLE, np.arange(INPUTS), np.zeros(4, dtype=np.intp)))
    assert found.mean.tolist() == [0.5] * 4
    assert found.spread == pytest.approx(np.sqrt(UNKNOWN_VAR))


@pytest.mark.parametrize("spreads", [None, [0.2, 0.2, 0.4]])
def test_alone_estimates_are_unbiased_and_cover(spreads: list[float] | None) -> None:
    """In orders that are balanced over strata, evenly or not."""
    rng = np.random.default_rng(6)
    truth, seen = TABLE.mean(axis=0), np.array([12, 20, 30, 40])
    means, errors, plain = (np.empty((400, 4)) for _ in range(3))
    for run in range(400):
        scores = _seen(TABLE, ordered(STRATA, rng, spreads=spreads), seen)
        found = believe_alone(scores)
        means[run], errors[run], plain[run] = found.mean, found.spread, np.nanmean(scores.values, axis=0)
    standard, noticed = means.std(axis=0), means.std(axis=0) / 5
    assert (np.abs(means.mean(axis=0) - truth) < noticed).all()
    assert spreads is None or (np.abs(plain.mean(axis=0) - truth) > noticed).all(), "plain means are not"
    # With few samples the common variance counts, which is a wide one.
    assert np.sqrt((errors**2).mean(axis=0))[1:] == pytest.approx(standard[1:], rel=0.2)
    assert 0.93 < (np.abs(means - truth) <= 1.96 * errors).mean() < 0.98


def test_alone_one_sample_of_each_stratum_is_no_certainty() -> None:
    order = np.concatenate([np.flatnonzero(one == LABELS)[:1] for one in range(3)])
    order = np.concatenate([order, np.setdiff1d(np.arange(INPUTS), order)])
    scores = _seen(TABLE, order, np.array([3, 3, 3, 40]))
    assert (believe_alone(scores).spread[:3] > 0.02).all()


def test_alone_intervals_cover() -> None:
    rng = np.random.default_rng(5)
    inside = []
    for _ in range(150):
        scores = _seen(TABLE, rng.permutation(INPUTS), np.array([20, 30, 40, 50]))
        found = believe_alone(replace(scores, levels=LEVELS))
        inside.append(np.abs(found.mean - TABLE.mean(axis=0)) <= 1.96 * found.spread)
    assert 0.9 < np.mean(inside) < 0.99
