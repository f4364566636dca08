"""What runs say about operator variants: estimated from a method's own runs, as the profiler does it."""

from __future__ import annotations

import numpy as np

from compass_coordinator.profiler.selective.operator_times import OperatorTimes, Runs
from compass_coordinator.profiler.selective.space import space_of
from compass_shared.measured import OperatorRun
from profiling.plans import Figures
from profiling.truth import Truth, choices_of


def no_runs(truth: Truth) -> Runs:
    """Where the runs of a method go; variants are in the order of ``Truth.variants``."""
    return Runs(space_of(truth.pipeline), [1] * len(truth.inputs))


def true_figures(truth: Truth) -> Figures:
    """Over all configs; spreads are over inputs, of the mean of all configs there."""
    choices = choices_of(truth.pipeline)
    moments = np.zeros((2, 2, len(truth.variants)))
    for variant in range(len(truth.variants)):
        config, operator = np.nonzero(choices == variant)
        runs = truth.run_of[:, config, operator]
        for kind, values in enumerate((truth.run_cpu_s, truth.run_bytes)):
            by_input = values[runs].mean(axis=1)
            moments[kind, :, variant] = by_input.mean(), by_input.var()
    (mean_s, var_s2), (mean_bytes, var_bytes2) = moments
    return Figures(mean_s=mean_s, var_s2=var_s2, mean_bytes=mean_bytes, var_bytes2=var_bytes2)


def run_of(truth: Truth, run: int) -> OperatorRun:
    """One run as a measuring process reports it."""
    return OperatorRun(
        variant=truth.variants[truth.run_variant[run]],
        cpu_s=float(truth.run_cpu_s[run]),
        wall_s=float(truth.run_wall_s[run]),
        output_bytes=int(truth.run_bytes[run]),
    )


def figures_of(times: OperatorTimes) -> Figures:
    """The same in the bench's terms."""
    return Figures(
        mean_s=times.mean_s,
        var_s2=times.var_s2,
        mean_bytes=times.output_mean_bytes,
        var_bytes2=times.output_var_bytes2,
    )
