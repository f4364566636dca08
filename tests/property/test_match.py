"""The matcher against slow oracles, and what must not change its answer."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from compass_coordinator.matcher import BOUND_PRECISION, REFUSED, SparseDemands, match, match_milp
from support.matching import assert_sound, linear_optimum

Arrays = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]
QUICK = settings(max_examples=25, deadline=None)


def _one_plan_that_must_be_split() -> Arrays:
    """Twins whose only plan asks for five times what there is: prices end a few temperatures off the kink."""
    values = np.array([[4.0, -np.inf]] * 2)
    demands = np.array([[[5.0, 4.0, 1.0, 3.0], [np.nan] * 4]] * 2)
    return values, demands, np.array([1.0, 1.0, 6.0, 6.0]), np.zeros((2, 2))


def _alike_but_for_an_impossible_plan() -> Arrays:
    """Room for one of two queries, whose second plans, which nobody can have, differ."""
    values = np.array([[2.0, 3.0], [2.0, 3.0]])
    demands = np.array([[[2.0, 0.0], [1.0, 1.0]], [[2.0, 0.0], [1.0, 2.0]]])
    return values, demands, np.array([3.0, 0.0]), np.zeros((2, 2))


def _least_bound(values: Any, demands: Any, capacities: Any) -> float:
    """The optimum of the linear program over all plans, also those that do not fit alone."""
    return linear_optimum(values, _clean(demands), capacities)


@st.composite
def problems(draw: st.DrawFn) -> Arrays:
    """Values, demands, capacities and costs: small integers, so that ties and full capacities are common."""
    queries, plans, resources = draw(st.integers(1, 7)), draw(st.integers(1, 3)), draw(st.integers(0, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.integers(0, 5, (queries, plans)).astype(np.float64)
    if draw(st.booleans()):  # a query's weight, whatever the plan
        values[:] = values.max(axis=1, keepdims=True)
    values[rng.random(values.shape) < 0.2] = -np.inf
    demands = rng.integers(0, 6, (queries, plans, resources)).astype(np.float64)
    costs = rng.integers(0, 6, (queries, plans)).astype(np.float64)
    if draw(st.booleans()):
        twins = rng.integers(0, queries, queries)
        values, demands, costs = values[twins], demands[twins], costs[twins]
    demands[np.isneginf(values)] = np.nan  # not looked at
    return values, demands, rng.integers(0, 4 * queries, resources).astype(np.float64), costs


def _clean(demands: NDArray[Any]) -> NDArray[Any]:
    return np.where(np.isnan(demands), 0.0, demands)


@QUICK
@given(problems(), st.booleans())
def test_is_sound_and_between_its_oracles(problem: Arrays, costly: bool) -> None:
    values, demands, capacities, costs = problem
    result = match(values, demands, capacities, costs if costly else None)
    assert_sound(result, values, _clean(demands), capacities, costs if costly else None)
    best = match_milp(values, _clean(demands), capacities, costs if costly else None)
    optimum = linear_optimum(values, _clean(demands), capacities)
    assert result.value <= best.value + 1e-6
    assert best.value <= optimum + 1e-6
    if (_clean(demands) <= capacities).all():  # a plan that does not fit alone may be split in the bound
        assert result.bound == pytest.approx(optimum, rel=1e-7, abs=1e-7)
    assert result.bound >= optimum * (1 - 1e-9) - 1e-9


@QUICK
@given(problems(), st.randoms(use_true_random=False))
@example(_alike_but_for_an_impossible_plan(), Random(0))
@example(_alike_but_for_an_impossible_plan(), Random(1))
def test_the_order_of_queries_does_not_matter(problem: Arrays, random: Any) -> None:
    values, demands, capacities, costs = problem
    order = np.array(random.sample(range(len(values)), len(values)))
    result = match(values, demands, capacities, costs)
    other = match(values[order], demands[order], capacities, costs[order])
    assert other.value == pytest.approx(result.value, rel=1e-9)
    assert other.bound == pytest.approx(result.bound, rel=1e-9)
    kinds = [(values[query].tobytes(), demands[query].tobytes(), costs[query].tobytes()) for query in order]
    moved = result.choice[order]
    assert all(kinds.count(kinds[place]) > 1 for place in np.flatnonzero(moved != other.choice))


@QUICK
@given(problems(), st.randoms(use_true_random=False))
def test_sparse_demands_mean_the_same(problem: Arrays, random: Any) -> None:
    values, demands, capacities, costs = problem
    queries, plans, resources = demands.shape
    halves = np.concatenate([demands / 2, np.zeros((queries, plans, min(resources, 1))), demands / 2], axis=2)
    names = np.array([*range(resources), *([0] * min(resources, 1)), *range(resources)], np.int64)
    named = np.broadcast_to(names, halves.shape)
    order = np.array(random.sample(range(halves.shape[2]), halves.shape[2]), np.int64)
    sparse = SparseDemands(resources=named[..., order], amounts=halves[..., order])
    dense_result = match(values, demands, capacities, costs)
    sparse_result = match(values, sparse, capacities, costs)
    np.testing.assert_array_equal(sparse_result.choice, dense_result.choice)
    assert sparse_result.bound == pytest.approx(dense_result.bound, rel=1e-9)


@QUICK
@given(problems(), st.floats(-9, 9), st.lists(st.floats(-12, 12), min_size=4, max_size=4))
def test_units_do_not_matter(problem: Arrays, of_value: float, of_demands: list[float]) -> None:
    values, demands, capacities, _ = problem
    scale = 10.0 ** np.array(of_demands[: len(capacities)])
    result = match(values, demands, capacities)
    other = match(values * 10.0**of_value, demands * scale, capacities * scale)
    assert_sound(other, values * 10.0**of_value, _clean(demands) * scale, capacities * scale)
    assert other.bound == pytest.approx(result.bound * 10.0**of_value, rel=1e-6)


@QUICK
@given(problems(), st.integers(0, 2**32 - 1))
def test_divisible_queries_are_split_within_their_rights(problem: Arrays, seed: int) -> None:
    values, demands, capacities, costs = problem
    divisible = np.random.default_rng(seed).random(len(values)) < 0.5
    result = match(values, demands, capacities, costs, divisible=divisible)
    assert_sound(result, values, _clean(demands), capacities, costs)
    shares = result.shares
    assert divisible[shares.query].all()
    assert (result.choice[shares.query] == REFUSED).all()
    assert ((shares.fraction > 0) & (shares.fraction <= 1)).all()
    assert (np.bincount(shares.query, shares.fraction, minlength=1) <= 1 + 1e-12).all()


@QUICK
@given(problems())
def test_all_divisible_is_the_linear_program(problem: Arrays) -> None:
    values, demands, capacities, _ = problem
    result = match(values, demands, capacities, divisible=np.ones(len(values), bool))
    optimum = linear_optimum(values, _clean(demands), capacities)
    assert result.value == pytest.approx(optimum, rel=1e-6, abs=1e-6)
    assert result.bound == pytest.approx(optimum, rel=1e-6, abs=1e-6)


@QUICK
@given(problems(), st.floats(0, 3), st.integers(0, 3))
@example(_one_plan_that_must_be_split(), 1.0, 1)
def test_old_prices_and_more_capacity_prove_no_less(problem: Arrays, factor: float, which: int) -> None:
    values, demands, capacities, _ = problem
    result = match(values, demands, capacities)
    least = _least_bound(values, demands, capacities)
    warm = match(values, demands, capacities, warm_prices=result.prices * factor)
    for bound in (result.bound, warm.bound):
        assert least * (1 - 1e-9) - 1e-9 <= bound <= least * (1 + BOUND_PRECISION) + 1e-9
    more = capacities.copy()
    more[which % len(more) if len(more) else slice(0)] += 1
    assert match(values, demands, more).bound >= result.bound * (1 - BOUND_PRECISION)
