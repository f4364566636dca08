"""The queries of a match as the algorithms want them: scaled, plan-major, in an order of their own.

Scaled: values as a share of the largest, demands as a share of the capacity, so that every capacity is 1.
Plan-major: (plans, queries), because numpy reduces fast over a leading axis and slowly over a short last one.
In an order of their own: sorted by a hash of what a query is, so that nothing depends on where the caller
put it. Queries that are alike become neighbours, and a regular sample of the order is a fair sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from compass_coordinator.matcher.problem import (
    Bools,
    Floats,
    Ints,
    MatchProblem,
    SparseDemands,
    SparseProblem,
)

SlotArrays: TypeAlias = tuple[Floats, NDArray[np.int32]]

OVERDRAFT = 1e-12
"""Share of a capacity that is rounding."""
OVERSIZE = 1e6
"""Demands beyond this many capacities count alike."""
_DENSE_RESOURCES = 16
"""Up to so many resources every plan is given a demand for each."""
_MEAN_OF = 2048
_AT_HAND = 1 << 25
"""Amounts up to which columns with sparse demands are kept."""
_BLOCK = 1 << 12
"""Queries in work at a time: beyond the cache everything takes several times as long."""

_SPARSE_BLOCK = 1 << 17


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Columns:
    """Some queries and their plans."""

    values: Floats
    """(plans, queries); -inf for a plan that cannot be used."""
    amounts: Floats
    """(slots, plans, queries) shares of a capacity, finite and 0 where there is no plan."""
    resources: NDArray[np.int32] | None
    """(slots, plans, queries) which resource; None where slot s is resource s."""
    resource_count: int

    @property
    def queries(self) -> int:
        """How many."""
        return int(self.values.shape[1])

    def take(self, which: Bools | Ints | slice) -> Columns:
        """Some of the queries."""
        resources = None if self.resources is None else self.resources[:, :, which]
        return replace(
            self, values=self.values[:, which], amounts=self.amounts[:, :, which], resources=resources
        )

    def priced(self, prices: Floats) -> Floats:
        """(plans, queries) what the demand of each plan costs."""
        if self.resources is None:
            slots, plans, queries = self.amounts.shape
            flat: Floats = prices @ self.amounts.reshape(slots, plans * queries)
            return flat.reshape(plans, queries)
        priced = np.zeros_like(self.values)
        for amount, resource in zip(self.amounts, self.resources, strict=True):
            priced += amount * prices[resource]
        return priced

    def reduced(self, prices: Floats) -> Floats:
        """(plans, queries) value beyond what the demand costs."""
        reduced: Floats = self.values - self.priced(prices)
        return reduced

    def priced_at(self, prices: Floats, plan: Ints) -> Floats:
        """(queries,) what the demand of one plan each costs."""
        each = np.arange(self.queries)
        amounts = self.amounts[:, plan, each]
        return np.asarray((amounts * _of_slot_at(prices, self.resources, plan, each)).sum(axis=0), np.float64)

    def usage(self, plan: Ints, query: Ints) -> Floats:
        """(resources,) what these plans of these queries use together."""
        amounts = self.amounts[:, plan, query]
        if self.resources is None:
            usage: Floats = amounts.sum(axis=1)
            return usage
        return summed(self.resources[:, plan, query], amounts, self.resource_count)

    def dense_amounts(self, plan: Ints, query: Ints) -> Floats:
        """(entries, resources) demands of these plans of these queries."""
        if self.resources is None:
            amounts: Floats = self.amounts[:, plan, query].T
            return amounts
        dense = np.zeros((len(plan), self.resource_count))
        rows = np.arange(len(plan))
        for slot in range(len(self.amounts)):
            # Canonical entries name a resource once, but padding may repeat it with amount 0.
            dense[rows, self.resources[slot, plan, query]] += self.amounts[slot, plan, query]
        return dense

    def sparse_amounts(self, plan: Ints, query: Ints) -> sparse.csr_array:
        """The same as a sparse matrix."""
        amounts = self.amounts[:, plan, query].T
        slots = np.arange(amounts.shape[1])
        index = slots if self.resources is None else self.resources[:, plan, query].T
        pointer = np.arange(len(plan) + 1) * amounts.shape[1]
        index = np.broadcast_to(index, amounts.shape).ravel()
        return sparse.csr_array((amounts.ravel(), index, pointer), (len(plan), self.resource_count))

    def moments(self, weights: Floats) -> tuple[Floats, Floats]:
        """Mean demand and its covariance when each query draws its plan by weights (plans, queries).

        Where every plan has a slot for each resource; see `curvature` for the others.

        Returns:
            Sums over the queries: (resources,) and (resources, resources).
        """
        slots, plans, queries = self.amounts.shape
        weighted = self.amounts * weights
        flat = weighted.reshape(slots, plans * queries)
        mean: Floats = weighted.sum(axis=1)
        total: Floats = mean.sum(axis=1)
        square: Floats = flat @ self.amounts.reshape(slots, plans * queries).T - mean @ mean.T
        return total, square


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Queries:
    """All queries of a problem, as `Columns` on demand."""

    problem: MatchProblem | SparseProblem
    order: Ints
    """(queries,) the caller's index of each."""
    dense: bool
    """Whether columns have a slot for every resource."""
    value_scale: float
    """The largest value; 1 in the columns."""
    cost_weight: float = 0.0
    """How much value one unit of cost takes from a plan; nothing at first."""
    oversize: bool = False
    """Whether plans that do not even fit alone are offered, too."""
    mean_value: float = 1.0
    """Of the queries' best plans; at most 1."""
    scarce: Ints | None = None
    """(resources of the columns,) the caller's index of each; None for all of them as they are."""
    any_oversize: bool = False
    """Whether there are such plans."""
    divisible: Bools | None = None
    """(queries,) by the caller's index, which are offered such plans in any case."""
    at_hand: Columns | None = None
    """All of them, without costs; None where columns are made when they are asked for."""

    @classmethod
    def of(cls, problem: MatchProblem | SparseProblem, divisible: Bools | None) -> Queries:
        """Scale and sort a problem's queries."""
        count = len(problem.values)
        largest = float(problem.values.max(initial=0.0))
        unsorted = cls(
            problem=problem,
            order=np.arange(count),
            dense=_is_dense(problem),
            value_scale=largest if largest > 0 else 1.0,
            oversize=True,
        )
        keys, any_oversize = np.zeros(count, np.uint64), False
        for where in unsorted._slices():
            columns = unsorted.columns(where)
            keys[where] = _hashes(columns, np.where(columns.values.T > 0, problem.costs[where], 0.0))
            any_oversize |= bool(columns.amounts.max(initial=0.0) > 1 + OVERDRAFT)
        if divisible is not None:
            keys += divisible
        queries = replace(
            unsorted,
            order=unsorted._sorted(keys),
            oversize=False,
            divisible=divisible,
            any_oversize=any_oversize,
        )
        if not queries.dense:
            scarce = np.flatnonzero(_most_used(queries) > 1 + OVERDRAFT)
            # Where nothing can run out one resource stays, so that the columns' indices have a meaning.
            queries = replace(
                queries, scarce=scarce if scarce.size else np.arange(min(1, len(problem.capacities)))
            )
        if not queries.dense and problem.values.size * max(1, queries.entries) <= _AT_HAND:
            queries = replace(queries, at_hand=_packed(queries.columns(slice(None))))
        best = queries.columns(queries.sampled(_MEAN_OF)).values.max(axis=0, initial=0.0)
        return replace(queries, mean_value=float(best.mean()) if best.any() else 1.0)

    def __len__(self) -> int:
        return len(self.order)

    def _sorted(self, keys: NDArray[np.uint64]) -> Ints:
        """The caller's indices in the order of their keys, and of equal keys in that of all the caller wrote.

        Queries whose usable plans are alike may differ in plans that cannot be used. To the algorithms they
        are the same, to the caller not: which of them is served must not depend on where they stand either.
        """
        order = np.argsort(keys, kind="stable")
        same = np.diff(keys[order]) == 0
        alike = np.sort(order[np.append(same, False) | np.append(False, same)]) if len(order) else order
        if not alike.size:
            return order
        written = np.zeros(len(keys), np.uint64)
        for start in range(0, len(alike), _BLOCK):
            rows = alike[start : start + _BLOCK]
            amounts, resources = self._amounts(rows)
            columns = Columns(
                values=self.problem.values[rows].T,
                amounts=amounts,
                resources=resources,
                resource_count=len(self.problem.capacities),
            )
            written[rows] = _hashes(columns, self.problem.costs[rows])
        return np.lexsort((written, keys))

    @property
    def entries(self) -> int:
        """Of a plan, at most, as the caller wrote them."""
        demands = self.problem.demands
        return int((demands.amounts if isinstance(demands, SparseDemands) else demands).shape[2])

    @property
    def resource_count(self) -> int:
        """Of the columns."""
        return len(self.problem.capacities) if self.scarce is None else len(self.scarce)

    @property
    def capacity_scale(self) -> Floats:
        """(the caller's resources,) what is 1 in the columns."""
        return np.where(self.problem.capacities > 0, self.problem.capacities, 1.0)

    def scaled(self, prices: Floats) -> Floats:
        """The caller's prices in those of the columns."""
        prices = prices * self.capacity_scale / self.value_scale
        return prices if self.scarce is None else prices[self.scarce]

    def unscaled(self, prices: Floats) -> Floats:
        """Prices of the columns in those of the caller; 0 for what cannot run out."""
        every = prices
        if self.scarce is not None:
            every = np.zeros(len(self.problem.capacities))
            every[self.scarce] = prices
        return every * self.value_scale / self.capacity_scale

    def sampled(self, size: int) -> Ints:
        """So many places, evenly spread; all if there are fewer."""
        size = min(size, len(self))
        return np.arange(size) * len(self) // max(size, 1)

    def blocks(self) -> Iterator[tuple[slice, Columns]]:
        """All queries in order, a few at a time."""
        for where in self._slices():
            yield where, self.columns(where)

    def blocks_of(self, places: Ints) -> tuple[Columns, ...]:
        """Some queries, a few in a block."""
        size = _BLOCK if self.dense else _SPARSE_BLOCK
        return tuple(self.columns(places[start : start + size]) for start in range(0, len(places), size))

    def _slices(self) -> Iterator[slice]:
        for start in range(0, len(self.order), _BLOCK):
            yield slice(start, min(start + _BLOCK, len(self.order)))

    def columns(self, where: slice | Ints) -> Columns:
        """The queries at some places of the order."""
        columns = self._made(where) if self.at_hand is None else self.at_hand.take(where)
        if not self.cost_weight:
            return columns
        costs = self.cost_weight * self.problem.costs[self.order[where]].T
        with np.errstate(invalid="ignore"):
            values = np.maximum(columns.values - costs, columns.values / 2)
        return replace(columns, values=np.where(np.isneginf(columns.values), -np.inf, values))

    def _made(self, where: slice | Ints) -> Columns:
        """Without costs."""
        rows = self.order[where]
        amounts, resources = self._amounts(rows)
        closed = self.problem.capacities == 0
        with np.errstate(over="ignore", invalid="ignore"):
            amounts /= _of_slot(self.capacity_scale, resources)
            values = self.problem.values[rows].T / self.value_scale
            usable = values > 0
            if closed.any():
                shut = _of_slot(closed, resources)
                usable &= ~(shut & (amounts > 0)).any(axis=0)
                amounts = np.where(shut, 0.0, amounts)
            if not self.oversize and amounts.size:
                fits = amounts.max(axis=0) <= 1 + OVERDRAFT
                usable &= fits if self.divisible is None else fits | self.divisible[rows]
        if not usable.all():
            values = np.where(usable, values, -np.inf)
            amounts = np.where(usable, amounts, 0.0)
        if resources is not None and self.scarce is not None:
            place = np.full(len(closed), -1, np.int32)
            place[self.scarce] = np.arange(len(self.scarce))
            resources = place[resources]
            amounts = np.where(resources >= 0, amounts, 0.0)
            resources = np.maximum(resources, 0)
        return Columns(
            values=np.ascontiguousarray(values),
            amounts=np.minimum(amounts, OVERSIZE, out=amounts),
            resources=resources,
            resource_count=self.resource_count,
        )

    def _amounts(self, rows: Ints) -> tuple[Floats, NDArray[np.int32] | None]:
        """Unscaled amounts by slot and, unless slot s is resource s, the resources."""
        demands, count = self.problem.demands, len(self.problem.capacities)
        if isinstance(demands, SparseDemands):
            amounts, resources = demands.amounts[rows], demands.resources[rows]
            if self.dense:
                return _spread(amounts, resources, count), None
            return _merged(amounts, resources, count)
        if self.dense:
            return np.ascontiguousarray(demands[rows].transpose(2, 1, 0)), None
        return _gathered(demands[rows])


