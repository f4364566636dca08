"""How much longer operators take on a device than on a reference machine: a regression with partial pooling.

The logarithm of a variant's slowdown is

    what the device's variants share + what those of its speed class share + slope x ln(duration)
    + what its kin share (the same operator, and above all the same model) + its own,

every term normal around the prior: a Gaussian process over variants. On top comes a constant time a call. How
much classes, kin and variants differ and how long a call's constant is are not known either: a grid of
values, each weighted by how well it explains the probes (their marginal likelihood, in closed form).

References:
    Rasmussen, Williams, "Gaussian Processes for Machine Learning" (2006), equations 2.25, 2.26 and 2.30.
    Gelman et al., "Bayesian Data Analysis" (3rd ed., 2013), chapter 5 (partial pooling).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Indices: TypeAlias = NDArray[np.int64]

CLASS_SDS = (0.03, 0.1, 0.3)
"""Candidates for how far the speed classes of one device lie apart, as sd of the logarithm."""
KIN_SDS = {0.03: 0.3, 0.1: 0.3, 0.2: 0.25, 0.4: 0.15}
"""Candidates for how far kin lie apart within a class -> a priori weight."""
OWN_SDS = {0.02: 0.2, 0.05: 0.3, 0.1: 0.3, 0.2: 0.2}
"""And the variants among kin."""
SLOPE_SD = 0.05
"""Of the exponent by which longer calls slow down more or less than short ones."""
OVERHEAD_SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9)
"""Candidates for a call's constant time, as shares of the quickest probe."""
MAX_OVERHEAD_S = 0.005
"""Of one call: what takes longer than this is no constant."""
NO_OVERHEAD_WEIGHT = 0.6


@dataclass(frozen=True, slots=True, kw_only=True)
class Variants:
    """What is known of v variants before the device is measured."""

    reference_s: Floats
    """(v,) mean time on the reference machine."""
    speed_class: Indices
    """(v,) which class."""
    prior_log: Floats
    """(v,) logarithm of the expected slowdown."""
    prior_sd: Floats
    """(v,) and its standard deviation."""
    kinship: Floats
    """(v, v) from 0, strangers, to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowdowns:
    """Posterior of v variants' times on the device, all logarithms of seconds."""

    log_s: Floats
    """(v,) logarithm of the mean time."""
    shared_var: Floats
    """(v,) variance that a variant has in common with others of its class."""
    own_var: Floats
    """(v,) variance of its own and of its kin."""
    overhead_s: float
    own_sd: float
    """How far variants of one class lie apart."""


def fit_slowdowns(variants: Variants, probed: Indices, measured_s: Floats, noise_var: Floats) -> Slowdowns:
    """Posterior of every variant's mean time on the device.

    Args:
        variants: All v variants.
        probed: (n,) which of them were measured on the device, each once.
        measured_s: (n,) their mean times there.
        noise_var: (n,) relative variance of those means, that of the reference included.
    """
    grid = _Grid(measured_s)
    everything = np.arange(len(variants.reference_s))
    start_log = np.log(variants.reference_s) + variants.prior_log
    left_s = measured_s - grid.overhead_s[:, np.newaxis]
    shift = np.log(left_s) - start_log[probed]
    noise = noise_var * (measured_s / left_s) ** 2
    at_probes = _shared(variants, grid, probed, probed) + _apart(variants, grid, probed, probed)
    at_probes += noise[:, :, np.newaxis] * np.eye(len(probed))
    shared = _shared(variants, grid, everything, probed)
    to_probes = shared + _apart(variants, grid, everything, probed)
    log_s = start_log + (to_probes @ np.linalg.solve(at_probes, shift[..., np.newaxis]))[..., 0]

    shared_start = _shared_var(variants, grid)
    shared_var = _left(shared_start, shared, at_probes)
    apart_start = (grid.kin_sd**2 + grid.own_sd**2)[:, np.newaxis]
    total_var = _left(shared_start + apart_start, to_probes, at_probes)
    shared_var = np.minimum(shared_var, total_var)

    weights = grid.weights(_log_likelihood(at_probes, shift) + np.log(measured_s / left_s).sum(axis=1))
    total_log = np.log(np.exp(log_s) + grid.overhead_s[:, np.newaxis])
    # A constant is certain beside what is scaled: it takes uncertainty away in proportion.
    damped = np.exp(2 * (log_s - total_log))
    mean = weights @ total_log
    return Slowdowns(
        log_s=mean,
        shared_var=weights @ (damped * shared_var + (total_log - mean) ** 2),
        own_var=weights @ (damped * (total_var - shared_var)),
        overhead_s=float(weights @ grid.overhead_s),
        own_sd=float(np.sqrt(weights @ apart_start[:, 0])),
    )


