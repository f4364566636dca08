"""Time-uniform intervals from inputs drawn stratum by stratum.

Within each stratum the order is uniformly random, and each stratum has a bettor of its own (see
`sequential`). How draws alternate between strata may depend on what was seen, but never on what follows.
Which means the strata have is unknown, only their weighted sum is in question, so an accuracy is contradicted
if *every* way to share it out among the strata is: their capitals multiply, and the least product counts.
With bets in units of the null mean the logarithm of each capital is convex in the stratum's mean, hence the
lower end is a convex programme,

    minimise  sum of weight x mean   subject to   sum of log capital(mean) <= log(2 / alpha),

and its Lagrangian dual is a bound whatever its multiplier. Capitals enter by their tangents, which are below
them: what is left of the error widens the interval.

Sources: Spertus, Sridhar & Stark, *Sequential stratified inference for the mean* (2024): unions of
intersection hypotheses, inverse bets; Stark, *Sets of half-average nulls generate risk-limiting audits*
(2020).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from compass_coordinator.profiler.statistics.sequential import (
    Floats,
    Intervals,
    Labels,
    before,
    bet_scale,
    capped,
    consistent,
)

_TANGENTS = 40
_LOG_MULTIPLIERS = (-12.0, 3.0)
_STEPS = 18
"""Bisections for the multiplier: any is a bound, and the dual is flat around its best."""
_TINY = 1e-12


def product_intervals(
    values: npt.ArrayLike, labels: npt.ArrayLike, sizes: npt.ArrayLike, *, alpha: float
) -> Intervals:
    """Where the means over the whole input set are, from all strata's capitals together.

    The interval at this sample count alone: whoever looks again may narrow it (`Intervals.narrowed`).

    Args:
        values: (configs, samples) scores in [0, 1], NaN from the first that a config was not measured on.
        labels: (samples,) stratum of each sample.
        sizes: (strata,) inputs of each stratum in the whole set; none is empty.
        alpha: Probability, for each config, that its interval ever misses.

    Raises:
        ValueError: If values lie outside [0, 1], follow on a NaN, or are more than their stratum has.
    """
    rows, strata, counts = _arrays(values, labels, sizes)
    seen = ~np.isnan(rows)
    known = np.where(seen, rows, 0.0)
    low = _lower_ends(known, seen, strata, counts, alpha)
    return consistent(low, 1 - _lower_ends(np.where(seen, 1 - rows, 0.0), seen, strata, counts, alpha))


def _arrays(
    values: npt.ArrayLike, labels: npt.ArrayLike, sizes: npt.ArrayLike
) -> tuple[Floats, Labels, Labels]:
    rows = np.asarray(values, dtype=np.float64)
    strata, counts = np.asarray(labels, dtype=np.intp), np.asarray(sizes, dtype=np.intp)
    seen = ~np.isnan(rows)
    if np.any(seen[:, 1:] & ~seen[:, :-1]):
        raise ValueError("samples have gaps: each row is a prefix of the shared order, NaN after it")
    if np.any(rows < 0) or np.any(rows > 1):
        raise ValueError("samples lie outside [0, 1]")
    if np.any(counts < 1) or np.any(np.bincount(strata, minlength=len(counts)) > counts):
        raise ValueError("a stratum has more samples than inputs, or no inputs")
    return rows, strata, counts


def _lower_ends(
    values: Floats, seen: npt.NDArray[np.bool_], strata: Labels, sizes: Labels, alpha: float
) -> Floats:
    """(configs,) lower ends of the means."""
    weights = sizes / sizes.sum()
    shares = np.where(seen, _shares(values, strata, weights, alpha), 0.0)
    least = np.empty((len(values), len(sizes), _TANGENTS + 1))
    capital = np.empty_like(least)
    for stratum, size in enumerate(sizes):
        mine = strata == stratum
        least[:, stratum], capital[:, stratum] = _tangents(
            values[:, mine], seen[:, mine], shares[:, mine], size
        )
    return _dual(least * weights[:, np.newaxis], capital, math.log(2 / alpha))


def _shares(values: Floats, strata: Labels, weights: Floats, alpha: float) -> Floats:
    """(configs, samples) share of the capital to bet on each sample, known before it.

    Bets on single strata are as large as makes their sum a bet on the weighted mean: in proportion to weight
    over samples, in units of that mean's standard deviation.
    """
    samples = np.arange(values.shape[1])
    drawn, mean, spread = (np.empty((len(weights), *values.shape)) for _ in range(3))
    for stratum in range(len(weights)):
        mine = strata == stratum
        drawn[stratum] = before(np.broadcast_to(mine.astype(np.float64), values.shape))
        mean[stratum] = (0.5 + before(values * mine)) / (1 + drawn[stratum])
        # Deviations from the mean known before each sample: a little wide, never from the future.
        errors = (values - mean[stratum]) ** 2 * mine
        spread[stratum] = (0.25 + before(errors)) / (1 + drawn[stratum])
    portion = (drawn + weights[:, np.newaxis, np.newaxis]) / (samples + 1)
    factor = weights[:, np.newaxis, np.newaxis] / portion
    variance = (factor * weights[:, np.newaxis, np.newaxis] * spread).sum(axis=0)
    bets = factor * mean * bet_scale(alpha, samples + 1) / np.sqrt(variance)
    chosen: Floats = np.take_along_axis(bets, np.broadcast_to(strata, (1, *values.shape)), axis=0)[0]
    return capped(chosen)


def _tangents(
    values: Floats, seen: npt.NDArray[np.bool_], shares: Floats, size: int
) -> tuple[Floats, Floats]:
    """Corners of the tangents under a stratum's log capital: means and heights, (configs, corners) each."""
    left = size - np.arange(values.shape[1])
    earlier = before(values)
    total = values.sum(axis=1)
    start, end = total / size, (total + size - seen.sum(axis=1)) / size
    # Closer together where the capital is steep.
    places = start[:, np.newaxis] + np.outer(end - start, ((np.arange(_TANGENTS) + 0.5) / _TANGENTS) ** 2)
    height, slope = np.empty_like(places), np.empty_like(places)
    for column in range(_TANGENTS):
        mean = np.maximum((size * places[:, column, np.newaxis] - earlier) / left, _TINY)
        growth = 1 - shares + shares * values / mean
        height[:, column] = np.log(growth).sum(axis=1)
        slope[:, column] = -(shares * values * size / (left * mean**2 * growth)).sum(axis=1)
    corners = np.concatenate(
        (start[:, np.newaxis], _crossings(places, height, slope), end[:, np.newaxis]), axis=1
    )
    first = height[:, :1] + slope[:, :1] * (corners[:, :1] - places[:, :1])
    return corners, np.concatenate((first, height + slope * (corners[:, 1:] - places)), axis=1)


