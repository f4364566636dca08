"""Searching large spaces: tables, unmeasured spaces, and what is handed back when nothing serves."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from compass_coordinator.estimator import Floats, Indices
from compass_coordinator.planner.search import Budget, improving_plans, search_plan
from compass_coordinator.planner.search.configs import KnownConfigs, known_configs
from compass_coordinator.planner.search.measuring import _log_normal_cdf
from compass_coordinator.planner.search.result import Judge
from compass_coordinator.planner.search.surrogate import first_variances, fit
from compass_coordinator.planner.search.tables import build_tables
from compass_coordinator.planner.search.tabulated import search_known
from compass_shared.errors import PlanningError
from compass_shared.pipeline import Config
from compass_shared.problem import Problem, SiteLoad
from compass_shared.profile import Accuracy, AccuracyTable
from compass_shared.query import Query
from support.problems import LOOSE, FleetShape, random_problem, with_slo

SIDE, CHOICES = 8, 4


def _small() -> tuple[Problem, Query]:
    problem = random_problem(11, FleetShape(queries=1))
    return problem, replace(problem.queries[0], slo=LOOSE, rate_hz=0.1)


def _large(*, chain: bool, seed: int = 0) -> tuple[Problem, Query]:
    """4^8 configs, none of them tabulated; the latency limit is what everything at the best site takes."""
    problem = random_problem(seed, FleetShape(variants=(2,) * SIDE, chain=chain, queries=1))
    table = AccuracyTable(pipeline="sort-mail", metric="", split="", configs={})
    problem = replace(problem, accuracy={"sort-mail": table})
    return problem, replace(problem.queries[0], slo=LOOSE, rate_hz=0.2)


def _score(config: Config) -> float:
    """Accuracy by all operators together: each level lost hurts, and more so beside another."""
    levels = [int(knobs["level"]) for knobs in config.values() if knobs]
    together = sum(a * b for a, b in pairwise(levels))
    return (sum(levels) + 0.5 * together) / (1.5 * len(levels))


def test_an_accuracy_out_of_reach_gets_the_nearest_plan_and_the_reason() -> None:
    problem, query = _small()
    best = max(found.mean for found in problem.accuracy[query.pipeline].configs.values())
    result = search_plan(problem, with_slo(query, accuracy=0.9999))
    assert not result.serves
    assert result.bound == math.inf
    assert result.gap is None
    assert result.plan is not None
    assert result.plan.estimate is not None
    assert result.plan.estimate.accuracy == best
    assert result.violation == pytest.approx((0.9999 - best) / 0.9999)
    assert result.reason == f"the most accurate config reaches {best:.4g} against 0.9999"


def test_a_latency_out_of_reach_is_proven_and_the_nearest_plan_is_fast() -> None:
    problem, query = _small()
    result = search_plan(problem, with_slo(query, latency_p95_s=1e-4))
    assert result.bound == math.inf
    assert result.plan is not None
    assert result.reason is not None
    assert "can be placed within the latency" in result.reason


def test_without_a_table_there_is_nothing_to_choose() -> None:
    problem, query = _small()
    result = search_plan(replace(problem, accuracy={}), query)
    assert (result.plan, result.bound) == (None, math.inf)
    assert result.reason == "the accuracy of no config of pipeline 'sort-mail' was measured"


@pytest.mark.parametrize("measured", [False, True])
def test_where_everything_is_overloaded_nothing_is_searched(measured: bool) -> None:
    problem, query = _small()
    full = SiteLoad(utilisation=1.0, residual_s=0.1)
    problem = replace(problem, loads=dict.fromkeys(problem.sites, full))
    result = search_plan(problem, query, accuracy=_score if measured else None)
    assert result.reason == "every site that query 'query-0' may use is overloaded"
    assert result.bound == (None if measured else math.inf)


@pytest.mark.parametrize("price", [-1.0, math.nan, math.inf])
def test_a_price_must_be_a_price(price: float) -> None:
    problem, query = _small()
    with pytest.raises(PlanningError, match="cores@edge-0"):
        search_plan(problem, query, prices={"cores@edge-0": price})


@pytest.mark.parametrize("wrong", [1.5, -0.1, math.nan])
def test_a_measured_accuracy_must_be_one(wrong: float) -> None:
    problem, query = _small()
    with pytest.raises(PlanningError, match="must lie in"):
        search_plan(problem, query, accuracy=lambda config: wrong)


def test_a_price_on_a_site_drives_the_plan_away_from_it() -> None:
    problem, query = _small()
    for site in search_plan(problem, query).plan.placement.values():  # type: ignore[union-attr]
        moved = search_plan(problem, query, prices={f"cores@{site}": 1e3})
        assert moved.plan is not None
        assert site not in moved.plan.placement.values()


def test_it_stops_when_time_is_out() -> None:
    problem, query = _small()
    results = list(improving_plans(problem, query, budget=Budget(out_of_time=lambda: True)))
    assert [(result.evaluations, result.plan) for result in results] == [(0, None)]
    assert results[0].bound is not None
    assert 0 <= results[0].bound <= search_plan(problem, query).score
    measured = list(improving_plans(problem, query, accuracy=_score, budget=Budget(out_of_time=lambda: True)))
    assert [result.evaluations for result in measured] == [0]


def test_keys_of_tables_are_read_even_with_semicolons_and_stale_ones_passed_over() -> None:
    problem, query = _small()
    pipeline = problem.pipelines[query.pipeline]
    first, *others = pipeline.operators
    odd = replace(pipeline, operators=(replace(first, knobs={"mode": ("a", "a;op1")}), *others))
    tables = build_tables(replace(problem, pipelines={odd.name: odd}), query, {})
    keys = [odd.config_key(config) for config in odd.configs()]
    known = {key: Accuracy(mean=0.5, standard_error=0, count=1) for key in ["gone", *keys, keys[0] + "]"]}
    table = AccuracyTable(pipeline=odd.name, metric="", split="", configs=known)
    found = known_configs(tables, table)
    assert [odd.config_key(tables.config(choice)) for choice in found.choices] == keys


def _known(problem: Problem, query: Query, count: int) -> tuple[Judge, KnownConfigs]:
    tables = build_tables(problem, query, {})
    choices = np.random.default_rng(0).integers(2, size=(count, SIDE))
    accuracy = np.array([_score(tables.config(choice)) for choice in choices])
    return Judge(problem=problem, query=query, tables=tables, prices={}), KnownConfigs(
        choices=choices, accuracy=accuracy
    )


def _hurried(problem: Problem, query: Query, factor: float) -> Query:
    """A latency that the least accurate config meets at its best site, times a factor."""
    tables = build_tables(problem, query, {})
    judge = Judge(problem=problem, query=query, tables=tables, prices={})
    plans = [
        judge.judge(np.zeros(SIDE, dtype=np.int64), np.full(SIDE, site), 1.0).plan
        for site in range(len(tables.sites))
    ]
    least_s = min(plan.estimate.latency_p95_s for plan in plans if plan.estimate is not None)
    return with_slo(query, latency_p95_s=factor * least_s, accuracy=0.4)


@pytest.mark.parametrize("seed", range(3))
def test_a_chain_is_searched_to_the_proof(seed: int) -> None:
    problem, query = _large(chain=True, seed=seed)
    *_, result = search_known(*_known(problem, _hurried(problem, query, 1.6), 200), Budget())
    assert result.serves
    assert result.gap == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_any_dag_gets_a_plan_and_a_bound(seed: int) -> None:
    problem, query = _large(chain=False, seed=seed)
    *_, result = search_known(*_known(problem, _hurried(problem, query, 1.2), 60), Budget())
    assert result.serves
    assert result.bound is not None
    assert 0 < result.bound <= result.score


def test_measuring_finds_cheaper_plans_than_as_many_random_configs() -> None:
    problem, query = _large(chain=True)
    query = _hurried(problem, query, 1.3)
    rng = np.random.default_rng(0)
    tables = build_tables(problem, query, {})
    drawn = {
        problem.pipelines[query.pipeline].config_key(tables.config(choice)): Accuracy(
            mean=_score(tables.config(choice)), standard_error=0, count=1
        )
        for choice in rng.integers(2, size=(18, SIDE))
    }
    table = AccuracyTable(pipeline=query.pipeline, metric="", split="", configs=drawn)
    at_random = search_plan(replace(problem, accuracy={query.pipeline: table}), query)
    result = search_plan(problem, query, accuracy=_score, budget=Budget(evaluations=18))
    assert result.evaluations <= 18
    assert result.serves
    assert result.score < at_random.score
    assert [score for _, score in result.trace] == sorted((score for _, score in result.trace), reverse=True)
    assert result.trace[-1][1] == result.score


def test_a_surrogate_learns_effects_and_knows_what_it_does_not_know() -> None:
    rng = np.random.default_rng(0)
    counts, effects = (CHOICES,) * 6, rng.normal(size=(6, CHOICES))
    effects[:2] = 0

    def truth(choices: Indices) -> Floats:
        return np.asarray(effects[np.arange(6), choices].sum(axis=1) + (choices[:, 2] == choices[:, 3]))

    known, asked = rng.integers(CHOICES, size=(60, 6)), rng.integers(CHOICES, size=(500, 6))
    variances = first_variances(6)
    for _ in range(5):
        variances = fit(counts, known, truth(known), variances).variances
    model = fit(counts, known, truth(known), variances)
    mean, spread = model.predict(asked)
    error = mean - truth(asked)
    assert np.mean(error**2) < 0.1 * truth(asked).var()
    assert np.std(error / spread) < 1.5
    first = first_variances(6)
    assert (variances.effect[:2] < first.effect[:2] / 2).all()
    assert (variances.trend[:2] < first.trend[:2] / 2).all()
    assert variances.effect[2:].sum() > 2 * first.effect[2:].sum()
    assert model.predict(known)[1].mean() < spread.mean()
    assert np.argmax(model.effects()[4]) == np.argmax(effects[4])


def test_accuracies_that_are_all_alike_are_no_trouble() -> None:
    choices = np.array([[0, 0], [1, 1], [0, 1]])
    model = fit((2, 2), choices, np.full(3, 0.7), first_variances(2))
    assert model.predict(choices)[0] == pytest.approx(0.7)


def test_the_normal_distribution_is_close_enough_in_the_tails() -> None:
    z = np.linspace(-12, 6, 200)
    exact = np.array([math.log(0.5 * math.erfc(-each / math.sqrt(2))) for each in z])
    assert _log_normal_cdf(z) == pytest.approx(exact, abs=0.1)
