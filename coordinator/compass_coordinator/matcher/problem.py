"""What a matcher is asked: checked once, so that nothing after it has to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compass_shared.errors import PlanningError

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MatchProblem:
    """Checked input of a matcher: which plan for which query."""

    values: Floats
    """(queries, plans); -inf where a query has no such plan."""
    demands: Floats
    """(queries, plans, resources)."""
    capacities: Floats
    """(resources,)."""
    costs: Floats
    """(queries, plans)."""


def checked(
    values: ArrayLike, demands: ArrayLike, capacities: ArrayLike, costs: ArrayLike | None
) -> MatchProblem:
    """Check a matcher's input; demands and costs count only where there is a plan.

    Raises:
        PlanningError: If shapes disagree, or something is nan, infinite or negative that must not be.
    """
    problem = MatchProblem(
        values=_floats(values, "values", 2),
        demands=_floats(demands, "demands", 3),
        capacities=_floats(capacities, "capacities", 1),
        costs=np.zeros_like(_floats(values, "values", 2)) if costs is None else _floats(costs, "costs", 2),
    )
    expected = (*problem.values.shape, *problem.capacities.shape)
    if problem.demands.shape != expected:
        raise PlanningError(
            f"demands have shape {problem.demands.shape}; values and capacities need {expected}"
        )
    if problem.costs.shape != problem.values.shape:
        raise PlanningError(f"costs have shape {problem.costs.shape}; values have {problem.values.shape}")
    present = ~np.isneginf(problem.values)
    _require(np.isfinite(problem.values[present]), "values must be finite, or -inf for no plan")
    _require(np.isfinite(problem.costs[present]), "costs must be finite")
    used = problem.demands[present]
    _require(np.isfinite(used) & (used >= 0), "demands must be finite and >= 0")
    _require(
        np.isfinite(problem.capacities) & (problem.capacities >= 0), "capacities must be finite and >= 0"
    )
    return problem


def _floats(array: ArrayLike, name: str, dimensions: int) -> Floats:
    try:
        floats = np.asarray(array, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise PlanningError(f"{name} are not an array of numbers: {error}") from error
    if floats.ndim != dimensions:
        raise PlanningError(f"{name} must have {dimensions} dimensions, got shape {floats.shape}")
    return floats


def _require(holds: NDArray[np.bool_], sentence: str) -> None:
    if not holds.all():
        raise PlanningError(f"{sentence}; {int((~holds).sum())} of {holds.size} are not")
