"""What every matcher answers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from compass_coordinator.matcher.problem import Floats

REFUSED = -1
"""Choice of a query that gets no plan."""
BOUND_PRECISION = 1e-6
"""Share by which the bound of ``match`` may exceed the least that any prices prove, the optimum with
fractions, unless time runs out: cooling ends a few temperatures off the kink. With sparse demands, where many
resources are scarce, it may be some 1e-5 more. It is never below that optimum."""


class MatchStatus(Enum):
    """How far a match went."""

    OPTIMAL = "optimal"
    FEASIBLE = "feasible"
    """Stopped before it was proved optimal; the bound says how much better another choice could be."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shares:
    """The parts of divisible queries that are split over plans; entry i says how much of one plan."""

    query: NDArray[np.int64]
    """(entries,) ascending."""
    plan: NDArray[np.int64]
    """(entries,)."""
    fraction: Floats
    """(entries,) in (0, 1); those of one query sum to at most 1."""

    @classmethod
    def none(cls) -> Shares:
        """Nothing is split."""
        return cls(query=np.zeros(0, np.int64), plan=np.zeros(0, np.int64), fraction=np.zeros(0))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MatchResult:
    """One plan for each query, or none."""

    choice: NDArray[np.int64]
    """(queries,) index of the chosen plan, ``REFUSED`` for none or where the query is split."""
    shares: Shares
    """Of the queries that are split."""
    value: float
    """Sum of the chosen plans' values, by fraction where split."""
    cost: float
    """Sum of the chosen plans' costs, by fraction where split."""
    prices: Floats
    """(resources,) >= 0, value per unit of demand; zeros where the bound does not come from prices."""
    bound: float
    """No feasible choice has a larger value. Close to the least such number, see ``BOUND_PRECISION``."""
    gap: float
    """``(bound - value) / bound``; 0 where the value is optimal."""
    status: MatchStatus
