"""check_plan passes sound plans and catches each kind of fault, put into them one at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings

from compass_shared.check import Violation, ViolationKind, check_plan
from compass_shared.evaluate import estimate_at_load
from compass_shared.plan import Allocation, Plan
from compass_shared.problem import Problem
from support.problem_strategies import problems, seeds
from support.problems import LOOSE, FleetShape, random_plan, random_problem, with_queries, with_slo

Sound = tuple[Problem, dict[str, Plan]]


def _sound(problem: Problem, seed: int) -> Sound:
    """Slow loose queries with any plans at all, which then hold; each plan carries its estimate."""
    slow = with_queries(problem, *(replace(q, slo=LOOSE, rate_hz=q.rate_hz / 20) for q in problem.queries))
    plans = {query.name: random_plan(slow, query, seed) for query in slow.queries}
    estimates = estimate_at_load(slow, plans)
    return slow, {name: replace(plan, estimate=estimates[name]) for name, plan in plans.items()}


def _example() -> Sound:
    """One query, three operators, on all three sites."""
    problem, plans = _sound(random_problem(5, FleetShape(queries=1)), 5)
    placement = {"op0": "device-0", "op1": "edge-0", "op2": "cloud-0"}
    return problem, {"query-0": replace(plans["query-0"], placement=placement, estimate=None)}


def _kinds(violations: list[Violation]) -> set[ViolationKind]:
    return {violation.kind for violation in violations}


@given(problems(), seeds)
def test_sound_plans_have_no_violations(problem: Problem, seed: int) -> None:
    assert check_plan(*_sound(problem, seed)) == []


@given(problems(), seeds)
@settings(max_examples=50)
def test_each_slo_is_checked_at_its_limit(problem: Problem, seed: int) -> None:
    problem, plans = _sound(problem, seed)
    query = problem.queries[0]
    reached = plans[query.name].estimate
    assert reached is not None
    limits = {
        "latency_p95_s": (ViolationKind.LATENCY, reached.latency_p95_s, 1 - 1e-6),
        "accuracy": (ViolationKind.ACCURACY, reached.accuracy, 1 + 1e-6),
        "cost_usd_per_1000": (ViolationKind.COST, reached.cost_usd_per_1000, 1 - 1e-6),
    }
    for field, (kind, actual, stricter) in limits.items():
        for limit, expected in ((actual, []), (actual * stricter, [(kind, query.name, actual)])):
            changed = with_slo(query, **{field: limit})
            found = check_plan(with_queries(problem, changed, *problem.queries[1:]), plans)
            assert [(v.kind, v.query, v.actual) for v in found] == expected
            assert [v.limit for v in found] == [limit] * len(expected)


@given(problems(), seeds)
@settings(max_examples=50)
def test_each_capacity_is_checked_at_its_limit(problem: Problem, seed: int) -> None:
    problem, plans = _sound(problem, seed)
    used: dict[str, float] = {}
    for plan in plans.values():
        assert plan.estimate is not None
        for resource, amount in plan.estimate.demand.items():
            used[resource] = used.get(resource, 0.0) + amount
    for name, site in problem.sites.items():
        total = used.get(f"cores@{name}", 0.0)
        if total > 0:
            for cap, expected in ((1 + 1e-12, []), (1 - 1e-6, [ViolationKind.CAPACITY])):
                changed = replace(site, utilisation_cap=cap * total / site.cores)
                found = check_plan(replace(problem, sites={**problem.sites, name: changed}), plans)
                assert [violation.kind for violation in found] == expected
                assert [violation.resource for violation in found] == [f"cores@{name}"] * len(expected)
    for ends, link in problem.links.items():
        total = used.get(f"link@{ends[0]}>{ends[1]}", 0.0)
        if total > 0:
            changed_link = replace(link, utilisation_cap=(1 - 1e-6) * total / link.bandwidth_bps)
            found = check_plan(replace(problem, links={**problem.links, ends: changed_link}), plans)
            assert [violation.resource for violation in found] == [f"link@{ends[0]}>{ends[1]}"]


Fault = Callable[[Problem, Plan], tuple[Problem, dict[str, Plan]]]


def _with_plan(**changes: object) -> Fault:
    return lambda problem, plan: (problem, {"query-0": replace(plan, **changes)})  # type: ignore[arg-type]


def _placed(**sites: str) -> Fault:
    return lambda problem, plan: (
        problem,
        {"query-0": replace(plan, placement={**plan.placement, **sites})},
    )


def _without_accuracy(problem: Problem, plan: Plan) -> tuple[Problem, dict[str, Plan]]:
    pipeline, table = next(iter(problem.accuracy.items()))
    key = problem.pipelines[pipeline].config_key(plan.config)
    configs = {name: accuracy for name, accuracy in table.configs.items() if name != key}
    return replace(problem, accuracy={pipeline: replace(table, configs=configs)}), {"query-0": plan}


def _without_variant(problem: Problem, plan: Plan) -> tuple[Problem, dict[str, Plan]]:
    key = "edge-0", problem.queries[0].pipeline
    profile = problem.profiles[key]
    operators = {name: op for name, op in profile.operators.items() if not name.startswith("op1")}
    return replace(problem, profiles={**problem.profiles, key: replace(profile, operators=operators)}), {
        "query-0": plan
    }


def _unreachable(problem: Problem, plan: Plan) -> tuple[Problem, dict[str, Plan]]:
    return replace(problem, reachable={"query-0": ("edge-0",)}), {"query-0": plan}


def _one_way(problem: Problem, plan: Plan) -> tuple[Problem, dict[str, Plan]]:
    links = {ends: link for ends, link in problem.links.items() if ends != ("cloud-0", "device-0")}
    return replace(problem, links=links), {"query-0": plan}


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (lambda problem, plan: (problem, {"nobody": plan}), ViolationKind.QUERY),
        (lambda problem, plan: (replace(problem, pipelines={}), {"query-0": plan}), ViolationKind.QUERY),
        (_with_plan(config={"op0": {"level": 99}, "op2": {"level": 0}}), ViolationKind.CONFIG),
        (_with_plan(config={}), ViolationKind.CONFIG),
        (_with_plan(placement={"op0": "device-0"}), ViolationKind.PLACEMENT),
        (_placed(op9="device-0"), ViolationKind.PLACEMENT),
        (_placed(op1="moon"), ViolationKind.PLACEMENT),
        (_unreachable, ViolationKind.PLACEMENT),
        (_one_way, ViolationKind.PLACEMENT),
        (_with_plan(allocation={"op0": Allocation(batch=4)}), ViolationKind.ALLOCATION),
        (_with_plan(allocation={"op9": Allocation()}), ViolationKind.ALLOCATION),
        (_without_accuracy, ViolationKind.PROFILE),
        (_without_variant, ViolationKind.PROFILE),
    ],
)
def test_a_plan_that_cannot_be_evaluated_is_reported_as_such(fault: Fault, kind: ViolationKind) -> None:
    problem, plans = _example()
    assert check_plan(problem, plans) == []
    found = check_plan(*fault(problem, plans["query-0"]))
    assert _kinds(found) == {kind}
    assert all(violation.text for violation in found)


@pytest.mark.parametrize("field", ["accuracy", "cost_usd_per_1000", "demand"])
def test_an_estimate_that_disagrees_is_reported(field: str) -> None:
    problem, plans = _example()
    estimate = estimate_at_load(problem, plans)["query-0"]
    wrong: dict[str, Any] = {
        "accuracy": 1.01 * estimate.accuracy,
        "cost_usd_per_1000": 1.01 * estimate.cost_usd_per_1000,
        "demand": {**estimate.demand, "cores@edge-0": 1.01 * estimate.demand["cores@edge-0"]},
    }
    stated = replace(plans["query-0"], estimate=replace(estimate, **{field: wrong[field]}))
    assert _kinds(check_plan(problem, {"query-0": stated})) == {ViolationKind.ESTIMATE}


def test_plans_that_hold_alone_can_break_each_other() -> None:
    problem, plans = _example()
    busy = replace(problem.queries[0], rate_hz=1.0)
    site = replace(problem.sites["device-0"], cores=1.0, utilisation_cap=1.0)
    problem = replace(problem, sites={**problem.sites, "device-0": site})
    local = replace(plans["query-0"], placement=dict.fromkeys(plans["query-0"].placement, "device-0"))
    alone_s = estimate_at_load(with_queries(problem, busy), {"query-0": local})["query-0"].latency_p95_s
    first = with_slo(busy, latency_p95_s=alone_s * 1.01)
    second = replace(busy, name="query-1")
    together = with_queries(problem, first, second)
    assert check_plan(together, {"query-0": local}) == []
    assert check_plan(together, {"query-1": local}) == []
    found = check_plan(together, {"query-0": local, "query-1": local})
    assert [(violation.kind, violation.query) for violation in found] == [(ViolationKind.LATENCY, "query-0")]


def test_a_site_that_cannot_keep_up_breaks_latency_and_capacity() -> None:
    problem, plans = _example()
    flood = with_queries(problem, replace(problem.queries[0], rate_hz=1e6))
    kinds = _kinds(check_plan(flood, plans))
    assert kinds == {ViolationKind.LATENCY, ViolationKind.CAPACITY}
