"""What a search is given, what it hands back, and the judge of every plan that it finds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from compass_coordinator.estimator import Indices
from compass_coordinator.planner.search.tables import Tables
from compass_shared.evaluate import evaluate_plan
from compass_shared.plan import Estimate, Plan
from compass_shared.problem import Problem
from compass_shared.profile import Accuracy, AccuracyTable
from compass_shared.query import Query


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How long to search."""

    evaluations: int = 1_000_000
    """Configs looked at where accuracy is tabulated, accuracies asked for where it is not."""
    out_of_time: Callable[[], bool] = _never
    """Asked between steps; a step takes milliseconds, and as long as an accuracy takes to measure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The best plan found so far, and how good it can be at most."""

    plan: Plan | None
    """With its estimate. The cheapest found that meets the whole SLO; before there is one, the nearest."""
    score: float
    """US dollars per second: cost at the query's rate, plus prices x demand; inf until a plan serves."""
    violation: float
    """0 if the plan serves; else the sum of what it misses each limit by, relative to the limit."""
    bound: float | None
    """No plan that serves scores less (inf: there is none); None where accuracy is not tabulated."""
    evaluations: int
    trace: tuple[tuple[int, float], ...]
    """(evaluations, score) whenever the score fell."""
    reason: str | None = None
    """Why there is no plan that serves, or no bound, in words."""

    @property
    def serves(self) -> bool:
        """Whether the plan meets the whole SLO and fits the capacities on its own."""
        return math.isfinite(self.score)

    @property
    def gap(self) -> float | None:
        """``(score - bound) / score``, 0 when the plan is proven best; None without bound or plan."""
        if self.bound is None or not self.serves:
            return None
        return max(0.0, (self.score - self.bound) / self.score) if self.score > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A plan with its score, evaluated by the book."""

    plan: Plan
    sites: Indices
    """(n,) its placement, as indices."""
    score: float
    """Whether or not it serves."""
    violation: float

    def beats(self, other: Judged | None) -> bool:
        """Less violation, then less score."""
        return other is None or (self.violation, self.score) < (other.violation, other.score)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Evaluates plans with ``compass_shared.evaluate``, which knows nothing of the tables."""

    problem: Problem
    query: Query
    tables: Tables
    prices: Mapping[str, float]

    def judge(self, choice: Indices, sites: Indices, accuracy: float) -> Judged:
        """Evaluate one config at one placement.

        Args:
            choice: (n,) variant of every operator.
            sites: (n,) site of every operator.
            accuracy: Of the config.
        """
        plan = Plan(config=self.tables.config(choice), placement=self.tables.placement(sites))
        key = self.tables.pipeline.config_key(plan.config)
        known = AccuracyTable(
            pipeline=self.query.pipeline,
            metric="",
            split="",
            configs={key: Accuracy(mean=accuracy, standard_error=0.0, count=1)},
            others=self._others(),
        )
        problem = replace(self.problem, accuracy={self.query.pipeline: known})
        found = evaluate_plan(problem, self.query, plan, self.problem.loads)
        return Judged(
            plan=replace(plan, estimate=found),
            sites=sites,
            score=self._score(found),
            violation=self._violation(found),
        )

    def _others(self) -> Mapping[str, Mapping[str, Accuracy]]:
        table = self.problem.accuracy.get(self.query.pipeline)
        return table.others if table is not None else {}

    def _score(self, found: Estimate) -> float:
        priced = sum(self.prices.get(name, 0.0) * amount for name, amount in found.demand.items())
        return self.query.rate_hz * found.cost_usd_per_1000 / 1000 + priced

    def _violation(self, found: Estimate) -> float:
        slo, have = self.query.slo, self.problem.capacities()
        missed = [
            _excess(found.latency_p95_s, slo.latency_p95_s),
            _excess(slo.accuracy - found.accuracy, 0.0, unit=slo.accuracy),
            _excess(found.cost_usd_per_1000, slo.cost_usd_per_1000),
            *(_excess(amount, have[name]) for name, amount in found.demand.items()),
            *(
                _excess(least - found.metrics.get(name, 0.0), 0.0, unit=least)
                for name, least in slo.metrics.items()
            ),
        ]
        return math.fsum(missed)


def _excess(value: float, limit: float, *, unit: float | None = None) -> float:
    """By how much a value is over its limit, relative to the unit (the limit itself unless given)."""
    unit = limit if unit is None else unit
    if value <= limit:
        return 0.0
    return (value - limit) / unit if unit > 0 else math.inf
