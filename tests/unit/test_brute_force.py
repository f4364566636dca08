"""The exact planner against enumeration through the scalar evaluation; reasons; policies; the fallback."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compass_coordinator.matcher import match_milp
from compass_coordinator.planner import (
    POLICIES,
    Binding,
    Candidates,
    Refusal,
    anywhere,
    best_local_plan,
    cloud_only,
    device_only,
    find_candidates,
)
from compass_coordinator.planner.dominance import undominated
from compass_shared.errors import InfeasibleError, PlanningError, ProfileError
from compass_shared.evaluate import estimate_at_load, evaluate_plan
from compass_shared.plan import Estimate, Plan
from compass_shared.problem import Problem
from compass_shared.query import Query
from compass_shared.site import Tier
from support.problem_strategies import problems, seeds
from support.problems import LOOSE, FleetShape, random_problem, with_queries, with_slo

SMALL = {"max_operators": 2, "max_variants": 3, "max_queries": 2}


def _all_estimates(problem: Problem, query: Query) -> Iterator[Estimate]:
    """Of every plan with a known accuracy, one by one."""
    pipeline = problem.pipelines[query.pipeline]
    table = problem.accuracy[query.pipeline].configs
    for config in pipeline.configs():
        if pipeline.config_key(config) in table:
            for sites in itertools.product(problem.sites_for(query), repeat=len(pipeline.operators)):
                placement = {op.name: site for op, site in zip(pipeline.operators, sites, strict=True)}
                plan = Plan(config=config, placement=placement)
                yield evaluate_plan(problem, query, plan, problem.loads)


def _serves(problem: Problem, query: Query, estimate: Estimate) -> bool:
    capacities = problem.capacities()
    return (
        estimate.latency_p95_s <= query.slo.latency_p95_s
        and estimate.accuracy >= query.slo.accuracy
        and estimate.cost_usd_per_1000 <= query.slo.cost_usd_per_1000
        and all(amount <= capacities[resource] for resource, amount in estimate.demand.items())
    )


def _vector(candidates: Candidates, estimate: Estimate) -> list[float]:
    demand = [estimate.demand.get(resource, 0.0) for resource in candidates.resources]
    return [estimate.cost_usd_per_1000, *demand]


@given(problems(**SMALL, loaded=True))
@settings(max_examples=40)
def test_equals_enumeration_plan_by_plan(problem: Problem) -> None:
    query = problem.queries[0]
    serving = [found for found in _all_estimates(problem, query) if _serves(problem, query, found)]
    candidates = find_candidates(problem, query)
    if isinstance(candidates, Refusal):
        assert not serving
        return
    assert serving
    kept = np.array([_vector(candidates, candidates.estimates.row(row)) for row in range(len(candidates))])
    for oracle in np.array([_vector(candidates, found) for found in serving]):
        slack = 1e-9 * np.abs(oracle)
        assert (kept <= oracle + slack).all(axis=1).any(), "a plan was dropped that nothing kept replaces"
        beaten = (oracle <= kept - 1e-9 * np.abs(kept)).all(axis=1, where=oracle + kept > 0)
        assert not beaten.any(), "a plan was kept that another one beats everywhere"
    for row in range(len(candidates)):
        plan = candidates.plan(row)
        assert plan.estimate is not None
        assert _serves(problem, query, evaluate_plan(problem, query, plan, problem.loads))


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=30), st.randoms())
def test_dominance_equals_its_definition(rows: list[tuple[int, ...]], rng: Random) -> None:
    features = np.array(rows, dtype=np.float64)
    preference = np.array([rng.random() for _ in rows])
    kept = undominated(features, [preference])
    assert kept.tolist() == sorted(kept.tolist())
    for index, row in enumerate(features):
        no_worse = (features <= row).all(axis=1)
        better = no_worse & (features < row).any(axis=1)
        equal = no_worse & ~better
        preferred = index == np.flatnonzero(equal)[np.argmin(preference[equal])]
        assert (index in kept) == (not better.any() and preferred)


def test_dominance_of_nothing() -> None:
    assert undominated(np.zeros((0, 3))).tolist() == []


def test_among_plans_of_equal_cost_and_demand_the_more_accurate_stays() -> None:
    problem = random_problem(3, FleetShape(variants=(2,)))
    (query, *_), key = problem.queries, ("device-0", problem.queries[0].pipeline)
    profile = problem.profiles[key]
    same = next(iter(profile.operators.values()))
    twins = {variant: replace(same, variant=variant) for variant in profile.operators}
    problem = replace(problem, profiles={**problem.profiles, key: replace(profile, operators=twins)})
    candidates = find_candidates(problem, replace(query, slo=LOOSE, rate_hz=0.01), device_only)
    assert isinstance(candidates, Candidates)
    best = max(accuracy.mean for accuracy in problem.accuracy[query.pipeline].configs.values())
    assert candidates.estimates.accuracy.tolist() == [best]


def _value(problem: Problem) -> float:
    """Exact match value over the candidates at the problem's own loads."""
    capacities = problem.capacities()
    names = sorted(capacities)
    found = [find_candidates(problem, query) for query in problem.queries]
    width = max((len(c) for c in found if isinstance(c, Candidates)), default=0)
    values, demands = np.full((len(found), width), -np.inf), np.zeros((len(found), width, len(names)))
    for at, candidates in enumerate(found):
        if isinstance(candidates, Candidates):
            values[at, : len(candidates)] = candidates.query.weight
            for column, resource in enumerate(candidates.resources):
                demands[at, : len(candidates), names.index(resource)] = candidates.demand[:, column]
    return match_milp(values, demands, [capacities[name] for name in names]).value