def _shared(variants: Variants, grid: _Grid, rows: Indices, columns: Indices) -> Floats:
    """Covariance (h, rows, columns) of what is shared beyond kin."""
    same = variants.speed_class[rows, np.newaxis] == variants.speed_class[columns]
    slope_of = _slope_of(variants)
    fixed = np.outer(variants.prior_sd[rows], variants.prior_sd[columns])
    fixed += SLOPE_SD**2 * np.outer(slope_of[rows], slope_of[columns])
    covariance: Floats = fixed + grid.class_sd[:, np.newaxis, np.newaxis] ** 2 * same
    return covariance


def _shared_var(variants: Variants, grid: _Grid) -> Floats:
    """Diagonal (h, v) of ``_shared``."""
    fixed = variants.prior_sd**2 + SLOPE_SD**2 * _slope_of(variants) ** 2
    variance: Floats = fixed + grid.class_sd[:, np.newaxis] ** 2
    return variance


def _slope_of(variants: Variants) -> Floats:
    longest: Floats = np.log(variants.reference_s)
    longest -= longest.mean()
    return longest


def _apart(variants: Variants, grid: _Grid, rows: Indices, columns: Indices) -> Floats:
    """Covariance (h, rows, columns) of what only kin share, or nobody."""
    kin = grid.kin_sd[:, np.newaxis, np.newaxis] ** 2 * variants.kinship[np.ix_(rows, columns)]
    itself = rows[:, np.newaxis] == columns
    covariance: Floats = kin + grid.own_sd[:, np.newaxis, np.newaxis] ** 2 * itself
    return covariance


def _left(start: Floats, to_probes: Floats, at_probes: Floats) -> Floats:
    """Variance (h, v) that the probes leave."""
    solved = np.linalg.solve(at_probes, np.swapaxes(to_probes, 1, 2))
    left: Floats = np.maximum(start - np.einsum("hvn,hnv->hv", to_probes, solved), 0.0)
    return left


class _Grid:
    """Every combination of what is not known, h of them."""

    def __init__(self, measured_s: Floats) -> None:
        quickest_s = (
            min(float(measured_s.min()), MAX_OVERHEAD_S / OVERHEAD_SHARES[-1]) if len(measured_s) else 0
        )
        shares = OVERHEAD_SHARES if len(measured_s) > 1 else OVERHEAD_SHARES[:1]
        rest = (1 - NO_OVERHEAD_WEIGHT) / max(len(shares) - 1, 1)
        overheads = [(share * quickest_s, rest if share else NO_OVERHEAD_WEIGHT) for share in shares]
        points = list(itertools.product(CLASS_SDS, KIN_SDS.items(), OWN_SDS.items(), overheads))
        self.class_sd = np.array([class_sd for class_sd, *_ in points])
        self.kin_sd = np.array([kin[0] for _, kin, *_ in points])
        self.own_sd = np.array([own[0] for *_, own, _ in points])
        self.overhead_s = np.array([overhead[0] for *_, overhead in points])
        self._log_prior = np.log([kin[1] * own[1] * overhead[1] for _, kin, own, overhead in points])

    def weights(self, log_likelihood: Floats) -> Floats:
        """Posterior weights (h,), adding up to 1."""
        return normalised(log_likelihood + self._log_prior)


def normalised(log_weights: Floats) -> Floats:
    """Weights that add up to 1."""
    weights: Floats = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    return weights


def _log_likelihood(covariance: Floats, shift: Floats) -> Floats:
    """Of n values at each of h grid points, up to a constant: ``(h, n, n)`` and ``(h, n)`` give ``(h,)``."""
    _, log_det = np.linalg.slogdet(covariance)
    solved = np.linalg.solve(covariance, shift[..., np.newaxis])[..., 0]
    found: Floats = -0.5 * (log_det + np.einsum("hn,hn->h", shift, solved))
    return found


def next_probe(covariance: Floats, own_var: float, probed: Sequence[int], worth: Floats) -> int:
    """The variant whose measurement takes the most uncertainty away per second.

    Args:
        covariance: (v, v) of the logarithms of the variants' slowdowns, without what is each one's own.
        own_var: Variance of what is each variant's own.
        probed: Those that are measured already.
        worth: (2, v) how much knowing each matters, and what measuring it takes.
    """
    known = np.array(probed, int)
    matters, cost_s = worth
    at_probes = covariance[np.ix_(known, known)] + own_var * np.eye(len(known))
    left = covariance - covariance[:, known] @ np.linalg.solve(at_probes, covariance[known])
    gain = (matters[:, np.newaxis] * left**2).sum(axis=0) / (np.diagonal(left) + own_var)
    gain[known] = -np.inf
    return int(np.argmax(gain / cost_s))
