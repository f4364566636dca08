"""What resources are worth when capacity can be bought: the Lagrangian dual, by cutting planes.

The problem (all money in USD per hour; queries q, plans p, resources r, pools u):

    minimise    sum_u price_u n_u + sum_qp running_qp x_qp
    subject to  sum_qp demand_qpr x_qp <= capacity_r + sum_u unit_ur n_u     for every r     (price y_r >= 0)
                sum_qp value_qp x_qp >= target                                               (price m >= 0)
                sum_p x_qp <= 1, minimum_u <= n_u <= maximum_u, x binary, n whole

For any prices y and m the following is a lower bound, and anyone can recompute it:

    bound(y, m) = sum_u min over n of (price_u - unit_u @ y) n - y @ capacity + m target
                  + sum_q min(0, min_p (running_qp - m value_qp + demand_qp @ y))

Where everything has to be served, each query takes one of its most valuable plans whatever they cost, and the
last line is ``sum_q min_p (running_qp + demand_qp @ y)`` over those plans; m is 0 then.

The bound is concave in the prices. Each evaluation gives a plane above it for each group of queries; a linear
program finds the prices where the planes promise most, and the next evaluation is half-way from the best
prices to those. The pools are in that program exactly, so its dual holds the fractional numbers of units.

At given prices the bound for given numbers of units is linear in them. So each evaluation is also a *cut*:
the money that any numbers of units come to at least, ``constant + slope @ n``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from compass_coordinator.matcher.problem import Floats

_GROUPS = 8
_MAX_EVALUATIONS = 120
_TOLERANCE = 1e-6
_STEP = 0.5
_MOST = 10.0
"""Times the money for all that is asked: the first limit of what a resource may be worth; it widens."""
_LIMIT = 1e6
"""Times that money: where it stops to widen."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Need:
    """What has to be served and what there is to serve it."""

    values: Floats
    """(queries, plans); -inf where there is no such plan or it may not be used."""
    demands: Floats
    """(queries, plans, resources)."""
    running: Floats
    """(queries, plans) USD per hour of what the units' price does not pay."""
    capacities: Floats
    """(resources,) that is there without any unit."""
    target: float
    """Value to reach."""
    everything: bool
    """Whether every query has to be served by one of the plans there are."""
    unit_capacity: Floats
    """(pools, resources)."""
    unit_price: Floats
    """(pools,) USD per hour."""
    minimum: NDArray[np.int64]
    """(pools,)."""
    maximum: NDArray[np.int64]
    """(pools,)."""

    def capacity_of(self, counts: NDArray[np.int64]) -> Floats:
        """(resources,) with that many units of each pool."""
        capacity: Floats = self.capacities + counts @ self.unit_capacity
        return capacity


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UnitPrices:
    """The best prices found."""

    prices: Floats
    """(resources,) USD per hour for a unit of the resource."""
    value_price: float
    """USD per hour for a unit of value."""
    bound: float
    """USD per hour; by the formula above."""
    counts: Floats
    """(pools,) fractional units of the relaxed problem."""
    constants: Floats
    """(cuts,) USD per hour."""
    slopes: Floats
    """(cuts, pools) USD per hour and unit."""

    def least(self, counts: NDArray[np.int64]) -> float:
        """USD per hour that these units and what runs on them come to at least."""
        return float((self.constants + self.slopes @ counts).max())


def find_prices(need: Need) -> UnitPrices:
    """Maximise the bound; the target has to be within reach of all units together. Deterministic."""
    return _CuttingPlanes(need).run()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Parts:
    """Sums over the plans that queries choose at some prices, by group of queries."""

    running: Floats
    """(groups,)."""
    value: Floats
    """(groups,)."""
    demand: Floats
    """(groups, resources)."""


def _chosen(need: Need, prices: Floats, value_price: float) -> _Parts:
    reduced = need.running + need.demands @ prices
    if not need.everything:
        with np.errstate(invalid="ignore"):
            reduced = reduced - value_price * need.values
    reduced = np.where(need.values > 0, reduced, np.inf)
    queries = np.arange(len(reduced))
    plan = reduced.argmin(axis=1)
    least = reduced[queries, plan]
    taken = np.flatnonzero(np.isfinite(least) if need.everything else least < 0)
    plan = plan[taken]
    group = taken * _GROUPS // max(len(reduced), 1)

    def by_group(amounts: Floats) -> Floats:
        return np.bincount(group, weights=amounts, minlength=_GROUPS).astype(np.float64)

    demand = need.demands[taken, plan]
    return _Parts(
        running=by_group(need.running[taken, plan]),
        value=by_group(need.values[taken, plan]),
        demand=np.array([by_group(column) for column in demand.T]).reshape(demand.shape[1], _GROUPS).T,
    )


