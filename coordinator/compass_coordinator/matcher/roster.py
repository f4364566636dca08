"""Who is there: the queries of an online matcher and their plans, in arrays that grow and shrink in place.

Row = one query. A row that leaves is overwritten by the last one, so that the rows in use are always the
first ones and every array can be handed to a matcher as a view. Arrays double when they are full and halve
when three quarters are empty, so adding and removing cost the size of one row on average.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from compass_coordinator.matcher.problem import Floats
from compass_coordinator.matcher.result import REFUSED
from compass_shared.errors import PlanningError

_LEAST_ROWS = 16
_Scalar = TypeVar("_Scalar", np.float64, np.int64)


class Roster:
    """Queries by name; every array is a view of the rows in use.

    Args:
        resources: Number of shared resources.
    """

    def __init__(self, resources: int) -> None:
        self._names: list[str] = []
        self._rows: dict[str, int] = {}
        self._arrived = 0
        self._values = np.full((_LEAST_ROWS, 1), -np.inf)
        self._demands = np.zeros((_LEAST_ROWS, 1, resources))
        self._costs = np.zeros((_LEAST_ROWS, 1))
        self._weights = np.ones(_LEAST_ROWS)
        self._choice = np.full(_LEAST_ROWS, REFUSED, dtype=np.int64)
        self._waited = np.zeros(_LEAST_ROWS, dtype=np.int64)
        self._arrival = np.zeros(_LEAST_ROWS, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    @property
    def values(self) -> Floats:
        """(queries, plans), -inf where a query has no such plan."""
        return self._values[: len(self)]

    @property
    def demands(self) -> Floats:
        """(queries, plans, resources)."""
        return self._demands[: len(self)]

    @property
    def costs(self) -> Floats:
        """(queries, plans)."""
        return self._costs[: len(self)]

    @property
    def weights(self) -> Floats:
        """(queries,) fairness weight, a factor of the values."""
        return self._weights[: len(self)]

    @property
    def choice(self) -> NDArray[np.int64]:
        """(queries,) plan in force, or ``REFUSED``."""
        return self._choice[: len(self)]

    @property
    def waited(self) -> NDArray[np.int64]:
        """(queries,) rounds in a row that ended with the query refused."""
        return self._waited[: len(self)]

    @property
    def arrival(self) -> NDArray[np.int64]:
        """(queries,) who came first has the lower number."""
        return self._arrival[: len(self)]

    def name(self, row: int) -> str:
        """Name of the query in a row."""
        return self._names[row]

    def row(self, name: str) -> int:
        """Row of a query, until the next one leaves.

        Raises:
            PlanningError: If there is no such query.
        """
        row = self._rows.get(name)
        if row is None:
            raise PlanningError(f"query {name!r} is not in the match; admit it first")
        return row

    def add(self, name: str, values: Floats, demands: Floats, costs: Floats, weight: float) -> int:
        """Append a query, refused so far, and return its row.

        Raises:
            PlanningError: If a query of this name is there already.
        """
        if name in self._rows:
            raise PlanningError(
                f"query {name!r} is in the match already; withdraw it before it is admitted again"
            )
        row, plans = len(self), len(values)
        if row == len(self._values) or plans > self._values.shape[1]:
            self._reshape(2 * row if row == len(self._values) else len(self._values), plans)
        self._values[row] = -np.inf
        self._values[row, :plans] = values
        self._demands[row] = 0.0
        self._demands[row, :plans] = demands
        self._costs[row] = 0.0
        self._costs[row, :plans] = costs
        self._weights[row] = weight
        self._choice[row] = REFUSED
        self._waited[row] = 0
        self._arrival[row] = self._arrived
        self._arrived += 1
        self._names.append(name)
        self._rows[name] = row
        return row

    def remove(self, name: str) -> None:
        """Take a query out; the last row moves into its place.

        Raises:
            PlanningError: If there is no such query.
        """
        row = self.row(name)
        last = len(self) - 1
        for array in self._arrays():
            array[row] = array[last]
        self._names[row] = self._names[last]
        self._rows[self._names[row]] = row
        self._names.pop()
        del self._rows[name]
        if len(self._values) > _LEAST_ROWS and 4 * last <= len(self._values):
            self._reshape(len(self._values) // 2, self._values.shape[1])

    def _arrays(self) -> tuple[NDArray[np.float64] | NDArray[np.int64], ...]:
        return (
            self._values,
            self._demands,
            self._costs,
            self._weights,
            self._choice,
            self._waited,
            self._arrival,
        )

    def _reshape(self, rows: int, plans: int) -> None:
        plans = max(plans, self._values.shape[1])
        used, width = len(self), self._values.shape[1]
        values, demands, costs = self._values, self._demands, self._costs
        self._values = np.full((rows, plans), -np.inf)
        self._values[:used, :width] = values[:used]
        self._demands = np.zeros((rows, plans, demands.shape[2]))
        self._demands[:used, :width] = demands[:used]
        self._costs = np.zeros((rows, plans))
        self._costs[:used, :width] = costs[:used]
        self._weights = _resized(self._weights, used, rows)
        self._choice = _resized(self._choice, used, rows)
        self._waited = _resized(self._waited, used, rows)
        self._arrival = _resized(self._arrival, used, rows)


def _resized(array: NDArray[_Scalar], used: int, rows: int) -> NDArray[_Scalar]:
    resized = np.zeros(rows, dtype=array.dtype)
    resized[:used] = array[:used]
    return resized
