"""Planning where sites cannot hold every variant: what is planned fits, and nothing better was possible."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from compass_coordinator.planner import best_local_plan
from compass_coordinator.planning import plan_fleet
from compass_coordinator.planning.memory import limited_sites
from compass_shared.check import ViolationKind, check_plan
from compass_shared.problem import Problem
from support.problems import LOOSE, FleetShape, random_problem, with_queries

EDGE = "edge-0"


def _tight(seed: int, rooms: int, *, queries: int = 3, variants: tuple[int, ...] = (2, 3)) -> Problem:
    """Every variant takes 1 byte; edge and cloud have so many bytes."""
    problem = random_problem(seed, FleetShape(variants=variants, queries=queries))
    profiles = {
        key: replace(
            profile,
            operators={name: replace(op, memory_bytes=1.0) for name, op in profile.operators.items()},
        )
        for key, profile in problem.profiles.items()
    }
    sites = {
        name: site if name.startswith("device") else replace(site, memory_bytes=float(rooms))
        for name, site in problem.sites.items()
    }
    named = [replace(query, name=f"q{at}") for at, query in enumerate(problem.queries)]
    return replace(with_queries(problem, *named), profiles=profiles, sites=sites)


def _without_memory(problem: Problem) -> Problem:
    sites = {name: replace(site, memory_bytes=float("inf")) for name, site in problem.sites.items()}
    return replace(problem, sites=sites)


def test_only_sites_that_cannot_hold_all_they_measured_are_limited() -> None:
    assert limited_sites(_tight(1, 5)) == frozenset()
    assert limited_sites(_tight(1, 4)) == {EDGE, "cloud-0"}
    assert limited_sites(_without_memory(_tight(1, 4))) == frozenset()


def test_memory_that_the_queries_there_are_cannot_fill_limits_nothing() -> None:
    """One query runs one variant of each of two operators, though five were measured."""
    problem = _tight(1, 2, queries=1)
    assert limited_sites(problem) == frozenset()
    assert limited_sites(_tight(1, 1, queries=1)) == {EDGE, "cloud-0"}
    elsewhere = replace(problem, reachable={"q0": (EDGE,)}, sites=_tight(1, 1, queries=1).sites)
    assert limited_sites(elsewhere) == {EDGE}
    split = with_queries(problem, replace(problem.queries[0], divisible=True))
    assert limited_sites(split) == {EDGE, "cloud-0"}


def test_a_device_has_a_memory_too() -> None:
    """Its one query must not bring two variants to a device with room for one."""
    problem = _tight(2, 9, queries=1)
    query = replace(problem.queries[0], slo=LOOSE, rate_hz=0.1)
    device = replace(problem.sites[query.origin], memory_bytes=1.0)
    problem = replace(with_queries(problem, query), sites={**problem.sites, query.origin: device})
    local = best_local_plan(problem, query)
    (violation,) = check_plan(problem, {query.name: local})
    assert (violation.kind, violation.limit, violation.actual) == (ViolationKind.MEMORY, 1.0, 2.0)
    plan = plan_fleet(problem).plans[query.name]
    assert list(plan.placement.values()).count(query.origin) <= 1
    assert check_plan(problem, {query.name: plan}) == []


@pytest.mark.parametrize("seed", range(6))
def test_what_is_planned_fits_the_memory(seed: int) -> None:
    problem = _tight(seed, 2)
    plan = plan_fleet(problem)
    assert check_plan(problem, plan.plans) == []
    assert all(len(variants) <= 2 for variants in plan.hosted.values())
    free = plan_fleet(_without_memory(problem))
    assert plan.goodput <= free.goodput + 1e-9
    assert plan.bound >= plan.goodput
    assert {query.name for query in problem.queries} == set(plan.plans) | set(plan.refusals)


def _best_by_trying(problem: Problem) -> float:
    """The goodput with the best of all sets of two variants on each of edge and cloud."""
    pipeline = next(iter(problem.pipelines))
    variants = sorted(problem.profiles[EDGE, pipeline].operators)
    most, best = sum(query.weight for query in problem.queries), 0.0
    for edge, cloud in itertools.product(itertools.combinations(variants, 2), repeat=2):
        profiles = dict(problem.profiles)
        for site, kept in ((EDGE, edge), ("cloud-0", cloud)):
            profile = profiles[site, pipeline]
            profiles[site, pipeline] = replace(
                profile, operators={name: profile.operators[name] for name in kept}
            )
        best = max(best, plan_fleet(_without_memory(replace(problem, profiles=profiles))).goodput)
        if best >= most:
            break
    return best


def test_it_serves_about_what_the_best_sets_of_variants_serve() -> None:
    problems = [_tight(seed, 2, variants=(1, 3)) for seed in range(5)]
    served = sum(plan_fleet(problem).goodput for problem in problems)
    assert served >= 0.85 * sum(_best_by_trying(problem) for problem in problems)


def test_queries_agree_on_a_variant_that_is_no_ones_first_choice() -> None:
    """One byte a site: all have to run by the same variant there, or not there at all."""
    problem = _tight(3, 2, queries=4)
    queries = [
        replace(query, slo=replace(LOOSE, accuracy=query.slo.accuracy), rate_hz=1e-3)
        for query in problem.queries
    ]
    problem = with_queries(problem, *queries)
    plan = plan_fleet(problem)
    assert check_plan(problem, plan.plans) == []
    assert len(plan.plans) == len(queries)


def test_refusals_say_that_memory_was_short() -> None:
    problem = _tight(2, 0)
    fast = [replace(query, slo=replace(query.slo, latency_p95_s=1e-6)) for query in problem.queries]
    problem = with_queries(problem, *fast)
    plan = plan_fleet(problem)
    assert plan.plans == {}
    assert all("have the memory for" in refusal.detail for refusal in plan.refusals.values())
    assert ViolationKind.MEMORY not in {found.kind for found in check_plan(problem, plan.plans)}
