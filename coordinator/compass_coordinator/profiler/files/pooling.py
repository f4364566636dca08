"""Measurements of one operator variant, or of requests, as if they had been one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import msgspec

from compass_coordinator.measurements import VariantWork
from compass_coordinator.profiler.files.uncertainty import mean_interval_s
from compass_shared.problem import Z95


def pooled(parts: Sequence[VariantWork]) -> VariantWork:
    """Calls of several measurements as if they had been one.

    Count, mean and variance (of calls, and of the sizes of what they return) are exactly those of all calls
    together. The 95th percentile is approximate: that of a mixture in which each part is a normal
    distribution with the part's own mean and percentile. It lies between the parts' percentiles and is exact
    where these are equal. What nobody counted is left out beside what somebody did.

    Args:
        parts: At least one.
    """
    parts = list(dict.fromkeys(part for part in parts if part.count)) or [parts[0]]
    if len(parts) == 1:
        return parts[0]
    counts = [part.count for part in parts]
    mean_s, var_s2 = moments(counts, [part.mean_s for part in parts], [part.var_s2 for part in parts])
    size, size_var = moments(
        counts, [part.output_mean_bytes for part in parts], [part.output_var_bytes2 for part in parts]
    )
    return msgspec.structs.replace(
        parts[0],
        count=sum(counts),
        mean_s=mean_s,
        var_s2=var_s2,
        p95_s=_mixed_p95_s(parts),
        output_mean_bytes=size,
        output_var_bytes2=size_var,
        memory_bytes=max(part.memory_bytes for part in parts),
        mean_interval_s=_pooled_interval(parts, mean_s),
        p95_interval_s=None,
        **_items(parts),
    )


def _items(parts: Sequence[VariantWork]) -> dict[str, float]:
    """Items of all calls together, of those that counted them; the time of one is the mean of the parts'."""
    counted = [part for part in parts if part.items_mean is not None]
    if not counted:
        return {}
    counts = [part.count for part in counted]
    mean, var = moments(
        counts, [part.items_mean or 0.0 for part in counted], [part.items_var for part in counted]
    )
    timed = [part for part in counted if part.item_s]
    weight = sum(part.count for part in timed)
    item_s = math.fsum(part.count * part.item_s for part in timed) / weight if weight else 0.0
    return {"items_mean": mean, "items_var": var, "item_s": item_s}


def moments(counts: Sequence[int], means: Sequence[float], variances: Sequence[float]) -> tuple[float, float]:
    """Mean and unbiased variance of all values together."""
    total = sum(counts)
    mean = math.fsum(n * each for n, each in zip(counts, means, strict=True)) / total
    squares = math.fsum(
        max(0, n - 1) * variance + n * (each - mean) ** 2
        for n, each, variance in zip(counts, means, variances, strict=True)
    )
    return mean, squares / (total - 1) if total > 1 else variances[0]


def _mixed_p95_s(parts: Sequence[VariantWork]) -> float:
    """The 95th percentile of a mixture of normal distributions, each with its part's mean and percentile."""
    p95s = [part.profile("", "").p95_s for part in parts]
    total = sum(part.count for part in parts)

    def below(value: float) -> float:
        return math.fsum(
            part.count / total * _below(value, part.mean_s, (p95_s - part.mean_s) / Z95)
            for part, p95_s in zip(parts, p95s, strict=True)
        )

    low, high = min(p95s), max(p95s)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < 0.95 else (low, middle)
    return high


def _below(value: float, mean: float, deviation: float) -> float:
    if deviation <= 0:  # a single call, or a percentile that its own mean exceeds
        return float(value >= mean)
    return NormalDist(mean, deviation).cdf(value)


def _pooled_interval(parts: Sequence[VariantWork], mean_s: float) -> tuple[float, float] | None:
    """Errors of independent means, weighted by their counts; None if no part brought an interval."""
    if all(part.mean_interval_s is None for part in parts):
        return None
    total = sum(part.count for part in parts)
    below = above = 0.0
    for part in parts:
        low, high = mean_interval_s(part)
        below = math.hypot(below, part.count / total * (part.mean_s - low))
        above = math.hypot(above, part.count / total * (high - part.mean_s))
    return max(0.0, mean_s - below), mean_s + above
