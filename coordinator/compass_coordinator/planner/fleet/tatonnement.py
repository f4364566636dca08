"""Rough prices of what is scarce, before any match: enough to see which plans a match will ask for.

Walras' tatonnement: everybody takes its best plan at the current prices; what is overdrawn gets dearer, what
is left over cheaper, by steps that shrink as a resource's price is moved (those of AdaGrad). The second half
of the prices is averaged. A matcher does this better; here it only points column generation the right way.
"""

from __future__ import annotations

import numpy as np

from compass_coordinator.estimator import Floats
from compass_coordinator.matcher.problem import SparseDemands

ROUNDS = 60


def rough_prices(values: Floats, demands: SparseDemands, capacities: Floats, rounds: int = ROUNDS) -> Floats:
    """Prices at which demand about meets the capacities.

    Args:
        values: (queries, plans), -inf where there is no plan.
        demands: Of the plans.
        capacities: (resources,).
        rounds: Of price changes.

    Returns:
        (resources,) >= 0 in value per unit of demand.
    """
    # Entries first: numpy adds up fast over any axis but a short last one.
    resources = np.ascontiguousarray(np.moveaxis(demands.resources, 2, 0))
    room = np.where(capacities > 0, capacities, 1.0)
    shares = np.ascontiguousarray(np.moveaxis(demands.amounts, 2, 0)) / room[resources]
    prices, moved, average, worth = (np.zeros(len(capacities)) for _ in range(4))
    everyone = np.arange(len(values))
    for number in range(rounds):
        reduced = values - (shares * prices.take(resources)).sum(axis=0)
        plan = reduced.argmax(axis=1)
        active = reduced[everyone, plan] > 0
        query, plan = everyone[active], plan[active]
        asked, amounts = resources[:, query, plan], shares[:, query, plan]
        used = np.bincount(asked.ravel(), amounts.ravel(), len(capacities))
        if number == 0:
            weights = np.where(amounts > 0, values[query, plan], 0.0)
            worth = np.bincount(asked.ravel(), weights.ravel(), len(capacities)) / np.maximum(used, 1e-12)
        excess = np.clip(used - 1.0, -1.0, 1.0)
        moved += excess**2
        prices = np.maximum(0.0, prices + worth * excess / np.sqrt(np.maximum(moved, 1e-12)))
        if 2 * number >= rounds:
            average += prices / (rounds - rounds // 2)
    return np.asarray(average / room)
