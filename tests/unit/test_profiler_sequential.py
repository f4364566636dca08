"""Time-uniform intervals: they hold whenever one looks, exactly so over all orders of small input sets."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from compass_coordinator.profiler.statistics import stratified_intervals
from compass_coordinator.profiler.statistics.sequential import Intervals
from compass_coordinator.profiler.statistics.strata import ordered, stratified
from compass_coordinator.profiler.statistics.stratified_intervals import product_intervals
from support.confidence import empirical_bernstein_ends, hoeffding_ends
from support.score_tables import populations, prefixes, score_table, shuffled

Floats = npt.NDArray[np.float64]
SLACK = 1e-9
SMALL_SETS = [(0, 0, 0, 0, 0, 1), (0, 1, 1, 1, 1, 1), (0, 0, 0, 1, 1, 1), (0.1, 0.3, 0.5, 0.5, 0.9, 1)]


def _of_one_stratum(values: npt.ArrayLike, *, population: int, alpha: float) -> Intervals:
    rows = np.asarray(values, dtype=np.float64)
    return product_intervals(rows, np.zeros(rows.shape[1], dtype=np.intp), [population], alpha=alpha)


def _width(found: Intervals) -> Floats:
    return found.high - found.low


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
    found = _of_one_stratum(_looks(rows), population=6, alpha=alpha)
    assert _missed(found, np.mean(values), looks=6).mean() <= alpha


@pytest.mark.parametrize("alpha", [0.05, 0.3, 0.6])
def test_strata_are_covered_in_all_but_alpha_of_all_orders(alpha: float) -> None:
    labels = np.array([0, 1, 0, 1, 0, 1, 0])
    rows = np.empty((24 * 6, 7))
    pairs = [(a, b) for a in permutations([0.0, 1.0, 1.0, 0.7]) for b in permutations([0.0, 0.0, 0.4])]
    rows[:, labels == 0], rows[:, labels == 1] = [a for a, _ in pairs], [b for _, b in pairs]
    found = product_intervals(_looks(rows), labels, [4, 3], alpha=alpha)
    assert _missed(found, 3.1 / 7, looks=7).mean() <= alpha


@pytest.mark.parametrize("name", list(populations()))
def test_means_are_covered_whenever_one_looks(name: str) -> None:
    print("seed 11")
    values = populations()[name]
    rows = _looks(shuffled(values, 100, np.random.default_rng(11)))
    found = _of_one_stratum(rows, population=40, alpha=0.1)
    assert _missed(found, values.mean(), looks=40).sum() <= _most_misses(100, 0.1)


def test_a_bettor_who_needs_less_misses_more_than_alpha() -> None:
    """What the simulations count can be too much: they would notice capital that is asked for too little."""
    print("seed 12")
    values = populations()["skewed"]
    rows = _looks(shuffled(values, 100, np.random.default_rng(12)))
    found = _of_one_stratum(rows, population=40, alpha=0.9)
    assert _missed(found, values.mean(), looks=40).sum() > _most_misses(100, 0.1)


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


@pytest.mark.parametrize("count", [0, 1, 30, 60])
def test_the_ends_are_within_what_is_logically_possible(count: int) -> None:
    rows = score_table(7, 60)
    seen = rows[:, :count]
    found = _of_one_stratum(seen, population=60, alpha=0.05)
    assert np.all(found.low >= seen.sum(axis=1) / 60 - SLACK)
    assert np.all(found.high <= (seen.sum(axis=1) + 60 - count) / 60 + SLACK)
    assert count > 0 or _width(found) == pytest.approx(1)
    assert count < 60 or found.low == pytest.approx(rows.mean(axis=1))
    assert count < 60 or found.high == pytest.approx(rows.mean(axis=1))


def test_all_inputs_give_the_mean_itself_over_strata_too() -> None:
    rows, labels = score_table(7, 60), np.arange(60) % 3
    found = product_intervals(rows, labels, [20, 20, 20], alpha=0.05)
    assert found.low == pytest.approx(rows.mean(axis=1), abs=1e-6)
    assert found.high == pytest.approx(rows.mean(axis=1), abs=1e-6)


def test_no_samples_over_strata_leave_everything_possible() -> None:
    found = product_intervals(np.empty((2, 0)), np.empty(0, dtype=int), [3, 4], alpha=0.05)
    assert (found.low.tolist(), found.high.tolist()) == ([0.0, 0.0], [1.0, 1.0])


def test_configs_do_not_touch_each_other() -> None:
    rows = score_table(5, 60)[:, :40].copy()
    rows[1, 10:] = np.nan
    rows[3, :] = np.nan
    together = _of_one_stratum(rows, population=60, alpha=0.05)
    for config, count in enumerate((40, 10, 40, 0, 40)):
        alone = _of_one_stratum(rows[config : config + 1, :count], population=60, alpha=0.05)
        assert together.low[config] == pytest.approx(alone.low[0])
        assert together.high[config] == pytest.approx(alone.high[0])


def test_one_input_is_known_by_itself() -> None:
    found = _of_one_stratum([[0.3]], population=1, alpha=0.05)
    assert (found.low[0], found.high[0]) == pytest.approx((0.3, 0.3))


def test_right_and_wrong_are_mirror_images() -> None:
    rows = score_table(3, 60)[:, :25]
    right, wrong = (_of_one_stratum(side, population=60, alpha=0.05) for side in (rows, 1 - rows))
    assert wrong.low == pytest.approx(1 - right.high)


def test_betting_beats_the_closed_forms() -> None:
    print("seed 16")
    order = np.random.default_rng(16).permutation(200)
    rows = score_table(40, 200)[:, order[:50]]
    betting = _width(_of_one_stratum(rows, population=200, alpha=0.05)).mean()
    for ends in (hoeffding_ends, empirical_bernstein_ends):
        low, high = ends(rows, 200, 0.05)
        assert betting < 0.8 * (high[:, -1] - low[:, -1]).mean()


def test_strata_that_tell_inputs_apart_narrow_the_interval() -> None:
    print("seed 18")
    rng = np.random.default_rng(18)
    kind = np.repeat(np.arange(4), 50)
    rows = np.clip(0.05 + 0.3 * kind + 0.05 * rng.standard_normal((20, 200)), 0, 1)
    order = ordered(stratified(kind[:, np.newaxis], 4, rng), rng)[:60]
    product = product_intervals(rows[:, order], kind[order], [50] * 4, alpha=0.05)
    plain = _of_one_stratum(rows[:, rng.permutation(200)[:60]], population=200, alpha=0.05)
    assert _width(product).mean() < 0.8 * _width(plain).mean()


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
    assert _width(found) == pytest.approx(_width(exact), abs=0.002)


def test_a_later_look_narrows_and_wins_where_both_exclude_each_other() -> None:
    first = Intervals(low=np.array([0.2, 0.2]), high=np.array([0.6, 0.3]))
    later = Intervals(low=np.array([0.1, 0.4]), high=np.array([0.5, 0.5]))
    found = first.narrowed(later)
    assert found.low.tolist() == [0.2, 0.4]
    assert found.high.tolist() == [0.5, 0.5]


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
