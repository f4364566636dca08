"""Whether and how one query can join others, judged at the load that would result.

A plan is good for a query if it meets the SLO *and everybody else's plans still meet theirs*, with the waits
that all of them cause together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from compass_coordinator.estimator import Floats, PlanSpace, latency, waits_joining
from compass_coordinator.planner.refusal import Binding, Refusal
from compass_shared.plan import Plan
from compass_shared.problem import Problem
from compass_shared.query import Query
from compass_shared.queueing import SiteMix, total_mix

_SLACK = 1e-12
"""Relative; kept free of capacities, so that sums in another order do not overdraw them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choice:
    """One plan of one query, by its place among other plans."""

    query: Query
    space: PlanSpace
    row: int

    @property
    def cost_usd_per_s(self) -> float:
        """Cost at the query's rate."""
        return self.query.rate_hz * float(self.space.cost_usd[self.row])

    def plan(self) -> Plan:
        """The plan, without an estimate."""
        return self.space.plan(self.row)

    def demand(self) -> dict[str, float]:
        """Resource -> demand at the query's rate."""
        usage = self.query.rate_hz * self.space.usage[self.row]
        return {name: float(amount) for name, amount in zip(self.space.resources, usage, strict=True)}


Choices: TypeAlias = Mapping[str, Choice]
"""Query name -> choice, for the queries that have one."""


def mixes(chosen: Choices) -> dict[str, SiteMix]:
    """What the chosen plans bring to each site."""
    brought: dict[str, list[SiteMix]] = {}
    for choice in chosen.values():
        for at, site in enumerate(choice.space.sites):
            rate_hz = choice.query.rate_hz
            brought.setdefault(site, []).append(
                SiteMix(
                    busy_cores=rate_hz * float(choice.space.busy_s[at, choice.row]),
                    second_moment_s=rate_hz * float(choice.space.second_moment_s2[at, choice.row]),
                )
            )
    return {site: total_mix(found) for site, found in brought.items()}


def best_choice(problem: Problem, query: Query, space: PlanSpace, others: Choices) -> Choice | None:
    """The cheapest plan with which a query can join others, everybody's SLO met at the load that results.

    Of equally cheap ones the more accurate, then the faster.
    """
    rows = np.flatnonzero(_fits(problem, query, space, others))
    for meets in (_own_slo_met, _other_slos_met):
        rows = rows[meets(problem, query, space.take(rows), others)]
    if not rows.size:
        return None
    order = np.lexsort((space.path_mean_s[:, rows].max(axis=0), -space.accuracy[rows], space.cost_usd[rows]))
    return Choice(query=query, space=space, row=int(rows[order[0]]))


def why_not(problem: Problem, query: Query, space: PlanSpace, others: Choices) -> Refusal:
    """Say why a query that could be served alone cannot join the others.

    Args:
        problem: The planning problem.
        query: A query for which ``best_choice`` found nothing.
        space: Its plans that are feasible when the fleet is idle.
        others: The queries that are served.
    """
    fitting = np.flatnonzero(_fits(problem, query, space, others))
    if not fitting.size:
        return _no_room(problem, query, space, others)
    room = space.take(fitting)
    waits = waits_joining(problem, room.sites, mixes(others), room, query.rate_hz)
    p95_s = latency(room, waits)[2]
    nearest = int(np.argmin(p95_s))
    if p95_s[nearest] > query.slo.latency_p95_s:
        binding = Binding.LATENCY
        detail = (
            f"beside the queries served its fastest plan that fits takes {p95_s[nearest] * 1e3:.4g} ms "
            f"against {query.slo.latency_p95_s * 1e3:.4g} ms, waiting included"
        )
    else:
        binding = Binding.CAPACITY
        detail = "every plan that is fast enough would make a query served too slow"
    return Refusal(query=query.name, binding=binding, detail=detail, nearest=room.plan(nearest))


def _no_room(problem: Problem, query: Query, space: PlanSpace, others: Choices) -> Refusal:
    """Every plan overdraws something; name what the nearest one is short of."""
    left = _left(problem, space, others)
    missing = query.rate_hz * space.usage - left
    limits = np.array([problem.capacities()[resource] for resource in space.resources])
    share = missing / np.where(limits > 0, limits, 1.0)
    row = int(np.argmin(share.max(axis=1)))
    column = int(np.argmax(share[row]))
    detail = (
        f"its plan that comes closest needs {query.rate_hz * space.usage[row, column]:.4g} of "
        f"{space.resources[column]}, of whose {limits[column]:.4g} the queries served leave "
        f"{max(left[column], 0.0):.4g}"
    )
    return Refusal(query=query.name, binding=Binding.CAPACITY, detail=detail, nearest=space.plan(row))


def _fits(problem: Problem, query: Query, space: PlanSpace, others: Choices) -> NDArray[np.bool_]:
    """Which plans leave every capacity in place, ``(n,)``."""
    return np.asarray((query.rate_hz * space.usage <= _left(problem, space, others)).all(axis=1))


def _left(problem: Problem, space: PlanSpace, others: Choices) -> Floats:
    """What the others leave of each resource of a space, ``(resources,)``."""
    used: dict[str, float] = {}
    for choice in others.values():
        for resource, amount in choice.demand().items():
            used[resource] = used.get(resource, 0.0) + amount
    capacities = problem.capacities()
    return np.array(
        [capacities[resource] * (1 - _SLACK) - used.get(resource, 0.0) for resource in space.resources]
    )


def _own_slo_met(problem: Problem, query: Query, space: PlanSpace, others: Choices) -> NDArray[np.bool_]:
    waits = waits_joining(problem, space.sites, mixes(others), space, query.rate_hz)
    return latency(space, waits)[2] <= query.slo.latency_p95_s


def _other_slos_met(problem: Problem, query: Query, space: PlanSpace, others: Choices) -> NDArray[np.bool_]:
    """With which plans the others still make their latency; nothing else of theirs depends on the load."""
    present = mixes(others)
    kept = np.ones(len(space), dtype=np.bool_)
    for other in others.values():
        alone = other.space.take(np.array([other.row]))
        waits = waits_joining(problem, alone.sites, present, space, query.rate_hz)
        kept &= latency(alone, waits)[2] <= other.query.slo.latency_p95_s
    return kept
