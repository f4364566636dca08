"""Betting: what intervals that hold **at all sample counts at once** are made of.

They may be looked at after every input, and a config may be stopped for any reason: even for what another
config, further along the same order, scored on inputs that this one has not seen.

Method: if the accuracy were r, then the next score would have a known mean m, and a bet on it would be fair.
Capital that grows from 1 to 2 / alpha nevertheless contradicts r; one bettor plays for more than r and one
for less (hedged capital). Each bets a share c of its capital, chosen from the past alone: the capital is
multiplied by 1 - c + c x / m. It never rises with r, so what is not contradicted is an interval. For inputs
drawn from a source without end m is r itself (`generalise`); without replacement, from strata of a named
input set, it is what is left of the stratum's total, over the inputs left (`stratified_intervals`).

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """One interval for each config."""

    low: Floats
    """(configs,) float64"""
    high: Floats
    """(configs,) float64, nowhere below ``low``"""

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


def bet_scale(alpha: float, samples: npt.ArrayLike) -> Floats:
    """The bet, times the standard deviation, that suits a bettor who needs 2 / alpha near the horizon."""
    return np.sqrt(2 * math.log(2 / alpha) / (_HORIZON + np.asarray(samples, dtype=np.float64)))


def capped(bets: Floats) -> Floats:
    """Shares of capital that can be risked on any input."""
    return np.minimum(bets, _MOST)


def before(values: Floats) -> Floats:
    """(..., samples) sums of what comes before each sample."""
    return np.cumsum(values, axis=-1) - values
