"""What was measured so far: scores by input and config, operator runs by variant."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from compass_coordinator.profiler.selective.space import Floats, Indices, Space
from compass_shared.measured import Done, OperatorRun, filled

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

    def __post_init__(self) -> None:
        shape = (self.inputs, len(self.space))
        self.numerators, self.denominators = np.full(shape, np.nan), np.full(shape, np.nan)
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
            if key in done.problems:
                self.failures[column] += 1
                self.problems.setdefault(key, done.problems[key])

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

    def values(self) -> Floats:
        """(inputs, configs) scores whose mean over all inputs is the accuracy, NaN where not measured.

        Of a mean they are the scores. A ratio is linearised around what is known of it: the ratio plus
        (numerator - ratio x denominator) / mean denominator; the mean over measured inputs is then exactly
        the ratio.
        """
        above, below = self.numerators, self.denominators
        counts = np.maximum(self.counts(), 1)
        totals = np.nansum(below, axis=0)
        ratio = np.divide(
            np.nansum(above, axis=0), totals, out=np.zeros(len(totals)), where=totals > MIN_DENOMINATOR
        )
        mean = np.where(totals > MIN_DENOMINATOR, totals / counts, 1.0)
        return np.asarray(ratio + (above - ratio * below) / mean)


@dataclass(slots=True)
class _Samples:
    cpu_s: list[float] = field(default_factory=list)
    size: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OperatorTimes:
    """What operator variants took; all arrays are (variants,)."""

    mean_s: Floats
    """NaN for variants that never ran."""
    var_s2: Floats
    p95_s: Floats
    count: Indices
    output_mean_bytes: Floats
    output_var_bytes2: Floats


class Runs:
    """Operator runs by variant: thread CPU time and output size.

    Args:
        space: Names the variants.
    """

    def __init__(self, space: Space) -> None:
        self._samples = {variant: _Samples() for variant in space.variants}
        self.spent_s = 0.0
        """Operator-seconds so far, failed runs included."""

    def add(self, run: OperatorRun) -> None:
        """Take one run."""
        self.spent_s += run.cpu_s
        found = self._samples.get(run.variant)
        if found is not None and not run.failed:
            found.cpu_s.append(run.cpu_s)
            found.size.append(float(run.output_bytes))

    def times(self) -> OperatorTimes:
        """Distributions so far."""
        taken = [np.array(found.cpu_s) for found in self._samples.values()]
        sizes = [np.array(found.size) for found in self._samples.values()]
        return OperatorTimes(
            mean_s=np.array([values.mean() if len(values) else np.nan for values in taken]),
            var_s2=np.array([values.var(ddof=1) if len(values) > 1 else 0.0 for values in taken]),
            p95_s=np.array([np.quantile(values, 0.95) if len(values) else np.nan for values in taken]),
            count=np.array([len(values) for values in taken], dtype=np.intp),
            output_mean_bytes=np.array([values.mean() if len(values) else np.nan for values in sizes]),
            output_var_bytes2=np.array([values.var(ddof=1) if len(values) > 1 else 0.0 for values in sizes]),
        )
