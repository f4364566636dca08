"""Why a query has no plan: which objective binds and what would do, in numbers a person can act on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from compass_coordinator.estimator import Estimates, Floats
from compass_shared.errors import InfeasibleError
from compass_shared.pipeline import Pipeline
from compass_shared.plan import Estimate, Plan
from compass_shared.query import Query, Slo

Mask: TypeAlias = NDArray[np.bool_]


class Binding(Enum):
    """What stands in the way."""

    LATENCY = "latency"
    ACCURACY = "accuracy"
    METRIC = "metric"
    """The floor of an extra metric."""
    COST = "cost"
    CAPACITY = "capacity"
    PLACEMENT = "placement"
    """An operator may run at no site that the query can use, or the policy has no placement for it."""
    PROFILE = "profile"
    """Nothing that could be chosen was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A query that gets no plan, and why."""

    query: str
    binding: Binding
    detail: str
    """One sentence, without the query's name."""
    nearest: Plan | None = None
    """The plan that comes closest, with its estimate."""
    relaxed: Mapping[str, float] = field(default_factory=dict)
    """Field of ``Slo`` -> the strictest value that admits a plan while the others stay; may be empty."""

    def error(self) -> InfeasibleError:
        """The same as an exception."""
        return InfeasibleError(self.query, self.binding.value, self.detail)


class Plans(Protocol):
    """Plans by row."""

    @property
    def pipeline(self) -> Pipeline:
        """That they run."""

    def plan(self, row: int, estimate: Estimate | None = None) -> Plan:
        """One of them."""


def explain(space: Plans, estimates: Estimates, query: Query, capacities: Mapping[str, float]) -> Refusal:
    """Say why none of these plans can serve a query.

    Args:
        space: Plans that the policy allows, none of which meets the SLO within the capacities.
        estimates: Their estimates for this query.
        query: The query.
        capacities: Resource -> what may be handed out.
    """
    measured = np.isfinite(estimates.accuracy) & ~np.isnan(estimates.latency_p95_s)
    if not measured.any():
        detail = f"no config of pipeline {query.pipeline!r} was measured at the sites it may use"
        return Refusal(query=query.name, binding=Binding.PROFILE, detail=detail)
    objectives = _objectives(estimates, query.slo)
    met = measured & _all([objective.excess <= 0 for objective in objectives])
    limits = np.array([capacities[resource] for resource in estimates.resources])
    fits = measured & (estimates.demand <= limits).all(axis=1) & (estimates.serial <= 1)
    if met.any() or not fits.any():
        return _short_of_capacity(space, estimates, query, limits, met if met.any() else measured)
    return _short_of_slo(space, estimates, query, objectives, fits)


def _short_of_capacity(
    space: Plans, estimates: Estimates, query: Query, limits: Floats, rows: Mask
) -> Refusal:
    """Even the plan that asks for the least asks for more than there is."""
    demand = np.where(rows[:, np.newaxis], estimates.demand, np.inf)
    share = np.divide(demand, limits, out=np.where(demand > 0, np.inf, 0.0), where=limits > 0)
    share = np.column_stack([share, np.where(rows, estimates.serial, np.inf)])
    row = int(np.argmin(share.max(axis=1)))
    column = int(np.argmax(share[row]))
    rate_hz = query.rate_hz / share[row, column]
    advice = f": lower the rate to {_floor(rate_hz)} Hz" if rate_hz > 0 else ""
    if column < len(limits):
        needed, limit, resource = estimates.demand[row, column], limits[column], estimates.resources[column]
        short = f"needs {needed:.4g} of the {limit:.4g} of {resource}"
    else:
        short = (
            f"keeps an operator with state, which takes one request after the other, {share[row, -1]:.4g} "
        )
        short += "times as busy as its site allows"
    return Refusal(
        query=query.name,
        binding=Binding.CAPACITY,
        detail=f"its lightest plan {short} at {query.rate_hz:g} Hz{advice}",
        nearest=space.plan(row, estimates.row(row)),
    )


