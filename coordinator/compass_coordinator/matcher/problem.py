"""What a matcher is asked: checked once, so that nothing after it has to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compass_shared.errors import PlanningError

Floats: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]
Ints: TypeAlias = NDArray[np.int64]

_BLOCK_BYTES = 1 << 18
"""Arrays are checked in pieces that stay in the cache."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SparseDemands:
    """Demands where each plan touches a few of many resources.

    Entry s of a plan asks ``amounts[..., s]`` of resource ``resources[..., s]``. Entries that a plan does
    not need have amount 0 and any valid resource; the same resource may occur twice, then they add.
    """

    resources: NDArray[np.integer]
    """(queries, plans, entries) integer."""
    amounts: Floats
    """(queries, plans, entries), >= 0, in the units of the capacities."""


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SparseProblem:
    """The same with sparse demands."""

    values: Floats
    demands: SparseDemands
    capacities: Floats
    costs: Floats

    def dense(self) -> MatchProblem:
        """The same problem with all demands written out; for small ones."""
        queries, plans, _ = self.demands.amounts.shape
        demands = np.zeros((queries, plans, len(self.capacities)))
        rows, columns = np.indices((queries, plans))
        present = ~np.isneginf(self.values)
        for entry in range(self.demands.amounts.shape[2]):
            # One entry of every plan at a time touches no element twice.
            demands[rows, columns, self.demands.resources[..., entry]] += np.where(
                present, self.demands.amounts[..., entry], 0.0
            )
        return MatchProblem(values=self.values, demands=demands, capacities=self.capacities, costs=self.costs)


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
        costs=_costs(costs, values),
    )
    expected = (*problem.values.shape, *problem.capacities.shape)
    if problem.demands.shape != expected:
        raise PlanningError(
            f"demands have shape {problem.demands.shape}; values and capacities need {expected}"
        )
    _check(problem.values, problem.demands, problem.capacities, problem.costs)
    return problem


def checked_sparse(
    values: ArrayLike, demands: SparseDemands, capacities: ArrayLike, costs: ArrayLike | None
) -> SparseProblem:
    """Check a matcher's input with sparse demands, as `checked` does.

    Raises:
        PlanningError: As there, or if an entry names a resource that does not exist.
    """
    resources = np.asarray(demands.resources)
    if not np.issubdtype(resources.dtype, np.integer):
        raise PlanningError(f"resources of sparse demands must be integers, got {resources.dtype}")
    problem = SparseProblem(
        values=_floats(values, "values", 2),
        demands=SparseDemands(resources=resources, amounts=_floats(demands.amounts, "demands", 3)),
        capacities=_floats(capacities, "capacities", 1),
        costs=_costs(costs, values),
    )
    shape = problem.demands.amounts.shape
    if shape[:2] != problem.values.shape:
        raise PlanningError(f"demands have shape {shape}; values have {problem.values.shape}")
    if resources.shape != shape:
        raise PlanningError(f"resources have shape {resources.shape}; amounts have {shape}")
    if resources.size and not (resources.min() >= 0 and resources.max() < len(problem.capacities)):
        raise PlanningError(
            f"resources must be in 0..{len(problem.capacities) - 1}, got {resources.min()}..{resources.max()}"
        )
    _check(problem.values, problem.demands.amounts, problem.capacities, problem.costs)
    return problem


def checked_divisible(divisible: ArrayLike | None, queries: int) -> Bools | None:
    """Which queries may be split, None if none may.

    Raises:
        PlanningError: If it is not one truth value a query.
    """
    if divisible is None:
        return None
    array = np.asarray(divisible)
    if array.dtype != np.bool_ or array.shape != (queries,):
        raise PlanningError(f"divisible must be {queries} bools, got {array.dtype} of shape {array.shape}")
    return array if array.any() else None


_HIGHEST_PRICE = 1e150
"""Of those to start from: what such a price is multiplied with must not overflow."""


def checked_prices(prices: ArrayLike, problem: MatchProblem | SparseProblem) -> Floats:
    """Prices to start from.

    Raises:
        PlanningError: If they are not one finite price >= 0 a resource.
    """
    array = _floats(prices, "warm_prices", 1)
    if array.shape != problem.capacities.shape:
        raise PlanningError(
            f"warm_prices have shape {array.shape}; capacities have {problem.capacities.shape}"
        )
    _require(
        (array >= 0) & (array <= _HIGHEST_PRICE), f"warm_prices must be finite and in 0..{_HIGHEST_PRICE:g}"
    )
    return array


def _check(values: Floats, demands: Floats, capacities: Floats, costs: Floats) -> None:
    if costs.shape != values.shape:
        raise PlanningError(f"costs have shape {costs.shape}; values have {values.shape}")
    present = ~np.isneginf(values)
    _require(np.isfinite(values[present]), "values must be finite, or -inf for no plan")
    if not _within(costs, -np.inf):
        _require(np.isfinite(costs[present]), "costs must be finite")
    if not _within(demands, 0.0):
        used = demands[present]
        _require(np.isfinite(used) & (used >= 0), "demands must be finite and >= 0")
    _require(np.isfinite(capacities) & (capacities >= 0), "capacities must be finite and >= 0")


def _within(array: Floats, least: float) -> bool:
    """Whether everything is finite and at least ``least``, plans that are none included."""
    for piece in _pieces(array):
        lowest, highest = piece.min(), piece.max()
        if not (lowest >= least and np.isfinite(lowest) and np.isfinite(highest)):
            return False
    return True


def _pieces(array: Floats) -> Iterator[Floats]:
    if not array.size:
        return
    rows = max(1, _BLOCK_BYTES // max(1, array[0].nbytes))
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


def _costs(costs: ArrayLike | None, values: ArrayLike) -> Floats:
    if costs is not None:
        return _floats(costs, "costs", 2)
    # No costs take no memory.
    return np.broadcast_to(np.float64(0.0), _floats(values, "values", 2).shape)


def _floats(array: ArrayLike, name: str, dimensions: int) -> Floats:
    try:
        floats = np.asarray(array, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise PlanningError(f"{name} are not an array of numbers: {error}") from error
    if floats.ndim != dimensions:
        raise PlanningError(f"{name} must have {dimensions} dimensions, got shape {floats.shape}")
    return floats


def _require(holds: Bools, sentence: str) -> None:
    if not holds.all():
        raise PlanningError(f"{sentence}; {int((~holds).sum())} of {holds.size} are not")
