"""What operator variants take, from runs on some of the inputs.

Inputs differ more than repeats do: a page with many lines takes every recogniser long. So a variant that ran
on few inputs is compared with the other variants of its operator on those, and the ratio is carried to the
inputs that it has not seen: the logarithm of a run's time is the variant's effect plus the input's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compass_coordinator.profiler.selective.space import Floats, Indices, Space
from compass_shared.measured import OperatorRun

ROUNDS = 20
"""Alternations between effects of variants and of inputs."""
SHRINKAGE = 0.05
"""Runs' worth of evidence that an input is like the others."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OperatorTimes:
    """What operator variants took; all arrays are (variants,), NaN for variants that never ran."""

    mean_s: Floats
    var_s2: Floats
    p95_s: Floats
    count: Indices
    """Runs."""
    output_mean_bytes: Floats
    output_var_bytes2: Floats


class Runs:
    """Operator runs by variant and input: thread CPU time and output size.

    Args:
        space: Names the variants.
        inputs: Size of the input set.
    """

    def __init__(self, space: Space, inputs: int) -> None:
        self._row = {variant: at for at, variant in enumerate(space.variants)}
        operators = [variant.partition("[")[0] for variant in space.variants]
        self._operator = np.unique(operators, return_inverse=True)[1]
        self._count = np.zeros((len(space.variants), inputs))
        self._sums = np.zeros((2, *self._count.shape))
        self._samples: list[list[float]] = [[] for _ in space.variants]
        self.spent_s = 0.0
        """Operator-seconds so far, failed runs included."""

    def add(self, run: OperatorRun, place: int) -> None:
        """Take one run on the input at this place of the set."""
        self.spent_s += run.cpu_s
        row = self._row.get(run.variant)
        if row is not None and not run.failed:
            self._count[row, place] += 1
            self._sums[:, row, place] += run.cpu_s, run.output_bytes
            self._samples[row].append(run.cpu_s)

    def times(self) -> OperatorTimes:
        """Distributions so far."""
        moments = np.full((2, 2, len(self._samples)), np.nan)
        for operator in np.unique(self._operator):
            rows = np.flatnonzero(self._operator == operator)
            count = self._count[rows]
            for kind, sums in enumerate(self._sums[:, rows]):
                means = np.divide(sums, count, out=np.zeros_like(count), where=count > 0)
                moments[kind][:, rows] = _over_inputs(means, count > 0)
        mean_s = moments[0, 0]
        return OperatorTimes(
            mean_s=mean_s,
            var_s2=moments[0, 1],
            p95_s=np.array([_p95(taken, mean_s[row]) for row, taken in enumerate(self._samples)]),
            count=self._count.sum(axis=1).astype(np.intp),
            output_mean_bytes=moments[1, 0],
            output_var_bytes2=moments[1, 1],
        )


def _over_inputs(values: Floats, known: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Floats:
    """Mean and variance (2, variants) over all inputs any variant ran on; NaN for those that never ran.

    Args:
        values: (variants, inputs) mean of the runs of one operator.
        known: Where there were any.
    """
    # Runs too short for the clock have no logarithm and say nothing of their input.
    timed = known & (values > 0)
    logs = np.log(np.where(timed, values, 1.0))
    runs, ran = known.sum(axis=1), known.sum(axis=0)
    by_variant, by_input = np.maximum(timed.sum(axis=1), 1), timed.sum(axis=0) + SHRINKAGE
    effect, place = np.zeros(len(values)), np.zeros(values.shape[1])
    for _ in range(ROUNDS):
        effect = np.where(timed, logs - place, 0.0).sum(axis=1) / by_variant
        place = np.where(timed, logs - effect[:, np.newaxis], 0.0).sum(axis=0) / by_input
    fitted = np.exp(effect[:, np.newaxis] + place)
    # The ratio of totals, so that what was seen is met on average.
    scale = (values * known).sum(axis=1) / np.maximum((fitted * known).sum(axis=1), 1e-300)
    fitted = scale[:, np.newaxis] * fitted[:, ran > 0]
    if not fitted.shape[1]:
        return np.full((2, len(values)), np.nan)
    residual = np.where(known[:, ran > 0], (values[:, ran > 0] - fitted) ** 2, 0.0).sum(axis=1)
    found = np.stack([fitted.mean(axis=1), fitted.var(axis=1) + residual / np.maximum(runs, 1)])
    return np.where(runs == 0, np.nan, found)


def _p95(taken: list[float], mean_s: float) -> float:
    """Of the runs, moved along with the mean to the inputs that it has not seen."""
    if not taken:
        return float("nan")
    own = float(np.mean(taken))
    return float(np.quantile(taken, 0.95)) * (mean_s / own if own > 0 else 1.0)