def _short_of_slo(
    space: Plans, estimates: Estimates, query: Query, objectives: Sequence[_Objective], fits: Mask
) -> Refusal:
    """Capacity is there, but every plan misses an objective."""
    alone = []
    for objective in objectives:
        rows = fits & _all([other.excess <= 0 for other in objectives if other is not objective])
        rows &= np.isfinite(objective.values)  # at an overloaded site nothing ever ends
        if rows.any():
            row = int(np.argmin(np.where(rows, objective.excess, np.inf)))
            alone.append((objective.excess[row], row, objective))
    alone.sort(key=lambda option: option[0])
    if alone:
        _, row, binding = alone[0]
        advice = " or ".join(objective.advice(objective.values[at]) for _, at, objective in alone)
        others = " and ".join(other.wanted for other in objectives if other is not binding)
        detail = (
            f"{binding.superlative} meeting {others}, {_where(space, row)}, "
            f"{binding.shortfall(binding.values[row])}: relax {advice}"
        )
    else:
        total = _sum([np.maximum(objective.excess, 0) for objective in objectives])
        row = int(np.argmin(np.where(fits, total, np.inf)))
        missed = [objective for objective in objectives if objective.excess[row] > 0]
        binding = max(missed, key=lambda objective: float(objective.excess[row]))
        said = " and ".join(objective.shortfall(objective.values[row]) for objective in missed)
        advice = " and ".join(objective.advice(objective.values[row]) for objective in missed)
        detail = (
            f"relaxing one objective is not enough; the nearest plan, {_where(space, row)}, {said}: "
            f"relax {advice}"
        )
    return Refusal(
        query=query.name,
        binding=binding.binding,
        detail=detail,
        nearest=space.plan(row, estimates.row(row)),
        relaxed={objective.field: float(objective.values[at]) for _, at, objective in alone},
    )


def _where(space: Plans, row: int) -> str:
    """``on phone``, ``on phone and edge``: the sites of a plan in the order of its operators."""
    placement = space.plan(row).placement
    return "on " + " and ".join(dict.fromkeys(placement[each.name] for each in space.pipeline.operators))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Objective:
    """One SLO over all plans, and the words for it."""

    binding: Binding
    field: str
    values: Floats
    """(n,)."""
    excess: Floats
    """(n,) relative to the SLO; <= 0 where it is met."""
    superlative: str
    wanted: str
    shortfall: Callable[[float], str]
    advice: Callable[[float], str]


def _objectives(estimates: Estimates, slo: Slo) -> tuple[_Objective, ...]:
    limit_ms = slo.latency_p95_s * 1e3
    return (
        _Objective(
            binding=Binding.LATENCY,
            field="latency_p95_s",
            values=estimates.latency_p95_s,
            excess=_excess(estimates.latency_p95_s, slo.latency_p95_s),
            superlative="the fastest plan",
            wanted=f"{limit_ms:.4g} ms",
            shortfall=lambda value: f"takes {value * 1e3:.4g} ms against {limit_ms:.4g} ms",
            advice=lambda value: f"latency by {_ceil(value * 1e3 - limit_ms)} ms",
        ),
        _Objective(
            binding=Binding.ACCURACY,
            field="accuracy",
            values=estimates.accuracy,
            excess=_excess(-estimates.accuracy, -slo.accuracy),
            superlative="the most accurate plan",
            wanted=f"accuracy {slo.accuracy:.4g}",
            shortfall=lambda value: f"reaches accuracy {value:.4g} against {slo.accuracy:.4g}",
            advice=lambda value: f"accuracy to {_floor(value)}",
        ),
        _Objective(
            binding=Binding.COST,
            field="cost_usd_per_1000",
            values=estimates.cost_usd_per_1000,
            excess=_excess(estimates.cost_usd_per_1000, slo.cost_usd_per_1000),
            superlative="the cheapest plan",
            wanted=f"${slo.cost_usd_per_1000:.4g} per 1,000",
            shortfall=lambda value: f"costs ${value:.4g} per 1,000 against ${slo.cost_usd_per_1000:.4g}",
            advice=lambda value: f"cost to ${_ceil(value)} per 1,000",
        ),
        *(_floor_objective(estimates, name, least) for name, least in slo.metrics.items()),
    )


def _floor_objective(estimates: Estimates, name: str, least: float) -> _Objective:
    values = estimates.metrics.get(name, np.full(len(estimates.accuracy), -np.inf))
    values = np.where(np.isnan(values), -np.inf, values)
    return _Objective(
        binding=Binding.METRIC,
        field=f"metrics.{name}",
        values=values,
        excess=_excess(-values, -least),
        superlative=f"the plan of the highest {name}",
        wanted=f"{name} {least:.4g}",
        shortfall=lambda value: f"reaches {name} {value:.4g} against {least:.4g}",
        advice=lambda value: f"{name} to {_floor(value)}",
    )


def _excess(values: Floats, limit: float) -> Floats:
    over = values - limit
    return over / abs(limit) if limit else np.where(over > 0, np.inf, 0.0)


def _ceil(value: float) -> str:
    """Three significant digits, rounded up, so that advice taken at its word suffices."""
    return _rounded(value, math.ceil)


def _floor(value: float) -> str:
    return _rounded(value, math.floor)


def _rounded(value: float, towards: Callable[[float], int]) -> str:
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{towards(value * 10**digits) / 10**digits:.3g}"


def _all(masks: Sequence[Mask]) -> Mask:
    return np.asarray(np.logical_and.reduce(masks), dtype=np.bool_)


def _sum(arrays: Sequence[Floats]) -> Floats:
    return np.asarray(np.sum(arrays, axis=0), dtype=np.float64)
