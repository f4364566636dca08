"""What runs say about operator variants: mean and variance of their times and of their outputs' sizes.

Every method estimates both from its own runs in the same way. Pages differ more than variants' measurements
on one page do, so a variant that ran on few pages is compared with others of its operator on those pages: the
logarithm is a variant's effect plus a page's, and a ratio estimator carries that to the other pages.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from compass_coordinator.estimator import Floats, Indices
from compass_shared.measured import Done
from profiling.plans import Figures
from profiling.truth import Truth, variants_of

ROUNDS = 20
SHRINKAGE = 0.05
"""Runs' worth of evidence that a page is like the others."""


@dataclass(slots=True, eq=False)
class OperatorTimes:
    """Collects runs; ``figures`` says what they show."""

    truth: Truth
    """Only for the names of variants and the number of inputs."""
    _row: dict[str, int] = field(init=False)
    _operator: Indices = field(init=False)
    _count: Floats = field(init=False)
    _sums: Floats = field(init=False)

    def __post_init__(self) -> None:
        variants = variants_of(self.truth.pipeline)
        names = [op.name for op in self.truth.pipeline.operators]
        self._row = {key: at for at, key in enumerate(variants)}
        self._operator = np.array([names.index(key.partition("[")[0]) for key in variants])
        self._count = np.zeros((len(variants), len(self.truth.inputs)))
        self._sums = np.zeros((2, *self._count.shape))

    def tell(self, done: Done) -> None:
        """Take what one job ran."""
        runs = [run for run in done.runs if not run.failed]
        rows = np.array([self._row[run.variant] for run in runs], np.int64)
        pages = np.full(len(runs), done.input)
        self.add(
            rows, pages, np.array([run.cpu_s for run in runs]), np.array([run.output_bytes for run in runs])
        )

    def add(self, variant: Indices, page: Indices, cpu_s: Floats, size_bytes: Indices) -> None:
        """Take runs (n,)."""
        np.add.at(self._count, (variant, page), 1)
        np.add.at(self._sums[0], (variant, page), cpu_s)
        np.add.at(self._sums[1], (variant, page), size_bytes)

    def figures(self) -> Figures:
        """Estimates for every variant that ran at all."""
        moments = np.full((4, len(self._operator)), np.nan)
        for operator in np.unique(self._operator):
            rows = np.flatnonzero(self._operator == operator)
            count = self._count[rows]
            for kind in range(2):
                means = np.divide(self._sums[kind, rows], count, out=np.zeros_like(count), where=count > 0)
                moments[2 * kind : 2 * kind + 2, rows] = _ratio_estimates(means, count > 0)
        return Figures(mean_s=moments[0], var_s2=moments[1], mean_bytes=moments[2], var_bytes2=moments[3])


def true_figures(truth: Truth) -> Figures:
    """What all runs show together."""
    times = OperatorTimes(truth)
    times.add(truth.run_variant, truth.run_input, truth.run_cpu_s, truth.run_bytes)
    return times.figures()


def _ratio_estimates(values: Floats, known: np.ndarray) -> tuple[Floats, Floats]:
    """Mean and variance over inputs, from values (variants, N) of which some are known; nan where none is."""
    logs = np.log(np.where(known & (values > 0), values, 1.0))
    effect, page = np.zeros(len(values)), np.zeros(values.shape[1])
    by_variant, by_page = known.sum(axis=1), known.sum(axis=0)
    for _ in range(ROUNDS):
        effect = np.where(known, logs - page, 0.0).sum(axis=1) / np.maximum(by_variant, 1)
        rest = np.where(known, logs - effect[:, np.newaxis], 0.0).sum(axis=0)
        page = rest / (by_page + SHRINKAGE)
    fitted = np.exp(effect[:, np.newaxis] + page)
    seen = by_page > 0
    pages = max(1, int(seen.sum()))
    measured = np.maximum(by_variant, 1)
    scale = (values * known).sum(axis=1) / np.maximum((fitted * known).sum(axis=1), 1e-300)
    spread = fitted[:, seen].var(axis=1) if seen.any() else np.zeros(len(values))
    residual = np.where(known, (values - scale[:, np.newaxis] * fitted) ** 2, 0.0).sum(axis=1) / measured
    mean = scale * fitted[:, seen].sum(axis=1) / pages
    unknown = by_variant == 0
    return np.where(unknown, np.nan, mean), np.where(unknown, np.nan, scale**2 * spread + residual)
