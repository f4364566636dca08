"""The matcher: known answers, odd shapes, hard and large cases, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compass_coordinator.matcher import (
    REFUSED,
    MatchResult,
    MatchStatus,
    SparseDemands,
    match,
    match_milp,
)
from compass_shared.errors import PlanningError
from support.matching import assert_sound, linear_optimum

NOTHING: float = -np.inf


def _random(
    seed: int, queries: int, plans: int, resources: int, level: float
) -> tuple[Any, Any, Any, np.random.Generator]:
    """Independent values and demands; capacities are a share of what the best plans need."""
    rng = np.random.default_rng(seed)
    values, demands = rng.uniform(0.1, 1, (queries, plans)), rng.random((queries, plans, resources))
    need = demands[np.arange(queries), values.argmax(axis=1)].sum(axis=0)
    return values, demands, level * need, rng


# --- known answers --------------------------------------------------------------------------------


def test_the_plan_that_uses_what_is_plenty_is_chosen() -> None:
    values = np.ones((2, 2))
    demands = np.array([[[1.0, 0], [0, 1]]] * 2)
    result = match(values, demands, [1, 1])
    assert sorted(result.choice) == [0, 1]
    assert (result.value, result.bound, result.gap) == (2.0, 2.0, 0.0)
    assert result.status is MatchStatus.OPTIMAL
    assert result.choice.dtype == np.int64
    assert not len(result.shares.query)


def test_value_comes_before_cost() -> None:
    result = match([[1.0, 1.001]], np.zeros((1, 2, 1)), [1], [[0, 1e9]])
    assert list(result.choice) == [1]


def test_cost_decides_among_equal_values() -> None:
    result = match([[2.0, 2, 2]], np.zeros((1, 3, 1)), [1], [[3, 1, 2]])
    assert list(result.choice) == [1]
    assert result.cost == 1.0


def test_the_cheaper_of_two_queries_worth_the_same_is_served() -> None:
    result = match([[1.0], [1.0]], np.ones((2, 1, 1)), [1], [[5], [4]])
    assert list(result.choice) == [REFUSED, 0]


def test_all_are_served_as_cheaply_as_the_capacity_allows() -> None:
    """A cheap and scarce plan each, and a dear one: a knapsack in the costs, while value says nothing."""
    rng = np.random.default_rng(1)
    values, demands = np.repeat(rng.integers(1, 4, (30, 1)), 2, axis=1), np.zeros((30, 2, 1))
    demands[:, 0, 0] = rng.uniform(1, 2, 30)
    costs = np.column_stack([np.zeros(30), rng.uniform(1, 2, 30)])
    result, best = (solve(values, demands, [20.0], costs) for solve in (match, match_milp))
    assert result.value == best.value == values[:, 0].sum()
    assert result.cost == pytest.approx(best.cost, rel=0.01)
    assert result.gap == 0.0


def test_what_is_worth_nothing_is_not_served() -> None:
    result = match([[0.0, -1.0], [NOTHING, NOTHING], [1.0, 0.0]], np.zeros((3, 2, 0)), [])
    assert list(result.choice) == [REFUSED, REFUSED, 0]


def test_prices_say_what_more_capacity_is_worth() -> None:
    """Values 3, 2, 1 for one unit each and room for two: a third unit is worth 1."""
    result = match([[3.0], [2.0], [1.0]], np.ones((3, 1, 1)), [2])
    assert list(result.choice) == [0, 0, REFUSED]
    assert 1 - 1e-6 <= result.prices[0] <= 2 + 1e-6
    assert result.bound == pytest.approx(5)


# --- odd shapes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "resources"), [((0, 3), 2), ((3, 0), 2), ((0, 0), 0), ((2, 1), 0)], ids=str
)
def test_nothing_of_something(shape: tuple[int, int], resources: int) -> None:
    result = match(np.ones(shape), np.ones((*shape, resources)), np.full(resources, 10.0))
    assert_sound(result, np.ones(shape), np.ones((*shape, resources)), np.full(resources, 10.0))
    assert result.value == np.ones(shape).max(axis=1, initial=0).sum()
    assert result.prices.shape == (resources,)


def test_a_resource_of_which_there_is_nothing_has_a_price_that_keeps_everybody_off() -> None:
    values, demands = np.array([[2.0, 1], [3, NOTHING]]), np.array([[[1.0], [0]], [[1e-9], [5]]])
    for asked in (demands, SparseDemands(resources=np.zeros((2, 2, 1), int), amounts=demands)):
        result = match(values, asked, [0])
        assert list(result.choice) == [1, REFUSED]
        assert_sound(result, values, demands, np.zeros(1))
        assert result.bound == 1.0


def test_a_plan_that_does_not_fit_alone_is_not_chosen_but_priced() -> None:
    values, demands = np.array([[10.0, 1]]), np.array([[[4.0], [1]]])
    result = match(values, demands, [2])
    assert list(result.choice) == [1]
    assert_sound(result, values, demands, np.array([2.0]))
    assert result.bound == pytest.approx(5, rel=1e-6)


def test_demands_that_fill_a_capacity_up_to_rounding_fit() -> None:
    result = match(np.ones((3, 1)), np.full((3, 1, 1), 0.1), [0.3])
    assert result.value == 3.0


@pytest.mark.parametrize("kind", ["equal", "twins"])
def test_thousands_of_alike_queries_share_alike_plans(kind: str) -> None:
    """At the right prices every one of them is undecided."""
    values, demands = np.ones((6000, 2)), np.zeros((6000, 2, 2))
    demands[:, 0, 0] = demands[:, 1, 1] = 1.0
    if kind == "twins":
        demands[::2] *= 2
    result = match(values, demands, [1500.0, 2000.0])
    assert_sound(result, values, demands, np.array([1500.0, 2000.0]))
    assert result.value == (3500.0 if kind == "equal" else 3250.0)


def test_huge_and_tiny_values_together() -> None:
    values = np.array([[1e9], [1e-9], [1.0]])
    result = match(values, np.ones((3, 1, 1)), [2])
    assert list(result.choice) == [0, REFUSED, 0]
    assert match(values, np.ones((3, 1, 1)), [3]).value == values.sum()


# --- divisible queries ----------------------------------------------------------------------------


def test_a_query_that_no_plan_carries_alone_is_split() -> None:
    values, demands = np.array([[3.0, 3.0]]), np.array([[[4.0, 0], [0, 4.0]]])
    refused = match(values, demands, [2, 2])
    assert list(refused.choice) == [REFUSED]
    split = match(values, demands, [2, 2], divisible=[True])
    assert list(split.choice) == [REFUSED]
    assert list(split.shares.plan) == [0, 1]
    assert split.shares.fraction == pytest.approx([0.5, 0.5])
    assert split.value == pytest.approx(3.0)


def test_a_divisible_query_may_be_served_in_part() -> None:
    result = match([[4.0], [3.0]], np.ones((2, 1, 1)), [1.5], divisible=[False, True])
    assert list(result.choice) == [0, REFUSED]
    assert list(result.shares.query) == [1]
    assert result.value == pytest.approx(5.5)


# --- hard and large -------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["random", "correlated", "weights"])
def test_thousands_of_queries_come_within_a_thousandth(kind: str, level: float) -> None:
    values, demands, capacities, rng = _random(7, 5000, 5, 4, level)
    if kind == "correlated":
        values = demands.sum(axis=2) * rng.uniform(0.95, 1.05, values.shape)
    elif kind == "weights":
        values = np.repeat(rng.integers(1, 4, (5000, 1)).astype(float), 5, axis=1)
    costs = rng.random(values.shape)
    result = match(values, demands, capacities, costs)
    assert_sound(result, values, demands, capacities, costs)
    assert result.gap <= 1e-3


def test_small_hard_cases_come_close_to_the_best() -> None:
    losses = []
    for seed in range(4):
        values, demands, capacities, _ = _random(seed, 12, 4, 6, 0.4)
        best = match_milp(values, demands, capacities)
        losses.append(1 - match(values, demands, capacities).value / best.value)
    assert np.mean(losses) <= 0.005


def _edge(queries: int, servers: int) -> tuple[Any, SparseDemands, Any, Any]:
    """Each device reaches its own processor, two of many servers, and the cloud."""
    rng = np.random.default_rng(3)
    own, cloud = rng.integers(0, servers, (queries, 2)), servers
    resources, amounts = np.zeros((queries, 4, 2), int), np.zeros((queries, 4, 2))
    for plan in (1, 2):
        resources[:, plan, 0], amounts[:, plan, 0] = own[:, plan - 1], rng.uniform(0.5, 1.5, queries)
    resources[:, 3, 0], amounts[:, 3, 0] = cloud, rng.uniform(0.5, 1.5, queries)
    resources[:, 1:, 1], amounts[:, 1:, 1] = cloud + 1, rng.uniform(0, 0.2, (queries, 3))
    values = np.repeat(rng.integers(1, 4, (queries, 1)).astype(float), 4, axis=1)
    values[rng.random(queries) < 0.9, 0] = NOTHING
    capacities = np.concatenate([np.full(servers, 0.5 * queries / servers), [queries / 8, queries / 20]])
    dense = np.zeros((queries, 4, servers + 2))
    for slot in range(2):
        np.put_along_axis(dense, resources[..., slot : slot + 1], 0.0, axis=2)
    rows, plans = np.indices((queries, 4))
    for slot in range(2):
        dense[rows, plans, resources[..., slot]] += amounts[..., slot]
    return values, SparseDemands(resources=resources, amounts=amounts), capacities, dense


@pytest.mark.parametrize("queries", [200, 900])
def test_many_sparse_resources_get_exact_prices(queries: int) -> None:
    values, demands, capacities, dense = _edge(queries, 40)
    result = match(values, demands, capacities)
    assert_sound(result, values, dense, capacities)
    assert result.bound == pytest.approx(linear_optimum(values, dense, capacities), rel=1e-7)
    assert result.gap <= 0.05
    assert match(values, dense, capacities).value == result.value


def test_hundreds_of_sparse_resources_are_priced_closely() -> None:
    values, demands, capacities, dense = _edge(1600, 200)
    costs = np.random.default_rng(5).random(values.shape)
    result = match(values, demands, capacities, costs)
    assert_sound(result, values, dense, capacities, costs)
    assert result.bound == pytest.approx(linear_optimum(values, dense, capacities), rel=1e-5)
    assert result.gap <= 0.05
    warm = match(values, demands, capacities, costs, warm_prices=result.prices)
    assert warm.bound == pytest.approx(result.bound, rel=1e-3)
    assert warm.value == pytest.approx(result.value, rel=0.01)


def test_a_resource_for_every_query_that_it_cannot_exhaust_has_no_price() -> None:
    """Each device's own processor, and twenty servers that are scarce; some plans fit on no processor."""
    rng, queries, servers = np.random.default_rng(8), 600, 20
    resources, amounts = np.zeros((queries, 3, 2), int), rng.uniform(0.2, 1, (queries, 3, 2))
    resources[..., 0] = np.arange(queries)[:, np.newaxis]
    resources[:, 1:, 1] = queries + rng.integers(0, servers, (queries, 2))
    amounts[:, 0, 1] = 0.0
    amounts[::7, 0, 0] = 2.0
    values, costs = np.repeat(rng.uniform(1, 2, (queries, 1)), 3, axis=1), rng.random((queries, 3))
    values[::2, 0] = NOTHING
    capacities = np.concatenate([np.ones(queries), np.full(servers, 0.2 * queries / servers)])
    demands = np.zeros((queries, 3, queries + servers))
    for slot in range(2):
        rows, plans = np.indices((queries, 3))
        demands[rows, plans, resources[..., slot]] += amounts[..., slot]
    result = match(values, SparseDemands(resources=resources, amounts=amounts), capacities, costs)
    assert_sound(result, values, demands, capacities, costs)
    alone = np.where((demands <= capacities).all(axis=2), values, NOTHING)
    assert result.value >= 0.97 * linear_optimum(alone, demands, capacities)
    assert (result.prices[:queries] > 0).sum() <= queries / 7
    assert match(values, demands, capacities, costs).value == result.value


