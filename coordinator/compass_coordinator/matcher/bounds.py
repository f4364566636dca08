"""The bound that prices prove, recomputed from the caller's own numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from compass_coordinator.matcher.problem import Floats, MatchProblem, SparseDemands, SparseProblem

_BLOCK = 1 << 12
_LARGEST = 1e300
_ABOVE = 1 + 1e-12
"""So that rounding does not leave a plan a trace of value."""


def dual_bound(problem: MatchProblem | SparseProblem, prices: Floats) -> float:
    """``prices @ capacities`` + sum over queries of max(0, max over plans of (values - demands @ prices)).

    Args:
        problem: Unscaled.
        prices: (resources,) >= 0, value per unit of demand.
    """
    parts = list(prices * problem.capacities)
    for reduced in _reduced(problem, prices):
        parts.extend(np.maximum(reduced.max(axis=1, initial=0.0), 0.0).tolist())
    return math.fsum(parts)


def _reduced(problem: MatchProblem | SparseProblem, prices: Floats) -> Iterator[Floats]:
    for start in range(0, len(problem.values), _BLOCK):
        rows = slice(start, start + _BLOCK)
        values = problem.values[rows]
        with np.errstate(invalid="ignore", over="ignore"):
            if isinstance(problem.demands, SparseDemands):
                amounts, resources = problem.demands.amounts[rows], problem.demands.resources[rows]
                priced = (amounts * prices[resources]).sum(axis=2)
            else:
                priced = problem.demands[rows] @ prices
            yield np.where(np.isneginf(values), -np.inf, values - priced)


def prices_of_closed(problem: MatchProblem | SparseProblem) -> Floats:
    """(resources,) the least price at which no plan wants a resource of which there is nothing, else 0."""
    prices = np.zeros(len(problem.capacities))
    closed = problem.capacities == 0
    if not closed.any():
        return prices
    demands = problem.demands
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if isinstance(demands, SparseDemands):
            asks = closed[demands.resources] & (demands.amounts > 0) & (problem.values > 0)[..., np.newaxis]
            query, plan, entry = np.nonzero(asks)
            worth = problem.values[query, plan] / demands.amounts[query, plan, entry]
            np.maximum.at(prices, demands.resources[query, plan, entry], worth)
        else:
            for resource in np.flatnonzero(closed):
                asked = demands[:, :, resource]
                asks = (asked > 0) & (problem.values > 0)
                prices[resource] = (problem.values[asks] / asked[asks]).max(initial=0.0)
    return np.minimum(prices * _ABOVE, _LARGEST)
