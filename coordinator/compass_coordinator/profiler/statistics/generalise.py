"""How far an accuracy over the input set carries over to new inputs from the same source.

The profiler's intervals are about the named inputs and shrink to nothing once all were looked at. These here
are about the source that the inputs were drawn from, they never shrink to nothing, and nothing is decided by
them: they tell people whether the input set is large enough. (Planners take a few standard errors off for the
same reason.) They presume independent inputs from one source.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from compass_coordinator.profiler.statistics.sequential import Floats, before, bet_scale, capped

_STEPS = 20
"""Bisections: ends are found, outwards, to 1e-6."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A closed interval, ``low <= high``."""

    low: float
    high: float


def student_interval(numerators: npt.ArrayLike, denominators: npt.ArrayLike, *, alpha: float) -> Interval:
    """Student's interval for a ratio over new inputs, linearised.

    Approximate: it misses more often than alpha for skewed scores of few inputs, and where all inputs have
    the same ratio it is a single point. For means `betting_interval` always holds.

    Args:
        numerators: (inputs,) of all inputs that a config was measured on.
        denominators: (inputs,).
        alpha: Probability of missing, in (0, 1).

    Returns:
        Within [0, 1]; all of it for fewer than two inputs.
    """
    above = np.asarray(numerators, dtype=np.float64)
    below = np.asarray(denominators, dtype=np.float64)
    count = len(above)
    if count < 2 or below.sum() <= 0:
        return Interval(low=0.0, high=1.0)
    ratio = above.sum() / below.sum()
    error = np.std(above - ratio * below, ddof=1) / (below.mean() * math.sqrt(count))
    reach = float(stats.t.ppf(1 - alpha / 2, count - 1)) * error
    return _within(ratio - reach, ratio + reach)


def betting_interval(scores: npt.ArrayLike, *, alpha: float) -> Interval:
    """An interval for a mean that holds for any distribution on [0, 1] and any number of inputs; the widest.

    Args:
        scores: (inputs,) in [0, 1], in random order.
        alpha: Probability of ever missing, in (0, 1).

    Raises:
        ValueError: If a score lies outside [0, 1].
    """
    values = np.asarray(scores, dtype=np.float64)
    if not np.all((values >= 0) & (values <= 1)):
        raise ValueError("scores lie outside [0, 1]")
    low, high = _lower_end(values, alpha), 1 - _lower_end(1 - values, alpha)
    # Where they contradict each other the truth has left one of them.
    return Interval(low=min(low, high), high=max(low, high))


def _lower_end(values: Floats, alpha: float) -> float:
    """The largest mean that is contradicted, together with all below it; 0 where none is."""
    count = np.arange(len(values))
    mean = (0.5 + before(values)) / (count + 1)
    # As if one input had been half right and one standard deviation off.
    wide = 0.25 + before((values - (0.5 + np.cumsum(values)) / (count + 2)) ** 2)
    shares = capped(mean * bet_scale(alpha, count + 1) / np.sqrt(wide / (count + 1)))
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        capital = np.cumsum(np.log1p(shares * (values / middle - 1)))
        contradicted = capital.max(initial=0.0) >= math.log(2 / alpha)
        low, high = (middle, high) if contradicted else (low, middle)
    return low


def _within(low: float, high: float) -> Interval:
    return Interval(low=min(max(low, 0.0), 1.0), high=min(max(high, 0.0), 1.0))
