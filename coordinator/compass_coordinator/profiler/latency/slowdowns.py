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

CLASS_SDS = (0.05, 0.2)
"""Candidates for how far the speed classes of one device lie apart, as sd of the logarithm."""
KIN_SDS = {0.05: 0.4, 0.15: 0.35, 0.4: 0.25}
"""Candidates for how far kin lie apart within a class -> a priori weight."""
OWN_SDS = {0.03: 0.4, 0.08: 0.4, 0.2: 0.2}
"""And the variants among kin."""
SLOPE_SDS = (0.03, 0.12)
"""Candidates for the exponent by which a class's longer calls slow down more or less than its short ones."""
OVERHEADS_S = {0.0: 0.6, 1e-5: 0.1, 3e-5: 0.1, 1e-4: 0.08, 3e-4: 0.06, 1e-3: 0.04, 3e-3: 0.02}
"""Candidates for a call's constant time; those that a probe rules out are left out."""


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
    """Posterior of some variants' times on the device under c assumptions, all logarithms of seconds."""

    log_s: Floats
    """(c, v) logarithm of the mean time."""
    shared_var: Floats
    """(c, v) variance that a variant has in common with others of its class."""
    own_var: Floats
    """(c, v) variance of its own and of its kin."""
    overhead_s: Floats
    """(c,) constant time a call."""
    own_sd: Floats
    """(c,) how far variants of one class lie apart."""


class Regression:
    """Posterior of every variant's mean time on the device, under t assumptions on the error of the probes.

    Args:
        variants: All v variants.
        probed: (n,) which of them were measured on the device, each once.
        measured_s: (n,) their mean times there.
        noise_var: (t, n) relative variance of those means, that of the reference included.
    """

    def __init__(self, variants: Variants, probed: Indices, measured_s: Floats, noise_var: Floats) -> None:
        self._variants, self._probed = variants, probed
        self._grid = grid = _Grid(measured_s)
        left_s = measured_s - grid.overhead_s[:, np.newaxis]
        self._shift = np.log(left_s) - np.log(variants.reference_s[probed]) - variants.prior_log[probed]
        known = self._shared(probed) + self._apart(probed)
        noise = noise_var[:, np.newaxis] * (measured_s / left_s) ** 2
        self._at_probes = known + noise[..., np.newaxis] * np.eye(len(probed))
        explained = _log_likelihood(self._at_probes, self._shift) + np.log(measured_s / left_s).sum(axis=1)
        explained = explained + grid.log_prior
        most = explained.max(axis=1, keepdims=True)
        self.evidence: Floats = most[:, 0] + np.log(np.exp(explained - most).sum(axis=1))
        """(t,) logarithm of how well each assumption explains the means."""
        self._weights = np.exp(explained - self.evidence[:, np.newaxis])

    def predict(self, rows: Indices, assumptions: Indices) -> Slowdowns:
        """The times of some variants under some of the assumptions."""
        variants, grid = self._variants, self._grid
        at_probes, weights = self._at_probes[assumptions], self._weights[assumptions]
        shared = self._shared(rows)
        to_probes = shared + self._apart(rows)
        solved = np.linalg.solve(
            at_probes, np.broadcast_to(self._shift[..., np.newaxis], (*at_probes.shape[:-1], 1))
        )
        log_s = (to_probes @ solved)[..., 0] + np.log(variants.reference_s[rows]) + variants.prior_log[rows]

        slope_of = self._slope_of()[rows]
        shared_start = variants.prior_sd[rows] ** 2 + grid.class_sd[:, np.newaxis] ** 2
        shared_start = shared_start + grid.slope_sd[:, np.newaxis] ** 2 * slope_of**2
        apart_start = (grid.kin_sd**2 + grid.own_sd**2)[:, np.newaxis]
        total_var = _left(shared_start + apart_start, to_probes, at_probes)
        shared_var = np.minimum(_left(shared_start, shared, at_probes), total_var)

        total_log = np.log(np.exp(log_s) + grid.overhead_s[:, np.newaxis])
        # A constant is certain beside what is scaled: it takes uncertainty away in proportion.
        damped = np.exp(2 * (log_s - total_log))
        mean = np.einsum("th,thv->tv", weights, total_log)
        between = (total_log - mean[:, np.newaxis]) ** 2
        return Slowdowns(
            log_s=mean,
            shared_var=np.einsum("th,thv->tv", weights, damped * shared_var + between),
            own_var=np.einsum("th,thv->tv", weights, damped * (total_var - shared_var)),
            overhead_s=weights @ grid.overhead_s,
            own_sd=np.sqrt(weights @ apart_start[:, 0]),
        )

    def _shared(self, rows: Indices) -> Floats:
        """Covariance (h, rows, n) with the probes of what is shared beyond kin."""
        variants, probed, slope_of = self._variants, self._probed, self._slope_of()
        same = variants.speed_class[rows, np.newaxis] == variants.speed_class[probed]
        slope = self._grid.slope_sd[:, np.newaxis, np.newaxis] ** 2 * np.outer(
            slope_of[rows], slope_of[probed]
        )
        apart = self._grid.class_sd[:, np.newaxis, np.newaxis] ** 2 + slope
        covariance: Floats = np.outer(variants.prior_sd[rows], variants.prior_sd[probed]) + apart * same
        return covariance

    def _apart(self, rows: Indices) -> Floats:
        """Covariance (h, rows, n) with the probes of what only kin share, or nobody."""
        kin = (
            self._grid.kin_sd[:, np.newaxis, np.newaxis] ** 2
            * self._variants.kinship[np.ix_(rows, self._probed)]
        )
        itself = rows[:, np.newaxis] == self._probed
        covariance: Floats = kin + self._grid.own_sd[:, np.newaxis, np.newaxis] ** 2 * itself
        return covariance

    def _slope_of(self) -> Floats:
        longest: Floats = np.log(self._variants.reference_s)
        longest -= longest.mean()
        return longest


