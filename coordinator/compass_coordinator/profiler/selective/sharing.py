"""How often operator results turned out to be there already."""

from __future__ import annotations

import numpy as np

from compass_coordinator.profiler.selective.space import Floats, Space
from compass_shared.measured import Done


class Sharing:
    """Counts the operator runs that configs need, and those that were really made.

    Args:
        space: The configs.
        inputs: Size of the input set.
        reuse: Whether configs share results at all.
    """

    def __init__(self, space: Space, inputs: int, *, reuse: bool) -> None:
        self._space = space
        self._reuse = reuse
        self._there = np.zeros((inputs, len(space.node_variant)), dtype=np.bool_)
        self._needed = np.zeros(len(space.variants))
        self._ran = np.zeros(len(space.variants))
        self._row = {key: at for at, key in enumerate(space.keys)}
        self._variant = {variant: at for at, variant in enumerate(space.variants)}

    def take(self, done: Done) -> None:
        """Count what a job needed and what it ran."""
        rows = [self._row[key] for key in done.scores if key in self._row]
        nodes = np.unique(self._space.nodes[rows]) if rows else np.zeros(0, dtype=np.intp)
        new = nodes[~self._there[done.input, nodes]]
        self._there[done.input, new] = self._reuse
        np.add.at(self._needed, self._space.node_variant[new], 1)
        for run in done.runs:
            if run.variant in self._variant:
                self._ran[self._variant[run.variant]] += 1

    @property
    def ran(self) -> Floats:
        """(variants,) share of the needed runs that were made; the others read what another run had read."""
        share = np.divide(self._ran, self._needed, out=np.ones_like(self._ran), where=self._needed > 0)
        return np.minimum(1.0, share)
