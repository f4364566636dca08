"""Local search over placements of one config, for DAGs that the tables describe only from below."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from compass_coordinator.estimator import Indices
from compass_coordinator.planner.search.result import Judge, Judged

SWEEPS = 4
"""Times that every operator is tried at every site, at most."""


def climb(judge: Judge, choice: Indices, accuracy: float, starts: Iterable[Indices]) -> Judged | None:
    """Move one operator at a time while that improves the plan (less violation, then less score).

    Args:
        judge: Evaluates plans by the book.
        choice: (n,) variant of every operator.
        accuracy: Of the config.
        starts: Placements (n,); the best of these and of everything at one site, as far as it may run there,
            is climbed from.

    Returns:
        The best plan met; None if none of the placements may be used.
    """
    tables = judge.tables
    allowed = [mask[at] for mask, at in zip(tables.measured, choice, strict=True)]
    everywhere = (
        np.array([site if there[site] else int(np.argmax(there)) for there in allowed], dtype=np.int64)
        for site in range(len(tables.sites))
    )
    best: Judged | None = None
    sites = np.zeros(len(choice), dtype=np.int64)
    for start in (*starts, *everywhere):
        found = judge.judge(choice, start, accuracy) if tables.placeable(choice, start) else None
        if found is not None and found.beats(best):
            best, sites = found, start.copy()
    if best is None:
        return None
    for _ in range(SWEEPS):
        before = best
        for operator in range(len(choice)):
            for site in range(len(tables.sites)):
                moved = sites.copy()
                moved[operator] = site
                if site != sites[operator] and tables.placeable(choice, moved):
                    found = judge.judge(choice, moved, accuracy)
                    if found.beats(best):
                        best, sites = found, moved
        if best is before:
            break
    return best