def _left(start: Floats, to_probes: Floats, at_probes: Floats) -> Floats:
    """Variance (t, h, v) that the probes leave."""
    solved = np.linalg.solve(at_probes, np.swapaxes(to_probes, 1, 2))
    left: Floats = np.maximum(start - np.einsum("hvn,thnv->thv", to_probes, solved), 0.0)
    return left


class _Grid:
    """Every combination of what is not known, h of them."""

    def __init__(self, measured_s: Floats) -> None:
        quickest_s = float(measured_s.min(initial=np.inf))
        overheads = [
            (value_s, weight) for value_s, weight in OVERHEADS_S.items() if value_s < 0.9 * quickest_s
        ]
        if len(measured_s) < 2:
            overheads = overheads[:1]
        points = list(itertools.product(CLASS_SDS, SLOPE_SDS, KIN_SDS.items(), OWN_SDS.items(), overheads))
        self.class_sd = np.array([class_sd for class_sd, *_ in points])
        self.slope_sd = np.array([slope_sd for _, slope_sd, *_ in points])
        self.kin_sd = np.array([kin[0] for _, _, kin, *_ in points])
        self.own_sd = np.array([own[0] for *_, own, _ in points])
        self.overhead_s = np.array([overhead[0] for *_, overhead in points])
        self.log_prior = np.log([kin[1] * own[1] * overhead[1] for *_, kin, own, overhead in points])


def normalised(log_weights: Floats) -> Floats:
    """Weights that add up to 1."""
    weights: Floats = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    return weights


def _log_likelihood(covariance: Floats, shift: Floats) -> Floats:
    """Of n values, up to a constant: ``(t, h, n, n)`` and ``(h, n)`` give ``(t, h)``."""
    _, log_det = np.linalg.slogdet(covariance)
    wanted = np.broadcast_to(shift[..., np.newaxis], (*covariance.shape[:-1], 1))
    solved = np.linalg.solve(covariance, wanted)[..., 0]
    found: Floats = -0.5 * (log_det + np.einsum("hn,thn->th", shift, solved))
    return found


def next_probe(covariance: Floats, noise_var: Floats, probed: Sequence[int], worth: Floats) -> int:
    """The variant whose measurement takes the most uncertainty away per second.

    Args:
        covariance: (v, v) of the logarithms of the variants' slowdowns, without what is each one's own.
        noise_var: (v,) what is each one's own, and the error of measuring it.
        probed: Those that are measured already.
        worth: (2, v) how much knowing each matters, and what measuring it takes.
    """
    known = np.array(probed, int)
    matters, cost_s = worth
    at_probes = covariance[np.ix_(known, known)] + np.diag(noise_var[known])
    left = covariance - covariance[:, known] @ np.linalg.solve(at_probes, covariance[known])
    gain = (matters[:, np.newaxis] * left**2).sum(axis=0) / (np.diagonal(left) + noise_var)
    gain[known] = -np.inf
    return int(np.argmax(gain / cost_s))
