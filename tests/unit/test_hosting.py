"""Hosting variants: against the exact program on small cases, and plain cases of sharing and swapping."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from compass_coordinator.matcher import REFUSED
from compass_coordinator.planning.hosting import Hosting, host
from compass_coordinator.planning.hosting_case import Items
from compass_shared.errors import PlanningError
from support.hosting_milp import most_value

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    values: Floats
    demands: Floats
    capacities: Floats
    uses: NDArray[np.int64]
    items: Items
    costs: Floats | None = None

    def host(self, **arguments: Any) -> Hosting:
        return host(
            self.values, self.demands, self.capacities, self.uses, self.items, self.costs, **arguments
        )

    def most_value(self) -> float:
        return most_value(self.values, self.demands, self.capacities, self.uses, self.items)


def items(
    site: list[int],
    memory: list[float],
    site_memory: list[float],
    hosted: list[bool] | None = None,
    loading: list[float] | None = None,
) -> Items:
    return Items(
        site=np.array(site, dtype=np.int64),
        memory_bytes=np.array(memory, dtype=np.float64),
        hosted=np.array(hosted or [False] * len(site), dtype=bool),
        loading=np.array(loading or [0.0] * len(site), dtype=np.float64),
        site_memory_bytes=np.array(site_memory, dtype=np.float64),
    )


def free(values: Floats, uses: list[Any], hosts: Items) -> Case:
    """A case without resources: memory alone decides."""
    return Case(
        values=np.array(values, dtype=np.float64),
        demands=np.zeros((*np.shape(values), 0)),
        capacities=np.zeros(0),
        uses=np.array(uses),
        items=hosts,
    )


def random_case(seed: int) -> Case:
    """Plans use up to two variants; some need none; memory is short at every site."""
    rng = np.random.default_rng(seed)
    queries, plans, resources = rng.integers([4, 2, 1], [16, 6, 4])
    sites, count = int(rng.integers(1, 4)), int(rng.integers(2, 9))
    site = rng.integers(sites, size=count)
    memory = rng.uniform(1.0, 4.0, count)
    values = np.where(
        rng.random((queries, plans)) < 0.1,
        -np.inf,
        rng.choice([1.0, 2.0, 3.0], (queries, 1)) * np.ones(plans),
    )
    if seed % 2:
        values *= rng.uniform(0.5, 1.0, values.shape)
    demands = rng.random((queries, plans, resources)) * (rng.random((queries, plans, resources)) < 0.7)
    at_sites = np.bincount(site, weights=memory, minlength=sites)
    return Case(
        values=values,
        demands=demands,
        capacities=rng.uniform(0.2, 0.7) * queries * demands.mean(axis=(0, 1)),
        uses=rng.integers(-1, count, (queries, plans, 2)),
        items=Items(
            site=site,
            memory_bytes=memory,
            hosted=rng.random(count) < 0.4,
            loading=rng.choice([0.0, 0.1, 1.0]) * rng.random(count),
            site_memory_bytes=np.asarray(rng.uniform(0.3, 0.8) * at_sites, dtype=np.float64),
        ),
    )


def check(case: Case, found: Hosting) -> float:
    """What has to hold of any answer; returns its value after loading."""
    hosts = case.items
    needed = np.bincount(
        hosts.site, weights=hosts.memory_bytes * found.hosted, minlength=len(hosts.site_memory_bytes)
    )
    assert (needed <= hosts.site_memory_bytes * (1 + 1e-12)).all()
    served = np.flatnonzero(found.match.choice != REFUSED)
    plan = found.match.choice[served]
    used = case.uses[served, plan]
    assert found.hosted[used[used >= 0]].all()
    assert (case.demands[served, plan].sum(axis=0) <= case.capacities * (1 + 1e-9)).all()
    assert found.match.value == pytest.approx(case.values[served, plan].sum())
    assert found.loading == pytest.approx(hosts.loading[found.hosted & ~hosts.hosted].sum())
    net = found.match.value - found.loading
    assert net <= found.bound + 1e-9
    return float(net)


@pytest.mark.parametrize("seed", range(6))
def test_random_cases_against_the_exact_program(seed: int) -> None:
    case = random_case(seed)
    most = case.most_value()
    net = check(case, case.host())
    assert most * 0.95 - 1e-6 <= net <= most + 1e-6


def test_a_time_limit_cuts_short_and_no_more() -> None:
    case = random_case(1)
    check(case, case.host(time_limit_s=0.0))


def test_memory_counts_once_however_many_use_a_variant() -> None:
    case = free(np.ones((10, 1)), [[[0]]] * 10, items([0], [4.0], [4.0]))
    found = case.host()
    assert (found.match.value, found.hosted.tolist()) == (10.0, [True])


def test_the_variant_that_serves_more_for_its_memory_is_hosted() -> None:
    uses = [[[0]]] * 3 + [[[1]]] * 2 + [[[2]]] * 2
    found = free(np.ones((7, 1)), uses, items([0, 0, 0], [4.0, 2.0, 2.0], [4.0])).host()
    assert (found.match.value, found.hosted.tolist()) == (4.0, [False, True, True])


def test_variants_are_swapped_only_if_that_is_worth_the_loading() -> None:
    case = free(np.ones((5, 1)), [[[0]]] * 2 + [[[1]]] * 3, items([0, 0], [1.0, 1.0], [1.0], [True, False]))
    assert case.host().hosted.tolist() == [False, True]
    dear = replace(case, items=replace(case.items, loading=np.array([0.0, 1.5])))
    found = dear.host()
    assert (found.hosted.tolist(), found.match.value, found.loading) == ([True, False], 2.0, 0.0)


def test_what_is_there_and_fits_stays_and_what_is_new_and_unused_is_not_loaded() -> None:
    case = free(np.ones((1, 2)), [[[0], [-1]]], items([0, 0, 0], [1.0, 1.0, 1.0], [3.0], [True, True, False]))
    assert case.host().hosted.tolist() == [True, True, False]


def test_plans_that_need_two_sites_get_both() -> None:
    uses = [[[0, 1]]] * 3 + [[[2, -1]]] * 2 + [[[3, -1]]] * 2
    hosts = items([0, 1, 0, 1], [1.0] * 4, [1.0, 1.0], [False, False, True, True], [0.25] * 4)
    values = [[2.0]] * 3 + [[1.0]] * 4
    found = free(np.array(values), uses, hosts).host()
    assert (found.hosted.tolist(), found.match.value, found.loading) == ([True, True, False, False], 6.0, 0.5)


def test_equal_value_at_less_cost_decides_what_is_hosted() -> None:
    case = free(np.ones((3, 2)), [[[0], [1]]] * 3, items([0, 0], [1.0, 1.0], [1.0]))
    found = replace(case, costs=np.array([[2.0, 1.0]] * 3)).host()
    assert (found.hosted.tolist(), found.match.cost) == ([False, True], 3.0)


def test_a_site_whose_memory_shrank_gives_up_what_is_missed_least() -> None:
    case = free(np.ones((3, 1)), [[[0]], [[0]], [[1]]], items([0, 0], [1.0, 1.0], [1.5], [True, True]))
    assert case.host().hosted.tolist() == [True, False]
    nothing = replace(case, items=replace(case.items, site_memory_bytes=np.zeros(1))).host()
    assert (nothing.hosted.tolist(), nothing.match.value) == ([False, False], 0.0)


def test_without_limits_everything_is_as_without_hosting() -> None:
    case = free(np.ones((3, 1)), [[[0]], [[1]], [[-1]]], items([0, 1], [1.0, 1.0], [np.inf, np.inf]))
    found = case.host()
    assert (found.match.value, found.bound) == (3.0, 3.0)


def test_nothing_to_host_and_nobody_to_serve() -> None:
    nothing = items([], [], [])
    found = host(np.ones((2, 1)), np.zeros((2, 1, 0)), [], np.full((2, 1, 0), -1), nothing)
    assert (found.match.value, found.hosted.shape) == (2.0, (0,))
    nobody = host(
        np.ones((0, 1)), np.zeros((0, 1, 0)), [], np.zeros((0, 1, 1), dtype=int), items([0], [1.0], [1.0])
    )
    assert (nobody.match.value, nobody.hosted.tolist()) == (0.0, [False])


@pytest.mark.parametrize(
    ("uses", "hosts", "message"),
    [
        ([[[1]]], items([0], [1.0], [1.0]), "indices of the 1 items"),
        ([[[-2]]], items([0], [1.0], [1.0]), "indices of the 1 items"),
        ([[0]], items([0], [1.0], [1.0]), "uses must be integers"),
        ([[[0.0]]], items([0], [1.0], [1.0]), "uses must be integers"),
        ([[[0]]], items([1], [1.0], [1.0]), "sites of items"),
        ([[[0]]], items([0], [np.nan], [1.0]), "memory"),
        ([[[0]]], items([0], [1.0], [-1.0]), "memory"),
        ([[[0]]], items([0], [1.0], [1.0], loading=[-1.0]), "loading"),
        ([[[0]]], items([0], [1.0, 1.0], [1.0]), "differ in length"),
    ],
)
def test_bad_input_is_refused(uses: list[Any], hosts: Items, message: str) -> None:
    with pytest.raises(PlanningError, match=message):
        host(np.ones((1, 1)), np.zeros((1, 1, 1)), [1.0], uses, hosts)
