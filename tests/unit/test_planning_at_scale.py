"""Planning by templates and prices: what is published holds, and it serves about what exact planning does."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compass_coordinator.planner import POLICIES, Binding, find_candidates
from compass_coordinator.planner.refusal import Refusal
from compass_coordinator.planning import FleetPlan, plan_fleet
from compass_coordinator.planning.exact import plan_exactly
from compass_coordinator.planning.fleet_plan import FEW_QUERIES, is_small
from compass_coordinator.planning.result import Stopwatch
from compass_coordinator.planning.scaled import plan_at_scale
from compass_shared.check import check_plan
from compass_shared.evaluate import estimate_at_load
from compass_shared.problem import Problem
from compass_shared.site import Tier
from compass_shared.splitting import in_parts
from support.declared import declared
from support.problem_strategies import problems, seeds
from support.problems import LOOSE, FleetShape, random_problem, with_queries


def _scaled(problem: Problem, policy: str = "compass") -> FleetPlan:
    return plan_at_scale(problem, POLICIES[policy], Stopwatch(lambda: 0.0))


def _exactly(problem: Problem, policy: str = "compass") -> FleetPlan:
    return plan_exactly(problem, POLICIES[policy], Stopwatch(lambda: 0.0), time_limit_s=2.0)


def _crowded(problem: Problem, factor: float = 8.0) -> Problem:
    """Rates at which queries get in each other's way."""
    return with_queries(
        problem, *(replace(query, rate_hz=factor * query.rate_hz) for query in problem.queries)
    )


def _assert_sound(problem: Problem, fleet: FleetPlan) -> None:
    """Everything published is true: plans hold, estimates are the book's, every query is accounted for."""
    assert check_plan(problem, fleet.plans, fleet.split) == []
    parts, running = in_parts(problem, fleet.plans, fleet.split)
    for name, estimate in estimate_at_load(parts, running).items():
        stated = running[name].estimate
        assert stated is not None
        assert stated.latency_p95_s == pytest.approx(estimate.latency_p95_s, rel=1e-9)
        assert stated.cost_usd_per_1000 == pytest.approx(estimate.cost_usd_per_1000, rel=1e-9)
        assert {r: a for r, a in stated.demand.items() if a > 0} == pytest.approx(
            {r: a for r, a in estimate.demand.items() if a > 0}, rel=1e-9
        )
    served = set(fleet.plans) | set(fleet.split)
    assert served | set(fleet.refusals) == {query.name for query in problem.queries}
    assert not served & set(fleet.refusals)
    weights = {query.name: query.weight for query in parts.queries}
    assert fleet.goodput == pytest.approx(math.fsum(weights[name] for name in running))
    assert fleet.goodput <= fleet.bound * (1 + 1e-9)
    assert all(refusal.detail and refusal.query == name for name, refusal in fleet.refusals.items())
    assert all(price >= 0 for price in fleet.prices.values())


# With two operators no plan uses more than two remote sites, which is as many as planning at scale looks at.
@given(problems(max_queries=4, max_operators=2), st.sampled_from(sorted(POLICIES)), st.none() | seeds)
@settings(max_examples=15)
def test_what_is_planned_holds_and_the_bound_bounds_exact_planning(
    problem: Problem, policy: str, seed: int | None
) -> None:
    problem = _crowded(problem if seed is None else declared(problem, seed))
    fleet = _scaled(problem, policy)
    _assert_sound(problem, fleet)
    assert fleet.bound >= _exactly(problem, policy).goodput * (1 - 1e-9)


def _served_by_workers(problem: Problem) -> Problem:
    """Nobody runs anything on somebody else's device."""
    workers = tuple(name for name, site in problem.sites.items() if site.tier is not Tier.DEVICE)
    return replace(problem, reachable={query.name: workers for query in problem.queries})


