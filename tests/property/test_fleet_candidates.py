"""Planning all queries at once against planning each alone by enumeration."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from compass_coordinator.matcher import match_milp
from compass_coordinator.planner import Candidates, find_candidates
from compass_coordinator.planner.fleet import FleetCandidates, add_columns, find_fleet_candidates
from compass_shared.evaluate import evaluate_plan
from compass_shared.problem import Problem
from support.declared import declared
from support.kinds import of_one_kind
from support.problem_strategies import seeds, shapes
from support.problems import random_problem

PRECISION = 1e-9


@st.composite
def fleets(draw: st.DrawFn) -> Problem:
    """Small loaded fleets, of one kind or with profiles that have nothing in common; any DAG.

    Some pipelines declare constraints, state and extra metrics.
    """
    shape = draw(shapes(max_operators=3, max_variants=3, max_queries=4, loaded=True))
    problem = random_problem(draw(seeds), shape)
    problem = of_one_kind(problem, draw(seeds)) if draw(st.booleans()) else problem
    return declared(problem, draw(seeds)) if draw(st.booleans()) else problem


def _all_feasible(problem: Problem) -> list[Candidates | None]:
    found = [find_candidates(problem, query) for query in problem.queries]
    return [one if isinstance(one, Candidates) else None for one in found]


def _columns(candidates: FleetCandidates, resources: tuple[str, ...]) -> list[int]:
    return [candidates.resources.index(name) for name in resources]


def _prices(candidates: FleetCandidates, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scarce = rng.random(len(candidates.capacities)) < 0.5
    return np.where(scarce, rng.exponential(1.0, len(scarce)), 0.0) / candidates.capacities


@given(fleets())
@settings(max_examples=25)
def test_estimates_are_those_of_the_scalar_evaluation(problem: Problem) -> None:
    candidates = find_fleet_candidates(problem, loads=problem.loads, max_remote=3)
    for at, query in enumerate(problem.queries):
        for candidate in np.flatnonzero(np.isfinite(candidates.values[at])):
            plan = candidates.plan(at, int(candidate))
            assert plan.estimate is not None
            expected = evaluate_plan(problem, query, plan, problem.loads)
            figures = ("latency_mean_s", "latency_var_s2", "latency_p95_s", "accuracy", "cost_usd_per_1000")
            for name in figures:
                assert np.isclose(
                    getattr(plan.estimate, name), getattr(expected, name), rtol=PRECISION, atol=0
                )
            used = {name: amount for name, amount in expected.demand.items() if amount > 0}
            assert plan.estimate.demand.keys() == used.keys()
            for name, amount in used.items():
                assert np.isclose(plan.estimate.demand[name], amount, rtol=PRECISION, atol=0)
            assert plan.estimate.latency_p95_s <= query.slo.latency_p95_s * (1 + PRECISION)
            assert plan.estimate.accuracy >= query.slo.accuracy
            assert plan.estimate.cost_usd_per_1000 <= query.slo.cost_usd_per_1000 * (1 + PRECISION)


@given(fleets(), seeds)
@settings(max_examples=25)
def test_at_any_prices_the_best_plan_and_the_bound_are_those_of_enumeration(
    problem: Problem, seed: int
) -> None:
    candidates = find_fleet_candidates(problem, loads=problem.loads, max_remote=3)
    prices = _prices(candidates, seed)
    extended, bound = add_columns(candidates, prices)
    everything = _all_feasible(problem)
    expected = float(prices @ candidates.capacities)
    for at, (query, every) in enumerate(zip(problem.queries, everything, strict=True)):
        present = np.isfinite(extended.values[at])
        assert present.any() == (every is not None)
        if every is None:
            continue
        paid = every.demand @ prices[_columns(candidates, every.resources)]
        expected += max(0.0, query.weight - float(paid.min()))
        demands = extended.demands
        own = (demands.amounts[at] * prices[demands.resources[at]]).sum(axis=1)
        assert np.isclose(own[present].min(), paid.min(), rtol=PRECISION, atol=1e-15)
        cheapest = candidates.costs[at, np.isfinite(candidates.values[at])].min()
        assert np.isclose(cheapest, every.cost_usd_per_s.min(), rtol=PRECISION, atol=0)
    assert np.isclose(bound, expected, rtol=PRECISION, atol=0)


@given(fleets())
@settings(max_examples=25)
def test_nothing_is_lost_against_matching_with_every_plan(problem: Problem) -> None:
    candidates = find_fleet_candidates(problem, loads=problem.loads, max_remote=3)
    everything = _all_feasible(problem)
    plans = max((len(every) for every in everything if every is not None), default=1)
    queries = len(problem.queries)
    values = np.full((queries, plans), -np.inf)
    demands = np.zeros((queries, plans, len(candidates.resources)))
    costs = np.zeros((queries, plans))
    for at, every in enumerate(everything):
        if every is not None:
            values[at, : len(every)] = problem.queries[at].weight
            demands[at, : len(every), _columns(candidates, every.resources)] = every.demand.T
            costs[at, : len(every)] = every.cost_usd_per_s
    best = match_milp(values, demands, candidates.capacities, costs)
    found = match_milp(*_dense(candidates), candidates.capacities, candidates.costs)
    assert np.isclose(found.value, best.value)


def _dense(candidates: FleetCandidates) -> tuple[np.ndarray, np.ndarray]:
    demands = np.zeros((*candidates.values.shape, len(candidates.resources)))
    rows, columns = np.indices(candidates.values.shape)
    for entry in range(candidates.demands.amounts.shape[2]):
        resources = candidates.demands.resources[..., entry]
        np.add.at(demands, (rows, columns, resources), candidates.demands.amounts[..., entry])
    return candidates.values, demands
