"""What ``check_plan`` says about memory, split queries and sites that are described by speed classes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from compass_shared.check import ViolationKind, check_plan
from compass_shared.evaluate import estimate_at_load
from compass_shared.pipeline import variant_key
from compass_shared.plan import Plan, PlanShare
from compass_shared.problem import Problem
from compass_shared.site import memory_resource
from compass_shared.splitting import in_parts, part_name, whole_name
from support.problems import LOOSE, FleetShape, random_plan, random_problem, with_queries

CLOUD = "cloud-0"


def _two_in_the_cloud(memory_bytes: float) -> tuple[Problem, dict[str, Plan]]:
    """Two queries that run the same plan on one cloud site; every variant takes 100 bytes."""
    problem = random_problem(5, FleetShape(queries=2))
    queries = [replace(query, slo=LOOSE, rate_hz=1e-3) for query in problem.queries]
    plan = random_plan(problem, queries[0], 1)
    plan = replace(plan, placement=dict.fromkeys(plan.placement, CLOUD))
    profiles = {
        key: replace(
            profile,
            operators={name: replace(op, memory_bytes=100.0) for name, op in profile.operators.items()},
        )
        for key, profile in problem.profiles.items()
    }
    sites = {**problem.sites, CLOUD: replace(problem.sites[CLOUD], memory_bytes=memory_bytes)}
    problem = replace(with_queries(problem, *queries), profiles=profiles, sites=sites)
    return problem, {query.name: plan for query in queries}


def test_a_variant_takes_memory_once_however_many_queries_use_it() -> None:
    problem, plans = _two_in_the_cloud(memory_bytes=300.0)  # three operators
    assert check_plan(problem, plans) == []


def test_a_site_that_cannot_hold_its_variants_is_reported() -> None:
    problem, plans = _two_in_the_cloud(memory_bytes=299.0)
    (violation,) = check_plan(problem, plans)
    assert violation.kind is ViolationKind.MEMORY
    assert violation.resource == memory_resource(CLOUD)
    assert (violation.actual, violation.limit) == (300.0, 299.0)


def test_two_variants_of_an_operator_take_memory_twice() -> None:
    problem, plans = _two_in_the_cloud(memory_bytes=300.0)
    pipeline = problem.pipelines[problem.queries[0].pipeline]
    (first, second) = plans
    other = {name: dict(knobs) for name, knobs in plans[first].config.items()}
    other["op0"]["level"] = 1 - int(other["op0"]["level"])
    assert variant_key("op0", other["op0"]) in problem.profiles[CLOUD, pipeline.name].operators
    changed = {**plans, second: replace(plans[second], config=other)}
    (violation,) = check_plan(problem, changed)
    assert (violation.kind, violation.actual) == (ViolationKind.MEMORY, 400.0)


def _split(problem: Problem, plan: Plan, *fractions: float) -> dict[str, tuple[PlanShare, ...]]:
    return {problem.queries[0].name: tuple(PlanShare(plan=plan, fraction=part) for part in fractions)}


def test_parts_of_a_split_query_are_checked_at_their_fraction() -> None:
    problem, plans = _two_in_the_cloud(memory_bytes=300.0)
    query = replace(problem.queries[0], divisible=True)
    problem = with_queries(problem, query)
    plan = plans[query.name]
    split = _split(problem, plan, 0.25, 0.5)
    assert check_plan(problem, {}, split) == []
    parts, running = in_parts(problem, {}, split)
    demands = [estimate.demand["cores@" + CLOUD] for estimate in estimate_at_load(parts, running).values()]
    assert demands[1] == pytest.approx(2 * demands[0])
    # Together they may need no more than there is.
    cap = 0.99 * sum(demands) / problem.sites[CLOUD].cores
    tight = replace(problem.sites[CLOUD], utilisation_cap=cap)
    found = check_plan(replace(problem, sites={**problem.sites, CLOUD: tight}), {}, split)
    assert [violation.kind for violation in found] == [ViolationKind.CAPACITY]


def test_each_part_of_a_split_query_meets_the_slo_alone() -> None:
    problem, plans = _two_in_the_cloud(memory_bytes=300.0)
    slo = replace(LOOSE, latency_p95_s=1e-3)
    problem = with_queries(problem, replace(problem.queries[0], divisible=True, slo=slo))
    split = _split(problem, plans[problem.queries[0].name], 0.5, 0.5)
    found = check_plan(problem, {}, split)
    assert [(violation.kind, violation.query) for violation in found] == [
        (ViolationKind.LATENCY, part_name("query-0", index)) for index in range(2)
    ]
    assert {whole_name(violation.query or "") for violation in found} == {"query-0"}


@pytest.mark.parametrize(
    ("divisible", "fractions", "kind"),
    [
        (False, (0.5, 0.5), ViolationKind.SPLIT),
        (True, (0.7, 0.7), ViolationKind.SPLIT),
        (True, (1.5, -0.5), ViolationKind.SPLIT),
    ],
    ids=["not allowed", "more than all", "negative"],
)
def test_bad_splits_are_reported(divisible: bool, fractions: tuple[float, ...], kind: ViolationKind) -> None:
    problem, plans = _two_in_the_cloud(memory_bytes=300.0)
    problem = with_queries(problem, replace(problem.queries[0], divisible=divisible))
    found = check_plan(problem, {}, _split(problem, plans["query-0"], *fractions))
    assert kind in {violation.kind for violation in found}


def test_a_split_of_a_query_that_is_not_there_is_reported() -> None:
    problem, plans = _two_in_the_cloud(memory_bytes=300.0)
    split = {"nobody": (PlanShare(plan=plans["query-0"], fraction=1.0),)}
    (violation,) = check_plan(problem, {}, split)
    assert (violation.kind, violation.query) == (ViolationKind.QUERY, "nobody")


def test_figures_at_a_site_are_those_of_its_kind_times_its_slowdown() -> None:
    problem, plans = _two_in_the_cloud(memory_bytes=300.0)
    query, plan = problem.queries[0], plans["query-0"]
    key = CLOUD, query.pipeline
    plain = problem.profiles[key]
    slow = replace(plain, slowdowns={"": 2.0}, overhead_s=0.001)
    before = estimate_at_load(problem, {query.name: plan})[query.name]
    slower = replace(problem, profiles={**problem.profiles, key: slow})
    after = estimate_at_load(slower, {query.name: plan})[query.name]
    cores = "cores@" + CLOUD
    assert after.demand[cores] == pytest.approx(2 * before.demand[cores] + 3 * 0.001 * query.rate_hz)
    variant = next(iter(plain.operators))
    here, there = slow.measured(variant), plain.measured(variant)
    assert here is not None
    assert there is not None
    assert here.var_s2 == pytest.approx(4 * there.var_s2)
    assert slow.measured("nothing") is None
