"""How many units a fleet needs: enough, not more than it takes, and never below what is possible."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import replace

import pytest

from compass_coordinator.planning import FleetProvision, plan_fleet, provision_fleet
from compass_coordinator.planning.provision_fleet import sized
from compass_shared.check import check_plan
from compass_shared.errors import PlanningError
from compass_shared.problem import Problem
from compass_shared.site import Units
from support.problems import LOOSE, FleetShape, random_problem, with_queries

POOLS = ("cloud-0", "edge-0")


def _fleet(seed: int, queries: int = 4) -> Problem:
    """Devices too weak to serve anyone; an edge server and a cloud pool to be bought in units of one core."""
    problem = random_problem(seed, FleetShape(variants=(1, 2), devices=2, queries=queries))
    sites = dict(problem.sites)
    for name in POOLS:
        usd_per_hour = 1.0 if name.startswith("cloud") else 1.5
        units = Units(cores=1.0, usd_per_hour=usd_per_hour, minimum=0, maximum=4)
        sites[name] = replace(sites[name], units=units, cores=4.0)
    asked = [
        replace(query, name=f"q{at}", slo=replace(LOOSE, latency_p95_s=5.0), rate_hz=12.0)
        for at, query in enumerate(problem.queries)
    ]
    return replace(with_queries(problem, *asked), sites=sites)


def _cheapest(problem: Problem, share: float) -> float:
    """By trying every number of units, from the cheapest on."""
    total = math.fsum(query.weight for query in problem.queries)
    priced = sorted(
        (sum(count * _usd_per_hour(problem, name) for name, count in zip(POOLS, counts, strict=True)), counts)
        for counts in itertools.product(range(5), repeat=2)
    )
    for usd, counts in priced:
        chosen = dict(zip(POOLS, counts, strict=True))
        if plan_fleet(sized(problem, chosen)).goodput >= share * total - 1e-9:
            return usd
    return math.inf


def _usd_per_hour(problem: Problem, name: str) -> float:
    units = problem.sites[name].units
    return units.usd_per_hour if units is not None else 0.0


@functools.cache
def _provided(seed: int, share: float) -> FleetProvision:
    """What several tests look at."""
    return provision_fleet(_fleet(seed), goodput=share)


@pytest.mark.parametrize(("seed", "share"), [(0, 1.0), (1, 1.0), (2, 0.5), (3, 0.75)])
def test_the_units_are_the_cheapest_that_serve_enough(seed: int, share: float) -> None:
    problem = _fleet(seed)
    expected = _cheapest(problem, share)
    if not math.isfinite(expected):
        with pytest.raises(PlanningError, match="out of reach"):
            provision_fleet(problem, goodput=share)
        return
    found = _provided(seed, share)
    assert found.goodput >= share - 1e-9
    assert check_plan(sized(problem, found.counts), found.plan.plans, found.plan.split) == []
    assert found.units_usd_per_hour == pytest.approx(expected, abs=1.0)
    assert found.bound_usd_per_hour <= found.usd_per_hour + 1e-9


def test_half_of_the_fleet_costs_no_more_than_all_of_it() -> None:
    assert _provided(1, 0.5).usd_per_hour <= _provided(1, 1.0).usd_per_hour + 1e-9


def test_what_cannot_be_bought_is_said() -> None:
    problem = _fleet(1)
    poor = {
        name: replace(site, units=replace(site.units, maximum=0)) if site.units else site
        for name, site in problem.sites.items()
    }
    with pytest.raises(PlanningError, match="out of reach"):
        provision_fleet(replace(problem, sites=poor))
    fixed = {name: replace(site, units=None) for name, site in problem.sites.items()}
    with pytest.raises(PlanningError, match="units"):
        provision_fleet(replace(problem, sites=fixed))
    with pytest.raises(PlanningError, match="goodput"):
        provision_fleet(problem, goodput=0.0)
