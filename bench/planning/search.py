"""Searching 6^12 configs: with accuracy to be measured, against rivals; with accuracy tabulated, how fast."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compass_coordinator.planner.search import Budget, search_plan
from compass_coordinator.planner.search.configs import KnownConfigs
from compass_coordinator.planner.search.result import Judge
from compass_coordinator.planner.search.tables import build_tables
from compass_coordinator.planner.search.tabulated import search_known
from planning.search_cases import OPERATORS, VARIANTS, Case, make_case
from planning.search_rivals import RIVALS, Bench

CHECKPOINTS = (25, 50, 100)
HARDNESS = ((0.9, 1.5), (0.99, 1.3), (0.999, 1.3))
"""(Share of random configs not accurate enough, latency allowed)."""


def run_search(
    *, seeds: Sequence[int] = (0, 1, 2), repeats: int = 2, tabulated: Sequence[int] = (10_000, 100_000)
) -> dict[str, Any]:
    """Print both tables; return them for JSON."""
    return {
        "space": {"operators": OPERATORS, "variants": VARIANTS, "configs": VARIANTS**OPERATORS},
        "measured": run_measured(seeds, repeats),
        "tabulated": [run_tabulated(count, seed) for count in tabulated for seed in seeds],
    }


def run_measured(seeds: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Scores at equal numbers of accuracy measurements, relative to the best found by anyone."""
    rows = []
    print(f"{'accurate / haste':18}{'method':18}", *(f"{f'at {count}':>16}" for count in CHECKPOINTS))
    for accurate, haste in HARDNESS:
        traces: dict[str, list[list[list[float]]]] = {}
        for seed in seeds:
            case = make_case(seed, accurate, haste)
            for name, found in _traces(case, repeats).items():
                traces.setdefault(name, []).append(found)
        best = [min(min(t[-1] for t in found[at]) for found in traces.values()) for at in range(len(seeds))]
        for name, runs in traces.items():
            row = _row(name, runs, best)
            rows.append({"accurate": accurate, "haste": haste, **row})
            shown = [
                f"{row['score'][str(at)] or math.nan:.2f} ({row['served'][str(at)]:.0%})"
                for at in CHECKPOINTS
            ]
            print(f"{f'{accurate:g} / {haste:g}':18}{name:18}", *(f"{text:>16}" for text in shown))
    print("median score relative to the best found by anyone, nan if most runs found none; (runs that serve)")
    return rows


def _traces(case: Case, repeats: int) -> dict[str, list[list[float]]]:
    """Method -> per repeat the best score after each evaluation."""
    found: dict[str, list[list[float]]] = {"Compass": []}
    for seed in range(repeats):
        budget = Budget(evaluations=CHECKPOINTS[-1])
        result = search_plan(case.problem, case.query, accuracy=case.accuracy, budget=budget, seed=seed)
        scores = [
            min((score for at, score in result.trace if at <= count), default=math.inf)
            for count in range(1, CHECKPOINTS[-1] + 1)
        ]
        found["Compass"].append(scores)
        for name, rival in RIVALS.items():
            bench = Bench(case)
            rival(bench, CHECKPOINTS[-1], seed)
            found.setdefault(name, []).append(bench.trace)
    return found


def _row(name: str, found: Sequence[Sequence[Sequence[float]]], best: Sequence[float]) -> dict[str, Any]:
    """Median relative score (None: infinite) and share of runs that serve, at each checkpoint."""
    score: dict[str, float | None] = {}
    served: dict[str, float] = {}
    for count in CHECKPOINTS:
        ratios = [
            trace[count - 1] / least
            for runs, least in zip(found, best, strict=True)
            if math.isfinite(least)
            for trace in runs
        ]
        median = float(np.median(ratios)) if ratios else math.inf
        score[str(count)] = median if math.isfinite(median) else None
        served[str(count)] = float(np.mean(np.isfinite(ratios))) if ratios else 0.0
    return {"method": name, "score": score, "served": served}


def run_tabulated(count: int, seed: int) -> Mapping[str, Any]:
    """Time to a first plan that serves and to the proof, over a table of random configs."""
    case = make_case(seed, 0.9, 1.5)
    choices = np.random.default_rng(seed).integers(VARIANTS, size=(count, OPERATORS))
    known = KnownConfigs(choices=choices, accuracy=case.accuracies(choices))
    started = time.perf_counter()
    tables = build_tables(case.problem, case.query, {})
    judge = Judge(problem=case.problem, query=case.query, tables=tables, prices={})
    first_s, result = math.nan, None
    for result in search_known(judge, known, Budget()):
        if result.serves and math.isnan(first_s):
            first_s = time.perf_counter() - started
    assert result is not None
    row = {
        "configs": count,
        "seed": seed,
        "accurate_enough": int((known.accuracy >= case.query.slo.accuracy).sum()),
        "looked_at": result.evaluations,
        "first_s": first_s,
        "total_s": time.perf_counter() - started,
        "gap": result.gap,
        "bound": result.bound,
    }
    shown = "nothing serves" if result.gap is None else f"gap {result.gap:.1e}, bound {result.bound:.4g} $/s"
    print(
        f"{count:>9,} tabulated, {row['accurate_enough']:,} accurate enough: a plan after {first_s:.2f} s, "
        f"all {row['looked_at']:,} needed after {row['total_s']:.2f} s, {shown}"
    )
    return row


if __name__ == "__main__":
    run_search()