def _packed(columns: Columns) -> Columns:
    """The same with no more slots than it takes."""
    assert columns.resources is not None
    some = columns.amounts > 0
    slots = int(some.sum(axis=0).max(initial=0))
    if slots == len(some):
        return columns
    order = np.argsort(~some, axis=0, kind="stable")[:slots]
    return replace(
        columns,
        amounts=np.take_along_axis(columns.amounts, order, axis=0),
        resources=np.take_along_axis(columns.resources, order, axis=0),
    )


def _most_used(queries: Queries) -> Floats:
    """(resources,) usage if every query took of each as much as any of its plans asks."""
    count = len(queries.problem.capacities)
    used = np.zeros(count)
    for _, columns in queries.blocks():
        if columns.resources is None or not columns.amounts.size:
            continue
        cell = columns.resources + np.arange(columns.queries, dtype=np.int64) * count
        order = np.argsort(cell, axis=None)
        cells = cell.ravel()[order]
        first = np.flatnonzero(np.diff(cells, prepend=-1))
        used += summed(
            cells[first] % count, np.maximum.reduceat(columns.amounts.ravel()[order], first), count
        )
    return used


def summed(index: NDArray[np.integer], numbers: Floats, count: int) -> Floats:
    """(count,) sums of the numbers that have the same index."""
    return np.bincount(index.ravel(), numbers.ravel(), minlength=count).astype(np.float64, copy=False)


