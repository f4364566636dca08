"""How far an accuracy over the input set carries over to new inputs from the same source.

The profiler's intervals are about the named inputs and shrink to nothing once all were looked at; plans are
chosen by them alone. These here are about the source that the inputs were drawn from, they never shrink to
nothing, and nothing is decided by them: they tell people whether the input set is large enough. They presume
independent inputs from one source.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy import stats

from compass_coordinator.profiler.statistics.sequential import Floats, Interval, mean_interval


def student_interval(
    numerators: npt.ArrayLike, denominators: npt.ArrayLike | None = None, *, alpha: float
) -> Interval:
    """Student's interval for the accuracy over new inputs, linearised for ratios.

    Approximate: it misses more often than alpha for skewed scores of few inputs, and where no score differs
    from another it is a single point. `betting_interval` always holds.

    Args:
        numerators: (inputs,) scores of all inputs that a config was measured on.
        denominators: (inputs,) of a ratio; None for a mean of scores.
        alpha: Probability of missing, in (0, 1).

    Returns:
        Within [0, 1]; all of it for fewer than two inputs.
    """
    above = np.asarray(numerators, dtype=np.float64)
    below = np.ones_like(above) if denominators is None else np.asarray(denominators, dtype=np.float64)
    count = len(above)
    if count < 2 or below.sum() <= 0:
        return Interval(low=0.0, high=1.0)
    ratio = above.sum() / below.sum()
    error = np.std(above - ratio * below, ddof=1) / (below.mean() * math.sqrt(count))
    reach = float(stats.t.ppf(1 - alpha / 2, count - 1)) * error
    return _within(ratio - reach, ratio + reach)


def bootstrap_interval(
    numerators: npt.ArrayLike,
    denominators: npt.ArrayLike | None = None,
    *,
    alpha: float,
    rng: np.random.Generator,
    resamples: int = 2000,
) -> Interval:
    """Percentiles of the accuracy over resampled inputs: follows skewed scores, a little narrow for few.

    Args:
        numerators: (inputs,) scores of all inputs that a config was measured on.
        denominators: (inputs,) of a ratio; None for a mean of scores.
        alpha: Probability of missing, in (0, 1).
        rng: Draws the resamples.
        resamples: How many.

    Returns:
        Within [0, 1]; all of it for fewer than two inputs.
    """
    above = np.asarray(numerators, dtype=np.float64)
    below = np.ones_like(above) if denominators is None else np.asarray(denominators, dtype=np.float64)
    count = len(above)
    if count < 2 or below.sum() <= 0:
        return Interval(low=0.0, high=1.0)
    times: Floats = rng.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)
    totals = times @ below
    low, high = np.quantile((times @ above)[totals > 0] / totals[totals > 0], (alpha / 2, 1 - alpha / 2))
    return _within(float(low), float(high))


def betting_interval(scores: npt.ArrayLike, *, alpha: float) -> Interval:
    """An interval for a mean that holds for any distribution on [0, 1] and any number of inputs; the widest.

    Args:
        scores: (inputs,) in [0, 1], in random order.
        alpha: Probability of ever missing, in (0, 1).
    """
    return mean_interval(scores, population=None, alpha=alpha)


def _within(low: float, high: float) -> Interval:
    return Interval(low=min(max(low, 0.0), 1.0), high=min(max(high, 0.0), 1.0))
