"""Constraints, state and extra metrics: every planner keeps them, and loses no plan that keeps them."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compass_coordinator.planner import POLICIES, Candidates, best_local_plan, find_candidates
from compass_coordinator.planner.fleet import find_fleet_candidates
from compass_coordinator.planner.search import search_plan
from compass_coordinator.planning import plan_fleet
from compass_shared.check import ViolationKind, check_plan
from compass_shared.errors import InfeasibleError, ProfileError
from compass_shared.evaluate import estimate_at_load, evaluate_plan
from compass_shared.pipeline import variant_key
from compass_shared.plan import Plan, PlanShare
from compass_shared.problem import Problem
from compass_shared.query import Query
from support.declared import declared
from support.kinds import of_one_kind
from support.problem_strategies import problems, seeds
from support.problems import LOOSE, random_plan, with_queries

CLOSE = 1e-9
BROKEN = {ViolationKind.CONSTRAINT, ViolationKind.METRIC}


def _keeps_what_is_declared(problem: Problem, query: Query, plan: Plan) -> bool:
    """By the words of the declarations, without any of the code under test."""
    pipeline, table = problem.pipelines[query.pipeline], problem.accuracy[query.pipeline]
    for op in pipeline.operators:
        site = problem.sites[plan.placement[op.name]]
        if op.must_run_on and not (
            site.tier.value in op.must_run_on or ("origin" in op.must_run_on and site.name == query.origin)
        ):
            return False
        found = problem.profiles[site.name, pipeline.name].measured(
            variant_key(op.name, plan.config[op.name])
        )
        assert found is not None
        if op.stateful and query.rate_hz * found.mean_s > site.utilisation_cap:
            return False
    key = pipeline.config_key(plan.config)
    return all(
        key in table.others[name] and table.others[name][key].mean >= least
        for name, least in query.slo.metrics.items()
    )


def _plans(problem: Problem, query: Query) -> list[Plan]:
    pipeline, table = problem.pipelines[query.pipeline], problem.accuracy[query.pipeline].configs
    names = [op.name for op in pipeline.operators]
    return [
        Plan(config=config, placement=dict(zip(names, sites, strict=True)))
        for config in pipeline.configs()
        if pipeline.config_key(config) in table
        for sites in itertools.product(problem.sites_for(query), repeat=len(names))
    ]


def _least_cost(problem: Problem, query: Query) -> float:
    """Of the plans that keep everything, one by one; inf if there is none."""
    capacities, slo = problem.capacities(), query.slo
    costs = []
    for plan in _plans(problem, query):
        found = evaluate_plan(problem, query, plan, problem.loads)
        if (
            _keeps_what_is_declared(problem, query, plan)
            and found.latency_p95_s <= slo.latency_p95_s
            and found.accuracy >= slo.accuracy
            and found.cost_usd_per_1000 <= slo.cost_usd_per_1000
            and all(amount <= capacities[name] for name, amount in found.demand.items())
        ):
            costs.append(found.cost_usd_per_1000)
    return min(costs, default=math.inf)


@given(problems(max_operators=3, max_variants=2, max_queries=2, loaded=True), seeds, st.booleans())
@settings(max_examples=25)
def test_enumeration_search_and_templates_find_the_cheapest_plan_that_keeps_them(
    problem: Problem, seed: int, alike: bool
) -> None:
    problem = declared(of_one_kind(problem, seed) if alike else problem, seed)
    at_scale = find_fleet_candidates(problem, loads=problem.loads, max_remote=3)
    for at, query in enumerate(problem.queries):
        least = _least_cost(problem, query)
        found = find_candidates(problem, query)
        listed = found.estimates.cost_usd_per_1000.min() if isinstance(found, Candidates) else math.inf
        assert listed == pytest.approx(least, rel=CLOSE)
        searched = search_plan(problem, query)
        assert 1000 * searched.score / query.rate_hz == pytest.approx(least, rel=CLOSE)
        usable = np.flatnonzero(np.isfinite(at_scale.values[at]))
        plans = [at_scale.plan(at, int(candidate)) for candidate in usable]
        assert all(_keeps_what_is_declared(problem, query, plan) for plan in plans)
        costs = [plan.estimate.cost_usd_per_1000 for plan in plans if plan.estimate is not None]
        assert min(costs, default=math.inf) == pytest.approx(least, rel=CLOSE)


@given(problems(max_operators=3, max_variants=2, max_queries=3), seeds, st.sampled_from(sorted(POLICIES)))
@settings(max_examples=25)
def test_whole_fleets_and_fallbacks_keep_them(problem: Problem, seed: int, policy: str) -> None:
    problem = declared(problem, seed)
    # Whoever asks for it gets nothing in parts that state would be torn by.
    problem = with_queries(problem, *(replace(query, divisible=True) for query in problem.queries))
    fleet = plan_fleet(problem, POLICIES[policy])
    assert check_plan(problem, fleet.plans, fleet.split) == []
    for query in problem.queries:
        if query.name in fleet.plans:
            assert _keeps_what_is_declared(problem, query, fleet.plans[query.name])
            allowed = [dict(placement) for placement in POLICIES[policy](problem, query)]
            assert dict(fleet.plans[query.name].placement) in allowed
        try:
            fallback = best_local_plan(problem, query)
        except (InfeasibleError, ProfileError):
            continue
        assert set(fallback.placement.values()) == {query.origin}
        constraint = [
            v for v in check_plan(problem, {query.name: fallback}) if v.kind is ViolationKind.CONSTRAINT
        ]
        assert constraint == []


@given(problems(max_operators=3, max_queries=1), seeds)
@settings(max_examples=60)
def test_check_plan_finds_what_breaks_a_declaration_and_nothing_else(problem: Problem, seed: int) -> None:
    problem = declared(problem, seed)
    query = replace(problem.queries[0], slo=replace(LOOSE, metrics=problem.queries[0].slo.metrics))
    # So slow that whatever is broken is not a capacity, unless operators with state cannot keep up.
    problem = with_queries(problem, replace(query, rate_hz=query.rate_hz / 100))
    plan = random_plan(problem, problem.queries[0], seed)
    found = check_plan(problem, {query.name: plan})
    assert {violation.kind for violation in found} <= BROKEN
    assert (not found) == _keeps_what_is_declared(problem, problem.queries[0], plan)
    for violation in found:
        if violation.kind is ViolationKind.METRIC:
            assert violation.limit == query.slo.metrics[str(violation.resource)]
            assert str(violation.resource) in violation.text


@given(problems(max_operators=3, max_queries=1), seeds)
@settings(max_examples=40)
def test_an_operator_with_state_keeps_up_to_the_very_cap(problem: Problem, seed: int) -> None:
    (pipeline,) = problem.pipelines.values()
    with_state = replace(
        pipeline, operators=(replace(pipeline.operators[0], stateful=True), *pipeline.operators[1:])
    )
    sites = {name: replace(site, cores=64.0) for name, site in problem.sites.items()}
    problem = replace(problem, pipelines={pipeline.name: with_state}, sites=sites)
    plan = random_plan(problem, problem.queries[0], seed)
    name = pipeline.operators[0].name
    site = problem.sites[plan.placement[name]]
    measured = problem.profiles[site.name, pipeline.name].measured(variant_key(name, plan.config[name]))
    assert measured is not None
    for share, expected in ((1 - 1e-6, set()), (1 + 1e-6, {ViolationKind.CAPACITY})):
        rate_hz = share * site.utilisation_cap / measured.mean_s
        # Links with room for anything: only the operator itself can be too slow.
        links = {
            ends: replace(link, bandwidth_bps=1e12 * max(1.0, rate_hz))
            for ends, link in problem.links.items()
        }
        fast = replace(problem, links=links)
        asked = replace(problem.queries[0], rate_hz=rate_hz, slo=LOOSE)
        found = check_plan(with_queries(fast, asked), {asked.name: plan})
        kept = [v for v in found if v.query == asked.name and v.kind is ViolationKind.CAPACITY]
        assert {v.kind for v in kept} == expected


@given(problems(max_operators=2, max_queries=1), seeds)
@settings(max_examples=20)
def test_what_keeps_state_is_never_split(problem: Problem, seed: int) -> None:
    (pipeline,) = problem.pipelines.values()
    with_state = replace(
        pipeline, operators=(replace(pipeline.operators[0], stateful=True), *pipeline.operators[1:])
    )
    query = replace(problem.queries[0], slo=LOOSE, divisible=True, rate_hz=problem.queries[0].rate_hz / 20)
    stateless, problem = (
        with_queries(replace(problem, pipelines={pipeline.name: each}), query)
        for each in (pipeline, with_state)
    )
    plan = random_plan(problem, query, seed)
    halves = {query.name: (PlanShare(plan=plan, fraction=0.5), PlanShare(plan=plan, fraction=0.5))}
    assert estimate_at_load(problem, {query.name: plan})
    assert check_plan(stateless, {}, halves) == []
    assert [violation.kind for violation in check_plan(problem, {}, halves)] == [ViolationKind.SPLIT]