def _is_dense(problem: MatchProblem | SparseProblem) -> bool:
    count = len(problem.capacities)
    if count <= _DENSE_RESOURCES:
        return True
    if isinstance(problem.demands, SparseDemands):
        entries = problem.demands.amounts.shape[2]
    else:
        entries = int((problem.demands > 0).sum(axis=2).max(initial=0))
    return bool(2 * entries > count)


def _of_slot(of_resource: NDArray[Any], resources: NDArray[np.int32] | None) -> NDArray[Any]:
    """What belongs to each slot's resource, to go with amounts."""
    return of_resource[:, np.newaxis, np.newaxis] if resources is None else of_resource[resources]


def _of_slot_at(of_resource: Floats, resources: NDArray[np.int32] | None, plan: Ints, query: Ints) -> Floats:
    return of_resource[:, np.newaxis] if resources is None else of_resource[resources[:, plan, query]]


def _spread(amounts: Floats, resources: NDArray[np.integer], count: int) -> Floats:
    """(resources, plans, queries) from sparse entries."""
    queries, plans, _ = amounts.shape
    cell = (resources.astype(np.int64) * plans + np.arange(plans)[:, np.newaxis]) * queries
    cell += np.arange(queries)[:, np.newaxis, np.newaxis]
    return summed(cell, amounts, count * plans * queries).reshape(count, plans, queries)


