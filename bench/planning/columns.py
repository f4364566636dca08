"""What a few candidates lose against all plans: linear relaxations, by HiGHS, over more and more columns.

The relaxation over all plans of all queries is reached by column generation: solve, price every query's plans
at the dual prices, add what is better, until the bound over all plans meets the value.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, sparse

from compass_coordinator.planner.fleet import FleetCandidates, FleetSpace, add_columns, candidates_of

_CLOSE = 1e-7
_MOST_ROUNDS = 40

Floats = NDArray[np.float64]


def relaxed(candidates: FleetCandidates) -> tuple[float, Floats]:
    """Value of the linear relaxation over some candidates, and its price of every resource."""
    demands, capacities, kept = candidates.scarce()
    query, plan = np.nonzero(np.isfinite(candidates.values))
    columns = np.arange(len(query))
    entries = demands.amounts.shape[2]
    resource = demands.resources[query, plan]
    share = demands.amounts[query, plan] / (capacities[resource] if len(kept) else 1.0)
    rows = sparse.csr_array(
        (share.ravel(), (resource.ravel(), np.repeat(columns, entries))),
        shape=(max(1, len(kept)), len(query)),
    )
    one_each = sparse.csr_array(
        (np.ones(len(query)), (query, columns)), shape=(len(candidates.values), len(query))
    )
    answer: Any = optimize.linprog(
        -candidates.values[query, plan],
        sparse.vstack([one_each, rows], format="csr"),
        np.ones(len(candidates.values) + rows.shape[0]),
        method="highs",
    )
    duals = -answer.ineqlin.marginals[len(candidates.values) :]
    prices = np.zeros(len(candidates.capacities))
    prices[kept] = np.maximum(duals[: len(kept)], 0.0) / capacities
    return -float(answer.fun), prices


def losses(space: FleetSpace, keeps: tuple[int, ...], rounds: int) -> dict[str, float]:
    """Shares of the value over all plans that are lost with fewer.

    Args:
        space: The fleet.
        keeps: Numbers of candidates a query.
        rounds: Of column generation to look at, after the largest of them.
    """
    values, prices = {}, np.zeros(0)
    for keep in keeps:
        candidates = candidates_of(space, keep=keep)
        values[f"{keep} a query"], prices = relaxed(candidates)
    value, bound = 0.0, np.inf
    for number in range(1, _MOST_ROUNDS + 1):
        candidates, found = add_columns(candidates, prices)
        bound = min(bound, found)
        value, prices = relaxed(candidates)
        if number <= rounds:
            values[f"+ {number} {'round' if number == 1 else 'rounds'}"] = value
        if bound - value <= _CLOSE * bound:
            break
    lost = {name: max(0.0, 1 - found / value) for name, found in values.items()}
    return {"all plans": value, "bound": bound, **lost}
