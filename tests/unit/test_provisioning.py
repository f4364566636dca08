"""Buying units: against the exact program on small cases, with bounds that anyone can recompute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize

from compass_coordinator.matcher import REFUSED
from compass_coordinator.planning.provisioning import Pools, Provision, provision
from compass_shared.errors import PlanningError
from support.provisioning_milp import cheapest_usd_per_hour

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    values: Floats
    demands: Floats
    capacities: Floats
    pools: Pools
    costs: Floats
    goodput: float

    def provision(self, **arguments: Any) -> Provision:
        return provision(
            self.values,
            self.demands,
            self.capacities,
            self.pools,
            self.costs,
            goodput=self.goodput,
            **arguments,
        )

    def cheapest(self) -> float:
        return cheapest_usd_per_hour(
            self.values, self.demands, self.capacities, self.pools, self.costs, self.goodput
        )


def pools(
    capacity: list[list[float]], price: list[float], most: list[int], least: list[int] | None = None
) -> Pools:
    return Pools(
        unit_capacity=np.array(capacity, dtype=np.float64) if capacity else np.zeros((0, 0)),
        unit_usd_per_hour=np.array(price),
        minimum=np.array(least or [0] * len(price)),
        maximum=np.array(most),
    )


def random_case(seed: int) -> Case:
    """Units that bring one resource or two, weights that differ, some running costs, some plans missing."""
    rng = np.random.default_rng(seed)
    queries, plans, resources, kinds = rng.integers([4, 1, 1, 1], [16, 4, 4, 4])
    values = np.repeat(rng.choice([1.0, 1.0, 2.0, 5.0], (queries, 1)), plans, axis=1)
    values[rng.random((queries, plans)) < 0.1] = -np.inf
    demands = rng.random((queries, plans, resources)) * (rng.random((queries, plans, resources)) < 0.6)
    unit_capacity = np.eye(kinds, resources) * rng.uniform(0.5, 3.0, (kinds, 1))
    unit_capacity[np.arange(kinds), rng.integers(resources, size=kinds)] += rng.uniform(0.5, 2.0, kinds)
    return Case(
        values=values,
        demands=demands,
        capacities=np.where(rng.random(resources) < 0.4, demands.mean() * queries * 0.6, 0.0),
        pools=Pools(
            unit_capacity=unit_capacity,
            unit_usd_per_hour=unit_capacity.sum(axis=1) * rng.uniform(0.7, 1.3, kinds),
            minimum=rng.integers(0, 2, kinds),
            maximum=np.full(kinds, queries),
        ),
        costs=rng.random((queries, plans)) * (rng.random((queries, plans)) < 0.5) * 1e-4 * (seed % 2),
        goodput=(1.0, 0.95, 0.8)[seed % 3],
    )


def check(case: Case, found: Provision) -> None:
    """What has to hold of any answer."""
    served = np.flatnonzero(found.match.choice != REFUSED)
    plan = found.match.choice[served]
    used = case.demands[served, plan].sum(axis=0)
    there = case.capacities + found.counts @ case.pools.unit_capacity
    assert (used <= there * (1 + 1e-9)).all()
    assert (found.counts >= case.pools.minimum).all()
    assert (found.counts <= case.pools.maximum).all()
    total = np.maximum(case.values.max(axis=1), 0.0).sum()
    value = case.values[served, plan].sum()
    assert value >= case.goodput * total * (1 - 1e-9)
    assert found.goodput == pytest.approx(value / total if total else 1.0)
    units, running = case.pools.unit_usd_per_hour @ found.counts, 3600.0 * case.costs[served, plan].sum()
    assert found.units_usd_per_hour == pytest.approx(units)
    assert found.running_usd_per_hour == pytest.approx(running)
    assert found.usd_per_hour == pytest.approx(units + running)
    assert found.bound <= found.usd_per_hour * (1 + 1e-6)
    assert found.relaxed_bound <= found.bound


def relaxed(case: Case) -> float:
    """The formula of the bound, in other words than the code's; see ``unit_prices``."""
    found = case.provision()
    total = 0.0
    for query in range(len(case.values)):
        best = case.values[query].max()
        reduced = [
            3600.0 * case.costs[query, plan]
            - found.value_price * value
            + case.demands[query, plan] @ found.prices
            for plan, value in enumerate(case.values[query])
            if value > 0 and (case.goodput < 1 or value == best)
        ]
        if reduced:
            total += min(reduced) if case.goodput == 1 else min(0.0, *reduced)
    slope = case.pools.unit_usd_per_hour - case.pools.unit_capacity @ found.prices
    total += sum(
        min(s * a, s * b) for s, a, b in zip(slope, case.pools.minimum, case.pools.maximum, strict=True)
    )
    target = case.goodput * np.maximum(case.values.max(axis=1), 0.0).sum()
    return float(total - found.prices @ case.capacities + found.value_price * target)


