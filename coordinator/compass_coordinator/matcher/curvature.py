"""The smooth dual of sparse demands: value, slope and curvature in a handful of passes over what is there.

Each plan touches a few of many resources and many plans are missing, so everything is flat: the plans there
are, one query after another; their entries; the pairs of entries of one plan, and of resources of one query.
Which pair adds to which element of the curvature does not depend on prices, and is found once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import splu

from compass_coordinator.matcher.columns import Columns, summed
from compass_coordinator.matcher.problem import Floats, Ints

Curvature: TypeAlias = "Floats | sparse.csc_array"

_DENSE = 150
"""Resources up to which a dense solver is faster."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pattern:
    """Some queries, flat."""

    resource_count: int
    values: Floats
    """(plans,) of all queries that have any, one query after another."""
    query: Ints
    """(plans,) whose each is, numbered without gaps."""
    first: Ints
    """(queries,) the first plan of each."""
    plan: Ints
    """(entries,) of which plan each is."""
    resource: Ints
    """(entries,)."""
    amount: Floats
    """(entries,) > 0."""
    mean: Ints
    """(entries,) to which pair of query and resource each adds."""
    of_plans: tuple[Ints, Floats, Ints]
    """(pairs of entries of one plan,) the plan, the product of the amounts, the element."""
    of_queries: tuple[Ints, Ints, Ints]
    """(pairs of resources of one query,) the two, the element."""
    typical: Floats
    """(resources,) mean amount."""
    elements: tuple[Ints, Ints]
    """Row of each element, and (resources + 1,) where columns start."""

    @classmethod
    def of(cls, columns: Columns) -> Pattern:
        """Of sparse columns."""
        assert columns.resources is not None
        count = columns.resource_count
        which, plan = np.nonzero(~np.isneginf(columns.values.T))
        first = np.flatnonzero(np.diff(which, prepend=-1))
        query = np.cumsum(np.diff(which, prepend=-1) > 0) - 1
        amounts = columns.amounts[:, plan, which].T
        entry, slot = np.nonzero(amounts)
        resource = columns.resources[slot, plan[entry], which[entry]].astype(np.int64)
        amount = amounts[entry, slot]
        met, mean = np.unique(query[entry] * count + resource, return_inverse=True)
        one, other = _pairs(entry)
        left, right = _pairs(met // count)
        keys = np.concatenate(
            [resource[one] * count + resource[other], met[left] % count * count + met[right] % count]
        )
        cells, element = np.unique(keys, return_inverse=True)
        return cls(
            resource_count=count,
            values=columns.values[plan, which],
            query=query,
            first=first,
            plan=entry,
            resource=resource,
            amount=amount,
            mean=mean,
            of_plans=(entry[one], amount[one] * amount[other], element[: len(one)]),
            of_queries=(left, right, element[len(one) :]),
            typical=summed(resource, amount, count) / np.maximum(np.bincount(resource, minlength=count), 1),
            elements=(cells % count, np.searchsorted(cells, np.arange(count + 1) * count)),
        )

    def reduced(self, prices: Floats) -> Floats:
        """(plans,) value beyond what the demand costs."""
        return self.values - summed(self.plan, self.amount * prices[self.resource], len(self.values))

    def evaluated(self, prices: Floats, temperature: float) -> tuple[float, Floats, Floats]:
        """Sum of the smooth maxima, mean usage, and the probability of each plan."""
        reduced = self.reduced(prices)
        if not len(reduced):
            return 0.0, np.zeros(self.resource_count), reduced
        best = np.maximum(np.maximum.reduceat(reduced, self.first), 0.0)
        weights = np.exp((reduced - best[self.query]) / temperature)
        total = np.add.reduceat(weights, self.first) + np.exp(-best / temperature)
        weights /= total[self.query]
        usage = summed(self.resource, weights[self.plan] * self.amount, self.resource_count)
        return float(best.sum() + temperature * np.log(total).sum()), usage, weights

    def covariance(self, weights: Floats) -> sparse.csc_array:
        """(resources, resources) of the demand, summed over the queries."""
        plan, product, element = self.of_plans
        size = len(self.elements[0])
        covariance = summed(element, weights[plan] * product, size)
        mean = summed(self.mean, weights[self.plan] * self.amount, int(self.mean.max(initial=-1)) + 1)
        left, right, element = self.of_queries
        covariance -= summed(element, mean[left] * mean[right], size)
        return sparse.csc_array((covariance, *self.elements), shape=(self.resource_count,) * 2)


def _pairs(group: Ints) -> tuple[Ints, Ints]:
    """All ordered pairs, with themselves, of what is in the same group; groups ascending."""
    first = np.flatnonzero(np.diff(group, prepend=-1))
    size = np.diff(first, append=len(group))
    each = np.repeat(size, size)
    one = np.repeat(np.arange(len(group)), each)
    ahead = np.arange(len(one)) - np.repeat(np.cumsum(each) - each, each)
    return one, np.repeat(np.repeat(first, size), each) + ahead


def solved(matrix: Curvature, diagonal: Floats, right: Floats, ridge: float) -> Floats:
    """Solve (matrix + diagonal) x = right; nan where that fails.

    Args:
        matrix: Positive semidefinite up to rounding.
        diagonal: > 0.
        right: Of the equations.
        ridge: Added to the diagonal, as a share of it.
    """
    size = np.sqrt(np.maximum(matrix.diagonal(), 0.0) + diagonal)
    try:
        if isinstance(matrix, np.ndarray):
            scaled = matrix / np.outer(size, size)
            np.fill_diagonal(scaled, 1.0 + ridge)
            return np.asarray(np.linalg.solve(scaled, right / size), np.float64) / size
        scale = sparse.diags_array(1 / size)
        system = scale @ matrix @ scale
        system.setdiag(1.0 + ridge)
        factors = splu(
            system.tocsc(), permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}, diag_pivot_thresh=0.0
        )
        return np.asarray(factors.solve(right / size), np.float64) / size
    except (np.linalg.LinAlgError, RuntimeError):
        return np.full_like(right, np.nan)


def joined(parts: list[sparse.csc_array], factor: float) -> Curvature:
    """The sum of the parts, times a factor; dense where there are few resources."""
    total: sparse.csc_array = sum(parts[1:], start=parts[0]) * factor
    return np.asarray(total.toarray(), np.float64) if total.shape[0] <= _DENSE else total


def stretched(matrix: Curvature, by: Floats) -> Curvature:
    """Rows and columns multiplied."""
    if isinstance(matrix, np.ndarray):
        return matrix * np.outer(by, by)
    row, column = matrix.indices, np.repeat(np.arange(len(by)), np.diff(matrix.indptr))
    return sparse.csc_array((matrix.data * by[row] * by[column], row, matrix.indptr), shape=matrix.shape)


def with_diagonal(matrix: Curvature, diagonal: Floats) -> Curvature:
    """The matrix with a diagonal added."""
    if isinstance(matrix, np.ndarray):
        return matrix + np.diag(diagonal)
    shifted: sparse.csc_array = (matrix + sparse.diags_array(diagonal)).tocsc()
    return shifted
