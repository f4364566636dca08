"""The matcher that is always on: how long an admission takes, and a round beside a match from nothing.

`python -m matching.online --queries 10000` prints a table; `online_table` gives its rows.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from compass_coordinator.matcher import Matcher, match
from matching.cases import Case, make

KINDS = ("random", "correlated", "fleet")
CHURN = 0.01
"""Share of the queries that leave, and of others that come, between two rounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Online:
    """A matcher that is filled one query at a time, and then goes on."""

    case: str
    queries: int
    admit_median_s: float
    """With all others present."""
    admit_p99_s: float
    admit_value: float
    """Of bid prices alone after the churn, before the round; as a share of the round's value."""
    cold_s: float
    """A match of the same queries from nothing."""
    round_s: float
    """A round after the churn, warm, with all that belongs to it."""
    warm_by_cold: float
    """``round_s / cold_s``."""
    gap: float
    """Of the round: what switching and ageing leave to the bound."""
    moved: float
    """Share of the queries whose plan the round changed."""
    moved_free: float
    """The same where switching costs nothing."""


def online_table(
    queries: Sequence[int], *, level: float = 0.5, plans: int = 8, resources: int = 4
) -> list[dict[str, Any]]:
    """One row for each kind of case and number of queries."""
    return [
        asdict(measured(make(kind, count, plans, resources, level=level)))
        for kind in KINDS
        for count in queries
    ]


def measured(case: Case) -> Online:
    """Admit everybody but a few, have a round, let some go and the few come, have another."""
    present, coming = _split(case)
    matcher, admit_s = _filled(case, present, coming, switching_share=0.05)
    free, _ = _filled(case, present, coming, switching_share=0.0)
    before = _value(case, matcher)
    started_s = time.perf_counter()
    round_ = matcher.rematch()
    round_s = time.perf_counter() - started_s
    rows = np.sort(np.array([int(name) for name in matcher.choices]))
    started_s = time.perf_counter()
    match(case.values[rows], case.amounts[rows], case.capacities, case.costs[rows])
    cold_s = time.perf_counter() - started_s
    return Online(
        case=case.name,
        queries=len(matcher),
        admit_median_s=float(np.median(admit_s)),
        admit_p99_s=float(np.quantile(admit_s, 0.99)),
        admit_value=before / round_.value,
        cold_s=cold_s,
        round_s=round_s,
        warm_by_cold=round_s / cold_s,
        gap=round_.gap,
        moved=len(round_.moved) / len(matcher),
        moved_free=len(free.rematch().moved) / len(free),
    )


def _split(case: Case) -> tuple[list[int], list[int]]:
    """Rows that are there from the start, and those that come later."""
    late = max(1, round(CHURN * len(case.values)))
    return list(range(late, len(case.values))), list(range(late))


def _filled(
    case: Case, present: list[int], coming: list[int], *, switching_share: float
) -> tuple[Matcher, list[float]]:
    """A matcher after a round and the churn that follows it, and how long each late admission took."""
    matcher = Matcher(case.capacities, switching_share=switching_share)
    for row in present:
        matcher.admit(str(row), case.values[row], case.amounts[row], case.costs[row])
    matcher.rematch()
    seconds = []
    for row in coming:
        started_s = time.perf_counter()
        matcher.admit(str(row), case.values[row], case.amounts[row], case.costs[row])
        seconds.append(time.perf_counter() - started_s)
    for row in present[: len(coming)]:
        matcher.withdraw(str(row))
    return matcher, seconds


def _value(case: Case, matcher: Matcher) -> float:
    return float(sum(case.values[int(name), plan] for name, plan in matcher.choices.items() if plan >= 0))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, nargs="+", default=[1000, 10_000])
    args = parser.parse_args()
    names = (
        "case",
        "queries",
        "admit ms (p99)",
        "before the round",
        "warm/cold",
        "gap %",
        "moved %",
        "moved free %",
    )
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")
    for row in online_table(args.queries):
        print(
            f"| {row['case']} | {row['queries']} | {row['admit_median_s'] * 1e3:.3f} "
            f"({row['admit_p99_s'] * 1e3:.3f}) | {row['admit_value']:.4f} | {row['warm_by_cold']:.2f} "
            f"| {row['gap'] * 100:.3f} | {row['moved'] * 100:.1f} | {row['moved_free'] * 100:.1f} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
