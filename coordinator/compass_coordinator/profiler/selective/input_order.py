"""The one order in which all configs look at the inputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compass_coordinator.profiler.selective.observations import Observations
from compass_coordinator.profiler.selective.options import Options
from compass_coordinator.profiler.selective.score_model import Scores
from compass_coordinator.profiler.selective.space import Floats, Indices
from compass_coordinator.profiler.statistics.strata import Strata, ordered, spreads_within, stratified
from compass_shared.measured import InputInfo


class InputOrder:
    """Inputs, balanced over strata at every prefix.

    Args:
        inputs: The input set; its features make the strata.
        options: Whether there are strata, how many, and on how many inputs the pilot is measured.
        rng: Of the strata and of the order within.
    """

    def __init__(self, inputs: Sequence[InputInfo], options: Options, rng: np.random.Generator) -> None:
        self._options = options
        self._rng = rng
        self._strata = _strata(inputs, options, rng)
        self.places: Indices = ordered(self._strata, rng)
        """(inputs,) places in the input set."""

    def __len__(self) -> int:
        return len(self.places)

    @property
    def labels(self) -> Indices:
        """(inputs,) stratum of each, in this order."""
        return self._strata.labels[self.places]

    def reconsider(self, observations: Observations, pilot: Indices) -> None:
        """Order what follows the pilot's inputs anew, by the spreads that the pilot found within strata.

        What else was measured does not count, so that a resumed run comes to the same order.
        """
        prefix = self.places[: self._options.pilot_inputs]
        if self._options.strata and len(prefix) < len(self):
            values = observations.values(prefix)[:, pilot]
            spreads = spreads_within(values.T, self._strata.labels[prefix], len(self._strata.sizes))
            self.places = ordered(self._strata, self._rng, spreads=spreads, seen=prefix)

    def scores(self, observations: Observations) -> Scores:
        """What was measured without a gap, in this order."""
        seen = observations.seen(self.places)
        values = observations.values()[self.places]
        values[np.arange(len(values))[:, np.newaxis] >= seen] = np.nan
        return Scores(
            values=values,
            seen=seen,
            features=_indicators(self.labels),
            labels=self.labels,
            levels=observations.space.levels,
        )


def _strata(inputs: Sequence[InputInfo], options: Options, rng: np.random.Generator) -> Strata:
    if not options.strata:
        labels = np.zeros(len(inputs), dtype=np.intp)
        return Strata(labels=labels, sizes=np.bincount(labels))
    features = np.array([info.features for info in inputs], dtype=np.float64)
    return stratified(features.reshape(len(inputs), -1), options.strata_count, rng)


def _indicators(labels: Indices) -> Floats:
    """(inputs, strata - 1) of mean 0 and variance 1: which stratum an input is of, the last one left out."""
    marks = (labels[:, np.newaxis] == np.arange(labels.max(initial=0))).astype(np.float64)
    return np.asarray((marks - marks.mean(axis=0)) / np.maximum(marks.std(axis=0), 1e-9))
