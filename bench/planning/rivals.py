"""Other matchers on the planner's own candidates: `python -m planning.rivals RIVAL RECIPE LIMIT_S`.

The case is made anew in the process: a fleet, and the candidates of its queries. Rivals are those of
`matching.rivals`, and one more:

alone     what planning each query for itself comes to: everyone takes its cheapest plan, heaviest first,
          as long as there is room
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict

import numpy as np

from compass_coordinator.planner.fleet import FleetCandidates, find_fleet_candidates
from matching.cases import Case
from matching.rivals import Found, greedy, lp, milp
from planning.cases import make_fleet, typical_loads


def case_of(candidates: FleetCandidates, level: float, seed: int) -> Case:
    """Candidates as a matching case: queries that have some, resources that can run out."""
    demands, capacities, _ = candidates.scarce()
    present = np.isfinite(candidates.values)
    queries = present.any(axis=1)
    # A plan that does not exist is worth nothing and asks for nothing.
    return Case(
        kind="planned",
        level=level,
        seed=seed,
        values=np.where(present, candidates.values, 0.0)[queries],
        amounts=demands.amounts[queries],
        resources=demands.resources[queries].astype(np.int64),
        capacities=capacities,
        costs=candidates.costs[queries],
    )


def alone(case: Case, _limit_s: float) -> Found:
    started_s = time.perf_counter()
    choice = np.full(len(case.values), -1, dtype=np.int64)
    left = np.ones(len(case.capacities))
    assert case.resources is not None
    shares = case.amounts[:, 0] / case.capacities[case.resources[:, 0]]
    for query in np.argsort(-case.values[:, 0], kind="stable"):
        resources = case.resources[query, 0]
        if (shares[query] <= left[resources]).all():
            choice[query] = 0
            np.subtract.at(left, resources, shares[query])
    seconds = time.perf_counter() - started_s
    return Found(status="done", seconds=seconds, value=case.value_of(choice))


RIVALS: Mapping[str, Callable[[Case, float], Found]] = {
    "alone": alone,
    "greedy": greedy,
    "lp": lp,
    "milp": milp,
}


def main() -> int:
    rival, recipe, limit_s = sys.argv[1:]
    fleet = json.loads(recipe)
    problem = make_fleet(fleet["queries"], seed=fleet["seed"], level=fleet["level"])
    candidates = find_fleet_candidates(problem, loads=typical_loads(problem))
    case = case_of(candidates, fleet["level"], fleet["seed"])
    print("\n" + json.dumps(asdict(RIVALS[rival](case, float(limit_s)))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
