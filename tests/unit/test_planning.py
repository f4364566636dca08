"""Planning a whole fleet: what is published holds at the resulting load, and little is left on the table."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings

from compass_coordinator.plan_space import build_space
from compass_coordinator.planner import POLICIES, Binding, anywhere, find_candidates
from compass_coordinator.planning import FleetPlan, plan_fleet
from compass_coordinator.planning.joining import Choice
from compass_coordinator.planning.settling import settle
from compass_shared.check import check_plan
from compass_shared.errors import PlanningError
from compass_shared.evaluate import estimate_at_load, evaluate_plan
from compass_shared.plan import Plan
from compass_shared.problem import Problem, SiteLoad
from compass_shared.query import Query
from compass_shared.site import Prices
from support.problem_strategies import problems
from support.problems import LOOSE, FleetShape, random_problem, with_queries, with_slo


def _crowded(seed: int, shape: FleetShape) -> Problem:
    """Rates at which the queries get in each other's way."""
    problem = random_problem(seed, shape)
    return with_queries(problem, *(replace(query, rate_hz=8 * query.rate_hz) for query in problem.queries))


def _weight(problem: Problem, plans: Mapping[str, Plan]) -> float:
    return math.fsum(query.weight for query in problem.queries if query.name in plans)


def _cost_usd_per_s(problem: Problem, plans: Mapping[str, Plan]) -> float:
    estimates = estimate_at_load(problem, plans)
    rates_hz = {query.name: query.rate_hz for query in problem.queries}
    return math.fsum(rates_hz[name] * estimates[name].cost_usd_per_1000 / 1000 for name in plans)


@given(problems(max_queries=5))
@settings(max_examples=40)
def test_what_is_planned_holds_and_the_rest_is_explained(problem: Problem) -> None:
    fleet = plan_fleet(problem)
    assert check_plan(problem, fleet.plans) == []
    assert {name: plan.estimate for name, plan in fleet.plans.items()} == estimate_at_load(
        problem, fleet.plans
    )
    assert set(fleet.plans) | set(fleet.refusals) == {query.name for query in problem.queries}
    assert not set(fleet.plans) & set(fleet.refusals)
    assert fleet.goodput == pytest.approx(_weight(problem, fleet.plans))
    assert fleet.bound >= fleet.goodput
    assert 0 <= fleet.gap <= 1
    assert fleet.cost_usd_per_s == pytest.approx(_cost_usd_per_s(problem, fleet.plans))
    assert all(refusal.detail and refusal.query == name for name, refusal in fleet.refusals.items())
    for name, fallback in fleet.fallbacks.items():
        origin = next(query.origin for query in problem.queries if query.name == name)
        assert set(fallback.placement.values()) == {origin}


def _best_goodput(problem: Problem) -> float:
    """By trying every combination of plans that serve their queries on an idle fleet."""
    options: list[list[Plan | None]] = []
    for query in problem.queries:
        pipeline = problem.pipelines[query.pipeline]
        plans = (
            Plan(config=config, placement=placement)
            for config in pipeline.configs()
            for placement in anywhere(problem, query)
        )
        alone = with_queries(problem, query)
        options.append([None, *(plan for plan in plans if _idle_clean(alone, query, plan))])
    names = [query.name for query in problem.queries]
    best = 0.0
    for choice in itertools.product(*options):
        chosen = {name: plan for name, plan in zip(names, choice, strict=True) if plan is not None}
        if _weight(problem, chosen) > best and not check_plan(problem, chosen):
            best = _weight(problem, chosen)
    return best


def _idle_clean(problem: Problem, query: Query, plan: Plan) -> bool:
    found = evaluate_plan(problem, query, plan, {})
    return found.latency_p95_s <= query.slo.latency_p95_s and found.accuracy >= query.slo.accuracy


@pytest.mark.parametrize("seed", [2, 6, 13, 21, 26, 34])
def test_serves_as_much_as_trying_every_combination(seed: int) -> None:
    problem = _crowded(seed, FleetShape(variants=(2, 2), queries=3))
    fleet = plan_fleet(problem)
    best = _best_goodput(problem)
    assert fleet.goodput == best
    assert fleet.bound >= best


@pytest.mark.parametrize("seed", range(4))
def test_baselines_keep_to_their_placements_and_never_beat_the_bound(seed: int) -> None:
    problem = _crowded(seed, FleetShape(devices=2, queries=6, tightness=0.5))
    bound = plan_fleet(problem).bound
    for name, policy in POLICIES.items():
        fleet = plan_fleet(problem, policy)
        assert check_plan(problem, fleet.plans) == []
        assert fleet.goodput <= bound + 1e-9
        for query in problem.queries:
            if query.name in fleet.plans:
                assert fleet.plans[query.name].placement in list(policy(problem, query)), name


def _one_device() -> tuple[Problem, Query]:
    problem = random_problem(1, FleetShape(variants=(1,), edges=0, clouds=0, queries=1))
    site = replace(problem.sites["device-0"], cores=1.0, utilisation_cap=0.7)
    measured = problem.profiles["device-0", problem.queries[0].pipeline].operators["op0"]
    query = replace(problem.queries[0], slo=LOOSE, rate_hz=0.1 / measured.mean_s)
    return replace(problem, sites={"device-0": site}, queries=(query,)), query


def test_a_query_alone_on_its_device_does_not_wait_as_if_the_device_were_full() -> None:
    problem, query = _one_device()
    plan = Plan(config={"op0": {}}, placement={"op0": "device-0"})
    resulting = estimate_at_load(problem, {query.name: plan})[query.name]
    at_cap = {"device-0": SiteLoad(utilisation=0.7, residual_s=0.05)}
    tight = with_slo(query, latency_p95_s=resulting.latency_p95_s * 1.001)
    problem = with_queries(problem, tight)
    assert find_candidates(replace(problem, loads=at_cap), tight).__class__.__name__ == "Refusal"
    assert set(plan_fleet(problem).plans) == {query.name}


