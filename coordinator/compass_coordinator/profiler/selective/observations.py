"""What was measured so far: scores by input and config."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from compass_coordinator.profiler.selective.space import Floats, Indices, Mask, Space
from compass_shared.measured import Done, filled

MIN_DENOMINATOR = 1e-12


@dataclass(slots=True, eq=False)
class Observations:
    """Scores of configs on inputs; all configs look at inputs in one order.

    Attributes:
        space: The configs.
        numerators: (inputs, configs), NaN where not measured; rows in the input set's order.
        denominators: The same; all 1 for a metric of kind "mean".
        problems: Config key -> what went wrong first.
        failures: (configs,) inputs without a score, which count as 0.
    """

    space: Space
    inputs: int
    numerators: Floats = field(init=False)
    denominators: Floats = field(init=False)
    failures: Indices = field(init=False)
    problems: dict[str, str] = field(default_factory=dict)
    _column: dict[str, int] = field(init=False)
    _failed: Mask = field(init=False)

    def __post_init__(self) -> None:
        shape = (self.inputs, len(self.space))
        self.numerators, self.denominators = np.full(shape, np.nan), np.full(shape, np.nan)
        self._failed = np.zeros(shape, dtype=np.bool_)
        self.failures = np.zeros(len(self.space), dtype=np.intp)
        self._column = {key: index for index, key in enumerate(self.space.keys)}

    def add(self, done: Done) -> None:
        """Take the answer to a job; configs that were measured already, or are not known, are left alone."""
        for key, score in filled(done.scores).items():
            column = self._column.get(key)
            if column is None or not np.isnan(self.numerators[done.input, column]):
                continue
            self.numerators[done.input, column] = score.numerator
            self.denominators[done.input, column] = score.denominator
            if done.scores[key] is None:
                self._failed[done.input, column] = True
                self.failures[column] += 1
                self.problems.setdefault(key, done.problems.get(key, "no score"))
        self._fill(done.input)

    def _fill(self, row: int) -> None:
        """Failures are 0 of the most that another config had on this input, in whichever job."""
        failed = self._failed[row]
        known = self.denominators[row, ~failed]
        if failed.any() and not np.isnan(known).all():
            self.denominators[row, failed] = np.nanmax(known)

    def seen(self, order: Indices) -> Indices:
        """(configs,) how many inputs from the start of an order each config was measured on without a gap."""
        gaps = np.isnan(self.numerators[order])
        return np.where(gaps.any(axis=0), gaps.argmax(axis=0), len(order)).astype(np.intp)

    def accuracies(self) -> Floats:
        """(configs,) accuracy over the inputs measured, whichever they are; NaN without any."""
        above, below = np.nansum(self.numerators, axis=0), np.nansum(self.denominators, axis=0)
        ratio = np.divide(above, below, out=np.zeros_like(above), where=below > MIN_DENOMINATOR)
        return np.where(self.counts() > 0, np.clip(ratio, 0.0, 1.0), np.nan)

    def counts(self) -> Indices:
        """(configs,) inputs measured."""
        return np.asarray((~np.isnan(self.numerators)).sum(axis=0), dtype=np.intp)

    def broken(self) -> Mask:
        """(configs,) whether a config failed on every input that it was measured on."""
        return np.asarray((self.failures > 0) & (self.failures == self.counts()))

    def values(self, rows: Indices | slice = slice(None)) -> Floats:
        """(rows, configs) scores whose mean over all inputs is the accuracy, NaN where not measured.

        Of a mean they are the scores. A ratio is linearised around what these rows say of it: the ratio plus
        (numerator - ratio x denominator) / mean denominator; the mean over measured inputs is then exactly
        the ratio.

        Args:
            rows: Inputs to look at.
        """
        above, below = self.numerators[rows], self.denominators[rows]
        counts = np.maximum((~np.isnan(above)).sum(axis=0), 1)
        totals = np.nansum(below, axis=0)
        ratio = np.divide(
            np.nansum(above, axis=0), totals, out=np.zeros(len(totals)), where=totals > MIN_DENOMINATOR
        )
        mean = np.where(totals > MIN_DENOMINATOR, totals / counts, 1.0)
        return np.asarray(ratio + (above - ratio * below) / mean)
