"""Labels: beginnings of plans, with what they cost so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compass_coordinator.estimator import Floats, Indices


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Labels:
    """n plans of the operators up to a waist that all have one role for the waist; k paths lead to it."""

    placement: NDArray[np.int8]
    """(n, operators so far) role of each."""
    variants: NDArray[np.int16]
    """(n, operators so far)."""
    config: Indices
    """(n,) number of the config so far, the last operator's variant varying fastest."""
    used: Indices
    """(n,) bit r - 1 is set if remote role r is used."""
    totals: Floats
    """(n, T)."""
    paths: Floats
    """(k, n, F); a label with fewer paths repeats one."""
    out_mean_bytes: Floats
    """(n,) of the waist's output."""
    out_var_bytes2: Floats
    """(n,)."""

    def __len__(self) -> int:
        return len(self.config)

    def take(self, rows: Indices) -> Labels:
        """Only these rows."""
        return Labels(
            placement=self.placement[rows],
            variants=self.variants[rows],
            config=self.config[rows],
            used=self.used[rows],
            totals=self.totals[rows],
            paths=self.paths[:, rows],
            out_mean_bytes=self.out_mean_bytes[rows],
            out_var_bytes2=self.out_var_bytes2[rows],
        )


def start(totals: int, features: int, request_mean_bytes: float, request_var_bytes2: float) -> Labels:
    """The one label of no operators: a request at the origin."""
    return Labels(
        placement=np.zeros((1, 0), dtype=np.int8),
        variants=np.zeros((1, 0), dtype=np.int16),
        config=np.zeros(1, dtype=np.int64),
        used=np.zeros(1, dtype=np.int64),
        totals=np.zeros((1, totals)),
        paths=np.zeros((1, 1, features)),
        out_mean_bytes=np.array([request_mean_bytes]),
        out_var_bytes2=np.array([request_var_bytes2]),
    )


def joined(parts: Sequence[Labels]) -> Labels:
    """Labels of several sources as one; at least one part."""
    most = max(len(part.paths) for part in parts)
    return Labels(
        placement=np.concatenate([part.placement for part in parts]),
        variants=np.concatenate([part.variants for part in parts]),
        config=np.concatenate([part.config for part in parts]),
        used=np.concatenate([part.used for part in parts]),
        totals=np.concatenate([part.totals for part in parts]),
        paths=np.concatenate([_padded(part.paths, most) for part in parts], axis=1),
        out_mean_bytes=np.concatenate([part.out_mean_bytes for part in parts]),
        out_var_bytes2=np.concatenate([part.out_var_bytes2 for part in parts]),
    )


def _padded(paths: Floats, count: int) -> Floats:
    return np.asarray(paths[np.minimum(np.arange(count), len(paths)) % len(paths)])


def worst_paths(paths: Floats) -> Floats:
    """Leave out paths that another path of the same plan is no better than in any feature.

    Args:
        paths: (k, n, F).

    Returns:
        (up to k, n, F): what is left of each plan, filled up with its first.
    """
    count = len(paths)
    if count == 1:
        return paths
    beaten = np.zeros(paths.shape[:2], dtype=np.bool_)
    for one in range(count):
        for other in range(count):
            if one != other:
                covered = (paths[one] <= paths[other]).all(axis=1) & ~beaten[other]
                beaten[one] |= covered
    order = np.argsort(beaten, axis=0, kind="stable")
    left = count - beaten.sum(axis=0)
    most = int(left.max(initial=1))
    picks = np.where(np.arange(most)[:, np.newaxis] < left, order[:most], order[0])
    return np.asarray(np.take_along_axis(paths, picks[:, :, np.newaxis], axis=0))
