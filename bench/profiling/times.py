"""What runs say about operator variants: estimated from a method's own runs, as the profiler does it."""

from __future__ import annotations

from compass_coordinator.profiler.selective.operator_times import OperatorTimes, Runs
from compass_coordinator.profiler.selective.space import space_of
from compass_shared.measured import OperatorRun
from profiling.plans import Figures
from profiling.truth import Truth


def no_runs(truth: Truth) -> Runs:
    """Where the runs of a method go; variants are in the order of ``Truth.variants``."""
    return Runs(space_of(truth.pipeline), len(truth.inputs))


def true_figures(truth: Truth) -> Figures:
    """What all runs show together."""
    runs = no_runs(truth)
    for run, page in enumerate(truth.run_input.tolist()):
        runs.add(run_of(truth, run), page)
    return figures_of(runs.times())


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
