"""Time-uniform confidence intervals for inputs that are looked at one by one, in random order, each once.

The estimand is an accuracy over a finite, named input set: a mean of scores, or a ratio of counts. Inputs
come in a uniformly random order, the same for all configs. An interval holds **for all sample counts at
once** with probability 1 - alpha, so it may be looked at after every input, and a config may be stopped for
any reason: even for what another config, further along the same order, scored on inputs that this one has not
seen.

Method: betting. If the accuracy were r, then the next score would have a known mean m (what is left of the
total, over the inputs left), and a bet on it would be fair. Capital that grows from 1 to 2 / alpha
nevertheless contradicts r; one bettor plays for more than r and one for less (hedged capital). Each bets a
share c of its capital, chosen from the past alone: the capital is multiplied by 1 - c + c x / m. It never
rises with r, so what is not contradicted is an interval, whose ends are found by bisection.

Sources: Waudby-Smith & Ramdas, *Confidence sequences for sampling without replacement* (NeurIPS 2020) and
*Estimating means of bounded random variables by betting* (JRSS B, 2024), sections 4 and 5; bets in units of
the null mean as in Spertus, Sridhar & Stark, *Sequential stratified inference for the mean* (2024).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.intp]

_MOST = 0.95
"""Largest share of its capital that a bettor risks; less than 1, so that no single input can ruin it."""
_HORIZON = 50
"""Sample count near which the bets are meant to pay (any is valid; measured to be narrow from 20 to 150)."""
_STEPS = 20
"""Bisections: the ends are found, outwards, to 1e-6 of the range."""
_TINY = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A closed interval, ``low <= high``."""

    low: float
    high: float

    @property
    def width(self) -> float:
        """Its length, in units of the accuracy."""
        return self.high - self.low


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """One interval for each config."""

    low: Floats
    """(configs,) float64"""
    high: Floats
    """(configs,) float64, nowhere below ``low``"""

    def __getitem__(self, index: int) -> Interval:
        return Interval(low=float(self.low[index]), high=float(self.high[index]))

    @property
    def width(self) -> Floats:
        """(configs,) lengths."""
        return self.high - self.low

    def narrowed(self, later: Intervals) -> Intervals:
        """What this and a later look at the same configs share; the later one where that is nothing."""
        low, high = np.maximum(self.low, later.low), np.minimum(self.high, later.high)
        empty = low > high
        return Intervals(low=np.where(empty, later.low, low), high=np.where(empty, later.high, high))


def consistent(low: Floats, high: Floats) -> Intervals:
    """Intervals from bounds that contradict each other with probability alpha at most.

    Where they do, the truth has left one of them: the gap between them is the answer, rather than nothing.
    """
    return Intervals(low=np.minimum(low, high), high=np.maximum(low, high))


def mean_interval(
    values: npt.ArrayLike, *, population: int | None, alpha: float, lo: float = 0.0, hi: float = 1.0
) -> Interval:
    """`mean_intervals` of a single config.

    Args:
        values: (samples,) scores in the order in which the inputs were looked at.
        population: Inputs in the set; None for independent draws from a source without end.
        alpha: Probability that the interval ever misses, in (0, 1).
        lo: Least possible value.
        hi: Largest possible value.
    """
    rows = np.asarray(values, dtype=np.float64)[np.newaxis]
    return mean_intervals(rows, population=population, alpha=alpha, lo=lo, hi=hi)[0]


def mean_intervals(
    values: npt.ArrayLike, *, population: int | None, alpha: float, lo: float = 0.0, hi: float = 1.0
) -> Intervals:
    """Where the means over the whole input set are.

    Args:
        values: (configs, samples) scores within [lo, hi]; a row ends with NaN from the first input that its
            config was not measured on. An input on which a config failed has a score, 0: leaving it out would
            be biased.
        population: Inputs in the set; None for independent draws from a source without end.
        alpha: Probability, for each config, that its interval ever misses, in (0, 1).
        lo: Least possible value.
        hi: Largest possible value.

    Returns:
        The intersection of the intervals after each sample so far: [lo, hi] without any, the mean itself
        with all of them.

    Raises:
        ValueError: If values lie outside [lo, hi], follow on a NaN, or are more than the population.
    """
    scaled = (np.asarray(values, dtype=np.float64) - lo) / (hi - lo)
    ends = ratio_intervals(scaled, np.ones_like(scaled), population=population, alpha=alpha)
    return Intervals(low=lo + (hi - lo) * ends.low, high=lo + (hi - lo) * ends.high)


