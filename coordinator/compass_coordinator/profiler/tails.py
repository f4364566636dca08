"""The spread of an operator's time on a device: that of its inputs, jitter, and stalls.

A quota stops a process for the rest of each period once its share is used up; a neighbour on the same core
takes it for a time slice, again and again. Both leave short calls alone, mostly, and hit long ones once or
several times: what they do to a p95 is no constant factor. The model: work w, spread as on the reference
machine and a little more (jitter), takes

    w + length x N,    N = floor(w / gap + U),    U uniform on [0, 1),

where a stall of ``length`` seconds comes after every ``gap`` seconds of running, at a phase that the call
knows nothing of. Jitter, the share of time that is stalled and the period are a grid of values, weighted by
how well they explain the spread of the probes.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from compass_coordinator.profiler.slowdowns import normalised

Floats: TypeAlias = NDArray[np.float64]

Z95 = 1.6448536269514722
JITTERS = (-0.5, -0.25, 0.0, 0.03, 0.06, 0.12, 0.25, 0.5)
"""Candidates for what the device adds to the relative standard deviation (in quadrature).

Less than none: it is steadier than the reference was, whose own spread is too large by that share.
"""
JITTER_SCALE = 0.1
"""A priori, jitters of this size and less are likely."""
STALLED_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
PERIODS_S = (0.003, 0.005, 0.008, 0.012, 0.02, 0.035, 0.06, 0.1)
NO_STALL_WEIGHT = 0.7
MODEL_SD = 0.05
"""What the model itself may be wrong by, in the logarithm of p95 / mean."""
SPREAD_SD = 0.3
"""And in the logarithm of the standard deviation, where a few outliers count most."""
LEVEL_SD = 0.015
"""A p95 that was measured is a quantile near this one: with stalls that can be very different."""
_LEVELS = (np.arange(32) + 0.5) / 32
_NORMAL = ndtri(_LEVELS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How the times of v variants spread."""

    mean_s: Floats
    var_s2: Floats
    p95_s: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Tails:
    """What is believed of a device's jitter and stalls: t candidates."""

    jitter: Floats
    share: Floats
    period_s: Floats
    weights: Floats

    def spread(self, reference: Spread, mean_s: Floats) -> tuple[Spread, Floats]:
        """The spread of variants on the device.

        Args:
            reference: (v,) their spread on the reference machine.
            mean_s: (v,) their mean times on the device.

        Returns:
            The spread there, and the variance of the logarithm of its p95 (v,).
        """
        likely = self.weights > 1e-3
        var_s2, low_s, p95_s, high_s = _modelled(
            self.jitter[likely], self.share[likely], self.period_s[likely], reference, mean_s, LEVEL_SD
        )
        weights = self.weights[likely] / self.weights[likely].sum()
        log_p95 = weights @ np.log(p95_s)
        between = (np.log(p95_s) - log_p95) ** 2 + (np.log(high_s / low_s) / 2) ** 2
        spread = Spread(mean_s=mean_s, var_s2=weights @ var_s2, p95_s=np.exp(log_p95))
        return spread, weights @ between + MODEL_SD**2


def fit_tails(reference: Spread, measured: Spread, count: Floats) -> Tails:
    """What the spreads of n probes say of the device's jitter and stalls.

    Args:
        reference: (n,) spread on the reference machine.
        measured: (n,) spread on the device.
        count: (n,) samples behind it; less than four say nothing of a spread.
    """
    jitter, share, period_s, log_prior = _candidates()
    count = np.maximum(count, 1)
    level_sd = np.minimum(np.sqrt(0.95 * 0.05 / count), 0.04)
    var_s2, low_s, p95_s, high_s = _modelled(jitter, share, period_s, reference, measured.mean_s, level_sd)
    floor_s = 1e-3 * measured.mean_s
    off_p95 = np.log(np.maximum(measured.p95_s, floor_s) / p95_s)
    sampled = np.where(off_p95 > 0, np.log(high_s / p95_s), np.log(p95_s / low_s))
    off_sd = np.log((np.sqrt(var_s2) + floor_s) / (np.sqrt(measured.var_s2) + floor_s))
    explained = off_p95**2 / (sampled**2 + MODEL_SD**2) + off_sd**2 / (2 / count + SPREAD_SD**2)
    log_likelihood = -0.5 * (explained * (count >= 4)).sum(axis=1)
    return Tails(
        jitter=jitter, share=share, period_s=period_s, weights=normalised(log_likelihood + log_prior)
    )


