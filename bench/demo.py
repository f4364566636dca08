"""Predicted against measured p95 in the demo's fleet: at least 200 requests a device, all parts real.

For every query: the p95 that the coordinator published with the plan, the p95 of the answered requests with a
bootstrap interval, and where the time of a mean request went (compute, waiting for a core, link and HTTP, the
rest) beside what the estimate expected of each part. The same parts name the cause where the two differ.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from compass_coordinator.commands.files import ACCURACY_IN_BUNDLE, load_planned
from compass_coordinator.demo.document import document_of
from compass_coordinator.demo.options import DemoOptions
from compass_coordinator.demo.run import DemoResult, PhaseResult, run_demo
from compass_coordinator.demo.scores import nearest_rank
from compass_coordinator.measurements import load_measurements
from compass_coordinator.what_if import problem_from
from compass_shared.evaluate import resulting_loads, segment_works
from compass_shared.fleet_file import load_fleet
from compass_shared.plan import Plan
from compass_shared.problem import Problem
from compass_shared.query import Query
from compass_shared.queueing import wait_at

HERE = Path(__file__).resolve().parent
PIPELINE = "read-text"
BUNDLE = HERE.parent / "examples" / "read_text"
RESULT = HERE / "results" / "demo.json"
BOOTSTRAPS = 2000
AIM = 0.30
PARTS = ("compute", "wait", "link", "rest")

Json = Mapping[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--fleet", type=Path, default=HERE / "fleet.toml")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="compass-bench-") as folder:
        options = DemoOptions(
            bundles={PIPELINE: BUNDLE},
            fleet_file=args.fleet,
            accuracy={PIPELINE: BUNDLE / ACCURACY_IN_BUNDLE},
            work=Path(folder),
            seconds=args.seconds,
            phases=("compass",),
            seed=args.seed,
            check_configs=0,
            measure_s=30.0,
        )
        result = asyncio.run(run_demo(options, _show()))
        problem = _problem(options)
    rows = [_row(problem, query, result.phases[0]) for query in result.queries]
    _print(rows, result)
    document = document_of(result)
    document["kind"] = "bench-demo"
    document["rows"] = rows
    for phase in document["phases"]:
        del phase["requests"]  # the rows hold what was learnt from them
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 1 if result.phases[0].problems else 0


def _show() -> Any:
    last = [""]

    def show(state: Any, _phase: str, _queries: Sequence[Query]) -> None:
        if state.stage != last[0]:
            last[0] = state.stage
            print(state.stage, file=sys.stderr, flush=True)

    return show


def _problem(options: DemoOptions) -> Problem:
    pipelines, accuracy = load_planned(list(options.bundles.values()), list(options.accuracy.values()))
    measured = load_measurements(options.work / "measured.json")
    return problem_from(load_fleet(options.fleet_file), pipelines, [measured], accuracy)


def _row(problem: Problem, query: Query, phase: PhaseResult) -> dict[str, Any]:
    decision = phase.planned["queries"][query.name]
    answered = [
        request
        for request in phase.requests
        if request["query"] == query.name and request.get("error") is None and request["source"] == "assigned"
    ]
    row: dict[str, Any] = {"query": query.name, "plan": decision["line"], "requests": len(answered)}
    if decision["plan"] is None or not answered:
        return row | {"refusal": decision["refusal"]}
    latencies = np.array([request["latency_s"] for request in answered])
    low, high = _interval(latencies)
    predicted = decision["plan"]["estimate"]
    measured_p95 = nearest_rank(list(latencies), 0.95)
    parts = np.array([_parts(request, query.origin) for request in answered]).mean(axis=0)
    expected = _expected(problem, query, phase)
    return row | {
        "predicted_p95_s": predicted["latency_p95_s"],
        "measured_p95_s": measured_p95,
        "measured_p95_low_s": low,
        "measured_p95_high_s": high,
        "ratio": predicted["latency_p95_s"] / measured_p95,
        "predicted_mean_s": predicted["latency_mean_s"],
        "measured_mean_s": float(latencies.mean()),
        "parts_s": dict(zip(PARTS, map(float, parts), strict=True)),
        "expected_parts_s": dict(zip(PARTS, expected, strict=True)),
        "predicted_accuracy": predicted["accuracy"],
        "measured_accuracy": float(np.mean([request["score"] for request in answered])),
    }


def _parts(request: Json, origin: str) -> tuple[float, float, float, float]:
    """Where one request's time went, in the order of PARTS."""
    compute = wait = link = 0.0
    for segment in request["segments"]:
        busy_s = sum(timing["wall_s"] for timing in segment["timings"])
        compute += busy_s
        if segment["site"] == origin:
            wait += segment["wall_s"] - busy_s
        else:
            wait += segment["wait_s"]
            link += segment["wall_s"] - busy_s - segment["wait_s"]
    return compute, wait, link, request["latency_s"] - compute - wait - link


