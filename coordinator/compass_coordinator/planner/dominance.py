"""Exact dominance: dropping rows that another row beats or equals in every column.

All comparisons are between ranks: small integers that order each column exactly as its numbers do, and
compare several times faster. Whatever dominates a row has a smaller sum of ranks, or is equal everywhere,
so rows are visited in the order of that sum and compared with the kept ones only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from compass_coordinator.estimator import Floats, Indices

Ranks: TypeAlias = NDArray[np.unsignedinteger]
Mask: TypeAlias = NDArray[np.bool_]
Also: TypeAlias = Callable[[Indices, Indices], Mask]
"""(pairs,), (pairs,) -> (pairs,): whether the first row of each pair is no worse than the second in what the
columns don't say; reflexive and transitive."""

_BLOCK, _TILE = 256, 4096
"""Rows that are compared at a time, and with how many: the table of pairs stays in the processor's cache."""
_LOOK_AFTER = (3, 7, 15)
"""Columns after which rows that nothing can dominate any more are set aside."""


def undominated(
    features: Floats,
    preferences: Sequence[Floats] = (),
    *,
    groups: Indices | None = None,
    also: Also | None = None,
) -> Indices:
    """Rows that no other row dominates; of rows that are equal everywhere only the preferred one.

    Memory beyond the input is 2 to 4 bytes per number and a few MB.

    Args:
        features: (rows, columns) float64; less is better in each column.
        preferences: Arrays (rows,) that choose among equal rows; less is better, the first counts most.
            After them, the first row is preferred.
        groups: (rows,) int64; only rows of one group are compared. None: all are.
        also: A further condition on pairs of rows, for what cannot be said by columns.

    Returns:
        Indices of the kept rows, ascending.
    """
    if not len(features):
        return np.zeros(0, dtype=np.int64)
    groups = np.zeros(len(features), dtype=np.int64) if groups is None else groups
    ranks = _ranked(features)
    sums = ranks.sum(axis=0, dtype=np.int64)
    order = np.lexsort((*preferences[::-1], sums, groups))
    starts = np.flatnonzero(np.diff(groups[order], prepend=groups[order[0]] - 1))
    kept = [_front(ranks, rows, also) for rows in np.split(order, starts[1:])]
    front = np.sort(np.concatenate(kept))
    return front if also is None else front[~_tied(ranks, groups, front, also)]


def _ranked(features: Floats) -> Ranks:
    """(columns, rows): columns that differ, each once, those with most values first."""
    columns: dict[bytes, tuple[int, NDArray[np.int64]]] = {}
    for column in features.T:
        values, inverse = np.unique(column, return_inverse=True)
        if len(values) > 1:
            columns.setdefault(inverse.tobytes(), (len(values), inverse))
    ordered = sorted(columns.values(), key=lambda item: -item[0])
    if not ordered:
        return np.zeros((0, len(features)), dtype=np.uint16)
    dtype = np.uint16 if ordered[0][0] <= 2**16 else np.uint32
    return np.stack([inverse.astype(dtype) for _, inverse in ordered])


def _front(ranks: Ranks, order: Indices, also: Also | None) -> Indices:
    """Undominated rows among those listed, each after all that could dominate it."""
    front = np.empty((len(ranks), len(order)), dtype=ranks.dtype)
    kept = np.empty(len(order), dtype=np.int64)
    size = 0
    for start in range(0, len(order), _BLOCK):
        rows = order[start : start + _BLOCK]
        for tile in range(0, size, _TILE):
            part = slice(tile, min(tile + _TILE, size))
            rows = rows[~_beaten(ranks[:, rows], rows, front[:, part], kept[part], also)]
        own = ranks[:, rows]
        rows = rows[~_beaten(own, rows, own, rows, also, inside=True)]
        front[:, size : size + len(rows)] = ranks[:, rows]
        kept[size : size + len(rows)] = rows
        size += len(rows)
    return kept[:size]


def _beaten(
    own: Ranks, rows: Indices, others: Ranks, other_rows: Indices, also: Also | None, *, inside: bool = False
) -> Mask:
    """Which rows some other one equals or beats; ``inside`` a block only earlier ones count."""
    beaten = np.zeros(len(rows), dtype=np.bool_)
    at = np.arange(len(rows))
    mask = (
        np.tri(len(rows), k=-1, dtype=np.bool_) if inside else np.ones((len(rows), len(other_rows)), np.bool_)
    )
    for column in range(len(own)):
        mask &= own[column, at, np.newaxis] >= others[column]
        if column in _LOOK_AFTER:
            open_rows = mask.any(axis=1)
            at, mask = at[open_rows], mask[open_rows]
    if also is None:
        beaten[at] = mask.any(axis=1)
    else:
        worse, better = np.nonzero(mask)
        holds = also(other_rows[better], rows[at[worse]])
        beaten[at[worse[holds]]] = True
    return beaten


def _tied(ranks: Ranks, groups: Indices, front: Indices, also: Also) -> Mask:
    """Which kept rows are equal in all columns to a later one that is better by the further condition."""
    dropped = np.zeros(len(front), dtype=np.bool_)
    table = np.vstack([ranks[:, front].astype(np.int64), groups[front]])
    order = np.lexsort(table)
    fresh = np.ones(len(front), dtype=np.bool_)
    fresh[1:] = (table[:, order[1:]] != table[:, order[:-1]]).any(axis=0)
    for tied in np.split(order, np.flatnonzero(fresh)[1:]):
        if len(tied) > 1:
            worse, better = np.nonzero(~np.eye(len(tied), dtype=np.bool_))
            holds = also(front[tied[better]], front[tied[worse]])
            dropped[tied[worse[holds]]] = True
    return dropped
