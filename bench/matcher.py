"""The matcher side by side with other ways to match, on cases of several kinds and levels of contention.

Five tables: all ways on the same cases; how time and memory grow with the number of queries; small hard
cases, where the linear bound is far from every choice; queries that come and go; and how DeDe fares as cases
grow. Rivals and all that is large run in processes of their own, one after the other, one thread each.
What is timed is the matching alone. Our choice is checked against the capacities, and value and bound are
computed again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from common import RESULTS, machine, write_result
from compass_coordinator.matcher import MatchResult
from matching.cases import KINDS, LEVELS, Case, make, small_hard
from matching.online import online_table
from matching.ours import Measured, check, matched
from matching.processes import run_ours, run_rival
from matching.rivals import Found

PLANS, RESOURCES = 8, 4
EDGES, QUERIES_PER_EDGE = 300, 30
"""Edge servers at most, and for how many queries there is one."""
EDGE_LIMIT = 100_000
"""Queries with hundreds of scarce edge servers; a million take minutes and 7 GB."""
MIDDLE = 0.5
"""The level at which all rivals run."""
EQUAL_TIMES = 10
"""What the MILP may take, in times of ours, when values are compared at equal time."""
LEAST_EQUAL_S = 1.0
SMALL_LIMIT_S = 1.0
SEEDS = 5
"""Runs of ours that count for the best value known of a small case."""
DEDE_SIZES = (30, 100, 300)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--queries", type=int, default=10_000, help="beside the rivals")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--small", type=int, default=48, help="small hard cases (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=3, help="of ours, for a median")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for a rival")
    parser.add_argument("--small-limit", type=float, default=30.0, help="seconds for the MILP on small cases")
    parser.add_argument("--dede-python", default=sys.executable, help="interpreter that has DeDe installed")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--quick", action="store_true", help="small sizes and limits")
    parser.add_argument("--out", type=Path, default=RESULTS / "matcher.json")
    args = parser.parse_args()
    if args.quick:
        args.queries, args.sizes, args.small = 1000, [1000, 10_000], 12
        args.limit, args.small_limit = 20.0, 5.0
    document: dict[str, Any] = {"kind": "bench-matcher", "machine": machine(), "scipy": version("scipy")}
    for table in args.tables:
        document[table] = TABLES[table](args)
        write_result(args.out, document)  # what is measured is kept, whatever comes after
    return 0


def rivals_table(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every kind at the middle level against every rival; the other levels against the quick ones."""
    print(f"\n{args.queries} queries, {PLANS} plans; value as a share of the least bound that was proved\n")
    _head("case", "way", "value %", "gap %", "seconds", "x ours", "status")
    rows = []
    for kind in KINDS:
        for level in LEVELS:
            case = _case(kind, args.queries, level)
            ours = run_ours(case, args.runs)
            if isinstance(ours, str):
                rows.append(_shown({"case": case.name, "way": "ours", "status": ours}))
                continue
            ways = ("lp", "milp", "pop", "greedy") if level == MIDDLE else ("greedy",)
            found = {way: run_rival(way, case, args.limit) for way in ways}
            if level == MIDDLE:
                seconds = max(EQUAL_TIMES * statistics.median(ours.seconds), LEAST_EQUAL_S)
                found[f"milp in {seconds:.1f} s"] = run_rival("exact", case, seconds)
            rows += _compared(case, ours, found)
    return rows


def _compared(case: Case, ours: Measured, found: Mapping[str, Found]) -> list[dict[str, Any]]:
    took_s = statistics.median(ours.seconds)
    bounds = [ours.bound, *(way.bound for way in found.values() if way.bound is not None)]
    common = {"case": case.name, "shape": case.shape, "seed": case.seed}
    mine = Found(status="done", seconds=took_s, value=ours.value, bound=ours.bound)
    return [
        _shown(
            {
                **common,
                "way": name,
                "value": way.value,
                "bound": way.bound,
                "of_bound": None if way.value is None else way.value / min(bounds),
                "gap": way.gap,
                "seconds": way.seconds,
                "times_ours": way.seconds / took_s,
                "status": way.status,
            }
        )
        for name, way in {"ours": mine, **found}.items()
    ]


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    _line(
        row["case"],
        row["way"],
        _percent(row.get("of_bound"), 3),
        _percent(row.get("gap"), 4),
        _number(row.get("seconds"), 3),
        _number(row.get("times_ours"), 1),
        row["status"],
    )
    return row


def scaling_table(args: argparse.Namespace) -> list[dict[str, Any]]:
    print("\nOurs as queries grow; growth is time per query over that of the smallest\n")
    _head("case", "queries", "seconds", "warm", "us a query", "growth", "gap %", "peak MB", "input MB")
    rows = []
    for kind in ("random", "fleet", "edge"):
        least_us = None
        for queries in args.sizes:
            if kind == "edge" and queries > EDGE_LIMIT:
                continue
            case = _case(kind, queries, MIDDLE)
            ours = run_ours(case, args.runs)
            if isinstance(ours, str):
                _line(case.name, str(queries), *["-"] * 6, ours)
                rows.append({"case": case.name, "queries": queries, "status": ours})
                continue
            seconds = statistics.median(ours.seconds)
            each_us = 1e6 * seconds / queries
            least_us = each_us if least_us is None else least_us
            row = {
                "case": case.name,
                "queries": queries,
                "shape": case.shape,
                "seconds": seconds,
                "warm_seconds": ours.warm_seconds,
                "us_per_query": each_us,
                "growth": each_us / least_us,
                "value": ours.value,
                "bound": ours.bound,
                "gap": ours.gap,
                "peak_mb": ours.peak_mb,
                "input_mb": ours.input_mb,
            }
            rows.append(row)
            _line(
                case.name,
                str(queries),
                _number(seconds, 3),
                _number(ours.warm_seconds, 3),
                _number(each_us, 2),
                _number(row["growth"], 2),
                _percent(ours.gap, 4),
                _number(ours.peak_mb, 0),
                _number(ours.input_mb, 0),
            )
    return rows


