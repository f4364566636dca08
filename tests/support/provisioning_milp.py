"""The oracle of provisioning: units and plans in one mixed-integer program."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from compass_coordinator.planning.provisioning import Pools

Floats = NDArray[np.float64]


def cheapest_usd_per_hour(
    values: Floats, demands: Floats, capacities: Floats, pools: Pools, costs: Floats, goodput: float
) -> float:
    """The least money for units and plans that serve the share of value; infinite if nothing does.

    Variables: x of the plans that exist and are worth something, then the numbers of units.
    """
    query, plan = np.nonzero(values > 0)
    columns, units = len(query), len(pools.unit_usd_per_hour)
    best = np.maximum(values.max(axis=1, initial=0.0), 0.0)
    one_each = np.zeros((len(values), columns + units))
    one_each[query, np.arange(columns)] = 1.0
    fits = np.hstack([demands[query, plan].T, -pools.unit_capacity.T])
    served = np.concatenate([values[query, plan], np.zeros(units)])
    answer = optimize.milp(
        np.concatenate([3600.0 * costs[query, plan], pools.unit_usd_per_hour]),
        integrality=np.ones(columns + units, dtype=np.int64),
        bounds=optimize.Bounds(
            np.concatenate([np.zeros(columns), pools.minimum]),
            np.concatenate([np.ones(columns), pools.maximum]),
        ),
        constraints=optimize.LinearConstraint(
            np.vstack([one_each, fits, -served]),
            -np.inf,
            np.concatenate([np.ones(len(values)), capacities, [-goodput * best.sum()]]),
        ),
        options={"mip_rel_gap": 0.0},
    )
    assert answer.status in (0, 2), answer.message
    return float(answer.fun) if answer.status == 0 else np.inf
