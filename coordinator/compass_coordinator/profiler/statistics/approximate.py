"""Time-uniform intervals from an estimate and its variance: narrow, right where sums are nearly normal.

For what has no exact interval (ratios whose denominators differ between configs, strata of ratios) and for
differences of configs that rarely differ, whose exact interval (`sequential`) must allow for the worst on
every input not yet seen. Two approximations enter: sums of scores move like Brownian motion, and the
estimated variance is the true one. Rare inputs unlike all that were seen break both, so nothing is claimed
below `FEWEST` samples, and a config that is right on nearly all inputs is covered less often than others.

Method: sampling without replacement, (mean of n - mean of N) n N / (N - n) is a martingale whose variance
grows with n N / (N - n), so Robbins' normal mixture applies at that time. Source: Waudby-Smith, Arbour,
Sinha, Kennedy & Ramdas, *Time-uniform central limit theory and asymptotic confidence sequences* (Annals of
Statistics, 2024).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from compass_coordinator.profiler.statistics.sequential import Floats, Intervals

FEWEST = 20
"""Samples before which a variance estimate is not trusted."""
_SURPRISE = 0.5
"""Each estimate is doubted as if one more input had been off by this much: what was never seen is not
impossible. Without it, on measured pages, intervals at 95% that were looked at all the time held for 91%;
with it for 94% to 99%.
"""
_HORIZON = 50
"""Sample count at which the interval is relatively narrowest."""


def approximate_intervals(
    estimates: npt.ArrayLike,
    variances: npt.ArrayLike,
    *,
    samples: npt.ArrayLike,
    population: int,
    alpha: float,
    lo: float = 0.0,
    hi: float = 1.0,
) -> Intervals:
    """Estimates with what their variances allow, whenever one looks.

    Args:
        estimates: (configs,) of means, ratios or their differences: `strata.estimated` and its kin.
        variances: (configs,) of the estimates, finite-population correction included, not doubted yet.
        samples: Inputs that each rests on: (configs,) or one count for all.
        population: Inputs in the set.
        alpha: Probability, for each config, that its interval ever misses; approached with growing samples.
        lo: Least possible value.
        hi: Largest possible value.
    """
    centre = np.asarray(estimates, dtype=np.float64)
    count = np.broadcast_to(np.asarray(samples, dtype=np.float64), centre.shape)
    doubt = (_SURPRISE / np.maximum(count, 1)) ** 2 * (1 - count / population)
    reach = deviations(count, population=population, alpha=alpha) * np.sqrt(
        np.asarray(variances, dtype=np.float64) + doubt
    )
    enough = (count >= FEWEST) | (count >= population)
    low = np.where(enough, np.clip(centre - reach, lo, hi), lo)
    return Intervals(low=low, high=np.where(enough, np.clip(centre + reach, lo, hi), hi))


def deviations(samples: npt.ArrayLike, *, population: int, alpha: float) -> Floats:
    """How many standard errors the estimate may ever be off: about 3 at 95%, where a single look has 1.96.

    Args:
        samples: Any shape, at least 1.
        population: Inputs in the set.
        alpha: Probability of ever being off by more.
    """
    best = -2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha))
    times = (
        best
        * _time(np.asarray(samples, dtype=np.float64), population)
        / _time(np.minimum(_HORIZON, population / 2), population)
    )
    return np.sqrt((1 + 1 / times) * (np.log1p(times) - 2 * math.log(alpha)))


def _time(samples: npt.ArrayLike, population: int) -> Floats:
    count = np.maximum(np.asarray(samples, dtype=np.float64), 1)
    # With all inputs seen, time is endless and the standard error nothing.
    times: Floats = count * population / np.maximum(population - count, 1e-9)
    return times
