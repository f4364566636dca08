"""Exact dominance: dropping rows that another row beats or equals in every column."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compass_coordinator.estimator import Floats, Indices


def undominated(features: Floats, preferences: Sequence[Floats] = ()) -> Indices:
    """Rows that no other row dominates; of rows that are equal everywhere only the preferred one.

    Rows are visited in lexicographic order of (sum, columns, preferences): whatever dominates a row comes
    before it, so each visited row is kept and removes all later rows that are no better in any column.

    Args:
        features: (rows, columns) float64; less is better in each column.
        preferences: Arrays (rows,) that choose among equal rows; less is better, the first counts most.

    Returns:
        Indices of the kept rows, ascending.
    """
    differing = np.flatnonzero(np.ptp(features, axis=0) > 0) if len(features) else np.arange(0)
    columns = features[:, differing]
    keys = [columns.sum(axis=1), *columns.T, *preferences]
    alive = np.lexsort(keys[::-1])
    rows = columns[alive]
    kept = []
    while alive.size:
        kept.append(alive[0])
        better = (rows < rows[0]).any(axis=1)
        alive, rows = alive[better], rows[better]
    return np.sort(np.array(kept, dtype=np.int64))