class _CuttingPlanes:
    """Here a resource's price is for all that queries may ask of it, and the value's is for the target."""

    def __init__(self, need: Need) -> None:
        self._need = need
        asked = need.demands.max(axis=1, initial=0.0).sum(axis=0)
        asked = np.where(asked > 0, asked, 1.0)
        self._scale = np.append(asked, need.target or 1.0)
        self._unit = self._money_for(asked)
        """Of money in the linear programs, whose tolerances are absolute."""
        self._limit = _MOST * self._unit
        self._planes: list[Floats] = []
        self._running: list[Floats] = []
        self._constants: list[float] = []
        self._slopes: list[Floats] = []

    def run(self) -> UnitPrices:
        need = self._need
        best = np.zeros(len(self._scale))
        bound = self._evaluate(best)
        counts = need.minimum.astype(np.float64)
        for _ in range(_MAX_EVALUATIONS):
            solved = self._solve()
            if solved is None:
                break
            prices, promised, counts = solved
            if promised - bound > _TOLERANCE * max(abs(promised), _TOLERANCE * self._unit):
                tried = best + _STEP * (prices - best)
                reached = self._evaluate(tried)
                if reached > bound:
                    best, bound = tried, reached
            elif (prices < self._limit * (1 - _TOLERANCE)).all() or self._limit > _LIMIT * self._unit:
                break
            else:
                self._limit *= _MOST
        prices, value_price = self._unscaled(best)
        return UnitPrices(
            prices=prices,
            value_price=value_price,
            bound=bound,
            counts=counts,
            constants=np.array(self._constants),
            slopes=np.array(self._slopes).reshape(len(self._slopes), len(need.unit_price)),
        )

    def _money_for(self, asked: Floats) -> float:
        """USD per hour, roughly, for units with all that is asked and for running all plans."""
        need = self._need
        with np.errstate(divide="ignore"):
            cheapest = (need.unit_price[:, np.newaxis] / need.unit_capacity).min(axis=0, initial=np.inf)
        bought = float(asked[np.isfinite(cheapest)] @ cheapest[np.isfinite(cheapest)])
        return (bought + float(np.abs(need.running).max(axis=1, initial=0.0).sum())) or 1.0

    def _unscaled(self, scaled: Floats) -> tuple[Floats, float]:
        prices = scaled / self._scale
        return prices[:-1], 0.0 if self._need.everything else float(prices[-1])

    def _evaluate(self, scaled: Floats) -> float:
        """The bound at some prices; keeps its planes and its cut."""
        need = self._need
        prices, value_price = self._unscaled(scaled)
        parts = _chosen(need, prices, value_price)
        planes = np.column_stack([parts.demand, -parts.value * (not need.everything)]) / self._scale
        self._planes.append(planes)
        self._running.append(parts.running)
        constant = parts.running.sum() + (planes @ scaled).sum()
        constant += value_price * need.target - prices @ need.capacities
        slope = need.unit_price - need.unit_capacity @ prices
        self._constants.append(float(constant))
        self._slopes.append(slope)
        return float(constant + np.minimum(slope * need.minimum, slope * need.maximum).sum())

    def _solve(self) -> tuple[Floats, float, Floats] | None:
        """Where the planes promise most: scaled prices, the promise, and the fractional units there.

        Variables: prices of the resources, price of the value, then what each pool and each group adds.
        None if the solver fails; what was found until then holds.
        """
        need, pools, resources = self._need, len(self._need.unit_price), len(self._need.capacities)
        unit = need.unit_capacity / self._scale[:-1]
        pool_rows = [
            np.hstack([unit * count[:, np.newaxis], np.zeros((pools, 1)), np.eye(pools, pools + _GROUPS)])
            for count in (need.minimum, need.maximum)
        ]
        group_rows = [
            np.hstack([-planes, np.eye(_GROUPS, pools + _GROUPS, pools)]) for planes in self._planes
        ]
        pool_money = [need.unit_price * need.minimum, need.unit_price * need.maximum]
        gains = np.append(-need.capacities / self._scale[:-1], not need.everything)
        limits = np.full(resources + 1, self._limit / self._unit)
        limits[-1] *= not need.everything
        answer = optimize.linprog(
            -np.append(gains, np.ones(pools + _GROUPS)),
            A_ub=np.vstack([*pool_rows, *group_rows]),
            b_ub=np.concatenate([*pool_money, *self._running]) / self._unit,
            bounds=[(0.0, limit) for limit in limits.tolist()] + [(None, None)] * (pools + _GROUPS),
        )
        if answer.x is None or answer.fun is None:
            return None
        most_used = np.clip(-answer.ineqlin.marginals[pools : 2 * pools], 0.0, 1.0)
        counts = np.asarray(need.minimum + most_used * (need.maximum - need.minimum), dtype=np.float64)
        return answer.x[: resources + 1] * self._unit, float(-answer.fun) * self._unit, counts
