"""Planning a large fleet: templates, candidates and match, beside other ways to do the same.

    make bench-planner ARGS=--quick

templates    building the templates of one pipeline for growing sets of sites: plans, labels, survivors, time
fleet        all queries of a fleet at once, stage by stage, with the bound over all plans of all queries
alone        the same queries planned one by one by enumeration, on a sample
loss         what a few candidates a query lose against all plans (linear relaxations, by HiGHS)
rivals       other matchers on the same candidates, each in a process that is killed when it takes too long
search       spaces too large to enumerate: anytime search beside random and Bayesian optimisation
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from common import RESULTS, machine, write_result
from compass_coordinator.matcher import MatchResult, SparseDemands, match
from compass_coordinator.planner import find_candidates
from compass_coordinator.planner.fleet import (
    FleetCandidates,
    FleetSpace,
    TemplateCache,
    add_columns,
    candidates_of,
)
from compass_coordinator.planner.templates import Kind, build_templates
from compass_shared.problem import Problem
from matching.processes import run_module
from planning.cases import make_fleet, typical_loads
from planning.columns import losses
from planning.rivals import RIVALS, case_of
from planning.search import run_search

SITES = (
    (1, "the device alone"),
    (2, "+ an edge server"),
    (3, "+ a cloud pool"),
    (4, "+ a second cloud pool"),
)
MAX_REMOTE = 2
"""Remote sites of one plan."""
KEEPS = (1, 2, 4, 8, 16)
ROUNDS = 2
"""Of column generation."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000], help="queries of a fleet")
    parser.add_argument("--levels", type=float, nargs="+", default=[0.2, 0.3], help="of contention")
    parser.add_argument("--loss-queries", type=int, default=3000, help="of the table of losses")
    parser.add_argument("--rival-queries", type=int, default=10_000, help="beside the rivals")
    parser.add_argument("--alone", type=int, default=6, help="queries planned one by one")
    parser.add_argument("--runs", type=int, default=3, help="for a median")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for a rival")
    parser.add_argument("--match-limit", type=float, default=10.0, help="seconds for one match of a fleet")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--quick", action="store_true", help="small sizes and limits")
    parser.add_argument("--out", type=Path, default=RESULTS / "planner.json")
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.loss_queries, args.rival_queries = [1000, 10_000], 1000, 1000
        args.alone, args.limit, args.runs = 2, 30.0, 1
    document: dict[str, Any] = {"kind": "bench-planner", "machine": machine(), "scipy": version("scipy")}
    for table in args.tables:
        print(f"\n{table}\n")
        document[table] = TABLES[table](args)
        write_result(args.out, document)  # what is measured is kept, whatever comes after
    return 0


