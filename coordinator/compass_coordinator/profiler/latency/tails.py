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

from compass_shared.problem import Z95

Floats: TypeAlias = NDArray[np.float64]

JITTERS = (-0.5, -0.25, 0.0, 0.03, 0.06, 0.12, 0.25, 0.5)
"""Candidates for what the device adds to the relative standard deviation (in quadrature).

Less than none: it is steadier than the reference was, whose own spread is too large by that share.
"""
JITTER_SCALE = 0.1
"""A priori, jitters of this size and less are likely."""
STALLED_SHARES = (0.1, 0.25, 0.4, 0.5, 0.6, 0.75)
PERIODS_S = (0.003, 0.005, 0.008, 0.012, 0.02, 0.04, 0.1)
NO_STALL_WEIGHT = 0.8
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
class _Times:
    """What v variants take under t assumptions, (t, v) each."""

    var_s2: Floats
    kurtosis: Floats
    """Fourth moment over the square of the second: how much rare events weigh in the variance."""
    low_s: Floats
    """A quantile a little below the p95."""
    p95_s: Floats
    high_s: Floats
    """One as much above it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stalls:
    """t candidates for how a device is stopped."""

    share: Floats
    """(t,) of the time."""
    period_s: Floats
    weights: Floats

    @property
    def gap_s(self) -> Floats:
        """(t,) running time between two stalls."""
        return (1 - self.share) * self.period_s

    @property
    def length_s(self) -> Floats:
        """(t,) of one stall."""
        return self.share * self.period_s

    def sampling_var(self, mean_s: Floats, count: Floats) -> Floats:
        """Relative variance (t, n) of means that few calls gave: those may have met more stalls, or none."""
        phase = np.mod(np.outer(1 - self.share, mean_s) / self.gap_s[:, np.newaxis], 1.0)
        variance: Floats = (self.length_s[:, np.newaxis] / mean_s) ** 2 * phase * (1 - phase) / count
        return variance


def stalls() -> Stalls:
    """The candidates with what is believed of them beforehand; the first is none."""
    some = list(itertools.product(STALLED_SHARES, PERIODS_S))
    share, period_s = np.array([(0.0, 1.0), *some]).T
    each = (1 - NO_STALL_WEIGHT) / len(some)
    return Stalls(share=share, period_s=period_s, weights=np.array([NO_STALL_WEIGHT, *[each] * len(some)]))


def fit_tails(reference: Spread, measured: Spread, count: Floats, mean_s: Floats) -> Floats:
    """How well every jitter with every stall explains the spreads of n probes.

    Args:
        reference: (n,) spread on the reference machine.
        measured: (n,) spread on the device.
        count: (n,) samples behind it; less than four say nothing of a spread.
        mean_s: (t, n) what the probes take on average where the stall is the one assumed.

    Returns:
        (jitters, t) logarithms of the likelihood, the prior of the jitter in it.
    """
    level_sd = np.minimum(np.sqrt(0.95 * 0.05 / count), 0.04)
    explained = [
        _explained(_modelled(jitter, stalls(), reference, mean_s, level_sd), measured, count)
        for jitter in JITTERS
    ]
    found: Floats = np.array(explained) - np.abs(JITTERS)[:, np.newaxis] / JITTER_SCALE
    return found


def spread_of(
    reference: Spread, mean_s: Floats, weights: Floats, assumed: Stalls
) -> tuple[Floats, Floats, Floats]:
    """The spread of v variants on the device.

    Args:
        reference: (v,) their spread on the reference machine.
        mean_s: (c, v) their mean times on the device under each assumption.
        weights: (jitters, c) what is believed of the assumptions, adding up to 1.
        assumed: The c stalls.

    Returns:
        Relative variance, logarithm of p95 / mean and the variance of that logarithm, (v,) each.
    """
    var, ratio, ratio2 = (np.zeros(mean_s.shape[1]) for _ in range(3))
    for jitter, believed in zip(JITTERS, weights, strict=True):
        if believed.sum() < 1e-3:
            continue
        times = _modelled(jitter, assumed, reference, mean_s, LEVEL_SD)
        log_ratio = np.log(times.p95_s / mean_s)
        var += believed @ (times.var_s2 / mean_s**2)
        ratio += believed @ log_ratio
        ratio2 += believed @ (log_ratio**2 + (np.log(times.high_s / times.low_s) / 2) ** 2)
    total = weights.sum(axis=1)[weights.sum(axis=1) >= 1e-3].sum()
    var, ratio, ratio2 = var / total, ratio / total, ratio2 / total
    return var, ratio, np.maximum(ratio2 - ratio**2, 0.0) + MODEL_SD**2


def _explained(times: _Times, measured: Spread, count: Floats) -> Floats:
    """Log likelihood (t,) of what was measured."""
    floor_s = 1e-3 * measured.mean_s
    off_p95 = np.log(np.maximum(measured.p95_s, floor_s) / times.p95_s)
    sampled = np.where(off_p95 > 0, np.log(times.high_s / times.p95_s), np.log(times.p95_s / times.low_s))
    off_sd = np.log((np.sqrt(times.var_s2) + floor_s) / (np.sqrt(measured.var_s2) + floor_s))
    # What is so rare that these calls may not have met it tells nothing against it.
    sd_var = np.maximum(times.kurtosis - 1, 2.0) / (4 * count) + SPREAD_SD**2
    off = off_p95**2 / (sampled**2 + MODEL_SD**2) + off_sd**2 / sd_var
    found: Floats = -0.5 * (off * (count >= 4)).sum(axis=1)
    return found


def _modelled(
    jitter: float, stalls: Stalls, reference: Spread, mean_s: Floats, level_sd: Floats | float
) -> _Times:
    own = np.sqrt(reference.var_s2) / reference.mean_s
    kept = 1 + min(jitter, 0.0)
    rel_sd = np.sqrt((kept * own) ** 2 + max(jitter, 0.0) ** 2)
    gap_s, length_s = stalls.gap_s[:, np.newaxis], stalls.length_s[:, np.newaxis]
    running_s = mean_s * (1 - stalls.share)[:, np.newaxis]
    work_s = running_s[..., np.newaxis] * _lognormal(rel_sd)
    met, phase = np.divmod(work_s / gap_s[..., np.newaxis], 1.0)
    low_s = work_s + length_s[..., np.newaxis] * met
    high_s = low_s + length_s[..., np.newaxis]
    values = np.concatenate([low_s, high_s], axis=-1)
    weights = np.concatenate([1 - phase, phase], axis=-1) / len(_LEVELS)
    off_s = values - (weights * values).sum(axis=-1, keepdims=True)
    var_s2 = (weights * off_s**2).sum(axis=-1)
    kurtosis = (weights * off_s**4).sum(axis=-1) / np.maximum(var_s2**2, 1e-300)
    # What makes the inputs' own p95 another than a log-normal's; jitter blurs it.
    skew = np.log(reference.p95_s / reference.mean_s) - _log_p95(own)
    felt = kept * (kept * own / np.where(rel_sd > 0, rel_sd, 1.0))
    more_s = running_s * np.exp(_log_p95(rel_sd)) * np.expm1(felt * skew)
    low, middle, high = _quantiles(values, weights, level_sd)
    # The skew never takes a quantile below the work itself.
    low_s, p95_s, high_s = (np.maximum(found_s + more_s, found_s / 2) for found_s in (low, middle, high))
    return _Times(var_s2=var_s2, kurtosis=kurtosis, low_s=low_s, p95_s=p95_s, high_s=high_s)


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
