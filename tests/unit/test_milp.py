"""The exact matcher equals enumeration, respects capacities to the last digit and refuses bad input."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize

from compass_coordinator.matcher import REFUSED, MatchResult, MatchStatus, match_milp
from compass_shared.errors import PlanningError

Arrays = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]


@st.composite
def matches(draw: st.DrawFn) -> Arrays:
    """Small integers, so that ties and exactly filled capacities are common."""
    queries, plans, resources = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(0, 3))

    def integers(shape: tuple[int, ...], least: int, most: int) -> NDArray[np.float64]:
        count = int(np.prod(shape))
        drawn = draw(st.lists(st.integers(least, most), min_size=count, max_size=count))
        return np.array(drawn, dtype=np.float64).reshape(shape)

    values = integers((queries, plans), 0, 4)
    missing = integers((queries, plans), 0, 3) == 0
    values[missing] = -np.inf
    scale = 10.0 ** np.arange(-3, -3 + 4 * resources, 4)
    return (
        values,
        integers((queries, plans, resources), 0, 5) * scale,
        integers((resources,), 0, 8) * scale,
        integers((queries, plans), 0, 5) * draw(st.sampled_from([1e-6, 1.0])),
    )


def _enumerated(values: Any, demands: Any, capacities: Any, costs: Any) -> tuple[float, float]:
    """Best (value, -cost) over every choice."""
    best = (0.0, 0.0)
    for choice in itertools.product(range(-1, values.shape[1]), repeat=len(values)):
        pairs = [(query, plan) for query, plan in enumerate(choice) if plan != REFUSED]
        if all(np.isfinite(values[pair]) for pair in pairs):
            used = sum((demands[pair] for pair in pairs), np.zeros_like(capacities))
            if (used <= capacities * (1 + 1e-9)).all():
                best = max(best, (sum(values[pair] for pair in pairs), -sum(costs[pair] for pair in pairs)))
    return best


def _totals(result: MatchResult, values: Any, demands: Any, costs: Any) -> tuple[float, float, Any]:
    pairs = [(query, plan) for query, plan in enumerate(result.choice) if plan != REFUSED]
    used = sum((demands[pair] for pair in pairs), np.zeros(demands.shape[2]))
    return sum(values[pair] for pair in pairs), sum(costs[pair] for pair in pairs), used


@given(matches())
def test_equals_enumeration(arrays: Arrays) -> None:
    values, demands, capacities, costs = arrays
    result = match_milp(values, demands, capacities, costs)
    value, cost, used = _totals(result, values, demands, costs)
    best_value, best_cost = _enumerated(values, demands, capacities, costs)
    assert (used <= capacities * (1 + 1e-9)).all()
    assert value == pytest.approx(best_value)
    assert cost == pytest.approx(-best_cost)
    assert result.value == pytest.approx(value)
    assert result.cost == pytest.approx(cost)
    assert result.status is MatchStatus.OPTIMAL
    assert result.bound == pytest.approx(result.value)
    assert result.gap == pytest.approx(0.0, abs=1e-6)
    assert result.choice.dtype == np.int64


@given(matches(), st.integers(0, 2))
def test_more_capacity_never_serves_less(arrays: Arrays, which: int) -> None:
    values, demands, capacities, costs = arrays
    more = capacities.copy()
    more[which : which + 1] *= 1.5
    before = match_milp(values, demands, capacities, costs)
    assert match_milp(values, demands, more, costs).value >= before.value - 1e-9


def test_value_comes_before_cost() -> None:
    result = match_milp([[1.0, 2.0]], np.zeros((1, 2, 0)), [], [[0.0, 1e6]])
    assert (result.choice.tolist(), result.value, result.cost) == ([1], 2.0, 1e6)


def test_equal_values_are_decided_by_cost() -> None:
    demands = [[[1.0], [2.0]], [[1.0], [2.0]]]
    result = match_milp([[1.0, 1.0], [1.0, 1.0]], demands, [3.0], [[9.0, 1.0], [9.0, 2.0]])
    assert (result.choice.tolist(), result.cost) == ([1, 0], 10.0)


def test_without_costs_only_value_counts() -> None:
    result = match_milp([[1.0], [3.0]], [[[1.0]], [[1.0]]], [1.0])
    assert (result.choice.tolist(), result.value, result.cost) == ([REFUSED, 0], 3.0, 0.0)


@pytest.mark.parametrize("overdraft", [3e-9, 5e-8, 9e-7])
@pytest.mark.parametrize("together", [2, 3, 5])
def test_an_overdraft_within_the_solvers_tolerance_is_still_one(together: int, overdraft: float) -> None:
    shares = np.random.default_rng(1).dirichlet(np.ones(together)) * (1 + overdraft)
    demands = np.concatenate([shares, [0.9]])[:, np.newaxis, np.newaxis]
    values = np.array([1.0] * together + [0.1])[:, np.newaxis]
    result = match_milp(values, demands, [1.0], np.ones_like(values))
    assert result.choice.tolist().count(REFUSED) >= 1
    assert result.value == pytest.approx(_enumerated(values, demands, np.ones(1), np.ones_like(values))[0])


def test_many_overdrafts_within_the_tolerance_end_feasible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compass_coordinator.matcher.milp._MAX_CUTS", 3)
    demands = np.full((12, 1, 1), (1 + 3e-7) / 3)
    result = match_milp(np.ones((12, 1)), demands, [1.0], np.ones((12, 1)))
    assert result.value == 2.0
    assert 2.0 <= result.bound <= 3.0


def _with_status(monkeypatch: pytest.MonkeyPatch, broken: Callable[[dict[str, Any]], bool]) -> None:
    """The solver, calling programs infeasible whenever its options are such."""
    solve = optimize.milp

    def sometimes(*args: Any, options: Any, **kwargs: Any) -> Any:
        answer = solve(*args, options=options, **kwargs)
        if broken(options):
            answer.update(status=2, x=None)
        return answer

    monkeypatch.setattr(optimize, "milp", sometimes)


def test_a_presolve_that_errs_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_status(monkeypatch, lambda options: bool(options["presolve"]))
    assert match_milp([[1.0], [3.0]], [[[1.0]], [[1.0]]], [1.0]).value == 3.0


def test_a_solver_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_status(monkeypatch, lambda options: True)
    with pytest.raises(PlanningError, match="solver failed"):
        match_milp([[1.0]], [[[1.0]]], [1.0])


def test_queries_without_plans_are_refused() -> None:
    result = match_milp([[-np.inf], [1.0]], [[[np.nan]], [[0.0]]], [0.0], [[np.nan], [1.0]])
    assert result.choice.tolist() == [REFUSED, 0]


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (2, 0)])
def test_nothing_to_match(shape: tuple[int, int]) -> None:
    result = match_milp(np.zeros(shape), np.zeros((*shape, 1)), [1.0])
    assert result.choice.tolist() == [REFUSED] * shape[0]
    assert (result.value, result.bound, result.gap) == (0.0, 0.0, 0.0)


def test_out_of_time_is_feasible_with_an_honest_bound() -> None:
    rng = np.random.default_rng(0)
    values, demands = rng.uniform(1, 2, (60, 20)), rng.uniform(1, 9, (60, 20, 4))
    capacities = np.full(4, 60.0)
    result = match_milp(values, demands, capacities, np.ones((60, 20)), time_limit_s=0.0)
    exactly = match_milp(values[:12, :4], demands[:12, :4], capacities / 5)
    assert result.status is MatchStatus.FEASIBLE
    assert (_totals(result, values, demands, values)[2] <= capacities).all()
    assert result.bound >= max(result.value, exactly.value)
    assert 0 <= result.gap <= 1


@pytest.mark.parametrize(
    ("values", "demands", "capacities", "costs", "said"),
    [
        ([1.0], [[[1.0]]], [1.0], None, "values must have 2 dimensions"),
        ([[1.0]], [[1.0]], [1.0], None, "demands must have 3 dimensions"),
        ([[1.0]], [[[1.0, 2.0]]], [1.0], None, "demands have shape"),
        ([[1.0]], [[[1.0]]], [1.0], [[1.0, 2.0]], "costs have shape"),
        ([[np.nan]], [[[1.0]]], [1.0], None, "values must be finite"),
        ([[np.inf]], [[[1.0]]], [1.0], None, "values must be finite"),
        ([[1.0]], [[[np.nan]]], [1.0], None, "demands must be finite"),
        ([[1.0]], [[[-1.0]]], [1.0], None, "demands must be finite and >= 0"),
        ([[1.0]], [[[1.0]]], [-1.0], None, "capacities must be finite and >= 0"),
        ([[1.0]], [[[1.0]]], [1.0], [[np.nan]], "costs must be finite"),
        ([["a"]], [[[1.0]]], [1.0], None, "not an array of numbers"),
    ],
)
def test_bad_input_is_refused(values: Any, demands: Any, capacities: Any, costs: Any, said: str) -> None:
    with pytest.raises(PlanningError, match=said):
        match_milp(values, demands, capacities, costs)