def templates_table(_args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every site of a kind of its own, so that no two of them are interchangeable."""
    problem = make_fleet(100)
    pipeline, table = problem.pipelines["read-text"], problem.accuracy["read-text"]
    operators = problem.profiles["device-0", "read-text"].operators
    rows = []
    _head("sites", "plans", "labels made", "templates", "MB", "seconds")
    for count, name in SITES:
        kinds = [
            Kind(operators=operators, request_mean_bytes=1.2e6 + at, request_var_bytes2=1e10)
            for at in range(count)
        ]
        started_s = time.perf_counter()
        built = build_templates(pipeline, table, kinds, max_remote=MAX_REMOTE)
        seconds = time.perf_counter() - started_s
        plans = dict(built.counts)["combinations"]
        labels = sum(number for stage, number in built.counts if stage.startswith("labels"))
        megabytes = built.nbytes / 1e6
        _line(name, f"{plans}", f"{labels}", f"{len(built)}", f"{megabytes:.1f}", f"{seconds:.2f}")
        rows.append(
            {
                "sites": name,
                "plans": plans,
                "stages": dict(built.counts),
                "templates": len(built),
                "megabytes": megabytes,
                "seconds": seconds,
            }
        )
    return rows


def fleet_table(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Candidates, a match, a round of column generation and a second match; templates are built before."""
    rows = []
    _head(
        "queries", "level", "templates s", "candidates s", "match s", "columns s", "total s", "value", "gap %"
    )
    for queries in args.sizes:
        for level in args.levels:
            problem = make_fleet(queries, level=level)
            row = _planned(problem, args)
            rows.append({"queries": queries, "level": level, **row})
            seconds = row["seconds"]
            _line(
                f"{queries}",
                f"{level:g}",
                f"{row['templates_s']:.2f}",
                f"{seconds['candidates']:.2f}",
                f"{seconds['match']:.2f}",
                f"{seconds['columns']:.2f}",
                f"{sum(seconds.values()):.2f}",
                f"{row['value']:.0f}",
                f"{100 * row['gap']:.3f}",
            )
    return rows


def _planned(problem: Problem, args: argparse.Namespace) -> dict[str, Any]:
    loads, cache = typical_loads(problem), TemplateCache()
    started_s = time.perf_counter()
    FleetSpace.of(problem, loads, cache)
    templates_s = time.perf_counter() - started_s
    laps = [_Laps() for _ in range(args.runs)]
    for lap in laps:
        with lap.of("candidates"):
            space = FleetSpace.of(problem, loads, cache)
            candidates = candidates_of(space)
        with lap.of("match"):
            first, prices = _matched(candidates, None, args.match_limit)
        with lap.of("columns"):
            extended, bound = add_columns(candidates, prices)
        with lap.of("match"):
            second, _ = _matched(extended, prices, args.match_limit)
    best = max(first, second, key=lambda result: result.value)
    present = np.isfinite(extended.values)
    return {
        "templates_s": templates_s,
        "seconds": {name: statistics.median(lap.seconds[name] for lap in laps) for name in laps[0].seconds},
        "value": best.value,
        "bound_over_all_plans": bound,
        "gap": (bound - best.value) / bound,
        "refused_by_slo": int((~present.any(axis=1)).sum()),
        "candidates_a_query": float(present.sum(axis=1).mean()),
        "scarce_resources": len(extended.scarce()[2]),
        "sites": len(space.tables.sites.names),
        "instances": sum(len(group) for group in space.groups),
        "templates": sum(len(features) for features in space.features),
        "plans": sum(
            len(group) * len(found) for group, found in zip(space.groups, space.features, strict=True)
        ),
    }


def _matched(candidates: FleetCandidates, prices: Any, limit_s: float) -> tuple[MatchResult, Any]:
    """A match on the scarce resources, and the prices of all."""
    demands, capacities, kept = candidates.scarce()
    warm = None if prices is None else prices[kept]
    result = match(
        candidates.values, demands, capacities, candidates.costs, warm_prices=warm, time_limit_s=limit_s
    )
    found = np.zeros(len(candidates.capacities))
    found[kept] = result.prices
    return result, found


@dataclass(frozen=True, slots=True)
class _Laps:
    """Seconds by stage; laps of one stage add."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Time what is done inside."""
        started_s = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started_s


def alone_table(args: argparse.Namespace) -> dict[str, Any]:
    """Enumeration, query by query."""
    problem = make_fleet(1000, level=args.levels[0])
    seconds: dict[str, list[float]] = {}
    for query in problem.queries:
        sample = seconds.setdefault(query.pipeline, [])
        if len(sample) < args.alone:
            started_s = time.perf_counter()
            find_candidates(problem, query)
            sample.append(time.perf_counter() - started_s)
    means = {name: statistics.mean(sample) for name, sample in seconds.items()}
    _head("pipeline", "seconds a query")
    for name, mean_s in means.items():
        _line(name, f"{mean_s:.3f}")
    print(f"\n10,000 queries would take {10_000 * statistics.mean(means.values()):.0f} s")
    return {"seconds_a_query": means, "sample": args.alone}


def loss_table(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Shares of the relaxation over all plans."""
    rows: list[dict[str, Any]] = []
    for level in args.levels:
        problem = make_fleet(args.loss_queries, level=level)
        space = FleetSpace.of(problem, typical_loads(problem), TemplateCache())
        lost = losses(space, KEEPS, ROUNDS)
        names = [name for name in lost if name not in ("all plans", "bound")]
        if not rows:
            _head("level", "value of all plans", *(f"{name}: lost %" for name in names))
        _line(f"{level:g}", f"{lost['all plans']:.2f}", *(f"{100 * lost[name]:.4f}" for name in names))
        rows.append({"queries": args.loss_queries, "level": level, **lost})
    return rows


def rivals_table(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All on the same candidates, before any column generation."""
    rows: list[dict[str, Any]] = []
    _head("level", "matcher", "value", "bound", "seconds", "status")
    for level in args.levels:
        problem = make_fleet(args.rival_queries, level=level)
        space = FleetSpace.of(problem, typical_loads(problem), TemplateCache())
        case = case_of(candidates_of(space), level, 0)
        assert case.resources is not None
        demands = SparseDemands(resources=case.resources, amounts=case.amounts)
        started_s = time.perf_counter()
        ours = match(case.values, demands, case.capacities, case.costs, time_limit_s=args.match_limit)
        seconds = time.perf_counter() - started_s
        found: dict[str, dict[str, Any]] = {
            "compass": {"value": ours.value, "bound": ours.bound, "seconds": seconds, "status": "done"}
        }
        recipe = f'{{"queries": {args.rival_queries}, "level": {level}, "seed": 0}}'
        for rival in RIVALS:
            answer, error = run_module("planning.rivals", [rival, recipe, str(args.limit)], args.limit)
            found[rival] = answer or {"value": None, "bound": None, "seconds": args.limit, "status": error}
        for name, row in found.items():
            rows.append({"queries": args.rival_queries, "level": level, "matcher": name, **row})
            _line(
                f"{level:g}",
                name,
                _number(row["value"], 1),
                _number(row["bound"], 1),
                f"{row['seconds']:.2f}",
                str(row["status"]),
            )
    return rows


def search_table(args: argparse.Namespace) -> Mapping[str, Any]:
    """The table of `planning.search`."""
    if args.quick:
        return run_search(seeds=(0,), repeats=1, tabulated=(10_000,))
    return run_search()


TABLES: Mapping[str, Callable[[argparse.Namespace], Any]] = {
    "templates": templates_table,
    "fleet": fleet_table,
    "alone": alone_table,
    "loss": loss_table,
    "rivals": rivals_table,
    "search": search_table,
}


def _head(*names: str) -> None:
    _line(*names)
    _line(*("---" for _ in names))


def _line(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def _number(number: float | None, digits: int) -> str:
    return "-" if number is None else f"{number:.{digits}f}"


if __name__ == "__main__":
    sys.exit(main())
