"""What it takes to know every config of read-text well enough to plan: the profiler beside other ways.

    make bench-profiler ARGS=--quick

All scores and times of all 324 configs on all 200 pages were measured once (``--measure-truth``) and are
kept in ``results/profiler_truth.json.gz``; methods are replayed on them and pay what the runs took then. Each
says what it knows: the accuracy of every config with an interval, and what operators take. From that 1,000
queries are planned, and compared with how the truth would plan them.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from common import BENCH, READ_TEXT, RESULTS, machine, write_result
from compass_shared.pipeline_file import load_pipeline
from profiling import devices
from profiling.measuring import measure_truth
from profiling.oracle import oracle_s
from profiling.ours import ABLATIONS, selective
from profiling.plans import largest_difference
from profiling.plot import draw
from profiling.queries import Decisions, in_steps, make_decisions
from profiling.rivals.bayesian import bayesian
from profiling.rivals.halving import successive_halving
from profiling.rivals.random_sampling import random_configs, random_inputs, random_scores
from profiling.score import Quality
from profiling.study import Method, Study
from profiling.truth import load_truth

TRUTH = RESULTS / "profiler_truth.json.gz"
PLOT = BENCH.parent / "docs" / "images" / "profiler.svg"
DELTA = 0.01
"""Share of queries that may be decided wrongly, where a method has such a criterion."""
OURS = "selective"
METHODS: Mapping[str, Method] = {
    **{name: partial(selective, options=options) for name, options in ABLATIONS.items()},
    "Bayesian optimisation": partial(bayesian, delta=DELTA),
    "successive halving": successive_halving,
    "random configs": random_configs,
    "random inputs": random_inputs,
    "random scores": random_scores,
}
ENDLESS = ("random configs", "random inputs", "random scores")
"""Methods without an end of their own; they are shown where they have spent what ours did."""
LEVELS = (0.8, 0.9, 0.95, 0.98)
ROUND = 0.05
"""What people write SLOs in."""
ROUNDED = (OURS, "Bayesian optimisation")
SMALL = 0.05
"""Share of the exhaustive cost that all methods are looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One method with one seed."""

    method: str
    seed: int
    own_s: float
    """Wall seconds of the method itself."""
    trace: tuple[Quality, ...]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure-truth", action="store_true", help="hours; goes on where it was stopped")
    parser.add_argument("--checkpoint", type=Path, default=RESULTS / "profiler_truth.jsonl")
    parser.add_argument("--processes", type=int, default=1, help="side by side")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3, help="runs of every method but the ablations")
    parser.add_argument("--ablation-seeds", type=int, default=1, help="runs of every ablation")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--quick", action="store_true", help="one run of every method, no file is written")
    parser.add_argument("--out", type=Path, default=RESULTS / "profiler.json")
    parser.add_argument("--plot", type=Path, default=PLOT)
    args = parser.parse_args()
    if args.measure_truth:
        try:
            measure_truth(TRUTH, args.checkpoint, args.processes)
        except KeyboardInterrupt:
            print(
                f"stopped; {args.checkpoint} has what was measured, and the same command goes on",
                file=sys.stderr,
            )
            return 130
        return 0
    if args.quick:
        args.seeds = args.ablation_seeds = 1
    document = _about(args.queries)
    tasks = [
        (method, seed, args.queries, 0.0)
        for method in args.methods
        for seed in range(args.ablation_seeds if method in ABLATIONS and method != OURS else args.seeds)
    ]
    rounded = [
        (method, seed, args.queries, ROUND)
        for method in args.methods
        if method in ROUNDED
        for seed in range(args.seeds)
    ]
    with ProcessPoolExecutor(args.processes) as pool:
        runs = list(pool.map(_run, *zip(*tasks, strict=True)))
        document |= _report(runs, args.queries)
        if rounded:
            spread = _decisions(args.queries, ROUND).spread()
            print(
                f"\nthe same with accuracies in steps of {ROUND}: {spread['distinct_best']} distinct best "
                f"configs, the most frequent for {100 * spread['largest_share']:.1f}%\n"
            )
            found = list(pool.map(_run, *zip(*rounded, strict=True)))
            document["in_steps"] = {"step": ROUND, "queries": spread, **_report(found, args.queries)}
    document["devices"] = _devices()
    if not args.quick:
        truth = _decisions(args.queries).truth
        traces = {name: [run.trace for run in runs if run.method == name] for name in args.methods}
        draw(traces, truth.exhaustive_s, args.plot)
        write_result(args.out, document)
    return 0


@cache
def _decisions(queries: int, step: float = 0.0) -> Decisions:
    """Once a process; accuracies are asked for in steps, unless that is 0."""
    if step:
        return in_steps(_decisions(queries), step)
    return make_decisions(load_truth(load_pipeline(READ_TEXT), TRUTH), queries)


def _about(queries: int) -> dict[str, Any]:
    decisions = _decisions(queries)
    truth, spread = decisions.truth, decisions.spread()
    different = largest_difference(decisions.plans, decisions.figures)
    oracles = {str(level): oracle_s(decisions, level) for level in LEVELS}
    print(
        f"{len(truth.configs)} configs on {len(truth.inputs)} pages: {truth.exhaustive_s:.0f} "
        f"operator-seconds, {truth.reused_s:.0f} if nothing runs twice on the same content\n"
        f"{queries} queries: {100 * spread['feasible_share']:.1f}% can be served, {spread['distinct_best']} "
        f"distinct best configs, the most frequent for {100 * spread['largest_share']:.1f}%; the best single "
        f"choice is right for {100 * spread['best_constant_choice']:.1f}%\n"
        f"plans are priced as the project's estimator does, within {different:.0e}\n"
        f"whole configs alone, by an oracle that names the best ones: "
        + ", ".join(f"{spent_s:.0f} s for {100 * float(level):.0f}%" for level, spent_s in oracles.items())
        + "\n"
    )
    return {
        "kind": "bench-profiler",
        "machine": machine(),
        "truth": dict(truth.provenance),
        "exhaustive_s": truth.exhaustive_s,
        "exhaustive_reused_s": truth.reused_s,
        "queries": spread,
        "difference_to_estimator": different,
        "oracle_s": oracles,
        "delta": DELTA,
    }


def _run(method: str, seed: int, queries: int, step: float) -> Run:
    study = Study(_decisions(queries, step))
    study.replay.reuse = method != "without prefix reuse"
    started_s = time.perf_counter()
    METHODS[method](study, np.random.default_rng(seed))
    own_s = time.perf_counter() - started_s - study.outside_s
    return Run(method=method, seed=seed, own_s=own_s, trace=tuple(study.trace))


def _report(runs: Sequence[Run], queries: int) -> dict[str, Any]:
    by_method: dict[str, list[Run]] = {}
    for run in runs:
        by_method.setdefault(run.method, []).append(run)
    ours_s = float(np.mean([run.trace[-1].spent_s for run in by_method.get(OURS, runs)]))
    ends = {name: [_end(run, ours_s) for run in each] for name, each in by_method.items()}
    _print_ends(by_method, ends)
    print(f"\nwhere at most {100 * SMALL:.0f}% of the exhaustive cost is spent\n")
    small = {name: [_within(run, SMALL) for run in each] for name, each in by_method.items()}
    _print_ends(by_method, small)
    reached = {
        name: {str(level): [_reached(run.trace, level) for run in each] for level in LEVELS}
        for name, each in by_method.items()
    }
    _print_reached(reached, _decisions(queries).truth.exhaustive_s)
    rows = [
        {
            "method": run.method,
            "seed": run.seed,
            "own_s": run.own_s,
            "end": asdict(_end(run, ours_s)),
            "trace": [asdict(point) for point in run.trace],
        }
        for run in runs
    ]
    return {"runs": rows, "spent_until": reached}


def _end(run: Run, ours_s: float) -> Quality:
    """Where a method is at its end; those without one, where they have spent at least what ours did."""
    if run.method not in ENDLESS:
        return run.trace[-1]
    return next((point for point in run.trace if point.spent_s >= ours_s), run.trace[-1])


def _within(run: Run, share: float) -> Quality:
    """The last look within a share of the exhaustive cost."""
    points = [point for point in run.trace if point.spent_share <= share]
    return points[-1] if points else run.trace[0]


def _reached(trace: Sequence[Quality], level: float) -> float | None:
    """Operator-seconds from which on so many queries are planned right; None if that is never."""
    since = None
    for point in trace:
        since = None if point.right < level else (point.spent_s if since is None else since)
    return since


_COLUMNS: Mapping[str, tuple[str, float, int]] = {
    "op-s": ("spent_s", 1, 0),
    "of all %": ("spent_share", 100, 2),
    "of all reused %": ("spent_share_reused", 100, 2),
    "right %": ("right", 100, 1),
    "of servable %": ("right_feasible", 100, 1),
    "times known %": ("right_timed", 100, 1),
    "violated %": ("violated", 100, 1),
    "error max": ("largest_error", 1, 3),
    "mean": ("mean_error", 1, 4),
    "coverage %": ("coverage", 100, 1),
    "width": ("width", 1, 3),
    "classical": ("classical_width", 1, 3),
    "sampled": ("sampled", 1, 0),
    "coverage % ": ("coverage_sampled", 100, 1),
    "width ": ("width_sampled", 1, 3),
    "classical ": ("classical_width_sampled", 1, 3),
}
"""Heading -> figure, factor, digits. The last four are over sampled configs alone."""
assert {field for field, _, _ in _COLUMNS.values()} == {field.name for field in fields(Quality)}


def _print_ends(by_method: Mapping[str, Sequence[Run]], ends: Mapping[str, Sequence[Quality]]) -> None:
    """Means over runs, with the standard deviation of what is decided right."""
    _line("method", "own s", *_COLUMNS)
    _line(*("---" for _ in range(2 + len(_COLUMNS))))
    for name, found in ends.items():
        cells = []
        for field, factor, digits in _COLUMNS.values():
            values = [factor * getattr(end, field) for end in found]
            spread = f" ±{np.std(values):.{digits}f}" if field in {"spent_s", "right"} else ""
            cells.append(f"{np.mean(values):.{digits}f}{spread}")
        _line(name, f"{np.mean([run.own_s for run in by_method[name]]):.1f}", *cells)


def _print_reached(reached: Mapping[str, Mapping[str, Sequence[float | None]]], exhaustive_s: float) -> None:
    print("\noperator-seconds until so many queries are planned right for good (share of all), over runs\n")
    _line("method", *(f"{100 * level:.0f}%" for level in LEVELS))
    _line(*("---" for _ in range(1 + len(LEVELS))))
    for name, levels in reached.items():
        cells = []
        for found in levels.values():
            known = [value for value in found if value is not None]
            mean_s = float(np.mean(known)) if known else 0.0
            some = f" ({len(known)} of {len(found)})" if len(known) < len(found) else ""
            cells.append(f"{mean_s:.0f} = {100 * mean_s / exhaustive_s:.2f}%{some}" if known else "never")
        _line(name, *cells)


def _devices() -> dict[str, Any]:
    """Latency transfer over real differences, replayed from what was measured."""
    if not devices.RESULT.exists():
        print("\nlatency on other devices was not measured yet: python -m profiling.devices --measure")
        return {}
    rows = devices.judge(devices.read_measured(devices.RESULT))
    devices.print_rows(rows)
    return {"rows": [{**asdict(row), "p95": row.p95, "mean": row.mean} for row in rows]}


def _line(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
