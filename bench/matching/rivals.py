"""Other ways to match, each run as a process of its own: `python -m matching.rivals RIVAL CASE LIMIT_S`.

The last line printed is a `Found` as JSON. Cases are made anew in the process, so nothing large is passed.
Only the solving is timed: neither imports nor making the case.

lp        the linear relaxation by HiGHS' interior-point method with crossover: a bound, not a choice
milp      HiGHS' branch and bound, until it has proved a gap of 1% or the limit has passed
exact     the same without such a gap
greedy    plans by value per share of the capacities, as long as they fit
pop       POP (Narayanan et al. 2021): the queries in random parts, each with its part of the capacities;
          HiGHS (MILP at 1% gap) on one part after the other
dede      the linear relaxation by DeDe (Xu et al. 2025), rounded: plans by their share, as long as they fit
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, sparse

from matching.cases import Case, Floats, make

MILP_GAP = 0.01
PART_QUERIES = 625
"""Queries in a part of POP's, about."""
_TOLERANCE = 1e-9
_BLOCK = 4096

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a rival came to."""

    status: str
    seconds: float = 0.0
    value: float | None = None
    """None without a feasible choice."""
    bound: float | None = None
    """Proved upper bound of every choice's value."""

    @property
    def gap(self) -> float | None:
        """(bound - value) / bound, if both are known."""
        if self.value is None or self.bound is None or self.bound <= 0:
            return None
        return (self.bound - self.value) / self.bound


def lp(case: Case, limit_s: float) -> Found:
    values, matrix, uppers = _program(case)
    started_s = time.perf_counter()
    answer: Any = optimize.linprog(
        -values,
        matrix,
        uppers,
        bounds=[(0.0, most) for most in _most(case)],
        method="highs-ipm",
        options={"time_limit": limit_s},
    )
    seconds = time.perf_counter() - started_s
    solved = answer.status == 0
    return Found(
        status="optimal" if solved else str(answer.message).partition("\n")[0],
        seconds=seconds,
        bound=-float(answer.fun) * float(case.values.max()) if solved else None,
    )


def milp(case: Case, limit_s: float, gap: float = MILP_GAP) -> Found:
    values, matrix, uppers = _program(case)
    started_s = time.perf_counter()
    answer: Any = optimize.milp(
        -values,
        integrality=np.ones(values.size, dtype=np.int64),
        bounds=optimize.Bounds(0, _most(case)),
        constraints=optimize.LinearConstraint(matrix, -np.inf, uppers),
        options={"mip_rel_gap": gap, "time_limit": limit_s},
    )
    seconds = time.perf_counter() - started_s
    scale, bound = float(case.values.max()), answer.mip_dual_bound
    return Found(
        status={0: f"gap of {gap:.0%} proved" if gap else "optimal", 1: "time limit"}.get(
            answer.status, str(answer.message).partition("\n")[0]
        ),
        seconds=seconds,
        # The solver may overdraw a capacity by its tolerance; that is let pass here.
        value=None if answer.x is None else -float(answer.fun) * scale,
        bound=None if bound is None or not np.isfinite(bound) else -float(bound) * scale,
    )


def exact(case: Case, limit_s: float) -> Found:
    """MILP without a gap at which to stop."""
    return milp(case, limit_s, gap=0.0)


def greedy(case: Case, _limit_s: float) -> Found:
    started_s = time.perf_counter()
    value = case.value_of(greedy_choice(case))
    return Found(status="done", seconds=time.perf_counter() - started_s, value=value)


