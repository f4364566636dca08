"""From timed calls to the distribution that requests will meet.

A long call is the input's doing or the machine's. The machine's hiccups (another process, a flush, a pause)
hit whatever happens to run: left in a handful of samples they would make one variant look slow by bad luck,
thrown away they would be missing from what requests meet. So a call that waited unusually long is repeated on
the very same input: what comes again is the input's own and stays; what does not is a hiccup of the machine.
Hiccups of all variants are pooled, and each variant is given its share of them, by how long it runs.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

_Z = 1.959964
"""Normal quantile of 95% confidence, two-sided."""
_HALVINGS = 40
_WAITED_S = 1e-3
_WAITED_SHARE = 0.25
_LONGER = 1.5
"""How much longer than its repeat a call was that the machine held up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One timed call of a variant."""

    variant: str
    work: Hashable
    """Input and upstream choices: the same work again is the very same call."""
    at_s: float
    """When it began, since the measurement did."""
    lasted_s: float
    """Hiccups of the machine left out."""
    busy_s: float
    """Part of it in which the core was busy."""
    output_bytes: int
    hiccup_s: float = 0.0
    """What a hiccup of the machine had added to it."""
    rested: bool = False
    """Whether its request came after an idle gap."""
    items: int | None = None
    """Items that it worked through, of a fan-out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hiccups:
    """How often the machine holds a call up, and for how long."""

    sizes_s: tuple[float, ...] = ()
    busy_s: float = 0.0
    """Work that was measured."""

    @property
    def rate_hz(self) -> float:
        """Hiccups per second of work."""
        return len(self.sizes_s) / self.busy_s if self.sizes_s else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """How long calls take."""

    mean_s: float
    var_s2: float
    p95_s: float
    count: int
    mean_interval_s: tuple[float, float] | None = None
    """Low and high of the mean with 95% confidence, by Student's t; None for a single call."""
    p95_interval_s: tuple[float, float] | None = None
    """The same of the quantile, by order statistics; None where too few calls bound it from above."""


def waited_unusually(lasted_s: float, busy_s: float, usual_wait_s: float) -> bool:
    """Whether a call was off the core for so much longer than usual that it is worth a repeat.

    Heavy inputs keep the core busy and are not repeated; nor are operators that always wait for something.
    """
    return lasted_s - busy_s - usual_wait_s > max(_WAITED_S, _WAITED_SHARE * lasted_s)


def hiccup_of(lasted_s: float, repeat_s: float) -> float:
    """What the machine added to a call, judged by its repeat on the same input; 0 if nothing."""
    return lasted_s - repeat_s if lasted_s > _LONGER * repeat_s else 0.0


def hiccups_of(samples: Sequence[Sample]) -> Hiccups:
    """The hiccups in samples of all variants together."""
    sizes = tuple(sample.hiccup_s for sample in samples if sample.hiccup_s > 0)
    # An operator that only waits is held up as well: its time counts where it is all that there is.
    worked = sum(sample.busy_s for sample in samples) or sum(sample.lasted_s for sample in samples)
    return Hiccups(sizes_s=sizes, busy_s=worked)


def distribution(
    samples: Sequence[Sample], hiccups: Hiccups | None = None, *, busy_share: float | None = None
) -> Distribution:
    """What a call of one variant takes, over inputs, gaps and hiccups.

    Args:
        samples: Calls of the variant, one or more.
        hiccups: Of the machine; each call meets them with ``1 - exp(-rate x busy time)``.
        busy_share: Share of time for which the machine will be busy. Poisson arrivals find it idle with the
            rest, so calls after a gap weigh ``1 - busy_share`` and those back to back ``busy_share``; None:
            all calls weigh the same.
    """
    lasted = np.array([sample.lasted_s for sample in samples])
    weights = _weights(np.array([sample.rested for sample in samples]), busy_share)
    mean_s = float(np.average(lasted, weights=weights))
    spread = float(np.average((lasted - mean_s) ** 2, weights=weights))
    sizes, hit = np.zeros(0), 0.0
    if hiccups is not None and hiccups.sizes_s:
        busy = np.array([sample.busy_s for sample in samples])
        each = -np.expm1(-hiccups.rate_hz * busy)
        sizes, hit = np.array(hiccups.sizes_s), float(np.average(each, weights=weights))
        added = each * float(sizes.mean())
        spread += float(
            np.average(2 * (lasted - mean_s) * added + each * float((sizes**2).mean()), weights=weights)
        )
        spread -= float(np.average(added, weights=weights)) ** 2
        mean_s += float(np.average(added, weights=weights))
    count = len(samples)
    var_s2 = spread * count / (count - 1) if count > 1 else 0.0
    return Distribution(
        mean_s=mean_s,
        var_s2=var_s2,
        p95_s=_quantile(lasted, weights, sizes, hit, 0.95),
        count=count,
        mean_interval_s=_mean_interval(mean_s, var_s2, count),
        p95_interval_s=_p95_interval(lasted),
    )