def small_table(args: argparse.Namespace) -> dict[str, Any]:
    """Ours within a second against the MILP at equal and at more time, each from the best value known."""
    milp = f"MILP {args.small_limit:g} s"
    print(f"\nSmall hard cases: % below the best known; best of {SEEDS} runs of ours and {milp}\n")
    _head(
        "case", "shape", "ours", "seconds", "MILP at equal time", milp, "gap ours %", "gap MILP %", "status"
    )
    rows = [_small_row(case, args.small_limit) for case in small_hard(args.small)]
    summary = {
        name: float(np.mean([row[name] for row in rows]))
        for name in ("ours", "milp_equal", "milp", "seconds")
    }
    print(f"\nmean of {len(rows)}, % below the best known, in {summary['seconds']:.2f} s:")
    print(f"ours {summary['ours']:.3%}, MILP {summary['milp_equal']:.3%}, {milp} {summary['milp']:.3%}")
    for kind in sorted({str(row["case"]).partition(" ")[0] for row in rows}):
        below = [row["ours"] for row in rows if str(row["case"]).startswith(kind)]
        print(f"  {kind}: mean {np.mean(below):.3%}, worst {max(below):.3%} of {len(below)}")
    return {"mean": summary, "worst": max(row["ours"] for row in rows), "cases": rows}


def _small_row(case: Case, limit_s: float) -> dict[str, Any]:
    runs = [_timed(case, seed) for seed in range(SEEDS)]
    (mine, seconds), bound = runs[0], runs[0][0].bound
    equal, long = run_rival("exact", case, SMALL_LIMIT_S), run_rival("exact", case, limit_s)
    best = max(*(run[0].value for run in runs), equal.value or 0.0, long.value or 0.0)
    proved = min(bound, long.bound or np.inf)
    row: dict[str, Any] = {
        "case": case.name,
        "shape": case.shape,
        "seed": case.seed,
        "best": best,
        "ours": 1 - mine.value / best,
        "seconds": seconds,
        "milp_equal": 1 - (equal.value or 0.0) / best,
        "milp": 1 - (long.value or 0.0) / best,
        "gap_ours": 1 - mine.value / proved,
        "gap_milp": long.gap,
        "status": long.status,
        "milp_seconds": long.seconds,
    }
    _line(
        case.name,
        "x".join(map(str, case.shape)),
        _percent(row["ours"], 3),
        _number(seconds, 2),
        _percent(row["milp_equal"], 3),
        _percent(row["milp"], 3),
        _percent(row["gap_ours"], 2),
        _percent(row["gap_milp"], 2),
        long.status,
    )
    return row


def _timed(case: Case, seed: int) -> tuple[MatchResult, float]:
    started_s = time.perf_counter()
    result = matched(case, time_limit_s=SMALL_LIMIT_S, seed=seed)
    seconds = time.perf_counter() - started_s
    check(case, result)
    return result, seconds


def online_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Queries that come and go: admission by bid price, and rounds from the prices before."""
    print("\nqueries that come and go; warm: a round after 1% of the queries changed, cold: a match anew\n")
    _head("case", "admit ms", "p99 ms", "warm s", "cold s", "warm/cold", "kept %")
    rows = online_table([min(args.queries, 10_000)])
    for row in rows:
        _line(
            row["case"],
            f"{1e3 * row['admit_median_s']:.3f}",
            f"{1e3 * row['admit_p99_s']:.3f}",
            f"{row['round_s']:.2f}",
            f"{row['cold_s']:.2f}",
            f"{row['warm_by_cold']:.2f}",
            _percent(row["admit_value"], 1),
        )
    return rows


def dede_table(args: argparse.Namespace) -> list[dict[str, Any]]:
    print("\nDeDe's linear relaxation, rounded, as cases grow; value as a share of our bound\n")
    _head("case", "queries", "value %", "ours %", "seconds", "status")
    rows = []
    for queries in DEDE_SIZES:
        case = _case("random", queries, MIDDLE)
        ours = matched(case)
        found = run_rival("dede", case, args.limit, python=args.dede_python)
        row: dict[str, Any] = {
            "case": case.name,
            "queries": queries,
            "of_bound": None if found.value is None else found.value / ours.bound,
            "ours_of_bound": ours.value / ours.bound,
            "seconds": found.seconds,
            "status": found.status,
        }
        rows.append(row)
        _line(
            case.name,
            str(queries),
            _percent(row["of_bound"], 3),
            _percent(row["ours_of_bound"], 3),
            _number(found.seconds, 1),
            found.status,
        )
    return rows


TABLES: Mapping[str, Callable[[argparse.Namespace], Any]] = {
    "rivals": rivals_table,
    "scaling": scaling_table,
    "small": small_table,
    "online": online_rows,
    "dede": dede_table,
}


def _case(kind: str, queries: int, level: float) -> Case:
    edges = min(EDGES, max(2, queries // QUERIES_PER_EDGE))
    # The cloud pool and the uplink are shared by all.
    return make(kind, queries, PLANS, edges + 2 if kind == "edge" else RESOURCES, level=level)


def _head(*names: str) -> None:
    _line(*names)
    _line(*("---" for _ in names))


def _line(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def _percent(share: float | None, digits: int) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f}"


def _number(number: float | None, digits: int) -> str:
    return "-" if number is None else f"{number:.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())
