"""Columns: the figures of a plan that no query changes, by role and quantity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Quantity(Enum):
    """What a column counts; the query's coefficient of it stands beside it."""

    WORK = "work"
    """Seconds of compute as measured at the kind, per speed class; slowdown (mean, cost, demand)."""
    CALLS = "calls"
    """Operator calls; overhead_s (mean, cost, demand)."""
    WORK_VAR = "work_var"
    """Variance of the compute, per speed class; slowdown^2 (variance)."""
    VISITS = "visits"
    """Segments; wait and round trip, their variances (mean, variance)."""
    UP = "up"
    """Bytes from the origin to the site; 1 / bandwidth (mean), egress price, demand."""
    DOWN = "down"
    """Bytes from the site to the origin; as UP."""
    UP_VAR = "up_var"
    """Variance of the bytes; 1 / bandwidth^2 (variance)."""
    DOWN_VAR = "down_var"
    """As UP_VAR."""
    UP_SQ = "up_sq"
    """Sum over segments of (mean bytes)^2; bandwidth_rel_sd^2 / bandwidth^2 (variance)."""
    DOWN_SQ = "down_sq"
    """As UP_SQ."""


TOTALS = (Quantity.WORK, Quantity.CALLS, Quantity.UP, Quantity.DOWN)
"""What cost and demand are made of."""
_REMOTE = (
    Quantity.UP,
    Quantity.DOWN,
    Quantity.UP_VAR,
    Quantity.DOWN_VAR,
    Quantity.UP_SQ,
    Quantity.DOWN_SQ,
)


@dataclass(frozen=True, slots=True)
class Column:
    """One feature: a quantity at a role, for WORK and WORK_VAR of one speed class."""

    role: int
    quantity: Quantity
    speed_class: str = ""


def path_columns(roles: int, speed_classes: Sequence[str]) -> tuple[Column, ...]:
    """Every column a path can have; role 0 is the origin, which nothing is sent to."""
    columns = []
    for role in range(roles):
        columns += [Column(role, Quantity.WORK, name) for name in speed_classes]
        columns += [Column(role, Quantity.WORK_VAR, name) for name in speed_classes]
        columns += [Column(role, Quantity.CALLS), Column(role, Quantity.VISITS)]
        columns += [Column(role, quantity) for quantity in _REMOTE if role > 0]
    return tuple(columns)


def total_columns(columns: Sequence[Column]) -> tuple[Column, ...]:
    """Those of the columns that cost and demand are made of."""
    return tuple(column for column in columns if column.quantity in TOTALS)