def _candidates() -> tuple[Floats, Floats, Floats, Floats]:
    """Jitter, stalled share, period and the logarithm of the prior weight, (t,) each."""
    stalls = [(0.0, 1.0, NO_STALL_WEIGHT)]
    some = (1 - NO_STALL_WEIGHT) / (len(STALLED_SHARES) * len(PERIODS_S))
    stalls += [(share, period_s, some) for share, period_s in itertools.product(STALLED_SHARES, PERIODS_S)]
    points = list(itertools.product(JITTERS, stalls))
    jitter = np.array([point[0] for point in points])
    share, period_s, weight = np.array([point[1] for point in points]).T
    return jitter, share, period_s, np.log(weight) - np.abs(jitter) / JITTER_SCALE


def _modelled(
    jitter: Floats,
    share: Floats,
    period_s: Floats,
    reference: Spread,
    mean_s: Floats,
    level_sd: Floats | float,
) -> tuple[Floats, Floats, Floats, Floats]:
    """Variance, p95 and the quantiles below and above it of v variants under t candidates, each (t, v)."""
    own = np.sqrt(reference.var_s2) / reference.mean_s
    kept = 1 + np.minimum(jitter, 0.0)[:, np.newaxis]
    rel_sd = np.sqrt((kept * own) ** 2 + np.maximum(jitter, 0.0)[:, np.newaxis] ** 2)
    gap_s, length_s = ((1 - share) * period_s)[:, np.newaxis], (share * period_s)[:, np.newaxis]
    running_s = mean_s * (1 - share)[:, np.newaxis]
    work_s = running_s[..., np.newaxis] * _lognormal(rel_sd)
    stalls, phase = np.divmod(work_s / gap_s[..., np.newaxis], 1.0)
    low_s = work_s + length_s[..., np.newaxis] * stalls
    high_s = low_s + length_s[..., np.newaxis]
    values = np.concatenate([low_s, high_s], axis=-1)
    weights = np.concatenate([1 - phase, phase], axis=-1) / len(_LEVELS)
    mean = (weights * values).sum(axis=-1)
    var_s2 = (weights * (values - mean[..., np.newaxis]) ** 2).sum(axis=-1)
    # What makes the inputs' own p95 another than a log-normal's; jitter blurs it.
    skew = np.log(reference.p95_s / reference.mean_s) - _log_p95(own)
    felt = kept * (kept * own / np.where(rel_sd > 0, rel_sd, 1.0))
    more_s = running_s * np.exp(_log_p95(rel_sd)) * np.expm1(felt * skew)
    low, middle, high = _quantiles(values, weights, level_sd)
    # The skew never takes a quantile below the work itself.
    return var_s2, *(np.maximum(found_s + more_s, found_s / 2) for found_s in (low, middle, high))


def _lognormal(rel_sd: Floats) -> Floats:
    """Values of mean 1 and this relative standard deviation at even levels: (...) gives (..., levels)."""
    sd = np.sqrt(np.log1p(rel_sd**2))[..., np.newaxis]
    values = np.exp(sd * _NORMAL)
    normed: Floats = values / values.mean(axis=-1, keepdims=True)
    return normed


def _log_p95(rel_sd: Floats) -> Floats:
    """Logarithm of p95 / mean of a log-normal."""
    var = np.log1p(rel_sd**2)
    log_ratio: Floats = Z95 * np.sqrt(var) - var / 2
    return log_ratio


def _quantiles(values: Floats, weights: Floats, level_sd: Floats | float) -> tuple[Floats, Floats, Floats]:
    """Weighted quantiles over the last axis, at 95% and this much below and above."""
    order = np.argsort(values, axis=-1)
    sorted_values = np.take_along_axis(values, order, axis=-1)
    share = np.take_along_axis(weights, order, axis=-1)
    middle = np.cumsum(share, axis=-1) - share / 2

    def at(level: Floats | float) -> Floats:
        asked = np.broadcast_to(np.asarray(level), middle.shape[:-1])[..., np.newaxis]
        above = np.minimum((middle < asked).sum(axis=-1, keepdims=True), middle.shape[-1] - 1)
        ends = (np.maximum(above - 1, 0), above)
        low, high = (np.take_along_axis(middle, end, axis=-1) for end in ends)
        low_s, high_s = (np.take_along_axis(sorted_values, end, axis=-1) for end in ends)
        found: Floats = low_s + np.clip((asked - low) / np.maximum(high - low, 1e-12), 0, 1) * (
            high_s - low_s
        )
        return found[..., 0]

    return at(0.95 - level_sd), at(0.95), at(0.95 + level_sd)