@pytest.mark.parametrize("seed", range(9))
def test_random_cases_against_the_exact_program(seed: int) -> None:
    case = random_case(seed)
    cheapest = case.cheapest()
    if cheapest == np.inf:
        with pytest.raises(PlanningError, match="out of reach"):
            case.provision()
        return
    found = case.provision()
    check(case, found)
    assert found.bound <= cheapest * (1 + 1e-6) + 1e-9
    assert cheapest * (1 - 1e-6) <= found.usd_per_hour <= cheapest * 1.06 + 1e-9


@pytest.mark.parametrize("seed", range(6))
def test_the_relaxed_bound_is_recomputed_from_the_prices_and_meets_the_linear_program(seed: int) -> None:
    case = next(case for case in map(random_case, range(seed, 1000, 6)) if case.cheapest() < np.inf)
    found = case.provision()
    assert found.relaxed_bound == pytest.approx(relaxed(case), rel=1e-9, abs=1e-12)
    assert found.relaxed_bound == pytest.approx(linear_relaxation(case), rel=1e-5, abs=1e-6)


def linear_relaxation(case: Case) -> float:
    """The same program with fractional units and plans."""
    best = np.maximum(case.values.max(axis=1), 0.0)
    usable = case.values > 0
    if case.goodput == 1:
        usable &= case.values == best[:, np.newaxis]
    query, plan = np.nonzero(usable)
    kinds = len(case.pools.unit_usd_per_hour)
    one_each = np.zeros((len(case.values), len(query) + kinds))
    one_each[query, np.arange(len(query))] = 1.0
    rows = [
        one_each,
        np.hstack([case.demands[query, plan].T, -case.pools.unit_capacity.T]),
        -np.append(case.values[query, plan], np.zeros(kinds))[np.newaxis],
    ]
    answer = optimize.linprog(
        np.append(3600.0 * case.costs[query, plan], case.pools.unit_usd_per_hour),
        A_ub=np.vstack(rows),
        b_ub=np.concatenate([np.ones(len(best)), case.capacities, [-case.goodput * best.sum()]]),
        bounds=[(0, 1)] * len(query) + list(zip(case.pools.minimum, case.pools.maximum, strict=True)),
    )
    assert answer.fun is not None
    return float(answer.fun)


@pytest.mark.parametrize("seed", [1])
def test_answers_repeat(seed: int) -> None:
    case = random_case(seed)
    found, again = case.provision(seed=3), case.provision(seed=3)
    assert (found.counts == again.counts).all()
    assert (found.match.choice == again.match.choice).all()
    assert found.bound == again.bound


def test_units_are_rounded_up() -> None:
    found = provision(np.ones((10, 1)), np.ones((10, 1, 1)), [0.0], pools([[4.0]], [2.0], [9]))
    assert found.counts.tolist() == [3]
    assert found.usd_per_hour == 6.0
    assert found.bound == pytest.approx(6.0, rel=1e-5)
    assert found.relaxed_bound == pytest.approx(5.0, rel=1e-5)
    assert found.prices == pytest.approx([0.5], rel=1e-5)


def test_what_is_there_already_is_not_bought() -> None:
    free = provision(np.ones((4, 1)), np.ones((4, 1, 1)), [4.0], pools([[1.0]], [1.0], [9]))
    assert free.counts.tolist() == [0]
    assert (free.usd_per_hour, free.gap) == (0.0, 0.0)
    forced = provision(np.ones((4, 1)), np.ones((4, 1, 1)), [4.0], pools([[1.0]], [1.0], [9], [2]))
    assert (forced.counts.tolist(), forced.usd_per_hour) == ([2], 2.0)


def test_one_large_unit_or_two_small_ones() -> None:
    offers = pools([[4.0], [1.0]], [3.0, 1.0], [5, 5])
    assert provision(np.ones((2, 1)), np.ones((2, 1, 1)), [0.0], offers).counts.tolist() == [0, 2]
    assert provision(np.ones((4, 1)), np.ones((4, 1, 1)), [0.0], offers).counts.tolist() == [1, 0]
    assert provision(np.ones((6, 1)), np.ones((6, 1, 1)), [0.0], offers).counts.tolist() == [1, 2]


