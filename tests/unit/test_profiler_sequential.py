"""Time-uniform intervals: they hold whenever one looks, exactly so over all orders of small input sets."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from compass_coordinator.profiler.statistics import stratified_intervals
from compass_coordinator.profiler.statistics.approximate import FEWEST, approximate_intervals, deviations
from compass_coordinator.profiler.statistics.sequential import (
    Intervals,
    adjusted_intervals,
    difference_intervals,
    mean_interval,
    mean_intervals,
    ratio_difference_intervals,
    ratio_intervals,
)
from compass_coordinator.profiler.statistics.strata import estimated, ordered, stratified
from compass_coordinator.profiler.statistics.stratified_intervals import product_intervals, union_intervals
from support.confidence import empirical_bernstein_ends, hoeffding_ends
from support.score_tables import populations, prefixes, score_table, shuffled

Floats = npt.NDArray[np.float64]
SLACK = 1e-9
BISECTED = 2e-6
"""How exactly ends are found."""
SMALL_SETS = [(0, 0, 0, 0, 0, 1), (0, 1, 1, 1, 1, 1), (0, 0, 0, 1, 1, 1), (0.1, 0.3, 0.5, 0.5, 0.9, 1)]


def _missed(found: Intervals, truth: float | np.floating, looks: int) -> npt.NDArray[np.bool_]:
    """(orders,) whether the truth was outside at any of the looks."""
    outside = (found.low - SLACK > float(truth)) | (found.high + SLACK < float(truth))
    return np.asarray(outside.reshape(-1, looks).any(axis=1), dtype=np.bool_)


def _looks(rows: Floats) -> Floats:
    """(rows x samples, samples) every prefix of every row."""
    return prefixes(rows).reshape(-1, rows.shape[1])


def _most_misses(orders: int, alpha: float) -> int:
    """What a method that misses with probability alpha exceeds once in 10,000 such tests."""
    return int(stats.binom.ppf(1 - 1e-4, orders, alpha))


@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.6])
@pytest.mark.parametrize("values", SMALL_SETS)
def test_means_are_covered_in_all_but_alpha_of_all_orders(values: tuple[float, ...], alpha: float) -> None:
    rows = np.array(list(permutations(values)), dtype=np.float64)
    found = mean_intervals(_looks(rows), population=6, alpha=alpha)
    assert _missed(found, np.mean(values), looks=6).mean() <= alpha


@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.6])
def test_ratios_are_covered_in_all_but_alpha_of_all_orders(alpha: float) -> None:
    above, below = np.array([0.0, 3.0, 1.0, 9.0, 0.0, 2.0]), np.array([7.0, 3.0, 4.0, 10.0, 0.0, 2.0])
    order = np.array(list(permutations(range(6))))
    found = ratio_intervals(
        _looks(above[order]), _looks(below[order]), population=6, alpha=alpha, largest=10.0
    )
    assert _missed(found, above.sum() / below.sum(), looks=6).mean() <= alpha


@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.6])
@pytest.mark.parametrize("reference", [(0, 0, 0, 1, 1, 1), (1, 1, 0, 0, 0, 0)])
def test_means_are_covered_however_wrong_the_reference(reference: tuple[float, ...], alpha: float) -> None:
    values, known = np.array([0.0, 0.2, 0.0, 1.0, 1.0, 0.8]), np.array(reference, dtype=np.float64)
    order = np.array(list(permutations(range(6))))
    found = adjusted_intervals(
        _looks(values[order]), _looks(known[order]), known.mean(), population=6, alpha=alpha
    )
    assert _missed(found, 0.5, looks=6).mean() <= alpha


@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.6])
@pytest.mark.parametrize("method", [union_intervals, product_intervals])
def test_strata_are_covered_in_all_but_alpha_of_all_orders(method: object, alpha: float) -> None:
    labels = np.array([0, 1, 0, 1, 0, 1, 0])
    rows = np.empty((24 * 6, 7))
    pairs = [(a, b) for a in permutations([0.0, 1.0, 1.0, 0.7]) for b in permutations([0.0, 0.0, 0.4])]
    rows[:, labels == 0], rows[:, labels == 1] = [a for a, _ in pairs], [b for _, b in pairs]
    assert callable(method)
    found = method(_looks(rows), labels, [4, 3], alpha=alpha)
    assert _missed(found, 3.1 / 7, looks=7).mean() <= alpha


@pytest.mark.parametrize("name", list(populations()))
def test_means_are_covered_whenever_one_looks(name: str) -> None:
    print("seed 11")
    values = populations()[name]
    rows = _looks(shuffled(values, 100, np.random.default_rng(11)))
    found = mean_intervals(rows, population=40, alpha=0.1)
    assert _missed(found, values.mean(), looks=40).sum() <= _most_misses(100, 0.1)


def test_a_bettor_who_needs_less_misses_more_than_alpha() -> None:
    """What the simulations count can be too much: they would notice capital that is asked for too little."""
    print("seed 12")
    values = populations()["skewed"]
    rows = _looks(shuffled(values, 100, np.random.default_rng(12)))
    found = mean_intervals(rows, population=40, alpha=0.9)
    assert _missed(found, values.mean(), looks=40).sum() > _most_misses(100, 0.1)


def test_differences_are_covered_whenever_one_looks() -> None:
    print("seed 13")
    first, second = score_table(9, 40)[[4, 6]]
    rng = np.random.default_rng(13)
    order = np.array([rng.permutation(40) for _ in range(100)])
    found = difference_intervals(_looks(first[order]), _looks(second[order]), population=40, alpha=0.1)
    assert _missed(found, first.mean() - second.mean(), looks=40).sum() <= _most_misses(100, 0.1)


def test_products_over_strata_are_covered_whenever_one_looks() -> None:
    print("seed 14")
    values = populations()["measured"]
    rng = np.random.default_rng(14)
    strata = stratified(values[:, np.newaxis], 3, rng)
    orders = np.array([ordered(strata, rng) for _ in range(60)])
    # One shared sequence of strata: the inputs within them are what differs.
    labels = strata.labels[orders[0]]
    rows = np.empty((60, 40))
    for stratum in range(3):
        mine = [order[strata.labels[order] == stratum] for order in orders]
        rows[:, labels == stratum] = values[np.array(mine)]
    found = product_intervals(_looks(rows), labels, strata.sizes, alpha=0.1)
    assert _missed(found, values.mean(), looks=40).sum() <= _most_misses(60, 0.1)


@pytest.mark.parametrize("name", list(populations()))
def test_approximate_intervals_cover_from_the_fewest_samples_on(name: str) -> None:
    print("seed 15")
    values = populations()[name]
    rows = shuffled(values, 300, np.random.default_rng(15))
    missed = np.zeros(300, dtype=bool)
    for count in range(FEWEST, 41):
        one = estimated(rows[:, :count], np.zeros(count, dtype=int), [40])
        found = approximate_intervals(one.mean, one.variance, samples=count, population=40, alpha=0.1)
        missed |= _missed(found, values.mean(), looks=1)
    assert missed.sum() <= _most_misses(300, 0.1)


def test_nothing_is_claimed_from_few_samples_approximately() -> None:
    found = approximate_intervals([0.5, 0.5], [0.0, 0.0], samples=[0, FEWEST - 1], population=60, alpha=0.1)
    assert (found.low.tolist(), found.high.tolist()) == ([0.0, 0.0], [1.0, 1.0])
    whole = approximate_intervals([0.5], [0.0], samples=3, population=3, alpha=0.1)
    assert (whole.low[0], whole.high[0]) == (0.5, 0.5)


def test_scores_that_are_all_equal_are_doubted() -> None:
    few, many = (
        approximate_intervals([1.0], [0.0], samples=count, population=200, alpha=0.05).width[0]
        for count in (20, 150)
    )
    assert 0.05 < few < 0.2
    assert 0 < many < 0.1 * few


def test_looking_at_any_time_costs_about_half_as_much_again() -> None:
    assert deviations([50, 100], population=200, alpha=0.05) == pytest.approx([3.03, 3.1], abs=0.06)


@pytest.mark.parametrize("count", [0, 1, 30, 60])
def test_the_ends_are_within_what_is_logically_possible(count: int) -> None:
    rows = score_table(7, 60)
    seen = rows[:, :count]
    found = mean_intervals(seen, population=60, alpha=0.05)
    assert np.all(found.low >= seen.sum(axis=1) / 60 - SLACK)
    assert np.all(found.high <= (seen.sum(axis=1) + 60 - count) / 60 + SLACK)
    assert count > 0 or found.width == pytest.approx(1)
    assert count < 60 or found.low == pytest.approx(rows.mean(axis=1))
    assert count < 60 or found.high == pytest.approx(rows.mean(axis=1))


def test_all_inputs_give_the_mean_itself_over_strata_too() -> None:
    rows, labels = score_table(7, 60), np.arange(60) % 3
    for method in (union_intervals, product_intervals):
        found = method(rows, labels, [20, 20, 20], alpha=0.05)
        assert found.low == pytest.approx(rows.mean(axis=1), abs=1e-6)
        assert found.high == pytest.approx(rows.mean(axis=1), abs=1e-6)


def test_no_samples_over_strata_leave_everything_possible() -> None:
    for method in (union_intervals, product_intervals):
        found = method(np.empty((2, 0)), np.empty(0, dtype=int), [3, 4], alpha=0.05)
        assert (found.low.tolist(), found.high.tolist()) == ([0.0, 0.0], [1.0, 1.0])


def test_intervals_only_shrink() -> None:
    rows = prefixes(score_table(7, 60)).reshape(7, 60, 60)
    for config in rows:
        found = mean_intervals(config, population=60, alpha=0.05)
        assert np.all(np.diff(found.low) >= -BISECTED)
        assert np.all(np.diff(found.high) <= BISECTED)


def test_configs_do_not_touch_each_other() -> None:
    rows = score_table(5, 60)[:, :40].copy()
    rows[1, 10:] = np.nan
    rows[3, :] = np.nan
    together = mean_intervals(rows, population=60, alpha=0.05)
    for config, count in enumerate((40, 10, 40, 0, 40)):
        alone = mean_interval(rows[config, :count], population=60, alpha=0.05)
        assert (together.low[config], together.high[config]) == pytest.approx((alone.low, alone.high))


def test_one_input_is_known_by_itself() -> None:
    found = mean_interval([0.3], population=1, alpha=0.05)
    assert (found.low, found.high) == pytest.approx((0.3, 0.3))


def test_bounds_other_than_zero_and_one_only_scale() -> None:
    rows = score_table(3, 60)[:, :25]
    plain = mean_intervals(rows, population=60, alpha=0.05)
    scaled = mean_intervals(4 * rows - 1, population=60, alpha=0.05, lo=-1, hi=3)
    assert scaled.low == pytest.approx(4 * plain.low - 1)
    assert scaled.high == pytest.approx(4 * plain.high - 1)


def test_right_and_wrong_are_mirror_images() -> None:
    rows = score_table(3, 60)[:, :25]
    right, wrong = (mean_intervals(side, population=60, alpha=0.05) for side in (rows, 1 - rows))
    assert wrong.low == pytest.approx(1 - right.high, abs=BISECTED)


def test_ratios_over_equal_denominators_are_means() -> None:
    rows = score_table(3, 60)[:, :25]
    plain = mean_intervals(rows, population=60, alpha=0.05)
    found = ratio_intervals(8 * rows, np.full(25, 8.0), population=60, alpha=0.05, largest=8.0)
    assert found.low == pytest.approx(plain.low)
    assert found.high == pytest.approx(plain.high)
    twice = ratio_difference_intervals(
        8 * rows[1:], 8 * rows[:1], np.full(25, 8.0), population=60, alpha=0.05, largest=8.0
    )
    both = difference_intervals(rows[1:], rows[:1], population=60, alpha=0.05)
    assert twice.low == pytest.approx(both.low, abs=1e-5)
    assert twice.high == pytest.approx(both.high, abs=1e-5)


def test_ratios_of_no_counts_are_unknown() -> None:
    found = ratio_intervals(np.zeros((1, 4)), np.zeros((1, 4)), population=4, alpha=0.05)
    assert (found.low[0], found.high[0]) == (0.0, 1.0)


def test_betting_beats_the_closed_forms() -> None:
    print("seed 16")
    order = np.random.default_rng(16).permutation(200)
    rows = score_table(40, 200)[:, order[:50]]
    betting = mean_intervals(rows, population=200, alpha=0.05).width.mean()
    for ends in (hoeffding_ends, empirical_bernstein_ends):
        low, high = ends(rows, 200, 0.05)
        assert betting < 0.8 * (high[:, -1] - low[:, -1]).mean()


def test_pairs_are_narrower_than_two_configs_apart() -> None:
    print("seed 17")
    rows = score_table(40, 200)[:, np.random.default_rng(17).permutation(200)[:100]]
    pairs = difference_intervals(rows[1:], rows[:-1], population=200, alpha=0.05).width
    alone = mean_intervals(rows, population=200, alpha=0.025).width
    assert pairs.mean() < 0.6 * (alone[1:] + alone[:-1]).mean()


def test_a_reference_known_on_all_inputs_narrows_the_others() -> None:
    print("seed 19")
    rows = score_table(40, 200)
    order = np.random.default_rng(19).permutation(200)[:80]
    plain = mean_intervals(rows[:, order], population=200, alpha=0.05).width.mean()
    found = adjusted_intervals(
        rows[:, order], rows[20, order], rows[20].mean(), population=200, alpha=0.05
    ).width.mean()
    assert found < 0.8 * plain


def test_strata_that_tell_inputs_apart_narrow_the_interval() -> None:
    print("seed 18")
    rng = np.random.default_rng(18)
    kind = np.repeat(np.arange(4), 50)
    rows = np.clip(0.05 + 0.3 * kind + 0.05 * rng.standard_normal((20, 200)), 0, 1)
    order = ordered(stratified(kind[:, np.newaxis], 4, rng), rng)[:60]
    product = product_intervals(rows[:, order], kind[order], [50] * 4, alpha=0.05).width.mean()
    union = union_intervals(rows[:, order], kind[order], [50] * 4, alpha=0.05).width.mean()
    plain = mean_intervals(rows[:, rng.permutation(200)[:60]], population=200, alpha=0.05).width.mean()
    assert product < 0.8 * plain
    assert product < 0.6 * union


def test_what_is_not_computed_exactly_only_widens(monkeypatch: pytest.MonkeyPatch) -> None:
    print("seed 20")
    order = np.random.default_rng(20).permutation(60)[:40]
    rows, labels = score_table(20, 60)[:, order], order // 20
    found = product_intervals(rows, labels, [20] * 3, alpha=0.05)
    monkeypatch.setattr(stratified_intervals, "_TANGENTS", 800)
    monkeypatch.setattr(stratified_intervals, "_STEPS", 40)
    exact = product_intervals(rows, labels, [20] * 3, alpha=0.05)
    assert np.all(found.low <= exact.low + 1e-6)
    assert np.all(found.high >= exact.high - 1e-6)
    assert found.width == pytest.approx(exact.width, abs=0.002)


def test_a_later_look_narrows_and_wins_where_both_exclude_each_other() -> None:
    first = Intervals(low=np.array([0.2, 0.2]), high=np.array([0.6, 0.3]))
    later = Intervals(low=np.array([0.1, 0.4]), high=np.array([0.5, 0.5]))
    found = first.narrowed(later)
    assert found.low.tolist() == [0.2, 0.4]
    assert found.high.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ([[0.5, np.nan, 0.5]], "gaps"),
        ([[0.5, 1.5]], "outside the bounds"),
        ([[-0.5]], "outside the bounds"),
        ([[0.5] * 5], "more samples than the population of 4"),
    ],
)
def test_samples_that_break_the_premises_are_refused(values: list[list[float]], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        mean_intervals(values, population=4, alpha=0.05)


@pytest.mark.parametrize(
    ("values", "sizes", "complaint"),
    [
        ([[0.5, np.nan, 0.5]], [2, 2], "gaps"),
        ([[0.5, 1.5, 0.5]], [2, 2], "outside"),
        ([[0.5, 0.5, 0.5]], [1, 2], "more samples than inputs"),
        ([[0.5, 0.5, 0.5]], [3, 0], "no inputs"),
    ],
)
def test_strata_that_break_the_premises_are_refused(
    values: list[list[float]], sizes: list[int], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        product_intervals(values, [0, 0, 0], sizes, alpha=0.05)