def _merged(amounts: Floats, resources: NDArray[np.integer], count: int) -> SlotArrays:
    """Sparse entries by ascending resource, each resource once."""
    named = np.where(amounts > 0, resources, count).astype(np.int32)
    by_resource = np.argsort(named, axis=2, kind="stable")
    named = np.take_along_axis(named, by_resource, axis=2)
    merged = np.take_along_axis(amounts, by_resource, axis=2)
    for slot in range(1, named.shape[2]):
        twice = named[..., slot] == named[..., slot - 1]
        merged[..., slot] += np.where(twice, merged[..., slot - 1], 0.0)
        merged[..., slot - 1][twice] = 0.0
    named[named == count] = 0
    return np.ascontiguousarray(merged.transpose(2, 1, 0)), np.ascontiguousarray(named.transpose(2, 1, 0))


def _gathered(demands: Floats) -> SlotArrays:
    """The entries of dense demands that are not 0, by ascending resource."""
    entries = int((demands > 0).sum(axis=2).max(initial=0))
    named = np.argsort(~(demands > 0), axis=2, kind="stable")[..., :entries]
    amounts = np.take_along_axis(demands, named, axis=2)
    named[~(amounts > 0)] = 0
    return (
        np.ascontiguousarray(amounts.transpose(2, 1, 0)),
        np.ascontiguousarray(named.transpose(2, 1, 0).astype(np.int32)),
    )


def _hashes(columns: Columns, costs: Floats) -> NDArray[np.uint64]:
    """(queries,) the same for queries with the same plans, and hardly ever for others."""
    plans, queries = columns.values.shape
    keys = np.zeros(queries, np.uint64)
    resource: Any
    for plan in range(plans):
        keys += _mixed(columns.values[plan], plan)
        keys += _mixed(costs[:, plan], plans + plan)
        for slot, amounts in enumerate(columns.amounts[:, plan]):
            resource = slot if columns.resources is None else columns.resources[slot, plan].astype(np.uint64)
            # Nothing for 0: it may be written out or not.
            keys += np.where(amounts > 0, _mixed(amounts, (2 + resource) * plans + plan), 0)
    return keys


def _mixed(numbers: Floats, salt: Any) -> NDArray[np.uint64]:
    """Scatter the bits of numbers (splitmix64)."""
    bits: NDArray[np.uint64] = np.ascontiguousarray(numbers + 0.0).view(np.uint64)
    bits = bits + np.uint64(0x9E3779B97F4A7C15) * np.asarray(salt, np.uint64)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return bits