def test_warm_prices_lead_to_the_same_bound() -> None:
    values, demands, capacities, rng = _random(2, 5000, 4, 3, 0.5)
    prices = match(values, demands, capacities).prices
    changed = values * rng.uniform(0.98, 1.02, values.shape)
    cold = match(changed, demands, capacities)
    for warm_prices in (prices, np.zeros(3), prices * 1e6):
        warm = match(changed, demands, capacities, warm_prices=warm_prices)
        assert warm.bound == pytest.approx(cold.bound, rel=1e-9)
        assert warm.gap <= 1e-3


def test_samples_of_the_queries_lead_to_the_prices_of_all() -> None:
    values, demands, capacities, _ = _random(5, 70_000, 2, 2, 0.5)
    result = match(values, demands, capacities)
    assert_sound(result, values, demands, capacities)
    assert result.gap <= 1e-5


def test_without_time_the_answer_is_still_sound() -> None:
    for queries in (20, 5000):
        values, demands, capacities, _ = _random(4, queries, 4, 3, 0.5)
        assert_sound(match(values, demands, capacities, time_limit_s=0.0), values, demands, capacities)


def test_the_same_question_gets_the_same_answer() -> None:
    values, demands, capacities, _ = _random(9, 40, 4, 6, 0.4)
    results: list[MatchResult] = [match(values, demands, capacities, seed=3) for _ in range(2)]
    assert (results[0].choice == results[1].choice).all()
    assert (results[0].prices == results[1].prices).all()


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"values": [[np.nan]]}, "values must be finite"),
        ({"values": [[np.inf]]}, "values must be finite"),
        ({"values": [1.0]}, "2 dimensions"),
        ({"values": [["much"]]}, "not an array of numbers"),
        ({"demands": [[[-1.0]]]}, "demands must be finite and >= 0; 1 of 1"),
        ({"demands": [[[np.nan]]]}, "demands must be finite"),
        ({"demands": [[[1.0, 1.0]]]}, "need (1, 1, 1)"),
        ({"capacities": [-1.0]}, "capacities must be finite and >= 0"),
        ({"capacities": [np.inf]}, "capacities must be finite"),
        ({"costs": [[np.nan]]}, "costs must be finite"),
        ({"costs": [[1.0, 2.0]]}, "costs have shape"),
        ({"divisible": [True, False]}, "divisible must be 1 bools"),
        ({"divisible": [1]}, "divisible must be 1 bools"),
        ({"warm_prices": [1.0, 2.0]}, "warm_prices have shape"),
        ({"warm_prices": [-1.0]}, "warm_prices must be finite"),
    ],
    ids=str,
)
def test_bad_input_is_refused(changes: dict[str, Any], said: str) -> None:
    good: dict[str, Any] = {"values": [[1.0]], "demands": [[[1.0]]], "capacities": [1.0], "costs": [[1.0]]}
    match(**good)
    with pytest.raises(PlanningError) as refused:
        match(**(good | changes))
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("resources", "amounts", "said"),
    [
        ([[[1]]], [[[1.0]]], "resources must be in 0..0, got 1..1"),
        ([[[-1]]], [[[1.0]]], "resources must be in 0..0"),
        ([[[0.0]]], [[[1.0]]], "must be integers"),
        ([[[0, 0]]], [[[1.0]]], "resources have shape"),
        ([[[0]]], [[[np.nan]]], "demands must be finite"),
        ([[[0]], [[0]]], [[[1.0]], [[1.0]]], "values have (1, 1)"),
    ],
    ids=str,
)
def test_bad_sparse_demands_are_refused(resources: Any, amounts: Any, said: str) -> None:
    demands = SparseDemands(resources=np.array(resources), amounts=np.array(amounts))
    with pytest.raises(PlanningError) as refused:
        match([[1.0]], demands, [1.0])
    assert said in str(refused.value)