def _crossings(places: Floats, height: Floats, slope: Floats) -> Floats:
    """Where each tangent meets the next."""
    start, end = places[:, :-1], places[:, 1:]
    bend = slope[:, 1:] - slope[:, :-1]
    parallel = bend <= _TINY
    rise = height[:, :-1] - height[:, 1:] + slope[:, 1:] * (end - start)
    way = np.where(parallel, (end - start) / 2, rise / np.where(parallel, 1.0, bend))
    crossings: Floats = np.clip(start + way, start, end)
    return crossings


def _dual(means: Floats, capital: Floats, needed: float) -> Floats:
    """(configs,) largest value of the Lagrangian dual; means are weighted, (configs, strata, corners)."""
    best = means[:, :, 0].sum(axis=1)
    low, high = (np.full(len(means), bound) for bound in _LOG_MULTIPLIERS)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        lagrangian = means + np.exp(middle)[:, np.newaxis, np.newaxis] * capital
        least = lagrangian.argmin(axis=2)[:, :, np.newaxis]
        excess = np.take_along_axis(capital, least, axis=2)[:, :, 0].sum(axis=1) - needed
        value = np.take_along_axis(means, least, axis=2)[:, :, 0].sum(axis=1) + np.exp(middle) * excess
        best = np.maximum(best, value)
        # The dual is concave and the excess its slope.
        low, high = np.where(excess > 0, middle, low), np.where(excess > 0, high, middle)
    # Beyond the largest logical mean there is only contradiction.
    ends: Floats = np.minimum(best, means[:, :, -1].sum(axis=1))
    return ends