@given(
    problems(max_operators=2, max_variants=2),
    st.sampled_from(["latency_p95_s", "accuracy", "cost_usd_per_1000"]),
)
@settings(max_examples=25)
def test_relaxing_an_objective_never_serves_less(problem: Problem, field: str) -> None:
    first, *others = problem.queries
    limit = getattr(first.slo, field)
    relaxed = with_slo(first, **{field: limit / 2 if field == "accuracy" else limit * 2})
    assert _value(with_queries(problem, relaxed, *others)) >= _value(problem) - 1e-9


@given(problems(max_operators=2, max_variants=2), st.sampled_from(["device-0", "edge-0", "cloud-0"]))
@settings(max_examples=25)
def test_a_higher_cap_never_serves_less(problem: Problem, name: str) -> None:
    site = problem.sites[name]
    roomier = replace(problem, sites={**problem.sites, name: replace(site, utilisation_cap=0.99)})
    assert _value(roomier) >= _value(problem) - 1e-9


@given(problems(max_operators=2, max_variants=2), st.sampled_from(["edge-0", "cloud-0"]))
@settings(max_examples=25)
def test_a_further_site_never_serves_less(problem: Problem, name: str) -> None:
    sites = {other: site for other, site in problem.sites.items() if other != name}
    assert _value(problem) >= _value(replace(problem, sites=sites)) - 1e-9


@given(problems(max_operators=3))
@settings(max_examples=60)
def test_advice_taken_at_its_word_admits_a_plan(problem: Problem) -> None:
    for query in problem.queries:
        refusal = find_candidates(problem, query)
        if isinstance(refusal, Refusal):
            assert refusal.nearest is not None
            for field, value in refusal.relaxed.items():
                assert isinstance(find_candidates(problem, with_slo(query, **{field: value})), Candidates)


def _refusal(problem: Problem, query: Query) -> Refusal:
    refusal = find_candidates(problem, query)
    assert isinstance(refusal, Refusal)
    return refusal


def _easy() -> tuple[Problem, Query]:
    problem = random_problem(11, FleetShape(queries=1))
    return problem, replace(problem.queries[0], slo=LOOSE, rate_hz=0.1)


def _estimates(problem: Problem, query: Query) -> list[Estimate]:
    return list(_all_estimates(problem, query))


def test_too_tight_a_latency_is_explained_with_numbers() -> None:
    problem, query = _easy()
    fastest_s = min(found.latency_p95_s for found in _estimates(problem, query))
    refusal = _refusal(problem, with_slo(query, latency_p95_s=fastest_s / 2))
    assert refusal.binding is Binding.LATENCY
    assert (
        f"takes {fastest_s * 1e3:.4g} ms against {fastest_s * 500:.4g} ms: relax latency by" in refusal.detail
    )
    assert refusal.relaxed == {"latency_p95_s": pytest.approx(fastest_s)}
    assert refusal.nearest is not None
    assert refusal.nearest.estimate is not None
    assert refusal.nearest.estimate.latency_p95_s == pytest.approx(fastest_s)


def test_too_high_an_accuracy_names_the_best_there_is() -> None:
    problem, query = _easy()
    best = max(found.accuracy for found in _estimates(problem, query))
    refusal = _refusal(problem, with_slo(query, accuracy=1.0))
    assert refusal.binding is Binding.ACCURACY
    assert f"reaches accuracy {best:.4g} against 1: relax accuracy to" in refusal.detail


def test_a_price_that_nothing_meets_is_explained() -> None:
    problem, query = _easy()
    cheapest = min(found.cost_usd_per_1000 for found in _estimates(problem, query))
    refusal = _refusal(problem, with_slo(query, cost_usd_per_1000=0.0))
    assert refusal.binding is Binding.COST
    assert refusal.relaxed == {"cost_usd_per_1000": pytest.approx(cheapest)}
    with pytest.raises(InfeasibleError, match="cost cannot be met"):
        raise refusal.error()


def test_two_objectives_out_of_reach_are_both_named() -> None:
    problem, query = _easy()
    refusal = _refusal(problem, with_slo(query, accuracy=1.0, latency_p95_s=1e-6))
    assert refusal.relaxed == {}
    assert "relaxing one objective is not enough" in refusal.detail
    assert "reaches accuracy" in refusal.detail
    assert "takes" in refusal.detail
    found = re.search(r"relax latency by (\S+) ms and accuracy to (\S+)$", refusal.detail)
    assert found is not None
    slo = {"latency_p95_s": 1e-6 + 1e-3 * float(found[1]), "accuracy": float(found[2])}
    assert isinstance(find_candidates(problem, with_slo(query, **slo)), Candidates), "both together suffice"


