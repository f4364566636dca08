"""Local search: never worse, always feasible, near the best, and the same whatever the order of queries."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from compass_coordinator.matcher import REFUSED, match_milp
from compass_coordinator.matcher.deadline import Deadline
from compass_coordinator.matcher.local_search import improve
from compass_coordinator.matcher.problem import MatchProblem, checked

NO_DEADLINE = Deadline.after(None)


def problem_of(queries: int, plans: int, resources: int, seed: int, share: float = 0.4) -> MatchProblem:
    """Values like demands, which is hard, and capacities for a share of all."""
    rng = np.random.default_rng(seed)
    demands = rng.random((queries, plans, resources))
    values = demands.mean(axis=2) * rng.uniform(0.8, 1.2, (queries, plans))
    capacities = share * demands.mean(axis=1).sum(axis=0)
    return checked(values, demands, capacities, rng.random((queries, plans)))


def improved(
    problem: MatchProblem, choice: Any = None, *, bound: float = math.inf, seed: int = 0
) -> NDArray[np.int64]:
    start = np.full(len(problem.values), REFUSED) if choice is None else np.asarray(choice)
    # About right: a plan's value is about its mean demand.
    prices = np.full(len(problem.capacities), 1 / max(1, len(problem.capacities)))
    rng = np.random.default_rng(seed)
    return improve(problem, start, prices, bound, rng=rng, deadline=NO_DEADLINE)


def totals(problem: MatchProblem, choice: NDArray[np.int64]) -> tuple[float, float]:
    """Value and cost of a choice that fits."""
    served = np.flatnonzero(choice != REFUSED)
    used = problem.demands[served, choice[served]].sum(axis=0)
    assert (used <= problem.capacities * (1 + 1e-9)).all()
    assert (problem.values[served, choice[served]] > 0).all()
    return (
        math.fsum(problem.values[served, choice[served]]),
        math.fsum(problem.costs[served, choice[served]]),
    )


def enumerated(problem: MatchProblem) -> tuple[float, float]:
    """The best (value, -cost) of all choices, values alike to 9 digits."""
    queries, plans = problem.values.shape
    best = (0.0, 0.0)
    for choice in itertools.product(range(-1, plans), repeat=queries):
        pairs = [(query, plan) for query, plan in enumerate(choice) if plan != REFUSED]
        used = sum((problem.demands[pair] for pair in pairs), np.zeros(len(problem.capacities)))
        if (used <= problem.capacities).all():
            value = round(sum(problem.values[pair] for pair in pairs), 9)
            best = max(best, (value, -sum(problem.costs[pair] for pair in pairs)))
    return best


@pytest.mark.parametrize("seed", range(8))
def test_finds_the_best_of_few_choices(seed: int) -> None:
    problem = problem_of(6, 3, 3, seed)
    # Half of the values alike, so that cost decides.
    problem.values[:] = np.where(problem.values > np.median(problem.values), 1.0, problem.values)
    value, cost = totals(problem, improved(problem))
    assert (value, -cost) == pytest.approx(enumerated(problem), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_comes_near_the_optimum_of_hard_cases(seed: int) -> None:
    problem = problem_of(12, 3, 5, seed)
    best = match_milp(problem.values, problem.demands, problem.capacities).value
    value, _ = totals(problem, improved(problem))
    assert 0.99 * best <= value <= best * (1 + 1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_is_never_worse_than_where_it_starts(seed: int) -> None:
    problem = problem_of(20, 3, 5, seed)
    start = improved(problem, seed=1)
    value, cost = totals(problem, start)
    better, lower = totals(problem, improved(problem, start, seed=2))
    assert (better, -lower) >= (value - 1e-12, -cost - 1e-12)


def test_the_order_of_queries_does_not_matter() -> None:
    problem = problem_of(16, 3, 4, seed=3)
    order = np.random.default_rng(0).permutation(16)
    permuted = checked(
        problem.values[order], problem.demands[order], problem.capacities, problem.costs[order]
    )
    np.testing.assert_array_equal(improved(permuted), improved(problem)[order])


def test_the_same_seed_gives_the_same_choice() -> None:
    problem = problem_of(16, 3, 6, seed=4)
    np.testing.assert_array_equal(improved(problem, seed=1), improved(problem, seed=1))


def test_at_the_bound_value_is_left_and_cost_lowered() -> None:
    # Both queries may change their plan for one as good; room for one of the two cheap ones.
    values = np.ones((2, 2))
    demands = np.array([[[1.0], [2.0]], [[1.0], [2.0]]])
    costs = np.array([[9.0, 1.0], [9.0, 3.0]])
    problem = checked(values, demands, [3.0], costs)
    assert improved(problem, [0, 0], bound=2.0).tolist() == [1, 0]


def test_after_the_deadline_nothing_changes() -> None:
    problem = problem_of(10, 3, 3, seed=5)
    start = np.full(10, REFUSED)
    late = Deadline(-math.inf)
    found = improve(problem, start, np.ones(3), math.inf, rng=np.random.default_rng(0), deadline=late)
    np.testing.assert_array_equal(found, start)


def test_what_cannot_be_used_is_not() -> None:
    nan, none = np.nan, -np.inf
    values = [[5.0, none, 0.0, 1.0], [9.0, 8.0, -1.0, none]]
    # Nothing of the first resource is to be had; the first plan of the second query does not fit alone.
    demands = [
        [[1.0, 0.0], [nan, nan], [0.0, 0.0], [0.0, 1.0]],
        [[0.0, 9.0], [0.0, 1.0], [0.0, 0.0], [nan, np.inf]],
    ]
    problem = checked(values, demands, [0.0, 2.0], [[1.0, nan, 1.0, 1.0], [1.0, 1.0, 1.0, nan]])
    assert improved(problem).tolist() == [3, 1]


@pytest.mark.parametrize(("queries", "plans", "resources"), [(0, 3, 2), (3, 0, 2), (3, 2, 0)])
def test_nothing_to_choose_from(queries: int, plans: int, resources: int) -> None:
    problem = checked(
        np.ones((queries, plans)), np.ones((queries, plans, resources)), np.ones(resources), None
    )
    assert ((improved(problem) != REFUSED) == bool(plans)).all()


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_units_do_not_matter(scale: float) -> None:
    problem = problem_of(20, 4, 5, seed=6)
    scaled = checked(
        problem.values * scale, problem.demands * scale, problem.capacities * scale, problem.costs * scale
    )
    assert totals(scaled, improved(scaled))[0] == pytest.approx(
        totals(problem, improved(problem))[0] * scale, rel=0.01
    )


def test_of_many_queries_those_that_are_undecided_are_looked_at() -> None:
    problem = problem_of(700, 6, 16, seed=7, share=0.6)
    # By value alone, in turn: a poor start.
    used, start = np.zeros(16), np.full(700, REFUSED)
    for query, plan in enumerate(problem.values.argmax(axis=1)):
        if (used + problem.demands[query, plan] <= problem.capacities).all():
            start[query], used = plan, used + problem.demands[query, plan]
    before, _ = totals(problem, start)
    after, _ = totals(problem, improved(problem, start))
    assert after > 1.01 * before
