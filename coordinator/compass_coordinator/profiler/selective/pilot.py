"""The first configs, before anything is known: every variant at least once, all about equally often."""

from __future__ import annotations

import numpy as np

from compass_coordinator.profiler.selective.space import Indices, Space

TRIED = 60
"""Random configs that each place is offered to."""


def pilot_configs(space: Space, count: int, rng: np.random.Generator) -> Indices:
    """Configs to begin with.

    Args:
        space: All configs.
        count: How many are wanted; there are more if variants would be left out, fewer if there are no more.
        rng: Draws candidates.

    Returns:
        (pilot,) indices, each once, in ascending order so that neighbours share most.
    """
    variants = space.node_variant[space.nodes]
    taken = np.zeros(len(space.variants))
    chosen: list[int] = []
    while len(chosen) < min(count, len(space)) or (taken == 0).any():
        left = np.setdiff1d(np.arange(len(space)), chosen)
        # Random ones, unless none of them has a variant that is still missing.
        offered = rng.choice(left, min(TRIED, len(left)), replace=False)
        if len(chosen) >= count:
            offered = left
        merit = (1 / (1 + taken[variants[offered]]) ** 2).sum(axis=1)
        best = int(offered[np.argmax(merit)])
        chosen.append(best)
        taken[variants[best]] += 1
    return np.array(sorted(chosen), dtype=np.intp)
