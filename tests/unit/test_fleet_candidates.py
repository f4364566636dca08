"""All queries of a fleet at once: who has candidates, which sites they use, and what it costs in memory."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from compass_coordinator.matcher import SparseDemands
from compass_coordinator.planner import Candidates, find_candidates
from compass_coordinator.planner.fleet import (
    FleetCandidates,
    FleetSpace,
    TemplateCache,
    add_columns,
    find_fleet_candidates,
)
from compass_coordinator.planner.fleet.directions import diverse
from compass_coordinator.planner.fleet.tatonnement import rough_prices
from compass_coordinator.planner.templates import Templates
from compass_shared.errors import PlanningError
from compass_shared.pipeline import variant_key
from compass_shared.problem import Problem, SiteLoad
from compass_shared.site import Tier
from support.kinds import of_one_kind
from support.problems import LOOSE, FleetShape, random_problem, with_queries, with_slo


def _find(problem: Problem, **options: object) -> FleetCandidates:
    return find_fleet_candidates(problem, loads=problem.loads, **options)  # type: ignore[arg-type]


def _count(candidates: FleetCandidates, query: int = 0) -> int:
    return int(np.isfinite(candidates.values[query]).sum())


def _placements(candidates: FleetCandidates, query: int = 0) -> set[frozenset[str]]:
    return {
        frozenset(candidates.plan(query, at).placement.values()) for at in range(_count(candidates, query))
    }


def _fleet(seed: int = 0, **shape: object) -> Problem:
    return of_one_kind(random_problem(seed, FleetShape(**shape)), seed)  # type: ignore[arg-type]


def _loose(problem: Problem, count: int) -> Problem:
    queries = [
        replace(problem.queries[0], name=f"query-{at}", rate_hz=0.01 * (1 + at), slo=LOOSE)
        for at in range(count)
    ]
    return with_queries(problem, *queries)


def test_two_queries_of_one_device_get_plans_at_their_own_rates() -> None:
    problem = _loose(_fleet(), 2)
    candidates = _find(problem)
    assert _count(candidates, 0) == _count(candidates, 1) > 1
    np.testing.assert_allclose(2 * candidates.costs[0], candidates.costs[1], rtol=1e-12)
    np.testing.assert_allclose(2 * candidates.demands.amounts[0], candidates.demands.amounts[1], rtol=1e-12)


@pytest.mark.parametrize("slo", [{"latency_p95_s": 1e-6}, {"accuracy": 1.0}, {"cost_usd_per_1000": 0.0}])
def test_a_query_that_no_plan_serves_has_no_candidates(slo: dict[str, float]) -> None:
    problem = _loose(_fleet(), 2)
    problem = with_queries(problem, with_slo(problem.queries[0], **slo), problem.queries[1])
    candidates = _find(problem)
    assert _count(candidates, 0) == 0
    assert _count(candidates, 1) > 0
    with pytest.raises(PlanningError, match="no candidate 0"):
        candidates.plan(0, 0)


def test_a_query_that_fits_nowhere_alone_has_candidates_only_if_it_may_be_served_in_part() -> None:
    problem = _loose(_fleet(), 1)
    heavy = replace(problem.queries[0], rate_hz=1e6)
    assert _count(_find(with_queries(problem, heavy))) == 0
    assert _count(_find(with_queries(problem, replace(heavy, divisible=True)))) > 0


@pytest.mark.parametrize("field", ["pipeline", "origin"])
def test_unknown_names_leave_a_query_without_candidates(field: str) -> None:
    problem = _loose(_fleet(), 2)
    lost = problem.queries[0]
    lost = replace(lost, pipeline="unknown") if field == "pipeline" else replace(lost, origin="nowhere")
    candidates = _find(with_queries(problem, lost, problem.queries[1]))
    assert _count(candidates, 0) == 0
    assert _count(candidates, 1) > 0


def test_what_was_not_measured_is_not_chosen() -> None:
    problem = _loose(random_problem(3, FleetShape(variants=(3, 3))), 1)
    site = "edge-0", problem.queries[0].pipeline
    measured = dict(problem.profiles[site].operators)
    gone = variant_key("op0", {"level": 0})
    del measured[gone]
    problem = replace(
        problem, profiles={**problem.profiles, site: replace(problem.profiles[site], operators=measured)}
    )
    candidates = _find(problem)
    assert any("edge-0" in sites for sites in _placements(candidates))
    for at in range(_count(candidates)):
        plan = candidates.plan(0, at)
        assert plan.placement["op0"] != "edge-0" or plan.config["op0"] != {"level": 0}


def test_sites_without_a_profile_or_a_way_back_are_not_used() -> None:
    problem = _loose(_fleet(edges=2), 1)
    links = {ends: link for ends, link in problem.links.items() if ends != ("edge-0", "device-0")}
    profiles = {key: profile for key, profile in problem.profiles.items() if key[0] != "cloud-0"}
    candidates = _find(replace(problem, links=links, profiles=profiles))
    assert frozenset().union(*_placements(candidates)) == {"device-0", "edge-1"}


def test_a_query_uses_only_what_it_reaches() -> None:
    problem = _loose(_fleet(edges=3), 2)
    problem = replace(problem, reachable={"query-0": ("edge-2",)})
    candidates = _find(problem)
    assert frozenset().union(*_placements(candidates, 0)) <= {"device-0", "edge-2"}
    assert len(frozenset().union(*_placements(candidates, 1))) > 2


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_choice_of_sites_of_one_kind_is_tried(count: int) -> None:
    problem = _loose(_fleet(11, edges=3, clouds=1), 1)
    candidates = _find(problem, max_remote=count)
    expected = find_candidates(problem, problem.queries[0])
    assert isinstance(expected, Candidates)
    if count == 3:
        assert candidates.costs[0, 0] == pytest.approx(expected.cost_usd_per_s.min(), rel=1e-9)
    assert max(len(sites - {"device-0"}) for sites in _placements(candidates)) <= count


def test_an_overloaded_site_is_avoided() -> None:
    problem = _loose(_fleet(), 1)
    full = {
        "edge-0": SiteLoad(utilisation=1.2, residual_s=0.1),
        "cloud-0": SiteLoad(utilisation=1.0, residual_s=0.1),
    }
    candidates = find_fleet_candidates(problem, loads=full)
    assert _placements(candidates) == {frozenset({"device-0"})}


def test_a_policy_restricts_placements_by_tier() -> None:
    problem = _loose(_fleet(edges=2), 2)

    def cloud_only(templates: Templates, tiers: tuple[Tier, ...], _reach: frozenset[Tier]) -> np.ndarray:
        roles = np.array([tier is Tier.CLOUD for tier in tiers])
        return np.asarray(roles[templates.placement].all(axis=1))

    assert _placements(_find(problem, allowed=cloud_only)) == {frozenset({"cloud-0"})}


def test_keeps_at_most_so_many_and_the_cheapest_first() -> None:
    problem = _loose(_fleet(5, edges=2), 3)
    many = _find(problem)
    few = _find(problem, keep=2)
    assert few.values.shape[1] == 2
    np.testing.assert_array_equal(few.costs[:, 0], many.costs[:, 0])
    present = np.isfinite(many.values)
    assert (many.costs[:, :1] <= np.where(present, many.costs, np.inf)).all()


def test_columns_at_prices_spare_what_is_dear() -> None:
    problem = _loose(_fleet(), 2)
    candidates = _find(problem, keep=1)
    prices = np.zeros(len(candidates.capacities))
    dear = [at for at, name in enumerate(candidates.resources) if "device-0" in name]
    prices[dear] = 1e3
    extended, bound = add_columns(candidates, prices)
    paid = (extended.demands.amounts * prices[extended.demands.resources]).sum(axis=2)
    paid[~np.isfinite(extended.values)] = np.inf
    weights = np.array([query.weight for query in problem.queries])
    expected = prices @ candidates.capacities + np.maximum(0, weights - paid.min(axis=1)).sum()
    assert bound == pytest.approx(expected, rel=1e-12)


def test_warm_prices_are_a_direction_of_their_own() -> None:
    problem = _loose(_fleet(4, edges=2), 2)
    candidates = _find(problem)
    rng = np.random.default_rng(0)
    prices = rng.exponential(1.0, len(candidates.capacities)) / candidates.capacities
    warm = _find(problem, prices=prices)
    demands = warm.demands
    paid = (demands.amounts * prices[demands.resources]).sum(axis=2)
    paid[~np.isfinite(warm.values)] = np.inf
    assert paid.min(axis=1) == pytest.approx(_least(candidates, prices), rel=1e-6)


def _least(candidates: FleetCandidates, prices: np.ndarray) -> np.ndarray:
    """Least worth of demand over all plans of each query, read off the bound of queries worth a lot."""
    problem = candidates.space.problem
    least = []
    for query in problem.queries:
        alone = with_queries(problem, replace(query, weight=1e6))
        found = _find(alone)
        _, bound = add_columns(found, prices)
        least.append(1e6 + prices @ found.capacities - bound)
    return np.array(least)


def test_scarce_leaves_out_what_cannot_run_out() -> None:
    problem = _loose(_fleet(2, edges=2), 4)
    candidates = _find(problem)
    _, capacities, kept = candidates.scarce()
    assert (kept.size, capacities.size) == (0, 0)
    crowd = [replace(query, rate_hz=2.0) for query in problem.queries]
    candidates = _find(with_queries(problem, *crowd))
    demands, capacities, kept = candidates.scarce()
    assert kept.size
    np.testing.assert_array_equal(capacities, candidates.capacities[kept])
    for resource in range(len(candidates.capacities)):
        present = np.isfinite(candidates.values)
        whole = np.where(candidates.demands.resources == resource, candidates.demands.amounts, 0).sum(axis=2)
        if resource in kept:
            number = int(np.flatnonzero(kept == resource)[0])
            reduced = np.where(demands.resources == number, demands.amounts, 0).sum(axis=2)
            np.testing.assert_allclose(reduced, np.where(present, whole, 0))
        else:
            assert np.where(present, whole, 0).max(axis=1).sum() <= candidates.capacities[resource]


def test_hosted_names_the_variant_of_every_operator_where_it_runs() -> None:
    problem = _fleet(6, queries=3, edges=2)
    problem = with_queries(problem, *(replace(query, slo=LOOSE) for query in problem.queries))
    candidates = _find(problem)
    items, names = candidates.hosted()
    for query in range(3):
        for at in range(_count(candidates, query)):
            plan = candidates.plan(query, at)
            expected = [
                (plan.placement[name], problem.queries[query].pipeline, variant_key(name, knobs))
                for name, knobs in plan.config.items()
            ]
            assert [names[item] for item in items[query, at]] == expected
    assert (items[~np.isfinite(candidates.values)] == -1).all()


def test_templates_are_built_once() -> None:
    problem = _loose(_fleet(), 1)
    cache = TemplateCache()
    first = FleetSpace.of(problem, {}, cache)
    second = FleetSpace.of(_loose(problem, 3), {}, cache)
    assert all(one is two for one, two in zip(first.features, second.features, strict=True))


def test_the_cache_forgets_what_was_not_used_for_longest() -> None:
    problem = _loose(_fleet(), 1)
    cache = TemplateCache()
    (first, *others) = FleetSpace.of(problem, {}, cache).features
    assert len(cache) == 1 + len(others) > 2
    assert cache.nbytes == sum(features.nbytes for features in (first, *others))
    small = TemplateCache(max_entries=2)
    FleetSpace.of(problem, {}, small)
    assert len(small) == 2
    tiny = TemplateCache(max_bytes=1)
    assert len(FleetSpace.of(problem, {}, tiny).features) == 1 + len(others)
    assert len(tiny) == 0, "larger than all that may be kept"


def test_memory_stays_within_the_budget() -> None:
    problem = _loose(_fleet(7, variants=(3, 3, 3), edges=2, devices=2), 1)
    queries = tuple(
        replace(problem.queries[0], name=f"query-{at}", origin=f"device-{at % 2}") for at in range(3000)
    )
    problem = replace(problem, queries=queries)
    cache = TemplateCache()
    budget = 4 << 20
    space = FleetSpace.of(problem, {}, cache, memory_bytes=budget)
    generous = FleetSpace.of(problem, {}, cache)
    one, other = _peak(space), _peak(generous)
    assert one <= budget < other


def _peak(space: FleetSpace) -> int:
    """Bytes that a search takes beyond what was there before it and what it returns."""
    directions = diverse(space)
    tracemalloc.start()
    try:
        best = space.best(directions)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    return peak - sum(array.nbytes for array in (best.score, best.group, best.instance, best.row))


def test_a_fleet_without_queries_has_no_candidates() -> None:
    problem = with_queries(_fleet())
    candidates = _find(problem)
    assert candidates.values.shape[0] == 0


def test_rough_prices_are_near_those_at_which_demand_meets_capacity() -> None:
    # Queries worth 1 to 100 ask for 1 each; 30 fit, so the price lies between the 70th and the 71st value.
    values = np.arange(1.0, 101.0)[:, np.newaxis]
    demands = SparseDemands(resources=np.zeros((100, 1, 1), dtype=np.int64), amounts=np.ones((100, 1, 1)))
    price = rough_prices(values, demands, np.array([30.0]))
    assert price[0] == pytest.approx(70.5, abs=3.0)


def test_rough_prices_of_what_is_plentiful_are_zero() -> None:
    demands = SparseDemands(resources=np.zeros((3, 2, 1), dtype=np.int64), amounts=np.ones((3, 2, 1)))
    values = np.array([[1.0, 2.0], [1.0, -np.inf], [-np.inf, -np.inf]])
    assert rough_prices(values, demands, np.array([10.0])) == 0.0