def test_it_serves_about_what_exact_planning_serves() -> None:
    served = {"scaled": 0.0, "exact": 0.0}
    for seed in range(1, 5):
        shape = FleetShape(devices=3, edges=1, clouds=1, queries=7)
        problem = _served_by_workers(_crowded(random_problem(seed, shape), 4.0))
        served["scaled"] += _scaled(problem).goodput
        served["exact"] += _exactly(problem).goodput
    assert served["scaled"] >= 0.95 * served["exact"]


def test_larger_fleets_are_planned_at_scale_and_share_templates() -> None:
    problem = random_problem(4, FleetShape(devices=6, edges=2, clouds=1, queries=24, variants=(2, 2)))
    problem = _served_by_workers(problem)
    assert len(problem.queries) > FEW_QUERIES
    assert not is_small(problem)
    fleet = plan_fleet(problem)
    _assert_sound(problem, fleet)
    assert fleet.goodput >= 0.8 * fleet.bound


@given(seeds)
@settings(max_examples=6)
def test_divisible_queries_may_be_split_or_served_in_part(seed: int) -> None:
    problem = _crowded(random_problem(seed, FleetShape(variants=(2, 2), devices=2, queries=3)), 30.0)
    loose = [replace(query, slo=LOOSE, divisible=True) for query in problem.queries]
    problem = with_queries(problem, *loose)
    whole = with_queries(problem, *(replace(query, divisible=False) for query in loose))
    for plan in (_scaled, _exactly):
        fleet = plan(problem)
        _assert_sound(problem, fleet)
        assert fleet.goodput >= 0.9 * plan(whole).goodput


def test_a_query_that_no_site_can_carry_alone_is_split_over_several() -> None:
    problem = random_problem(1, FleetShape(devices=1, edges=2, clouds=1, queries=1, variants=(1, 1)))
    query = replace(problem.queries[0], slo=LOOSE, divisible=True)
    capacity = max(site.cores for site in problem.sites.values())
    work_s = min(
        sum(profile.mean_s for profile in problem.profiles[name, query.pipeline].operators.values())
        for name in problem.sites
    )
    query = replace(query, rate_hz=1.5 * capacity / work_s)
    problem = with_queries(problem, query)
    for plan in (_scaled, _exactly):
        fleet = plan(problem)
        _assert_sound(problem, fleet)
        assert len(fleet.split[query.name]) >= 2
        whole = plan(with_queries(problem, replace(query, divisible=False)))
        assert whole.goodput == 0


def test_refusals_name_what_binds() -> None:
    problem = random_problem(3, FleetShape(devices=3, queries=6))
    fast = [
        replace(query, slo=replace(LOOSE, latency_p95_s=1e-4) if at % 2 else LOOSE)
        for at, query in enumerate(problem.queries)
    ]
    problem = with_queries(problem, *fast)
    fleet = _scaled(problem)
    _assert_sound(problem, fleet)
    for at, query in enumerate(problem.queries):
        if at % 2:
            alone = find_candidates(problem, query)
            assert isinstance(alone, Refusal)
            refusal = fleet.refusals[query.name]
            assert refusal.binding is Binding.LATENCY
            assert refusal.relaxed == pytest.approx(alone.relaxed)


def test_unknown_pipelines_and_origins_do_not_stop_the_others() -> None:
    problem = random_problem(2, FleetShape(queries=1))
    (query,) = problem.queries
    query = replace(query, slo=LOOSE, rate_hz=1e-3)
    lost = replace(query, name="lost", origin="nowhere")
    other = replace(query, name="other", pipeline="unheard-of")
    fleet = _scaled(with_queries(problem, lost, query, other))
    assert set(fleet.plans) == {query.name}
    assert {refusal.binding for refusal in fleet.refusals.values()} == {Binding.PROFILE}
    assert "nowhere" in fleet.refusals["lost"].detail
    assert "unheard-of" in fleet.refusals["other"].detail
    assert query.name in fleet.fallbacks
    assert "lost" not in fleet.fallbacks
