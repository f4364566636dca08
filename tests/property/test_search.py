"""Searching finds what enumeration finds, and its bounds hold, on spaces small enough to enumerate."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compass_coordinator.planner import Candidates, find_candidates
from compass_coordinator.planner.search import Budget, improving_plans, search_plan
from compass_coordinator.planner.search.relaxation import relax, total
from compass_coordinator.planner.search.tables import COST, MEAN, VAR, build_tables
from compass_shared.evaluate import evaluate_plan
from compass_shared.plan import Plan
from compass_shared.problem import Z95, Problem
from compass_shared.query import Query
from support.declared import declared
from support.problem_strategies import problems, seeds
from support.problems import LOOSE, random_plan

CLOSE = 1e-9


def _prices(problem: Problem, seed: int) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    return {
        name: float(rng.uniform(0, 1e-4) / amount)
        for name, amount in problem.capacities().items()
        if rng.random() < 0.5
    }


def _least(problem: Problem, query: Query, prices: dict[str, float]) -> float:
    """Least score of all plans that serve, by enumeration; inf if there is none."""
    found = find_candidates(problem, query)
    if not isinstance(found, Candidates):
        return math.inf
    priced = found.demand @ np.array([prices.get(name, 0.0) for name in found.resources])
    return float((found.cost_usd_per_s + priced).min())


@given(problems(max_operators=4, max_variants=3, max_queries=1, loaded=True), seeds, st.booleans())
@settings(max_examples=30)
def test_with_tabulated_accuracy_search_equals_enumeration(problem: Problem, seed: int, priced: bool) -> None:
    if seed % 2:
        problem = declared(problem, seed)
    query = problem.queries[0]
    prices = _prices(problem, seed) if priced else {}
    least = _least(problem, query, prices)
    result = search_plan(problem, query, prices=prices)
    assert result.score == pytest.approx(least, rel=CLOSE)
    assert result.serves == math.isfinite(least)
    assert result.bound is not None
    assert result.bound <= least * (1 + CLOSE)
    if not result.serves:
        assert result.reason is not None
        return
    assert result.gap == pytest.approx(0.0, abs=CLOSE)
    assert result.plan is not None
    assert result.plan.estimate == evaluate_plan(problem, query, result.plan, problem.loads)


@given(problems(max_operators=4, max_variants=3, max_queries=1), st.integers(0, 20))
@settings(max_examples=25)
def test_the_bound_holds_wherever_the_search_is_stopped(problem: Problem, evaluations: int) -> None:
    query = problem.queries[0]
    least = _least(problem, query, {})
    scores, bounds = [math.inf], [0.0]
    for result in improving_plans(problem, query, budget=Budget(evaluations=evaluations)):
        assert result.evaluations <= evaluations
        assert result.bound is not None
        scores.append(result.score)
        bounds.append(result.bound)
    assert all(bound <= least * (1 + CLOSE) for bound in bounds)
    assert all(score >= least * (1 - CLOSE) for score in scores)
    assert scores == sorted(scores, reverse=True)
    assert bounds == sorted(bounds)


@given(problems(max_operators=4, max_variants=2, max_queries=1, loaded=True), st.floats(0.5, 2.0))
@settings(max_examples=25)
def test_the_relaxation_bounds_every_plan_of_every_config(problem: Problem, haste: float) -> None:
    """Also for latencies that only some plans meet, config by config."""
    query = problem.queries[0]
    tables = build_tables(problem, query, {})
    if not tables.sites:
        return
    table = problem.accuracy[query.pipeline].configs
    choices = np.array(list(itertools.product(*(range(count) for count in tables.counts))))
    measured = [tables.pipeline.config_key(tables.config(choice)) in table for choice in choices]
    choices = choices[np.array(measured)]
    plans = [
        Plan(config=tables.config(choice), placement=tables.placement(np.array(sites)))
        for choice in choices
        for sites in itertools.product(range(len(tables.sites)), repeat=len(tables.counts))
    ]
    found = [evaluate_plan(problem, query, plan, problem.loads) for plan in plans]
    latency = np.array([each.latency_p95_s for each in found]).reshape(len(choices), -1)
    cost = np.array([each.cost_usd_per_1000 for each in found]).reshape(len(choices), -1) / 1000
    limit_s = haste * float(np.median(latency))
    relaxed = relax(tables, choices, limit_s, 1e6)
    least = query.rate_hz * np.where(latency <= limit_s, cost, np.inf).min(axis=1)
    assert (relaxed.bound <= least * (1 + CLOSE)).all()
    if tables.exact:
        assert (relaxed.score >= least * (1 - CLOSE)).all()


@given(problems(max_operators=4, max_queries=1, loaded=True), seeds)
@settings(max_examples=60)
def test_the_tables_are_exact_for_chains_and_below_the_truth_for_all(problem: Problem, seed: int) -> None:
    query = problem.queries[0]
    tables = build_tables(problem, query, {})
    plan = random_plan(problem, query, seed)
    if not set(plan.placement.values()) <= set(tables.sites):
        return
    choice = [
        list(listed).index(plan.config[op.name])
        for op, listed in zip(tables.pipeline.operators, tables.variants, strict=True)
    ]
    sites = [tables.sites.index(plan.placement[op.name]) for op in tables.pipeline.operators]
    sums = {
        channel: float(total(tables, np.array([choice]), np.array([sites]), channel)[0])
        for channel in (COST, MEAN, VAR)
    }
    truth = evaluate_plan(problem, query, plan, problem.loads)
    p95_s = sums[MEAN] + Z95 * math.sqrt(sums[VAR])
    for value, true in ((sums[COST] * 1000, truth.cost_usd_per_1000), (p95_s, truth.latency_p95_s)):
        assert value <= true * (1 + CLOSE)
        if tables.exact:
            assert value == pytest.approx(true, rel=CLOSE)


@given(problems(max_operators=3, max_variants=3, max_queries=1), seeds)
@settings(max_examples=12)
def test_measuring_everything_finds_the_best(problem: Problem, seed: int) -> None:
    """On a space that the budget covers, what is left unmeasured could not have been better."""
    query = problem.queries[0]
    pipeline, table = problem.pipelines[query.pipeline], problem.accuracy[query.pipeline].configs
    asked: list[str] = []

    def accuracy(config: object) -> float:
        key = pipeline.config_key(config)  # type: ignore[arg-type]
        asked.append(key)
        return table[key].mean if key in table else 0.0

    query = replace(query, slo=replace(query.slo, accuracy=max(query.slo.accuracy, 1e-6)))
    result = search_plan(replace(problem, accuracy={}), query, accuracy=accuracy, seed=seed)
    assert len(asked) == len(set(asked)) == result.evaluations
    assert result.bound is None
    assert result.reason is not None
    least = _least(problem, query, {})
    assert result.score >= least * (1 - CLOSE)
    if pipeline.config_count() <= 9:
        assert result.score == pytest.approx(least, rel=CLOSE)


@given(problems(max_operators=3, max_queries=1), seeds)
@settings(max_examples=5)
def test_a_seed_decides_everything(problem: Problem, seed: int) -> None:
    query = replace(problem.queries[0], slo=LOOSE)

    def accuracy(config: object) -> float:
        return len(str(config)) % 7 / 7

    runs = [
        search_plan(problem, query, accuracy=accuracy, budget=Budget(evaluations=15), seed=seed)
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
