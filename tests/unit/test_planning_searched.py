"""Planning queries that have too many plans to enumerate."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compass_coordinator.planning import plan_fleet, searched
from compass_shared.check import check_plan
from compass_shared.pipeline import variant_key
from compass_shared.problem import Problem
from compass_shared.profile import Accuracy
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


def test_two_billion_configs_are_planned_from_their_table() -> None:
    """Twelve operators of six variants: nothing may list the space, the fallback included."""
    small = random_problem(2, FleetShape(variants=(6,) * 3, queries=1))
    (pipeline,) = small.pipelines.values()
    first = pipeline.operators[0]
    operators = [
        replace(first, name=f"op{at}", inputs=(f"op{at - 1}",) if at else first.inputs) for at in range(12)
    ]
    large = replace(pipeline, operators=tuple(operators), output="op11")
    configs = [
        {op.name: {"level": (at * (number + 1)) % 6} for number, op in enumerate(operators)}
        for at in range(300)
    ]
    table = replace(
        next(iter(small.accuracy.values())),
        configs={
            large.config_key(config): Accuracy(mean=0.5 + at / 1000, standard_error=0.0, count=9)
            for at, config in enumerate(configs)
        },
    )
    profiles = {
        key: replace(
            profile,
            operators={
                variant_key(op.name, knobs): replace(
                    profile.operators[variant_key("op0", knobs)], variant=variant_key(op.name, knobs)
                )
                for op in operators
                for knobs in op.variants()
            },
        )
        for key, profile in small.profiles.items()
    }
    patient = with_slo(small.queries[0], latency_p95_s=60.0, cost_usd_per_1000=1e3, accuracy=0.6)
    problem = replace(
        with_queries(small, replace(patient, rate_hz=0.05)),
        pipelines={large.name: large},
        accuracy={large.name: table},
        profiles=profiles,
    )
    assert large.config_count() == 6**12
    plan = plan_fleet(problem)
    assert check_plan(problem, plan.plans) == []
    (name,) = plan.plans
    found = plan.searched[name]
    assert found.gap == 0, "a chain is searched to the proof"
    assert set(plan.fallbacks[name].placement.values()) == {problem.queries[0].origin}
