"""Divisible queries: the linear program over those that are nearly undecided.

Everything else keeps its plan. The program has as many fractional queries as resources that bind, so few
queries end up split; those that do not are given their whole plan, or none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import optimize, sparse

from compass_coordinator.matcher.columns import OVERDRAFT, OVERSIZE, summed
from compass_coordinator.matcher.problem import Bools, Floats, Ints
from compass_coordinator.matcher.result import REFUSED
from compass_coordinator.matcher.rounding import Workbench, at_plan
from compass_shared.errors import PlanningError

_WHOLE = 1e-9
"""Fractions so close to 0 or 1 are."""
_MOST = 1024
"""Queries in the program."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Splits:
    """Fractions of plans, by place in the order of the queries."""

    place: Ints
    plan: Ints
    fraction: Floats


def split(bench: Workbench, divisible: Bools, lead: Floats) -> Splits:
    """Give divisible queries fractions of plans where that gains value.

    Args:
        bench: A choice that fits; the plans of the queries that take part are changed.
        divisible: (queries on the bench,).
        lead: (queries on the bench,) the smallest take part, if they are many.
    """
    nothing = Splits(place=np.zeros(0, np.int64), plan=np.zeros(0, np.int64), fraction=np.zeros(0))
    some = np.flatnonzero(divisible)
    some = some[np.argsort(lead[some], kind="stable")[:_MOST]]
    columns, now = bench.columns.take(some), bench.plan[some]
    served = np.flatnonzero(now >= 0)
    others = np.maximum(bench.usage - columns.usage(now[served], served), 0.0)
    usable = np.isfinite(columns.values) & (columns.amounts.max(axis=0, initial=0.0) < OVERSIZE)
    plan, query = np.nonzero(usable)
    if not len(plan):
        return nothing
    value, demand = columns.values[plan, query], columns.dense_amounts(plan, query)
    fraction = _fractions(value, demand, query, np.maximum(1 - others, 0.0))
    if value @ fraction <= at_plan(columns.values, now).sum():
        return nothing
    whole = fraction == 1.0
    bench.plan[some] = REFUSED
    bench.plan[some[query[whole]]] = plan[whole]
    bench.usage[:] = others + fraction @ demand
    part = np.flatnonzero((fraction > 0) & ~whole)
    part = part[np.lexsort((plan[part], bench.places[some[query[part]]]))]
    return Splits(place=bench.places[some[query[part]]], plan=plan[part], fraction=fraction[part])


def _fractions(value: Floats, demand: Floats, query: Ints, rest: Floats) -> Floats:
    """Of each (query, plan), exactly within the rest of the capacities."""
    count = len(value)
    of_query = sparse.csr_array((np.ones(count), (query, np.arange(count))))
    solved = optimize.linprog(
        -value,
        A_ub=sparse.vstack([of_query, sparse.csr_array(demand.T)], format="csr"),
        b_ub=np.concatenate([np.ones(of_query.shape[0]), rest]),
        bounds=(0, 1),
        method="highs",
    )
    if solved.x is None:
        raise PlanningError(f"splitting divisible queries failed: {solved.message}")
    fraction: Floats = np.where(solved.x < _WHOLE, 0.0, np.where(solved.x > 1 - _WHOLE, 1.0, solved.x))
    fraction = fraction / np.maximum(summed(query, fraction, int(query.max()) + 1), 1.0)[query]
    # The solver may overdraw by its tolerance: whoever uses such a resource gets that much less.
    used = fraction @ demand
    excess = np.where(used > rest + OVERDRAFT, rest / np.maximum(used, OVERDRAFT), 1.0)
    fraction *= np.where(demand > 0, excess, 1.0).min(axis=1, initial=1.0)
    return fraction