def rested_ratio(samples: Sequence[Sample]) -> float | None:
    """How many times as long a call takes after an idle gap: median over the same work done both ways.

    Returns:
        None if no work was done both ways.
    """
    hot = _median_by_work([sample for sample in samples if not sample.rested])
    rested = _median_by_work([sample for sample in samples if sample.rested])
    ratios = [rested[work] / hot[work] for work in rested.keys() & hot.keys() if hot[work] > 0]
    return float(np.median(ratios)) if ratios else None


def _median_by_work(samples: Sequence[Sample]) -> dict[tuple[str, Hashable], float]:
    times: dict[tuple[str, Hashable], list[float]] = {}
    for sample in samples:
        times.setdefault((sample.variant, sample.work), []).append(sample.lasted_s)
    return {key: float(np.median(found)) for key, found in times.items()}


def _weights(rested: NDArray[np.bool_], busy_share: float | None) -> Floats:
    if busy_share is None or rested.all() or not rested.any():
        return np.ones(len(rested))
    count, gaps = len(rested), int(rested.sum())
    return np.where(rested, (1 - busy_share) / gaps, busy_share / (count - gaps))


def _mean_interval(mean_s: float, var_s2: float, count: int) -> tuple[float, float] | None:
    if count < 2:
        return None
    z, freedom = _Z, count - 1
    # Student's quantile from the normal one (Cornish-Fisher), good to a percent from 3 calls on.
    student = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    half_s = student * math.sqrt(var_s2 / count)
    return max(0.0, mean_s - half_s), mean_s + half_s


def _p95_interval(lasted: Floats) -> tuple[float, float] | None:
    """Order statistics between which the quantile lies, whatever the distribution."""
    count = len(lasted)
    below = np.cumsum([_binomial(count, k, 0.95) for k in range(count)])
    low = int(np.searchsorted(below, 0.025, side="right")) - 1
    high = int(np.searchsorted(below, 0.975))
    if low < 0 or high >= count:
        return None
    ordered = np.sort(lasted)
    return float(ordered[low]), float(ordered[high])


def _binomial(count: int, hits: int, share: float) -> float:
    ways = math.lgamma(count + 1) - math.lgamma(hits + 1) - math.lgamma(count - hits + 1)
    return math.exp(ways + hits * math.log(share) + (count - hits) * math.log1p(-share))


def _quantile(values: Floats, weights: Floats, sizes: Floats, hit: float, share: float) -> float:
    """Quantile of weighted values, a share ``hit`` of which is longer by one of ``sizes``.

    Without those it is numpy's own where weights are equal, linear between neighbours.
    """
    order = np.argsort(values, kind="stable")
    values, weights = values[order], weights[order]
    # Each value stands in the middle of its weight; the first and the last are the ends of the scale.
    middle = np.cumsum(weights) - weights / 2
    scale = (middle - middle[0]) / max(middle[-1] - middle[0], 1e-300)
    if not hit:
        return float(np.interp(share, scale, values))
    low, high = float(values[0]), float(values[-1] + sizes.max())
    for _ in range(_HALVINGS):
        half = (low + high) / 2
        clean = float(np.interp(half, values, scale, left=0.0, right=1.0))
        held_up = float(np.interp(half - sizes, values, scale, left=0.0, right=1.0).mean())
        low, high = (half, high) if (1 - hit) * clean + hit * held_up < share else (low, half)
    return high
