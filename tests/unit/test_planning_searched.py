"""Planning queries that have too many plans to enumerate."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compass_coordinator.planning import plan_fleet, searched
from compass_shared.check import check_plan
from compass_shared.problem import Problem
from support.problems import FleetShape, random_problem, with_queries, with_slo


def _named(problem: Problem) -> Problem:
    return with_queries(problem, *(replace(query, name=f"q{at}") for at, query in enumerate(problem.queries)))


def test_a_fleet_of_huge_pipelines_is_planned_with_a_bound() -> None:
    problem = _named(random_problem(6, FleetShape(variants=(4,) * 7, devices=2, queries=2)))
    impossible = with_slo(problem.queries[1], latency_p95_s=1e-6)
    patient = with_slo(problem.queries[0], latency_p95_s=60.0, cost_usd_per_1000=1e3)
    problem = with_queries(problem, replace(patient, rate_hz=0.05), impossible)
    assert all(searched.is_searched(problem, query) for query in problem.queries)
    plan = plan_fleet(problem)
    assert check_plan(problem, plan.plans) == []
    assert set(plan.plans) == {"q0"}
    assert plan.refusals["q1"].detail
    found = plan.searched["q0"]
    assert found.bound is not None
    assert 0 <= found.bound <= found.score * (1 + 1e-9)
    estimate = plan.plans["q0"].estimate
    assert estimate is not None
    rate_hz = problem.queries[0].rate_hz
    assert found.bound <= rate_hz * estimate.cost_usd_per_1000 / 1000 * (1 + 1e-9)


def test_searching_serves_about_what_enumerating_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [
        _named(random_problem(seed, FleetShape(variants=(2, 2), devices=2, queries=3))) for seed in range(6)
    ]
    enumerated = sum(plan_fleet(problem).goodput for problem in problems)
    monkeypatch.setattr(searched, "MAX_ENUMERATED", 0)
    plans = [plan_fleet(problem) for problem in problems]
    for problem, plan in zip(problems, plans, strict=True):
        assert check_plan(problem, plan.plans) == []
        assert set(plan.searched) == {query.name for query in problem.queries}
    assert sum(plan.goodput for plan in plans) >= 0.9 * enumerated
