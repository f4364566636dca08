"""Other ways to spend the same number of accuracy measurements.

Each proposes one config after another and is told what came of it. All are given Compass's own placement of
every config they propose, so what differs is the choice of configs alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from compass_coordinator.estimator import Floats, Indices
from compass_coordinator.planner.search.labels import placements_below
from compass_coordinator.planner.search.relaxation import relax
from compass_coordinator.planner.search.result import Judge
from compass_coordinator.planner.search.tables import build_tables
from planning.search_cases import OPERATORS, VARIANTS, Case

PENALTY = 10.0
"""Of one unit of violation, in units of the score of a typical config."""
CANDIDATES = 1500
"""Configs that plain Bayesian optimisation looks at for each proposal."""
FIRST = 12


@dataclass(slots=True)
class Bench:
    """Evaluates a case's configs and counts."""

    case: Case
    trace: list[float] = field(default_factory=list)
    """Best score after each evaluation, inf until one serves."""
    _judge: Judge = field(init=False)

    def __post_init__(self) -> None:
        tables = build_tables(self.case.problem, self.case.query, {})
        self._judge = Judge(problem=self.case.problem, query=self.case.query, tables=tables, prices={})

    def evaluate(self, choice: Indices) -> tuple[float, float]:
        """Score and violation of a config at its best placement, by the same solver for everyone."""
        slo, tables = self.case.query.slo, self._judge.tables
        limits = slo.latency_p95_s, slo.cost_usd_per_1000 / 1000
        relaxed = relax(tables, choice[np.newaxis], *limits)
        leaves = placements_below(tables, choice[np.newaxis], relaxed, *limits, math.inf)
        sites = leaves.sites[0] if len(leaves.sites) else relaxed.placement[0]
        found = self._judge.judge(choice, sites, float(self.case.accuracies(choice[np.newaxis])[0]))
        best = self.trace[-1] if self.trace else math.inf
        self.trace.append(min(best, found.score if found.violation == 0 else math.inf))
        return found.score, found.violation

    def placeable(self, choice: Indices) -> bool:
        """Whether some placement is in time, which needs no measurement of accuracy."""
        slo = self.case.query.slo
        limits = slo.latency_p95_s, slo.cost_usd_per_1000 / 1000
        return bool(np.isfinite(relax(self._judge.tables, choice[np.newaxis], *limits).bound[0]))


def random_search(bench: Bench, evaluations: int, seed: int) -> None:
    """Configs at random."""
    rng = np.random.default_rng(seed)
    for _ in range(evaluations):
        bench.evaluate(rng.integers(VARIANTS, size=OPERATORS))


def random_in_time(bench: Bench, evaluations: int, seed: int) -> None:
    """Configs at random, those that no placement can run in time left out unmeasured."""
    rng = np.random.default_rng(seed)
    while len(bench.trace) < evaluations:
        choice = rng.integers(VARIANTS, size=OPERATORS)
        if bench.placeable(choice):
            bench.evaluate(choice)


def bayesian(bench: Bench, evaluations: int, seed: int) -> None:
    """Plain Bayesian optimisation: expected improvement of score + penalty x violation.

    A Gaussian process (Matern 5/2, its length chosen by likelihood) over one-hot and ordinal encodings
    together; candidates are random configs and all neighbours of the best one.
    """
    rng = np.random.default_rng(seed)
    choices = list(rng.integers(VARIANTS, size=(FIRST, OPERATORS)))
    found = [bench.evaluate(choice) for choice in choices]
    unit = float(np.median([score for score, _ in found]))
    while len(choices) < evaluations:
        objective = np.array([score / unit + PENALTY * violation for score, violation in found])
        best = choices[int(np.argmin(objective))]
        pool = np.concatenate([rng.integers(VARIANTS, size=(CANDIDATES, OPERATORS)), _neighbours(best)])
        known = {tuple(choice) for choice in choices}
        pool = pool[[tuple(row) not in known for row in pool]]
        # Logarithms tame the penalty's long tail, which a stationary process cannot follow.
        choice = pool[int(np.argmax(_improvement(np.array(choices), np.log(objective), pool)))]
        choices.append(choice)
        found.append(bench.evaluate(choice))


Rival: TypeAlias = Callable[[Bench, int, int], None]
RIVALS: Mapping[str, Rival] = {
    "random": random_search,
    "random, in time": random_in_time,
    "Bayesian, plain": bayesian,
}


def _neighbours(choice: Indices) -> Indices:
    found = []
    for op in range(OPERATORS):
        for variant in range(VARIANTS):
            moved = choice.copy()
            moved[op] = variant
            found.append(moved)
    return np.array(found)


def _improvement(choices: Indices, objective: Floats, pool: Indices) -> Floats:
    """Expected improvement (pool,) of a Gaussian process over the smallest objective so far."""
    target = (objective - objective.mean()) / (objective.std() or 1.0)
    known, asked = _encoded(choices), _encoded(pool)
    fits = [_fitted(known, target, length) for length in (1.0, 2.0, 4.0, 8.0)]
    _, length, root, weights = max(fits, key=lambda fit: fit[0])
    cross = _matern(asked, known, length)
    mean = cross @ weights
    spread = np.sqrt(np.maximum(1 - (np.linalg.solve(root, cross.T) ** 2).sum(axis=0), 1e-9))
    z = (target.min() - mean) / spread
    density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    below = np.array([0.5 * math.erfc(-each / math.sqrt(2)) for each in z])
    return np.asarray(spread * (z * below + density))


def _fitted(known: Floats, target: Floats, length: float) -> tuple[float, float, Floats, Floats]:
    covariance = _matern(known, known, length) + 1e-3 * np.eye(len(known))
    root = np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)
    weights = np.asarray(np.linalg.solve(root.T, np.linalg.solve(root, target)), dtype=np.float64)
    likelihood = -0.5 * float(target @ weights) - float(np.log(np.diag(root)).sum())
    return likelihood, length, root, weights


def _matern(left: Floats, right: Floats, length: float) -> Floats:
    squared = (left**2).sum(axis=1)[:, np.newaxis] + (right**2).sum(axis=1) - 2 * left @ right.T
    far = np.sqrt(5 * np.maximum(squared, 0.0)) / length
    return np.asarray((1 + far + far**2 / 3) * np.exp(-far))


def _encoded(choices: Indices) -> Floats:
    """One-hot (scaled so that two variants are 1 apart) beside the position in file order."""
    hot = np.eye(VARIANTS)[choices].reshape(len(choices), -1) / math.sqrt(2)
    return np.concatenate([hot, choices / (VARIANTS - 1)], axis=1)