def test_plans_move_to_what_their_unit_brings_anyway() -> None:
    """Cores come with bandwidth; the plans that use both of one unit are cheapest together."""
    demands = np.array([[[1.0, 0.0], [0.0, 1.0]]] * 4)
    found = provision(np.ones((4, 2)), demands, [0.0, 0.0], pools([[2.0, 2.0]], [1.0], [4]))
    assert found.counts.tolist() == [1]
    assert sorted(found.match.choice.tolist()) == [0, 0, 1, 1]


def test_a_share_of_goodput_leaves_out_what_is_dearest_to_serve() -> None:
    values = np.array([[1.0]] * 9 + [[1.0]])
    demands = np.array([[[1.0]]] * 9 + [[[10.0]]])
    offers = pools([[1.0]], [1.0], [30])
    assert provision(values, demands, [0.0], offers).usd_per_hour == 19.0
    most = provision(values, demands, [0.0], offers, goodput=0.9)
    assert (most.usd_per_hour, most.goodput, most.match.choice[9]) == (9.0, 0.9, REFUSED)


def test_running_cost_is_weighed_against_units() -> None:
    """The second plan runs without units, for 3.6 USD per hour."""
    demands = np.array([[[1.0], [0.0]]] * 4)
    costs = np.array([[0.0, 1e-3]] * 4)
    dear = provision(np.ones((4, 2)), demands, [0.0], pools([[1.0]], [5.0], [4]), costs)
    assert dear.counts.tolist() == [0]
    assert dear.usd_per_hour == pytest.approx(14.4)
    cheap = provision(np.ones((4, 2)), demands, [0.0], pools([[1.0]], [2.0], [4]), costs)
    assert (cheap.counts.tolist(), cheap.usd_per_hour) == ([4], 8.0)


def test_running_cost_beyond_the_target_is_saved() -> None:
    costs = np.full((10, 1), 1e-3)
    found = provision(np.ones((10, 1)), np.zeros((10, 1, 0)), [], pools([], [], []), costs, goodput=0.5)
    assert found.goodput == 0.5
    assert found.usd_per_hour == pytest.approx(18.0)
    assert found.bound == pytest.approx(18.0, rel=1e-5)


def test_queries_without_a_plan_do_not_count() -> None:
    values = np.array([[1.0, -np.inf], [-np.inf, -np.inf], [0.0, -1.0]])
    found = provision(values, np.ones((3, 2, 1)), [0.0], pools([[1.0]], [1.0], [4]))
    assert (found.counts.tolist(), found.goodput) == ([1], 1.0)
    nobody = provision(np.full((2, 1), -np.inf), np.ones((2, 1, 1)), [0.0], pools([[1.0]], [1.0], [4]))
    assert (nobody.counts.tolist(), nobody.goodput) == ([0], 1.0)


def test_a_time_limit_cuts_short_and_no_more() -> None:
    case = random_case(1)
    found = case.provision(time_limit_s=0.0)
    check(case, found)
    assert found.bound <= case.cheapest() * (1 + 1e-6)


def test_a_target_out_of_reach_says_how_much_is_within() -> None:
    with pytest.raises(PlanningError, match=r"all 3 units .* serve 0\.3 of the value"):
        provision(np.ones((10, 1)), np.ones((10, 1, 1)), [0.0], pools([[1.0]], [1.0], [3]))


def test_hundreds_of_units_of_several_kinds() -> None:
    rng = np.random.default_rng(7)
    values, demands = np.ones((600, 4)), rng.random((600, 4, 3))
    offers = pools([[1.0, 0, 0], [0, 1.0, 0.2], [0, 0, 1.5]], [1.0, 0.8, 1.1], [900, 900, 900])
    found = provision(values, demands, np.zeros(3), offers, goodput=0.99)
    assert found.goodput >= 0.99
    assert found.gap < 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"goodput": 0.0}, "goodput"),
        ({"goodput": 1.1}, "goodput"),
        ({"goodput": float("nan")}, "goodput"),
        ({"pools": pools([[1.0]], [-1.0], [1])}, "unit_usd_per_hour"),
        ({"pools": pools([[1.0, 1.0]], [1.0], [1])}, "unit_capacity"),
        ({"pools": pools([[1.0]], [1.0], [1], [2])}, "maximum"),
    ],
)
def test_bad_input_is_refused(arguments: dict[str, Any], message: str) -> None:
    arguments = {"pools": pools([[1.0]], [1.0], [1]), **arguments}
    with pytest.raises(PlanningError, match=message):
        provision(np.ones((1, 1)), np.ones((1, 1, 1)), [0.0], arguments.pop("pools"), **arguments)
