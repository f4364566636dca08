"""Exact dominance: dropping rows that another row beats or equals in every column.

All comparisons are between ranks: small integers that order each column exactly as its numbers do, and
compare several times faster. Whatever dominates a row has a smaller sum of ranks, or is equal everywhere,
so rows are visited in the order of that sum and compared with the kept ones only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from compass_coordinator.estimator import Floats, Indices

Ranks: TypeAlias = NDArray[np.unsignedinteger]
Mask: TypeAlias = NDArray[np.bool_]
Also: TypeAlias = Callable[[Indices, Indices], Mask]
"""(pairs,), (pairs,) -> (pairs,): whether the first row of each pair is no worse than the second in what the
columns don't say; reflexive and transitive."""

_BLOCK, _FIRST_TILE, _TILE = 256, 64, 4096
"""Rows that are compared at a time, and with how many: the table of pairs stays in the processor's cache."""
_SAMPLE = 64
"""Rows by which the order of columns is chosen; it is a matter of speed alone."""
_LOOK_AFTER = (3, 7, 15)
_SPARSE = 32
"""After these columns, rows that nothing can dominate any more are set aside; once fewer than one pair in
``_SPARSE`` is left, the pairs are looked at one by one."""


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
    """(columns, rows): columns that differ, each once, in the order in which to compare them."""
    dtype = np.uint16 if len(features) <= 2**16 else np.uint32
    columns: dict[bytes, Ranks] = {}
    for column in features.T:
        values, inverse = np.unique(column, return_inverse=True)
        if len(values) > 1:
            ranks = inverse.astype(dtype)
            columns.setdefault(ranks.tobytes(), ranks)
    if not columns:
        return np.zeros((0, len(features)), dtype=dtype)
    found = np.stack(list(columns.values()))
    return found[_telling_first(found)]


def _telling_first(ranks: Ranks) -> Indices:
    """Order of columns by which a sample of pairs is told apart soonest."""
    sample = ranks[:, :: max(1, ranks.shape[1] // _SAMPLE)]
    no_worse = sample[:, :, np.newaxis] <= sample[:, np.newaxis]
    left = ~np.eye(sample.shape[1], dtype=np.bool_)
    rest = list(range(len(ranks)))
    order = []
    while rest and left.any():
        best = min(rest, key=lambda column: int(np.count_nonzero(left & no_worse[column])))
        left &= no_worse[best]
        rest.remove(best)
        order.append(best)
    return np.array(order + rest)


def _front(ranks: Ranks, order: Indices, also: Also | None) -> Indices:
    """Undominated rows among those listed, each after all that could dominate it."""
    front = np.empty((len(ranks), len(order)), dtype=ranks.dtype)
    kept = np.empty(len(order), dtype=np.int64)
    size = 0
    for start in range(0, len(order), _BLOCK):
        rows = order[start : start + _BLOCK]
        for part in _tiles(size):
            rows = rows[~_beaten(ranks[:, rows], rows, front[:, part], kept[part], also)]
        own = ranks[:, rows]
        rows = rows[~_beaten(own, rows, own, rows, also, inside=True)]
        front[:, size : size + len(rows)] = ranks[:, rows]
        kept[size : size + len(rows)] = rows
        size += len(rows)
    return kept[:size]


def _tiles(size: int) -> Iterator[slice]:
    """Parts of the front, small ones first: most rows are beaten by one of the first and need no other."""
    begin, length = 0, _FIRST_TILE
    while begin < size:
        yield slice(begin, min(begin + length, size))
        begin += length
        length = min(4 * length, _TILE)


def _beaten(
    own: Ranks, rows: Indices, others: Ranks, other_rows: Indices, also: Also | None, *, inside: bool = False
) -> Mask:
    """Which rows some other one equals or beats; ``inside`` a block only earlier ones count."""
    beaten = np.zeros(len(rows), dtype=np.bool_)
    at = np.arange(len(rows))
    mask = (
        np.tri(len(rows), k=-1, dtype=np.bool_) if inside else np.ones((len(rows), len(other_rows)), np.bool_)
    )
    column = 0
    for column in range(len(own)):
        mask &= own[column, at, np.newaxis] >= others[column]
        if column in _LOOK_AFTER:
            open_rows = mask.any(axis=1)
            at, mask = at[open_rows], mask[open_rows]
            if np.count_nonzero(mask) * _SPARSE < mask.size:
                break
    worse, better = np.nonzero(mask)
    worse = at[worse]
    for rest in range(column + 1, len(own)):
        holds = own[rest, worse] >= others[rest, better]
        worse, better = worse[holds], better[holds]
    if also is not None:
        worse = worse[also(other_rows[better], rows[worse])]
    beaten[worse] = True
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
