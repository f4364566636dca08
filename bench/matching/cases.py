"""Matching problems to measure on: several kinds, sizes and levels of contention, each from a seed.

random       values and demands are independent
correlated   a plan's value is its mean demand, give or take a tenth: no plan is a bargain
subset-sum   a plan's value is its mean demand plus a constant, in whole numbers: the classic hard knapsack
fleet        every plan of a query is worth the query's weight; plans trade one resource for another
edge         a fleet with hundreds of edge servers, of which each query reaches three (sparse)

The capacities are a share (the level) of what it would take to serve every query by its favourite plan, the
cheapest of its most valuable ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Floats = NDArray[np.float64]

LEVELS = (0.2, 0.5, 0.8)
SMALL_KINDS = ("random", "correlated", "subset-sum", "fleet")
REACHED = 3
"""Edge servers that a query of the edge kind reaches."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Case:
    """One matching problem, in the arguments of a matcher."""

    kind: str
    level: float
    seed: int
    values: Floats
    """(queries, plans)."""
    amounts: Floats
    """(queries, plans, entries) demands; dense if ``resources`` is None: one entry for each resource."""
    resources: NDArray[np.int64] | None
    """(queries, plans, entries) the resource of each entry."""
    capacities: Floats
    """(resources,)."""
    costs: Floats
    """(queries, plans)."""

    @property
    def name(self) -> str:
        return f"{self.kind} {self.level:g}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Queries, plans, resources."""
        return (*self.values.shape, len(self.capacities))

    @property
    def recipe(self) -> dict[str, Any]:
        """Arguments of `make` that make it again."""
        queries, plans, resources = self.shape
        shape = {"queries": queries, "plans": plans, "resources": resources}
        return {"kind": self.kind, **shape, "level": self.level, "seed": self.seed}

    def part(self, queries: NDArray[np.int64], capacities: Floats) -> Case:
        """Some of the queries, with capacities of their own."""
        return Case(
            kind=self.kind,
            level=self.level,
            seed=self.seed,
            values=self.values[queries],
            amounts=self.amounts[queries],
            resources=None if self.resources is None else self.resources[queries],
            capacities=capacities,
            costs=self.costs[queries],
        )

    def rows(self) -> sparse.csr_array:
        """(resources, queries x plans) demands as shares of the capacities."""
        queries, plans, resources = self.shape
        columns = queries * plans
        shares = self.amounts.reshape(columns, -1)
        if self.resources is None:
            return sparse.csr_array(sparse.csc_array(shares.T / self.capacities[:, np.newaxis]))
        row = self.resources.reshape(-1)
        column = np.repeat(np.arange(columns), shares.shape[1])
        share = shares.reshape(-1) / self.capacities[row]
        return sparse.csr_array((share, (row, column)), shape=(resources, columns))

    def used(self, choice: NDArray[np.int64]) -> Floats:
        """(resources,) what a choice asks for."""
        served = np.flatnonzero(choice >= 0)
        return _total(self.amounts, self.resources, served, choice[served], len(self.capacities))

    def value_of(self, choice: NDArray[np.int64]) -> float:
        """Total value of a choice, after a check that it fits.

        Raises:
            ValueError: If the choice overdraws a capacity.
        """
        excess = float((self.used(choice) / self.capacities).max(initial=0.0)) - 1
        if excess > 1e-9:
            raise ValueError(f"the choice overdraws a capacity by {excess:.2e} of it")
        served = np.flatnonzero(choice >= 0)
        return float(self.values[served, choice[served]].sum())


def make(kind: str, queries: int, plans: int, resources: int, *, level: float, seed: int = 0) -> Case:
    """A case of one of ``KINDS``."""
    rng = np.random.default_rng([seed, queries, plans, resources, sorted(KINDS).index(kind)])
    values, amounts, reached, costs = KINDS[kind](rng, queries, plans, resources)
    ties = values == values.max(axis=1, keepdims=True)
    favourite = np.where(ties, costs, np.inf).argmin(axis=1)
    needed = _total(amounts, reached, np.arange(queries), favourite, resources)
    # A resource that no favourite needs still has something to offer.
    needed = np.where(needed > 0, needed, needed.mean())
    return Case(
        kind=kind,
        level=level,
        seed=seed,
        values=values,
        amounts=amounts,
        resources=reached,
        capacities=level * needed,
        costs=costs,
    )