def difference_intervals(
    first: npt.ArrayLike, second: npt.ArrayLike, *, population: int | None, alpha: float
) -> Intervals:
    """Where the differences of means, first minus second, are: from inputs that both were measured on.

    Args:
        first: (configs, samples) scores in [0, 1], NaN after the last.
        second: The same of the configs to compare with; a single row is compared with all.
        population: As for `mean_intervals`.
        alpha: Probability, for each pair, that its interval ever misses.

    Returns:
        Intervals within [-1, 1]; exact for means. Configs that rarely differ still might on an input not seen
        yet: the width is at least about 4 log(2 / alpha) / samples, until few inputs are left.
    """
    differences = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    return mean_intervals(differences, population=population, alpha=alpha, lo=-1.0, hi=1.0)


def adjusted_intervals(
    values: npt.ArrayLike,
    reference: npt.ArrayLike,
    reference_mean: float,
    *,
    population: int,
    alpha: float,
    slope: float = 0.5,
) -> Intervals:
    """Where the means are, given a reference that is known on all inputs: another config, or a prediction.

    What is estimated is the mean of value - slope x reference, whose spread is smaller if the two agree on
    which inputs are hard; the rest is known. Exact however wrong the reference is, if it and the slope were
    fixed before.

    Args:
        values: (configs, samples) scores in [0, 1], NaN after the last.
        reference: (samples,) or (configs, samples), in [0, 1], on the same inputs.
        reference_mean: Its mean over the whole input set.
        population: Inputs in the set.
        alpha: Probability, for each config, that its interval ever misses.
        slope: In [0, 1]; 1 is a paired difference, and a half was the narrowest on measured pages.
    """
    rows, known = np.asarray(values, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    rest = mean_intervals(rows - slope * known, population=population, alpha=alpha, lo=-slope, hi=1.0)
    seen = ~np.isnan(rows)
    scores = np.where(seen, rows, 0.0)
    least, most = _logical_ends(scores, np.where(seen, 1.0, 0.0), seen, population)
    part = slope * reference_mean
    return Intervals(low=np.clip(rest.low + part, least, most), high=np.clip(rest.high + part, least, most))


def ratio_intervals(
    numerators: npt.ArrayLike,
    denominators: npt.ArrayLike,
    *,
    population: int | None,
    alpha: float,
    largest: float = 1.0,
) -> Intervals:
    """Where the ratios of totals over the whole input set are; exact, not linearised.

    If the ratio were r, then r + (numerator - r denominator) / largest would have mean r and lie in [0, 1].

    Args:
        numerators: (configs, samples), within [0, denominator], NaN after the last.
        denominators: (configs, samples) or one row for all, within [0, largest].
        population: As for `mean_intervals`.
        alpha: Probability, for each config, that its interval ever misses.
        largest: No input's denominator is larger, be it measured or not. The width grows with it.

    Raises:
        ValueError: If counts lie outside their bounds, follow on a NaN, or are more than the population.
    """
    above = np.asarray(numerators, dtype=np.float64) / largest
    below = np.broadcast_to(np.asarray(denominators, dtype=np.float64) / largest, above.shape)
    seen = _checked(above, below, population)
    below = np.where(seen, np.clip(below, 0.0, 1.0), 0.0)
    above = np.where(seen, np.clip(above, 0.0, below), 0.0)
    low = _lower_ends(above, below, seen, population, alpha)
    high = 1 - _lower_ends(below - above, below, seen, population, alpha)
    least, most = _logical_ends(above, below, seen, population)
    return consistent(np.clip(low, least, most), np.clip(high, least, most))


def ratio_difference_intervals(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    denominators: npt.ArrayLike,
    *,
    population: int | None,
    alpha: float,
    largest: float = 1.0,
) -> Intervals:
    """Where differences of ratios are, for configs that share their denominators (words on a page).

    Exact. Where a config's output changes the denominator (F1), see `approximate`.

    Args:
        first: (configs, samples) numerators within [0, denominator], NaN after the last.
        second: The same of the configs to compare with, or one row for all.
        denominators: (configs, samples) or one row for all, within [0, largest].
        population: As for `mean_intervals`.
        alpha: Probability, for each pair, that its interval ever misses.
        largest: No input's denominator is larger.
    """
    shared = np.asarray(denominators, dtype=np.float64)
    gains = (np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64) + shared) / 2
    ends = ratio_intervals(gains, shared, population=population, alpha=alpha, largest=largest)
    return Intervals(low=2 * ends.low - 1, high=2 * ends.high - 1)


