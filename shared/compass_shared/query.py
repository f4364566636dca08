"""Queries: a standing wish of one device, with its service level objectives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from compass_shared.errors import ConfigError

SMALLEST, LARGEST = 1e-6, 1e9
"""Rates, weights and latencies beyond these are mistakes, and would drown the others in rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Service level objectives; a query is met only when all are."""

    latency_p95_s: float
    accuracy: float
    """Least mean of the pipeline's metric, in [0, 1]."""
    cost_usd_per_1000: float
    """Most that 1,000 requests may cost."""
    metrics: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Extra metric of the pipeline -> its least mean, in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """This device, this pipeline, this rate, this SLO, this weight."""

    name: str
    origin: str
    """Site where the requests arise and the results are wanted."""
    pipeline: str
    rate_hz: float
    slo: Slo
    weight: float = 1.0
    divisible: bool = False
    """Its requests may be split over several plans, each of which meets the SLO, or served in part."""


def check_query(query: Query, *, field: str = "query") -> Query:
    """Refuse a query whose numbers make no sense.

    Raises:
        ConfigError: Naming the field.
    """
    positive = {
        "rate_hz": query.rate_hz,
        "weight": query.weight,
        "slo.latency_p95_s": query.slo.latency_p95_s,
    }
    for name, value in positive.items():
        if not SMALLEST <= value <= LARGEST:  # also refuses NaN
            problem = f"{value} must lie between {SMALLEST:g} and {LARGEST:g}"
            raise ConfigError(problem, field=f"{field}.{name}")
    if not 0 <= query.slo.accuracy <= 1:
        raise ConfigError(f"{query.slo.accuracy} must lie in [0, 1]", field=f"{field}.slo.accuracy")
    if not 0 <= query.slo.cost_usd_per_1000 <= LARGEST:
        problem = f"{query.slo.cost_usd_per_1000} must lie between 0 and {LARGEST:g}"
        raise ConfigError(problem, field=f"{field}.slo.cost_usd_per_1000")
    for name, least in query.slo.metrics.items():
        if not 0 <= least <= 1:
            raise ConfigError(f"{least} must lie in [0, 1]", field=f"{field}.slo.metrics.{name}")
    return query
