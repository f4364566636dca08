"""How many units of each pool to buy, and which plan for which query on them: the cheapest that serve enough.

This module checks what is asked and reports what was found. ``unit_prices`` says what each resource should
cost and bounds the money from below, ``unit_search`` finds whole numbers of units.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compass_coordinator.matcher import MatchResult
from compass_coordinator.matcher.deadline import Deadline
from compass_coordinator.matcher.problem import Floats, checked
from compass_coordinator.planning.unit_prices import Need, find_prices
from compass_coordinator.planning.unit_search import UnitSearch
from compass_shared.errors import PlanningError

_SECONDS_PER_HOUR = 3600.0
_ROUNDING = 1e-9
"""Relative difference of values that is rounding."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pools:
    """What can be bought: pools of equal units."""

    unit_capacity: Floats
    """(pools, resources) float64, >= 0; a unit may bring several resources (cores, bandwidth)."""
    unit_usd_per_hour: Floats
    """(pools,) float64, >= 0."""
    minimum: NDArray[np.int64]
    """(pools,) units that are bought in any case, >= 0."""
    maximum: NDArray[np.int64]
    """(pools,) units that can be had, >= minimum."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Provision:
    """Units and the plans on them."""

    counts: NDArray[np.int64]
    """(pools,) units to buy."""
    match: MatchResult
    """The plans on them; its bound and prices are those of the value on these units."""
    usd_per_hour: float
    """Units and running cost."""
    units_usd_per_hour: float
    running_usd_per_hour: float
    goodput: float
    """Share of the total value that is served."""
    bound: float
    """USD per hour; no units and plans that reach the target cost less."""
    gap: float
    """``(usd_per_hour - bound) / usd_per_hour``."""
    prices: Floats
    """(resources,) USD per hour for a unit of the resource, as the relaxed problem has it."""
    value_price: float
    """USD per hour for a unit of value; 0 where every query has to be served."""
    relaxed_bound: float
    """What follows from these prices alone (formula in ``unit_prices``), <= bound."""


def provision(
    values: ArrayLike,
    demands: ArrayLike,
    capacities: ArrayLike,
    pools: Pools,
    costs: ArrayLike | None = None,
    *,
    goodput: float = 1.0,
    time_limit_s: float | None = None,
    seed: int = 0,
) -> Provision:
    """Find the cheapest units, with the plans on them, that serve a share of all value.

    Args:
        values: (queries, plans) float64, -inf where a query has no such plan; only what is > 0 is chosen.
        demands: (queries, plans, resources) float64, >= 0.
        capacities: (resources,) float64, >= 0, that is there without any unit.
        pools: What can be bought.
        costs: (queries, plans) USD per second that a plan costs beyond the units; None for nothing.
        goodput: Share to serve of the total value, which is the sum of all queries' best values; in (0, 1].
            1 gives every query that has a plan one of its most valuable plans.
        time_limit_s: No further improvement is begun after that; None to stop by the number of matches.
        seed: For the matches.

    Raises:
        PlanningError: If the input is malformed, or the target is out of reach even with all units.
    """
    deadline = Deadline.after(time_limit_s)
    problem = checked(values, demands, capacities, costs)
    _check_pools(pools, len(problem.capacities))
    best = np.maximum(problem.values.max(axis=1, initial=0.0), 0.0)
    total = float(best.sum())
    if not 0 < goodput <= 1:
        raise PlanningError(f"goodput must be in (0, 1], got {goodput}")
    everything = goodput >= 1 - _ROUNDING
    usable = problem.values > 0
    if everything:
        usable &= problem.values >= best[:, np.newaxis] * (1 - _ROUNDING)
    need = Need(
        values=np.where(usable, problem.values, -np.inf),
        demands=np.where(usable[:, :, np.newaxis], problem.demands, 0.0),
        running=np.where(usable, _SECONDS_PER_HOUR * problem.costs, 0.0),
        capacities=problem.capacities,
        target=goodput * total,
        everything=everything,
        unit_capacity=np.asarray(pools.unit_capacity, dtype=np.float64),
        unit_price=np.asarray(pools.unit_usd_per_hour, dtype=np.float64),
        minimum=np.asarray(pools.minimum, dtype=np.int64),
        maximum=np.asarray(pools.maximum, dtype=np.int64),
    )
    search = UnitSearch(need, seed=seed, deadline=deadline)
    most = search.all_units()
    if not most.enough:
        raise PlanningError(
            f"goodput {goodput:.6g} is out of reach: all {int(need.maximum.sum())} units there are serve "
            f"{_share(most.match.value, total):.6g} of the value; allow more units or a lower goodput"
        )
    priced = find_prices(need)
    found = search.run(priced)
    bound = max(priced.bound, search.least_money(priced))
    return Provision(
        counts=found.counts,
        match=found.match,
        usd_per_hour=found.usd_per_hour,
        units_usd_per_hour=float(need.unit_price @ found.counts),
        running_usd_per_hour=_SECONDS_PER_HOUR * found.match.cost,
        goodput=_share(found.match.value, total),
        bound=bound,
        gap=(found.usd_per_hour - bound) / found.usd_per_hour if found.usd_per_hour > 0 else 0.0,
        prices=priced.prices,
        value_price=priced.value_price,
        relaxed_bound=priced.bound,
    )


def _share(value: float, total: float) -> float:
    return value / total if total > 0 else 1.0


def _check_pools(pools: Pools, resources: int) -> None:
    count = np.asarray(pools.unit_usd_per_hour).size
    for name, array, shape in (
        ("unit_capacity", pools.unit_capacity, (count, resources)),
        ("unit_usd_per_hour", pools.unit_usd_per_hour, (count,)),
        ("minimum", pools.minimum, (count,)),
        ("maximum", pools.maximum, (count,)),
    ):
        found = np.asarray(array)
        if found.shape != shape or not (np.isfinite(found) & (found >= 0)).all():
            raise PlanningError(
                f"{name} of pools must be finite, >= 0 and of shape {shape}; got {found.shape}"
            )
    if (np.asarray(pools.maximum) < np.asarray(pools.minimum)).any():
        raise PlanningError("the maximum number of units must not be below the minimum")
