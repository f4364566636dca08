"""Confidence sequences in closed form, to compare those by betting with: Hoeffding and empirical Bernstein.

Sampling without replacement, values in [0, 1]. Source: Waudby-Smith & Ramdas, *Confidence sequences for
sampling without replacement* (NeurIPS 2020), theorems 2 and 3; bets as they advise there.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def hoeffding_ends(values: Floats, population: int, alpha: float) -> tuple[Floats, Floats]:
    """Lower and upper ends after each sample, running intersection; (configs, samples) each."""
    count = np.arange(1, values.shape[1] + 1)
    bets = np.minimum(np.sqrt(8 * math.log(2 / alpha) / (count * np.log(count + 1))), 1.0)
    return _ends(values, np.broadcast_to(bets, values.shape), bets**2 / 8 + 0 * values, population, alpha)


def empirical_bernstein_ends(values: Floats, population: int, alpha: float) -> tuple[Floats, Floats]:
    """The same, adapted to the spread of the values."""
    count = np.arange(1, values.shape[1] + 1)
    mean = (0.5 + np.cumsum(values, axis=1)) / (count + 1)
    variance = (0.25 + np.cumsum((values - mean) ** 2, axis=1)) / (count + 1)
    before_mean = np.concatenate((np.full((len(values), 1), 0.5), mean[:, :-1]), axis=1)
    before_variance = np.concatenate((np.full((len(values), 1), 0.25), variance[:, :-1]), axis=1)
    bets = np.minimum(np.sqrt(2 * math.log(2 / alpha) / (before_variance * count * np.log(count + 1))), 0.5)
    price = (values - before_mean) ** 2 * (-np.log1p(-bets) - bets)
    return _ends(values, bets, price, population, alpha)


def _ends(
    values: Floats, bets: Floats, price: Floats, population: int, alpha: float
) -> tuple[Floats, Floats]:
    count = values.shape[1]
    left = population - np.arange(count)
    before = np.cumsum(values, axis=1) - values
    scale = np.cumsum(bets * population / left, axis=1)
    centre = np.cumsum(bets * (values + before / left), axis=1) / scale
    reach = (np.cumsum(price, axis=1) + math.log(2 / alpha)) / scale
    total = before + values
    low = np.maximum(centre - reach, total / population)
    high = np.minimum(centre + reach, (total + left - 1) / population)
    return np.maximum.accumulate(low, axis=1), np.minimum.accumulate(high, axis=1)