def greedy_choice(case: Case) -> Ints:
    """Plans by value per demand, a demand being the sum of its shares of the capacities."""
    plans = case.values.shape[1]
    columns = case.rows().tocsc()
    asked = np.asarray(columns.sum(axis=0)).ravel()
    order = np.argsort(-case.values.ravel() / np.maximum(asked, 1e-300), kind="stable")
    return _filled(case, order // plans, order % plans)


def pop(case: Case, limit_s: float) -> Found:
    queries = len(case.values)
    parts = max(2, round(queries / PART_QUERIES))
    rng = np.random.default_rng(case.seed)
    each = np.array_split(rng.permutation(queries), parts)
    found = [milp(case.part(part, case.capacities / parts), limit_s / parts) for part in each]
    values = [part.value for part in found]
    statuses = sorted({part.status for part in found})
    return Found(
        status=f"{parts} parts: {', '.join(statuses)}",
        seconds=sum(part.seconds for part in found),
        value=sum(value for value in values if value is not None),
    )


def dede(case: Case, _limit_s: float) -> Found:
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    dd, ray = import_module("dede"), import_module("ray")

    queries, plans, resources = case.shape
    scale = float(case.values.max())
    demands = case.rows().toarray().reshape(resources, queries, plans)
    started_s = time.perf_counter()
    share = dd.Variable((queries, plans), nonneg=True)
    problem = dd.Problem(
        dd.Maximize(dd.sum(dd.multiply(case.values / scale, share))),
        [dd.sum(dd.multiply(demand, share)) <= 1 for demand in demands],
        [share[query, :].sum() <= 1 for query in range(queries)],
    )
    problem.solve(num_cpus=os.cpu_count(), solver=dd.ECOS)
    # The package returns the objective alone; the shares are with its workers.
    workers = problem._subprob_cache.probs
    places = chain(*ray.get([worker.get_solution_idx_d.remote() for worker in workers]))
    shares = np.zeros(queries * plans)
    for (variable, place), found in zip(places, problem.sol_d, strict=True):
        if variable == share.id:
            shares[place % queries * plans + place // queries] = found
    order = np.argsort(-shares, kind="stable")
    order = order[shares[order] > 1e-3]
    value = case.value_of(_filled(case, order // plans, order % plans))
    seconds = time.perf_counter() - started_s
    ray.shutdown()
    return Found(status="done", seconds=seconds, value=value)


RIVALS: Mapping[str, Callable[[Case, float], Found]] = {
    "lp": lp,
    "milp": milp,
    "exact": exact,
    "greedy": greedy,
    "pop": pop,
    "dede": dede,
}


def _program(case: Case) -> tuple[Floats, Any, Floats]:
    """Values by column, rows and their upper bounds, scaled for a solver with absolute tolerances."""
    queries, plans, resources = case.shape
    columns = queries * plans
    place = (np.repeat(np.arange(queries), plans), np.arange(columns))
    one_each = sparse.csr_array((np.ones(columns), place), shape=(queries, columns))
    matrix = sparse.vstack([one_each, case.rows()], format="csr")
    return case.values.ravel() / case.values.max(), matrix, np.ones(queries + resources)


def _most(case: Case) -> Floats:
    """(columns,) 1, but 0 for a plan that does not fit alone."""
    largest = np.asarray(case.rows().max(axis=0).todense()).ravel()
    return (largest <= 1).astype(np.float64)


def _filled(case: Case, query: Ints, plan: Ints) -> Ints:
    """Take pairs in turn, if the query has no plan yet and they fit; whole blocks while nothing is scarce."""
    choice = np.full(len(case.values), -1, dtype=np.int64)
    plans = case.values.shape[1]
    columns, used = case.rows().T.tocsr(), np.zeros(len(case.capacities))
    for start in range(0, len(query), _BLOCK):
        queries, picks = query[start : start + _BLOCK], plan[start : start + _BLOCK]
        first = np.zeros(len(queries), bool)
        first[np.unique(queries, return_index=True)[1]] = True
        new = first & (choice[queries] < 0)
        block = columns[queries * plans + picks]
        total = np.asarray(block[np.flatnonzero(new)].sum(axis=0)).ravel()
        if (used + total <= 1 + _TOLERANCE).all():
            choice[queries[new]], used = picks[new], used + total
            continue
        for row in np.flatnonzero(choice[queries] < 0).tolist():
            ends = slice(block.indptr[row], block.indptr[row + 1])
            resources, shares = block.indices[ends], block.data[ends]
            if choice[queries[row]] < 0 and (used[resources] + shares <= 1 + _TOLERANCE).all():
                choice[queries[row]] = picks[row]
                used[resources] += shares
    return choice


def main() -> int:
    rival, recipe, limit_s = sys.argv[1:]
    print("\n" + json.dumps(asdict(RIVALS[rival](make(**json.loads(recipe)), float(limit_s)))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