def test_the_reason_names_the_other_objectives_and_the_place() -> None:
    problem, query = _easy()
    slow = with_slo(query, latency_p95_s=1e-6, accuracy=0.25, cost_usd_per_1000=1e6)
    refusal = _refusal(problem, slow)
    assert refusal.nearest is not None
    sites = " and ".join(dict.fromkeys(refusal.nearest.placement[f"op{index}"] for index in range(3)))
    start = f"the fastest plan meeting accuracy 0.25 and $1e+06 per 1,000, on {sites}, takes "
    assert refusal.detail.startswith(start)


def test_a_rate_that_nothing_can_carry_is_a_matter_of_capacity() -> None:
    problem, query = _easy()
    refusal = _refusal(problem, replace(query, rate_hz=1e6))
    assert refusal.binding is Binding.CAPACITY
    advised_hz = float(refusal.detail.split("lower the rate to ")[1].removesuffix(" Hz"))
    assert isinstance(find_candidates(problem, replace(query, rate_hz=advised_hz)), Candidates)


def test_without_measurements_nothing_can_be_chosen() -> None:
    problem, query = _easy()
    assert _refusal(replace(problem, accuracy={}), query).binding is Binding.PROFILE
    assert _refusal(replace(problem, profiles={}), query).binding is Binding.PROFILE


def test_an_unknown_origin_or_pipeline_is_an_error() -> None:
    problem, query = _easy()
    for wrong in (replace(query, origin="moon"), replace(query, pipeline="moon")):
        with pytest.raises(PlanningError, match="moon"):
            find_candidates(problem, wrong)


def test_policies_yield_what_they_say() -> None:
    problem = random_problem(0, FleetShape(clouds=2, edges=1))
    query = problem.queries[0]
    assert len(list(anywhere(problem, query))) == 4**3
    assert list(device_only(problem, query)) == [dict.fromkeys(("op0", "op1", "op2"), "device-0")]
    assert list(cloud_only(problem, query)) == [
        placement
        for cloud in ("cloud-0", "cloud-1")
        for placement in (
            {"op0": cloud, "op1": cloud, "op2": cloud},
            {"op0": "device-0", "op1": cloud, "op2": cloud},
        )
    ]
    assert set(POLICIES) == {"compass", "device", "cloud", "fixed"}


def test_in_the_cloud_a_query_from_the_cloud_stays_there() -> None:
    problem = random_problem(0, FleetShape())
    query = replace(problem.queries[0], origin="cloud-0")
    assert list(cloud_only(problem, query)) == [dict.fromkeys(("op0", "op1", "op2"), "cloud-0")]


def test_a_policy_without_placements_leaves_nothing() -> None:
    problem = random_problem(0, FleetShape(clouds=0))
    refusal = find_candidates(problem, problem.queries[0], POLICIES["cloud"])
    assert isinstance(refusal, Refusal)
    assert all(site.tier is not Tier.CLOUD for site in problem.sites.values())


@given(problems(max_operators=3), seeds)
@settings(max_examples=40)
def test_the_fallback_is_local_and_the_best_of_its_kind(problem: Problem, seed: int) -> None:
    query = Random(seed).choice(problem.queries)
    fallback = best_local_plan(problem, query)
    assert set(fallback.placement.values()) == {query.origin}
    pipeline, table = problem.pipelines[query.pipeline], problem.accuracy[query.pipeline].configs
    local = [
        estimate_at_load(problem, {query.name: Plan(config=config, placement=fallback.placement)})[query.name]
        for config in pipeline.configs()
        if pipeline.config_key(config) in table
    ]
    chosen = fallback.estimate
    assert chosen is not None
    in_time = [found for found in local if found.latency_p95_s <= query.slo.latency_p95_s * (1 - 1e-9)]
    met = [
        found
        for found in in_time
        if found.accuracy >= query.slo.accuracy and found.cost_usd_per_1000 <= query.slo.cost_usd_per_1000
    ]
    if met:
        assert chosen.cost_usd_per_1000 <= min(found.cost_usd_per_1000 for found in met) * (1 + 1e-9)
    elif in_time:
        assert chosen.accuracy >= max(found.accuracy for found in in_time)
    else:
        fastest_s = min(found.latency_p95_s for found in local)
        assert chosen.latency_p95_s <= fastest_s * (1 + 1e-9)


def test_an_overloaded_device_falls_back_to_its_least_work() -> None:
    problem = random_problem(0, FleetShape(variants=(3,)))
    fallback = best_local_plan(problem, replace(problem.queries[0], rate_hz=1e6))
    measured = problem.profiles["device-0", problem.queries[0].pipeline].operators
    assert fallback.config["op0"]["level"] == min(
        range(3), key=lambda level: measured[f"op0[level={level}]"].mean_s
    )


def test_without_measurements_there_is_no_fallback() -> None:
    problem = random_problem(0)
    with pytest.raises(ProfileError, match="device-0"):
        best_local_plan(replace(problem, profiles={}), problem.queries[0])
