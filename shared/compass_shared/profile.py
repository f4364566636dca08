"""What was measured: latency and sizes of operators at a site, accuracy of configs anywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorProfile:
    """Measured latency and output size of one operator variant at one site.

    The spread is over inputs and repeats together: it is what a request will meet.
    """

    variant: str
    """Key from ``pipeline.variant_key``."""
    mean_s: float
    var_s2: float
    p95_s: float
    count: int
    output_mean_bytes: float
    output_var_bytes2: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteProfile:
    """Every variant of one pipeline that was measured at one site."""

    site: str
    pipeline: str
    digest: str
    """Digest of the pipeline that was measured."""
    operators: Mapping[str, OperatorProfile]
    """Variant key -> measurement."""
    request_mean_bytes: float
    """Size of a request's own input."""
    request_var_bytes2: float = 0.0
    emulated: str | None = None
    """Name of the device profile that was emulated, or None for the machine itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Mean score of one config over a named set of inputs."""

    mean: float
    standard_error: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyTable:
    """Accuracy of the measured configs of one pipeline; the same on every site."""

    pipeline: str
    metric: str
    split: str
    configs: Mapping[str, Accuracy]
    """Config key -> accuracy."""
    provenance: Mapping[str, object] = field(default_factory=dict)


def lower_bound(table: AccuracyTable, z: float) -> AccuracyTable:
    """The accuracies that a table gives with confidence, rather than on average.

    A planner that takes the cheapest config above an accuracy SLO picks those that were lucky in the profile;
    planning on the one-sided bound ``mean - z * standard_error`` takes their luck away.

    Args:
        table: Measured means with standard errors.
        z: Standard normal quantile of the confidence, >= 0; 0 leaves the means as they are.

    Raises:
        ValueError: If ``z`` is negative.
    """
    if not z >= 0:
        raise ValueError(f"z must be >= 0, got {z}")
    configs = {
        key: replace(found, mean=max(0.0, found.mean - z * found.standard_error))
        for key, found in table.configs.items()
    }
    return replace(table, configs=configs)
