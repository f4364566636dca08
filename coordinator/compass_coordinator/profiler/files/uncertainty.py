"""How far a profile's figures may be off: as files say it, or else from spread and count."""

from __future__ import annotations

import math
from statistics import NormalDist

from compass_coordinator.measurements import VariantWork
from compass_shared.profile import CONFIDENCE, Accuracy, AccuracyTable

Interval = tuple[float, float]

_P95_DENSITY = NormalDist().pdf(NormalDist().inv_cdf(0.95))


def two_sided_z(confidence: float) -> float:
    """Standard errors on either side of a mean that an interval of this confidence takes.

    >>> round(two_sided_z(0.95), 2)
    1.96
    """
    return NormalDist().inv_cdf((1 + confidence) / 2)


def accuracy_interval(found: Accuracy, table: AccuracyTable) -> Interval:
    """Where an accuracy over the table's split lies.

    A config that was measured on every input is known exactly. One that scored the same on the few inputs it
    saw has no standard error, yet is not known exactly: it may be off by what as many inputs would not show.

    Args:
        found: An entry.
        table: Whose entry it is.

    Returns:
        Low and high in [0, 1], at the table's confidence.
    """
    if found.low is not None and found.high is not None:
        return found.low, found.high
    if not found.predicted and 0 < table.inputs <= found.count:
        return found.mean, found.mean
    half = two_sided_z(table.confidence) * found.standard_error
    if half == 0 and found.count > 0:
        half = 1 - (1 - table.confidence) ** (1 / found.count)
    return max(0.0, found.mean - half), min(1.0, found.mean + half)


def mean_interval_s(work: VariantWork, confidence: float = CONFIDENCE) -> Interval:
    """Where the mean time of a call lies; a point where nobody counted calls.

    Args:
        work: Figures of a variant.
        confidence: Of the interval, where the figures bring none.
    """
    if work.mean_interval_s is not None:
        return work.mean_interval_s
    return _around(work.mean_s, work.var_s2, work.count, two_sided_z(confidence))


def p95_interval_s(work: VariantWork, p95_s: float, confidence: float = CONFIDENCE) -> Interval:
    """Where the 95th percentile of a call lies; as a normal distribution's would, where none is given.

    Args:
        work: Figures of a variant.
        p95_s: Its percentile.
        confidence: Of the interval, where the figures bring none.
    """
    if work.p95_interval_s is not None:
        return work.p95_interval_s
    widening = math.sqrt(0.95 * 0.05) / _P95_DENSITY  # of a quantile's standard error over that of the mean
    return _around(p95_s, work.var_s2, work.count, widening * two_sided_z(confidence))


def output_interval_bytes(work: VariantWork, confidence: float = CONFIDENCE) -> Interval:
    """Where the mean size of what a call returns lies."""
    return _around(work.output_mean_bytes, work.output_var_bytes2, work.count, two_sided_z(confidence))


def difference_allowed(before: float, known: Interval, after: float, newly: Interval) -> float:
    """How far two independent estimates may lie apart by chance.

    The sides of the intervals that face each other add as independent errors do (Zou and Donner 2008, method
    of variance estimates recovery). That asks less of a difference than intervals that do not touch.

    Args:
        before: One estimate.
        known: Its interval.
        after: The other.
        newly: Its interval.

    Returns:
        An absolute difference, >= 0.

    >>> round(difference_allowed(1.0, (0.9, 1.3), 2.0, (1.6, 2.1)), 3)
    0.5
    """
    if after >= before:
        return math.hypot(known[1] - before, after - newly[0])
    return math.hypot(before - known[0], newly[1] - after)


def _around(mean: float, variance: float, count: int, z: float) -> Interval:
    half = z * math.sqrt(variance / count) if count > 0 else 0.0
    return max(0.0, mean - half), mean + half
