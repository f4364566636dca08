"""The vectorised estimator agrees with the scalar evaluation, plan by plan."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings

from compass_coordinator.estimator import Estimates, PlanSpace, estimate, waits_at, waits_joining
from compass_coordinator.plan_space import build_space
from compass_shared.errors import PlanningError
from compass_shared.evaluate import estimate_at_load, evaluate_plan, site_mixes
from compass_shared.plan import Estimate, Placement
from compass_shared.problem import Problem, SiteLoad
from support.problem_strategies import problems, seeds
from support.problems import FleetShape, random_plan, random_problem


def _some_placements(problem: Problem, seed: int, count: int = 3) -> list[Placement]:
    return [random_plan(problem, problem.queries[0], seed + at).placement for at in range(count)]


def _rows(space: PlanSpace, seed: int, count: int = 6) -> list[int]:
    tabulated = np.flatnonzero(np.isfinite(space.accuracy)).tolist()
    return Random(seed).sample(tabulated, min(count, len(tabulated)))


def _agree(estimates: Estimates, row: int, expected: Estimate) -> None:
    actual = estimates.row(row)
    for field in ("latency_p95_s", "accuracy", "cost_usd_per_1000"):
        assert getattr(actual, field) == pytest.approx(getattr(expected, field), rel=1e-9), field
    assert {name: amount for name, amount in expected.demand.items() if amount > 0} == pytest.approx(
        dict(actual.demand), rel=1e-9
    )


@given(problems(loaded=True), seeds)
def test_agrees_with_the_scalar_evaluation_at_a_given_load(problem: Problem, seed: int) -> None:
    query = problem.queries[0]
    space = build_space(problem, query, _some_placements(problem, seed))
    estimates = estimate(space, query, waits_at(problem, space.sites, problem.loads))
    for row in _rows(space, seed):
        expected = evaluate_plan(problem, query, space.plan(row), problem.loads)
        _agree(estimates, row, expected)
        assert estimates.row(row).latency_mean_s == pytest.approx(expected.latency_mean_s, rel=1e-9)
        assert estimates.row(row).latency_var_s2 == pytest.approx(expected.latency_var_s2, rel=1e-9)


@given(problems(max_queries=4), seeds)
@settings(max_examples=50)
def test_joining_others_agrees_with_the_load_that_results(problem: Problem, seed: int) -> None:
    query, *others = problem.queries
    present = {other.name: random_plan(problem, other, seed) for other in others}
    space = build_space(problem, query, _some_placements(problem, seed))
    mixes = site_mixes(problem, present)
    estimates = estimate(space, query, waits_joining(problem, space.sites, mixes, space, query.rate_hz))
    for row in _rows(space, seed):
        together = estimate_at_load(problem, {**present, query.name: space.plan(row)})
        _agree(estimates, row, together[query.name])


def test_an_overloaded_site_takes_for_ever_and_only_for_those_who_visit_it() -> None:
    problem = random_problem(1, FleetShape(variants=(2, 2)))
    query = problem.queries[0]
    at_cloud, at_home = ({f"op{index}": site for index in range(2)} for site in ("cloud-0", query.origin))
    space = build_space(problem, query, [at_cloud, at_home])
    waits = waits_at(problem, space.sites, {"cloud-0": SiteLoad(utilisation=1.0, residual_s=0.1)})
    p95_s = estimate(space, query, waits).latency_p95_s
    assert np.isinf(p95_s[space.placement_of == 0]).all()
    assert np.isfinite(p95_s[space.placement_of == 1]).all()


def test_what_was_not_measured_is_nan() -> None:
    problem = random_problem(2, FleetShape(variants=(2, 2), measured_share=0.5))
    query = problem.queries[0]
    key = query.origin, query.pipeline
    profile = problem.profiles[key]
    partial = {name: op for name, op in profile.operators.items() if name != "op1[level=1]"}
    problem = replace(problem, profiles={**problem.profiles, key: replace(profile, operators=partial)})
    space = build_space(problem, query, [dict.fromkeys(("op0", "op1"), query.origin)])
    estimates = estimate(space, query, waits_at(problem, space.sites, {}))
    unmeasured = [config["op1"]["level"] == 1 for config in space.configs]
    assert np.isnan(estimates.latency_p95_s).tolist() == unmeasured
    assert np.isnan(estimates.cost_usd_per_1000).tolist() == unmeasured
    assert np.isnan(estimates.accuracy).sum() == 2


def test_taking_rows_takes_them_everywhere() -> None:
    problem = random_problem(3, FleetShape(variants=(3, 2), chain=False))
    query = problem.queries[0]
    space = build_space(problem, query, _some_placements(problem, 0, 4))
    rows = np.array([7, 0, 13])
    whole = estimate(space, query, waits_at(problem, space.sites, {}))
    part = estimate(space.take(rows), query, waits_at(problem, space.sites, {}))
    for at, row in enumerate(rows):
        assert part.row(at) == whole.row(row) == whole.take(rows).row(at)
        assert space.take(rows).plan(at) == space.plan(row)


def test_a_space_too_large_to_enumerate_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compass_coordinator.plan_space.MAX_PLANS", 5)
    problem = random_problem(4, FleetShape(variants=(3, 2)))
    with pytest.raises(PlanningError, match="6 plans from 'device-0'"):
        build_space(problem, problem.queries[0], _some_placements(problem, 0, 1))