def test_queries_that_slow_each_other_down_are_served_as_far_as_it_goes() -> None:
    problem, query = _one_device()
    alone = estimate_at_load(problem, {query.name: Plan(config={"op0": {}}, placement={"op0": "device-0"})})
    tight = with_slo(query, latency_p95_s=alone[query.name].latency_p95_s * 1.001)
    heavier = replace(tight, name="heavier", weight=query.weight + 1)
    fleet = plan_fleet(with_queries(problem, tight, heavier))
    assert set(fleet.plans) == {"heavier"}
    assert fleet.bound == tight.weight + heavier.weight
    assert fleet.refusals[query.name].binding in {Binding.LATENCY, Binding.CAPACITY}


def test_a_query_that_would_only_slow_others_down_is_told_so() -> None:
    problem, query = _one_device()
    alone = estimate_at_load(problem, {query.name: Plan(config={"op0": {}}, placement={"op0": "device-0"})})
    tight = with_slo(query, latency_p95_s=alone[query.name].latency_p95_s * 1.001)
    patient = replace(query, name="patient", weight=query.weight / 2)
    fleet = plan_fleet(with_queries(problem, tight, patient))
    assert set(fleet.plans) == {query.name}
    assert fleet.refusals["patient"].binding is Binding.CAPACITY
    assert "would make a query served too slow" in fleet.refusals["patient"].detail


def test_a_full_site_is_named_in_the_refusal() -> None:
    problem, query = _one_device()
    greedy = replace(query, rate_hz=query.rate_hz * 4)
    fleet = plan_fleet(with_queries(problem, greedy, replace(greedy, name="second")))
    (refusal,) = fleet.refusals.values()
    assert refusal.binding is Binding.CAPACITY
    assert "cores@device-0" in refusal.detail


def test_room_is_made_by_moving_whoever_can_move() -> None:
    problem = random_problem(1, FleetShape(variants=(1,), edges=2, clouds=0, queries=2))
    # Nothing costs anything, so nobody moves to save money.
    small_free = {
        name: replace(site, cores=1.0, utilisation_cap=0.6, prices=Prices(), power_w=0.0)
        for name, site in problem.sites.items()
    }
    pipeline = problem.queries[0].pipeline
    slowest_s = max(problem.profiles[edge, pipeline].operators["op0"].mean_s for edge in ("edge-0", "edge-1"))
    # The one that can move is the heavier: displacing it would not pay, moving it does.
    flexible, bound = (
        replace(query, slo=LOOSE, rate_hz=0.4 / slowest_s, weight=weight)
        for query, weight in zip(problem.queries, (2.0, 1.0), strict=True)
    )
    problem = replace(
        problem,
        sites=small_free,
        links={ends: replace(link, bandwidth_bps=1e9) for ends, link in problem.links.items()},
        queries=(flexible, bound),
        reachable={flexible.name: ("edge-0", "edge-1"), bound.name: ("edge-0",)},
    )
    spaces = {
        query.name: (query, build_space(problem, query, ({"op0": site} for site in sites)))
        for query, sites in ((flexible, ("edge-0", "edge-1")), (bound, ("edge-0",)))
    }
    start = {flexible.name: Choice(query=flexible, space=spaces[flexible.name][1], row=0)}
    settled = settle(problem, spaces, start)
    assert {name: choice.plan().placement["op0"] for name, choice in settled.items()} == {
        flexible.name: "edge-1",
        bound.name: "edge-0",
    }


def test_an_overdrawn_start_is_repaired_at_the_expense_of_the_lightest() -> None:
    problem, query = _one_device()
    light = replace(query, rate_hz=query.rate_hz * 4)
    heavy = replace(light, name="heavy", weight=light.weight + 1)
    problem = with_queries(problem, light, heavy)
    spaces = {
        each.name: (each, build_space(problem, each, anywhere(problem, each))) for each in problem.queries
    }
    both = {name: Choice(query=each, space=space, row=0) for name, (each, space) in spaces.items()}
    assert set(settle(problem, spaces, both)) == {"heavy"}


def test_one_query_that_makes_no_sense_does_not_stop_the_others() -> None:
    problem, query = _one_device()
    lost = replace(query, name="lost", origin="moon")
    odd = replace(query, name="odd", pipeline="moon")
    fleet = plan_fleet(with_queries(problem, lost, odd, query))
    assert set(fleet.plans) == {query.name}
    assert {refusal.binding for refusal in fleet.refusals.values()} == {Binding.PROFILE}
    assert set(fleet.fallbacks) == {query.name}


def test_query_names_must_differ() -> None:
    problem, query = _one_device()
    with pytest.raises(PlanningError, match=query.name):
        plan_fleet(with_queries(problem, query, query))


def test_no_queries_no_plans() -> None:
    fleet = plan_fleet(with_queries(random_problem(0)))
    assert (fleet.plans, fleet.refusals, fleet.goodput, fleet.bound, fleet.gap) == ({}, {}, 0.0, 0.0, 0.0)


def test_the_same_problem_gives_the_same_plan() -> None:
    def planned() -> FleetPlan:
        return plan_fleet(_crowded(3, FleetShape(devices=2, queries=6)))

    assert planned() == planned()


def test_time_is_only_what_the_timer_says() -> None:
    ticks = itertools.count()
    fleet = plan_fleet(_crowded(3, FleetShape(devices=2, queries=6)), timer=lambda: float(next(ticks)))
    assert set(fleet.seconds) == {"enumerate", "match", "settle"}
    assert sum(fleet.seconds.values()) == next(ticks) - 1