def small_hard(count: int, *, seed: int = 0) -> Iterator[Case]:
    """Cases of tens of queries and tens of scarce resources: the LP bound is far from every choice."""
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        yield make(
            SMALL_KINDS[number % len(SMALL_KINDS)],
            queries=int(rng.integers(20, 61)),
            plans=int(rng.integers(4, 11)),
            resources=int(rng.integers(10, 41)),
            level=LEVELS[number // len(SMALL_KINDS) % len(LEVELS)],
            seed=seed * count + number,
        )


Arrays = tuple[Floats, Floats, NDArray[np.int64] | None, Floats]


def _random(rng: np.random.Generator, queries: int, plans: int, resources: int) -> Arrays:
    amounts = rng.random((queries, plans, resources))
    return rng.uniform(0.1, 1.0, (queries, plans)), amounts, None, rng.random((queries, plans))


def _correlated(rng: np.random.Generator, queries: int, plans: int, resources: int) -> Arrays:
    amounts = rng.random((queries, plans, resources))
    values = amounts.mean(axis=2) * rng.uniform(0.9, 1.1, (queries, plans))
    return values, amounts, None, rng.random((queries, plans))


def _subset_sum(rng: np.random.Generator, queries: int, plans: int, resources: int) -> Arrays:
    amounts = rng.integers(1, 1001, (queries, plans, resources)).astype(np.float64)
    values = np.rint(amounts.mean(axis=2)) + 100.0
    return values, amounts, None, rng.random((queries, plans))


def _fleet(rng: np.random.Generator, queries: int, plans: int, resources: int) -> Arrays:
    weights, work = _weights_and_work(rng, queries)
    split = rng.gamma(0.5, size=(queries, plans, resources))
    split /= split.sum(axis=2, keepdims=True)
    amounts = split * (work * rng.uniform(0.7, 1.3, (queries, plans)))[..., np.newaxis]
    prices = rng.uniform(0.5, 2.0, resources)
    return np.repeat(weights, plans, axis=1), amounts, None, amounts @ prices


def _edge(rng: np.random.Generator, queries: int, plans: int, resources: int) -> Arrays:
    """Entries of a plan: one edge server in reach, the cloud pool, the uplink."""
    weights, work = _weights_and_work(rng, queries)
    cloud, uplink, edges = resources - 2, resources - 1, resources - 2
    near = rng.integers(edges, size=(queries, 1)) + rng.integers(REACHED, size=(queries, plans))
    reached = np.empty((queries, plans, 3), dtype=np.int64)
    reached[..., 0], reached[..., 1], reached[..., 2] = near % edges, cloud, uplink
    local = rng.random((queries, plans))
    amounts = np.empty((queries, plans, 3))
    amounts[..., 0] = work * local
    amounts[..., 1] = work * (1 - local)
    amounts[..., 2] = (1 - local) * rng.uniform(0.2, 2.0, (queries, plans))
    return np.repeat(weights, plans, axis=1), amounts, reached, amounts @ np.array([1.0, 1.5, 0.2])


KINDS: Mapping[str, Callable[[np.random.Generator, int, int, int], Arrays]] = {
    "random": _random,
    "correlated": _correlated,
    "subset-sum": _subset_sum,
    "fleet": _fleet,
    "edge": _edge,
}


def _weights_and_work(rng: np.random.Generator, queries: int) -> tuple[Floats, Floats]:
    """(queries, 1) each: a few classes of weight, and work that spreads over an order of magnitude."""
    return rng.choice([1.0, 2.0, 4.0], size=(queries, 1)), rng.lognormal(0.0, 0.7, (queries, 1))


def _total(
    amounts: Floats,
    resources: NDArray[np.int64] | None,
    queries: NDArray[np.int64],
    plans: NDArray[np.int64],
    count: int,
) -> Floats:
    asked = amounts[queries, plans]
    if resources is None:
        return np.asarray(asked.sum(axis=0))
    weighted = np.bincount(resources[queries, plans].ravel(), asked.ravel(), minlength=count)
    return weighted.astype(np.float64)