def bet_scale(alpha: float, samples: npt.ArrayLike) -> Floats:
    """The bet, times the standard deviation, that suits a bettor who needs 2 / alpha near the horizon."""
    return np.sqrt(2 * math.log(2 / alpha) / (_HORIZON + np.asarray(samples, dtype=np.float64)))


def capped(bets: Floats) -> Floats:
    """Shares of capital that can be risked on any input."""
    return np.minimum(bets, _MOST)


def _checked(above: Floats, below: Floats, population: int | None) -> npt.NDArray[np.bool_]:
    seen = ~(np.isnan(above) | np.isnan(below))
    if np.any(seen[:, 1:] & ~seen[:, :-1]):
        raise ValueError("samples have gaps: each row is a prefix of the shared order, NaN after it")
    if population is not None and seen.shape[1] and seen.sum(axis=1).max(initial=0) > population:
        raise ValueError(f"more samples than the population of {population}")
    # Scaled values may be off by rounding; NaN compares as false.
    if np.any(above < -_TINY) or np.any(above > below + _TINY) or np.any(below > 1 + _TINY):
        raise ValueError("samples lie outside the bounds that were given for them")
    return seen


def _logical_ends(
    above: Floats, below: Floats, seen: npt.NDArray[np.bool_], population: int | None
) -> tuple[Floats, Floats]:
    """Ratios if all inputs not seen yet were entirely wrong, and entirely right."""
    if population is None:
        return np.zeros(len(above)), np.ones(len(above))
    left = population - seen.sum(axis=1)
    total = below.sum(axis=1) + left
    # No counts at all: nothing is known of the ratio.
    known = np.where(total > 0, total, 1.0)
    least = np.where(total > 0, above.sum(axis=1) / known, 0.0)
    return least, np.where(total > 0, (above.sum(axis=1) + left) / known, 1.0)


def _lower_ends(
    above: Floats, below: Floats, seen: npt.NDArray[np.bool_], population: int | None, alpha: float
) -> Floats:
    """(configs,) largest ratios that are contradicted, together with all below them; 0 where none is."""
    if not above.size:
        return np.zeros(len(above))
    slope, offset = _null_means(above, below, population)
    shares = np.where(seen, _shares(above, below, alpha), 0.0)
    needed = math.log(2 / alpha)
    low, high = _logical_ends(above, below, seen, population)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        ratio = middle[:, np.newaxis]
        mean = np.maximum(slope * ratio - offset, _TINY)
        growth = shares * ((above + ratio * (1 - below)) / mean - 1)
        contradicted = np.cumsum(np.log1p(growth), axis=1).max(axis=1) >= needed
        low, high = np.where(contradicted, middle, low), np.where(contradicted, high, middle)
    return low


def _null_means(above: Floats, below: Floats, population: int | None) -> tuple[Floats, Floats]:
    """Mean of each sample given those before, for ratio r: ``slope * r - offset``, (configs, samples)."""
    if population is None:
        return np.ones_like(above), np.zeros_like(above)
    # A row that has ended stays within the population by what it does not use.
    left = np.maximum(population - np.arange(above.shape[1]), 1)
    return 1 + before(below) / left, before(above) / left


def _shares(above: Floats, below: Floats, alpha: float) -> Floats:
    """(configs, samples) share of the capital to bet on each sample, known before it."""
    samples = np.arange(1, above.shape[1] + 1)
    mean = (0.5 + np.cumsum(above, axis=1)) / (1 + np.cumsum(below, axis=1))
    # As if one input had been half right and one standard deviation off.
    variance = (0.25 + np.cumsum((above - mean * below) ** 2, axis=1)) / (samples + 1)
    bets = mean * bet_scale(alpha, samples + 1) / np.sqrt(variance)
    start = np.full((len(above), 1), bet_scale(alpha, 1))
    return capped(np.concatenate((start, bets[:, :-1]), axis=1))


def before(values: Floats) -> Floats:
    """(configs, samples) sums of what comes before each sample."""
    return np.cumsum(values, axis=1) - values
