"""Configs that trade score and latency for accuracy best, as far as effects of single variants go.

With a price on latency and one on accuracy, the best config *and* placement together are one dynamic
programme over the forest of ``Tables``, provided that accuracy is a sum over operators. It is not, but the
part of it that is leads to where the good configs are, among billions; moves from there mind the rest.

Shapes: G pairs of prices, n operators, V variants of an operator, S sites.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compass_coordinator.estimator import Floats, Indices
from compass_coordinator.planner.search.tables import MEAN, SCORE, VAR, Tables


def prospects(
    tables: Tables, effects: Sequence[Floats], worth: Floats, multiplier: Floats, slope: float
) -> Indices:
    """The configs (G, n) that minimise score + multiplier x latency - worth x effects.

    Args:
        tables: The query's operators.
        effects: Per operator (V,): on accuracy.
        worth: (G,) score given for one unit of accuracy.
        multiplier: (G,) score given for one second.
        slope: Seconds that one second squared of variance counts for.
    """
    n, each = len(tables.parent), np.arange(len(worth))
    subtree: list[Floats] = [np.zeros(0)] * n
    crossing: list[Floats] = [np.zeros(0)] * n
    for op in range(n - 1, -1, -1):
        gain = worth[:, np.newaxis] * effects[op]
        cost = _priced(tables.node[op], multiplier, slope) - gain[:, :, np.newaxis]
        for child in (at for at in range(op + 1, n) if tables.parent[at] == op):
            cost = cost + (crossing[child] + subtree[child].min(axis=1)[:, np.newaxis, np.newaxis]).min(
                axis=3
            )
        subtree[op] = np.where(tables.measured[op], cost, np.inf)
        edge = tables.edge[op]
        if edge is not None:
            crossing[op] = _priced(edge, multiplier, slope)
    choices, sites = np.zeros((len(worth), n), dtype=np.int64), np.zeros((len(worth), n), dtype=np.int64)
    for op, parent in enumerate(tables.parent):
        at = subtree[op].min(axis=1)
        if parent >= 0:
            at = at + crossing[op][each, choices[:, parent], sites[:, parent]]
        sites[:, op] = np.argmin(at, axis=1)
        choices[:, op] = np.argmin(subtree[op][each, :, sites[:, op]], axis=1)
    return choices


def _priced(table: Floats, multiplier: Floats, slope: float) -> Floats:
    """Score and priced latency, (G, ...)."""
    late = table[MEAN] + slope * table[VAR]
    return np.asarray(table[SCORE] + multiplier.reshape(-1, *[1] * late.ndim) * late)
