"""How good a method's knowledge is: the figures of the bench, from its estimates and the truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compass_coordinator.estimator import Floats
from profiling.plans import Figures, Priced
from profiling.queries import TOLERANCE, Decisions
from profiling.replay import Replay

CONFIDENCE = 0.95
Z = 1.959963984540054
"""Two-sided, for that confidence."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Knowledge:
    """What a method believes."""

    mean: Floats
    """(C,) accuracy that it plans with; nan where it would not dare to choose the config."""
    low: Floats
    """(C,) of an interval with confidence ``CONFIDENCE``."""
    high: Floats
    figures: Figures
    """Of operators, from its own runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """What that knowledge is worth; shares in [0, 1]."""

    spent_s: float
    """Operator-seconds."""
    spent_share: float
    """Of all configs on all inputs with nothing reused."""
    spent_share_reused: float
    """Of the same, where no operator runs twice on the same content."""
    right: float
    """Queries that are planned as well as the truth would, within ``TOLERANCE`` in cost; refusing what cannot
    be served is right."""
    right_timed: float
    """The same, if operators' times were known exactly: what errors of accuracy alone cost."""
    right_feasible: float
    """``right`` among the queries that can be served."""
    violated: float
    """Plans that miss their SLO though the estimates said otherwise, of all plans."""
    largest_error: float
    mean_error: float
    coverage: float
    """Configs whose interval holds the truth."""
    width: float
    """Mean of all intervals."""
    sampled: int
    """Configs with a score."""
    coverage_sampled: float
    width_sampled: float
    classical_width: float
    """Mean over all configs of what the same scores give each config alone, 1 where it has fewer than two."""
    classical_width_sampled: float


def judge(decisions: Decisions, replay: Replay, known: Knowledge) -> Quality:
    """Compare what is known with the truth."""
    truth = decisions.truth
    error = np.abs(np.where(np.isnan(known.mean), _fallback(known.mean), known.mean) - truth.accuracy)
    holds = (known.low <= truth.accuracy + 1e-9) & (truth.accuracy - 1e-9 <= known.high)
    width = known.high - known.low
    sampled = replay.measured.any(axis=0)
    _, classical_low, classical_high = replay.classical(Z)
    classical = classical_high - classical_low
    right, violated = _choices(decisions, known.mean, decisions.plans.priced(known.figures))
    right_timed, _ = _choices(decisions, known.mean, decisions.priced)
    feasible = decisions.feasible
    return Quality(
        spent_s=replay.spent_s,
        spent_share=replay.spent_s / truth.exhaustive_s,
        spent_share_reused=replay.spent_s / truth.reused_s,
        right=float(right.mean()),
        right_timed=float(right_timed.mean()),
        right_feasible=float(right[feasible].mean()),
        violated=violated,
        largest_error=float(error.max()),
        mean_error=float(error.mean()),
        coverage=float(holds.mean()),
        width=float(width.mean()),
        sampled=int(sampled.sum()),
        coverage_sampled=_mean(holds[sampled]),
        width_sampled=_mean(width[sampled]),
        classical_width=float(classical.mean()),
        classical_width_sampled=_mean(classical[sampled]),
    )


def _choices(decisions: Decisions, mean: Floats, priced: Priced) -> tuple[np.ndarray, float]:
    """Which queries (Q,) are planned right, and the share of plans that violate their SLO."""
    cost = np.where(mean >= decisions.needed[:, np.newaxis], priced.cost, np.inf)
    rows, config = np.arange(len(cost)), cost.argmin(axis=1)
    planned = np.isfinite(cost[rows, config])
    accurate = decisions.truth.accuracy[config] >= decisions.needed
    paid = decisions.plans.serving(decisions.figures, config, priced.placement[rows, config])
    cheap = decisions.feasible & (paid <= (1 + TOLERANCE) * decisions.best_cost)
    right = np.where(planned, accurate & cheap, ~decisions.feasible)
    violating = planned & ~(accurate & np.isfinite(paid))
    return right, float(violating.sum() / max(1, planned.sum()))


def _fallback(mean: Floats) -> float:
    """What a method says of configs that it knows nothing of."""
    known = mean[~np.isnan(mean)]
    return float(known.mean()) if len(known) else 0.5


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")
