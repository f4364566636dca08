"""The matcher in a process of its own, for its memory: `python -m matching.ours CASE RUNS`."""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import asdict, dataclass

import numpy as np

from compass_coordinator.matcher import MatchResult, SparseDemands, match
from matching.cases import Case, make

_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Our matcher on one case."""

    seconds: list[float]
    """Of each run."""
    warm_seconds: float
    """Of one more, from the prices that the first found."""
    value: float
    bound: float
    gap: float
    input_mb: float
    """Of the arrays that are given."""
    peak_mb: float
    """Of the process: interpreter, libraries, input and matcher."""


def matched(case: Case, *, time_limit_s: float | None = None, seed: int = 0) -> MatchResult:
    return match(
        case.values, _demands(case), case.capacities, case.costs, time_limit_s=time_limit_s, seed=seed
    )


def measured(case: Case, runs: int) -> Measured:
    """Times, and the first run's result, whose value and bound are computed again.

    Raises:
        ValueError: If the choice overdraws a capacity, or value or bound is not what the result says.
    """
    seconds, first = [], None
    for _ in range(runs):
        started_s = time.perf_counter()
        result = matched(case)
        seconds.append(time.perf_counter() - started_s)
        first = result if first is None else first
    assert first is not None
    started_s = time.perf_counter()
    match(case.values, _demands(case), case.capacities, case.costs, warm_prices=first.prices)
    warm_seconds = time.perf_counter() - started_s
    # Before the check, which is not the matcher's.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check(case, first)
    arrays = (case.values, case.amounts, case.resources, case.capacities, case.costs)
    return Measured(
        seconds=seconds,
        warm_seconds=warm_seconds,
        value=first.value,
        bound=first.bound,
        gap=first.gap,
        input_mb=sum(array.nbytes for array in arrays if array is not None) / 1e6,
        peak_mb=peak * 1024 / 1e6,
    )


def check(case: Case, result: MatchResult) -> None:
    """Compute a result's value and bound again.

    Raises:
        ValueError: If the choice overdraws a capacity, or value or bound is not what the result says.
    """
    value = case.value_of(result.choice)
    bound = float(result.prices @ case.capacities)
    for start in range(0, len(case.values), _BLOCK):
        block = slice(start, start + _BLOCK)
        amounts = case.amounts[block]
        prices = result.prices if case.resources is None else result.prices[case.resources[block]]
        reduced = case.values[block] - (amounts * prices).sum(axis=2)
        bound += float(np.maximum(reduced.max(axis=1), 0.0).sum())
    if not np.allclose([value, bound], [result.value, result.bound], rtol=1e-9):
        raise ValueError(f"value {value}, bound {bound}; the matcher says {result.value}, {result.bound}")


def _demands(case: Case) -> SparseDemands | np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    if case.resources is None:
        return case.amounts
    return SparseDemands(resources=case.resources, amounts=case.amounts)


def main() -> int:
    recipe, runs = sys.argv[1:]
    print("\n" + json.dumps(asdict(measured(make(**json.loads(recipe)), int(runs)))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
