"""How much longer operators take on a device than on a reference machine: a regression with partial pooling.

The logarithm of a variant's slowdown is

    what the device's variants share + what those of its speed class share + slope x ln(duration) + its own,

every term normal around the prior: a Gaussian process over variants. On top comes a constant time a call. How
much classes and variants differ and how long a call's constant is are not known either: a grid of values,
each weighted by how well it explains the probes (their marginal likelihood, in closed form).

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
OWN_SDS = (0.02, 0.05, 0.1, 0.2, 0.4)
"""Candidates for how far variants of one class lie apart."""
OWN_WEIGHTS = (0.15, 0.25, 0.3, 0.2, 0.1)
SLOPE_SD = 0.05
"""Of the exponent by which longer calls slow down more or less than short ones."""
OVERHEAD_SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9)
"""Candidates for a call's constant time, as shares of the quickest probe."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowdowns:
    """Posterior of v variants' times on the device, all logarithms of seconds."""

    log_s: Floats
    """(v,) logarithm of the mean time."""
    shared_var: Floats
    """(v,) variance that a variant has in common with others of its class."""
    own_var: Floats
    """(v,) variance of its own."""
    overhead_s: float
    class_sd: float
    own_sd: float


def fit_slowdowns(variants: Variants, probed: Indices, measured_s: Floats, noise_var: Floats) -> Slowdowns:
    """Posterior of every variant's mean time on the device.

    Args:
        variants: All v variants.
        probed: (n,) which of them were measured on the device, each once.
        measured_s: (n,) their mean times there.
        noise_var: (n,) relative variance of those means, that of the reference included.
    """
    grid = _Grid(measured_s)
    longest = np.log(variants.reference_s)
    slope_of = longest - (np.mean(longest[probed]) if len(probed) else np.mean(longest))
    same = variants.speed_class[:, np.newaxis] == variants.speed_class
    shared = (
        variants.prior_sd[:, np.newaxis] * variants.prior_sd
        + SLOPE_SD**2 * slope_of[:, np.newaxis] * slope_of
        + grid.class_sd[:, np.newaxis, np.newaxis] ** 2 * same
    )
    own = grid.own_sd[:, np.newaxis] ** 2
    start_log = np.log(variants.reference_s) + variants.prior_log

    left_s = measured_s - grid.overhead_s[:, np.newaxis]
    shift = np.log(left_s) - start_log[probed]
    noise = own + noise_var * (measured_s / left_s) ** 2
    at_probes = shared[:, probed[:, np.newaxis], probed] + noise[:, :, np.newaxis] * np.eye(len(probed))
    to_probes = shared[:, :, probed] + own[:, :, np.newaxis] * (np.arange(len(same))[:, np.newaxis] == probed)
    solved = np.linalg.solve(at_probes, np.swapaxes(to_probes, 1, 2))
    log_s = start_log + np.einsum(
        "hvn,hn->hv", to_probes, np.linalg.solve(at_probes, shift[..., np.newaxis])[..., 0]
    )
    explained = np.einsum("hvn,hnv->hv", to_probes, solved)
    total_var = np.maximum(np.diagonal(shared, axis1=1, axis2=2) + own - explained, 0.0)
    own_var = own * np.ones_like(total_var)
    own_var[:, probed] = np.minimum(own_var[:, probed], total_var[:, probed])

    weights = grid.weights(_log_likelihood(at_probes, shift) + np.log(measured_s / left_s).sum(axis=1))
    total_s_log = np.log(np.exp(log_s) + grid.overhead_s[:, np.newaxis])
    # A constant is certain beside what is scaled: it takes uncertainty away in proportion.
    damped = np.exp(2 * (log_s - total_s_log))
    mean = weights @ total_s_log
    return Slowdowns(
        log_s=mean,
        shared_var=weights @ (damped * np.maximum(total_var - own_var, 0.0) + (total_s_log - mean) ** 2),
        own_var=weights @ (damped * own_var),
        overhead_s=float(weights @ grid.overhead_s),
        class_sd=float(weights @ grid.class_sd),
        own_sd=float(np.sqrt(weights @ grid.own_sd**2)),
    )


class _Grid:
    """Every combination of what is not known, h of them."""

    def __init__(self, measured_s: Floats) -> None:
        quickest_s = float(measured_s.min()) if len(measured_s) else 0.0
        shares = OVERHEAD_SHARES if len(measured_s) > 1 else OVERHEAD_SHARES[:1]
        rest = (1 - NO_OVERHEAD_WEIGHT) / max(len(shares) - 1, 1)
        overheads = [(share * quickest_s, rest if share else NO_OVERHEAD_WEIGHT) for share in shares]
        owns = list(zip(OWN_SDS, OWN_WEIGHTS, strict=True))
        points = list(itertools.product(CLASS_SDS, owns, overheads))
        self.class_sd = np.array([point[0] for point in points])
        self.own_sd = np.array([point[1][0] for point in points])
        self.overhead_s = np.array([point[2][0] for point in points])
        self._log_prior = np.log([point[1][1] * point[2][1] for point in points])

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


def next_probe(covariance: Floats, own_var: float, probed: Sequence[int], cost_s: Floats) -> int:
    """The variant whose measurement takes the most uncertainty away per second.

    Args:
        covariance: (v, v) of the logarithms of the variants' slowdowns, without what is each one's own.
        own_var: Variance of what is each variant's own.
        probed: Those that are measured already.
        cost_s: (v,) what measuring one takes.
    """
    known = np.array(probed, int)
    at_probes = covariance[np.ix_(known, known)] + own_var * np.eye(len(known))
    left = covariance - covariance[:, known] @ np.linalg.solve(at_probes, covariance[known])
    gain = (left**2).sum(axis=0) / (np.diagonal(left) + own_var)
    gain[known] = -np.inf
    return int(np.argmax(gain / cost_s))