def _expected(problem: Problem, query: Query, phase: PhaseResult) -> tuple[float, float, float, float]:
    plans = {
        name: msgspec.convert(decision["plan"], Plan)
        for name, decision in phase.planned["queries"].items()
        if decision["plan"] is not None
    }
    loads = resulting_loads(problem, plans)
    compute = wait = link = 0.0
    for work in segment_works(problem, query, plans[query.name]):
        site = problem.sites[work.segment.site]
        compute += work.compute_s
        wait += wait_at(loads[site.name], site.cores).mean_s
        if site.name != query.origin:
            there, back = problem.links[query.origin, site.name], problem.links[site.name, query.origin]
            link += there.rtt_s + work.up.mean_bytes / there.bandwidth_bps
            link += work.down.mean_bytes / back.bandwidth_bps
    return compute, wait, link, 0.0


def _interval(latencies: Any) -> tuple[float, float]:
    """95% percentile-bootstrap interval of the p95."""
    rng = np.random.default_rng(0)
    draws = rng.choice(latencies, size=(BOOTSTRAPS, len(latencies)))
    rank = max(0, math.ceil(0.95 * len(latencies)) - 1)
    p95s = np.sort(draws, axis=1)[:, rank]
    return float(np.quantile(p95s, 0.025)), float(np.quantile(p95s, 0.975))


def _print(rows: Sequence[dict[str, Any]], result: DemoResult) -> None:
    served = [row for row in rows if "ratio" in row]
    print(
        "\np95 in ms; parts of a mean request as measured / expected, in ms; devices and links are emulated\n"
    )
    head = f"{'query':10}{'n':>5}{'predicted':>11}{'measured [95% interval]':>27}{'ratio':>7}"
    print(head + "".join(f"{part:>14}" for part in PARTS))
    for row in served:
        interval = (
            f"{1e3 * row['measured_p95_s']:.0f} [{1e3 * row['measured_p95_low_s']:.0f}, "
            f"{1e3 * row['measured_p95_high_s']:.0f}]"
        )
        parts = "".join(
            f"{1e3 * row['parts_s'][part]:>7.0f}/{1e3 * row['expected_parts_s'][part]:<6.0f}"
            for part in PARTS
        )
        print(
            f"{row['query']:10}{row['requests']:>5}{1e3 * row['predicted_p95_s']:>11.0f}{interval:>27}"
            f"{row['ratio']:>7.2f}{parts}"
        )
        print(f"{'':10}{row['plan']}")
    for row in rows:
        if "ratio" not in row:
            print(f"{row['query']:10}{row['requests']:>5}  refused: {row['refusal']}")
    within = sum(abs(row["ratio"] - 1) <= AIM for row in served)
    print(f"\nwithin {AIM:.0%}: {within} of {len(served)} queries; median ratio {_median(served):.2f}")
    total = sum(row["measured_mean_s"] * row["requests"] for row in served)
    rest = sum(row["parts_s"]["rest"] * row["requests"] for row in served)
    print(f"time that no operator, wait or call accounts for: {rest / total:.2%} of all request time")
    phase = result.phases[0]
    counts = {
        device: sum(row["requests"] for row in rows if row["query"].startswith(device + "-"))
        for device in sorted({query.origin for query in result.queries})
    }
    print(
        f"requests answered: {counts}; emulation overruns {phase.overruns}; accounting {list(phase.problems)}"
    )


def _median(rows: Sequence[dict[str, Any]]) -> float:
    return float(np.median([row["ratio"] for row in rows])) if rows else math.nan


if __name__ == "__main__":
    sys.exit(main())
