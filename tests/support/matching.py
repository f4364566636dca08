"""What the tests of the matcher compare with: slow, short, and written without it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import optimize

from compass_coordinator.matcher import MatchResult


def linear_optimum(values: Any, demands: Any, capacities: Any) -> float:
    """The largest value if every query could be split over its plans."""
    query, plan = np.nonzero(values > 0)
    if not len(query):
        return 0.0
    one_each = np.zeros((len(values), len(query)))
    one_each[query, np.arange(len(query))] = 1.0
    # In shares of the capacities: the solver's tolerances are absolute.
    scale = np.where(capacities > 0, capacities, 1.0)
    solved = optimize.linprog(
        -values[query, plan] / values.max(),
        A_ub=np.vstack([one_each, (demands[query, plan] / scale).T]),
        b_ub=np.concatenate([np.ones(len(values)), (capacities > 0).astype(np.float64)]),
        bounds=(0, 1),
        method="highs",
    )
    assert solved.status == 0
    assert solved.fun is not None
    return float(-solved.fun * values.max())


def bound_of(prices: Any, values: Any, demands: Any, capacities: Any) -> float:
    """What these prices prove."""
    total = float(prices @ capacities)
    for query in range(len(values)):
        present = values[query] > -np.inf
        reduced = values[query][present] - demands[query][present] @ prices
        total += max(0.0, reduced.max(initial=0.0))
    return total


def parts_of(result: MatchResult) -> list[tuple[int, int, float]]:
    """(query, plan, fraction) of all that is served."""
    whole = [(query, int(plan), 1.0) for query, plan in enumerate(result.choice) if plan >= 0]
    shares = result.shares
    return whole + [
        (int(query), int(plan), float(fraction))
        for query, plan, fraction in zip(shares.query, shares.plan, shares.fraction, strict=True)
    ]


def used_by(result: MatchResult, demands: Any) -> list[float]:
    """Sum of the demands for each resource, without rounding on the way."""
    parts = parts_of(result)
    return [math.fsum(demands[q, p, r] * f for q, p, f in parts) for r in range(demands.shape[2])]


def assert_sound(result: MatchResult, values: Any, demands: Any, capacities: Any, costs: Any = None) -> None:
    """Whatever a matcher answers: it fits, its figures add up, and its prices prove its bound."""
    parts = parts_of(result)
    assert all(values[query, plan] > 0 for query, plan, _ in parts)
    assert all(
        used <= capacity * (1 + 1e-9)
        for used, capacity in zip(used_by(result, demands), capacities, strict=True)
    )
    assert math.isclose(result.value, math.fsum(values[q, p] * f for q, p, f in parts), rel_tol=1e-12)
    if costs is not None:
        cost = math.fsum(costs[q, p] * f for q, p, f in parts)
        assert math.isclose(result.cost, cost, rel_tol=1e-12, abs_tol=1e-12)
    assert (result.prices >= 0).all()
    assert np.isfinite(result.prices).all()
    proved = bound_of(result.prices, values, demands, capacities)
    assert math.isclose(result.bound, max(proved, result.value), rel_tol=1e-9)
    assert result.value <= result.bound
    assert result.gap == (0.0 if result.bound == 0 else (result.bound - result.value) / result.bound)
