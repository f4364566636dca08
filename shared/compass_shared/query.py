"""Queries: a standing wish of one device, with its service level objectives."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Service level objectives; a query is met only when all three are."""

    latency_p95_s: float
    accuracy: float
    """Least mean of the pipeline's metric, in [0, 1]."""
    cost_usd_per_1000: float
    """Most that 1,000 requests may cost."""


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
