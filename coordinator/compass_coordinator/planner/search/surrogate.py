"""What accuracies measured so far say about other configs.

A Bayesian linear model in its dual (kernel) form. Accuracy is a constant, plus for every operator an effect
of its variant and a trend along its variants in file order, plus for every pair of operators an effect of the
pair of variants, plus noise. Each of these groups of effects has a variance of its own, fitted by the
fixed-point iteration of MacKay (Neural Computation 1992) and held by a weak prior while measurements are few:
what explains nothing shrinks, so operators without influence and knobs without order cost few measurements.

Shapes: m configs measured, B configs asked for, n operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compass_coordinator.estimator import Floats, Indices

ROUNDS = 4
"""Steps of the variances' iteration at each fit; fits follow one another, so they converge over time."""
NOISE = 1e-3
"""Least variance of the noise, relative to that of the accuracies."""
BELIEF = 0.5
"""Effects' worth of evidence that each group's first variance counts for."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Variances:
    """Variance of each group of effects, relative to that of the accuracies."""

    effect: Floats
    """(n,)."""
    trend: Floats
    """(n,)."""
    pair: Floats
    """(n, n) symmetric, zero on the diagonal."""
    noise: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Surrogate:
    """The model after some measurements."""

    variances: Variances
    choices: Indices
    """(m, n)."""
    place: tuple[Floats, ...]
    """Per operator (variants,): position along the trend, in [-1, 1]."""
    weights: Floats
    """(m,)."""
    root: Floats
    """(m, m) lower triangle: Cholesky factor of the covariance."""
    centre: float
    scale: float

    def predict(self, choices: Indices) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the accuracy of configs (B, n), noise excluded."""
        cross = _kernel(self.variances, choices, self.choices, self.place)
        own = _own(self.variances, choices, self.place)
        half = np.linalg.solve(self.root, cross.T)
        spread = np.sqrt(np.maximum(own - (half**2).sum(axis=0), 1e-12))
        return self.centre + self.scale * (cross @ self.weights), self.scale * spread

    def effects(self) -> tuple[Floats, ...]:
        """Per operator (variants,): what its variants add to accuracy, pairs aside."""
        found = []
        for column, place in enumerate(self.place):
            chosen = self.choices[:, column]
            single = np.bincount(chosen, weights=self.weights, minlength=len(place))
            trend = (self.weights @ place[chosen]) * place
            both = self.variances.effect[column] * single + self.variances.trend[column] * trend
            found.append(self.scale * both)
        return tuple(found)


def first_variances(operators: int) -> Variances:
    """Before anything is known: trends matter most, single variants and pairs less."""
    pairs = max(1, operators * (operators - 1) // 2)
    return Variances(
        effect=np.full(operators, 0.2 / operators),
        trend=np.full(operators, 1.0 / operators),
        pair=np.full((operators, operators), 0.2 / pairs) * (1 - np.eye(operators)),
        noise=0.01,
    )


def fit(counts: Sequence[int], choices: Indices, accuracy: Floats, variances: Variances) -> Surrogate:
    """Fit the model, starting from the variances of the fit before.

    Args:
        counts: Variants of every operator.
        choices: (m, n) configs measured, m >= 1.
        accuracy: (m,).
        variances: Where the iteration starts.
    """
    place = tuple(np.linspace(-1.0, 1.0, count) if count > 1 else np.zeros(1) for count in counts)
    centre = float(accuracy.mean())
    scale = float(accuracy.std()) or 1.0
    target = (accuracy - centre) / scale
    for _ in range(ROUNDS if len(target) > 2 else 0):
        variances = _refined(variances, choices, place, target)
    covariance = _kernel(variances, choices, choices, place)
    covariance[np.diag_indices(len(target))] += variances.noise
    root = np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)
    weights = np.linalg.solve(root.T, np.linalg.solve(root, target))
    return Surrogate(
        variances=variances,
        choices=choices,
        place=place,
        weights=weights,
        root=root,
        centre=centre,
        scale=scale,
    )


def _refined(variances: Variances, choices: Indices, place: Sequence[Floats], target: Floats) -> Variances:
    """One step of the iteration for every group."""
    m, n = choices.shape
    covariance = _kernel(variances, choices, choices, place)
    covariance[np.diag_indices(m)] += variances.noise
    inverse = np.linalg.inv(covariance)
    weights = inverse @ target
    drive = np.outer(weights, weights).ravel()
    flat = inverse.ravel()
    same = _same(choices, choices).reshape(m * m, n)
    along = _along(choices, place)
    prior = first_variances(n)
    effect = _step(variances.effect, prior.effect, drive @ same, flat @ same)
    trend = _step(
        variances.trend,
        prior.trend,
        (weights @ along) ** 2,
        np.einsum("io,ij,jo->o", along, inverse, along),
    )
    pair = _step(variances.pair, prior.pair, (same.T * drive) @ same, (same.T * flat) @ same)
    noise = _step(
        np.array([variances.noise]),
        np.array([prior.noise]),
        np.array([weights @ weights]),
        np.array([np.trace(inverse)]),
    )
    return Variances(
        effect=effect, trend=trend, pair=pair * (1 - np.eye(n)), noise=max(NOISE, float(noise[0]))
    )


def _step(variance: Floats, prior: Floats, drive: Floats, curvature: Floats) -> Floats:
    """(Squared effects + their prior) / (effects determined by the measurements + the prior's weight)."""
    squares, determined = variance**2 * drive, variance * curvature
    return np.asarray((squares + BELIEF * prior) / (determined + BELIEF))


def _kernel(variances: Variances, left: Indices, right: Indices, place: Sequence[Floats]) -> Floats:
    """Prior covariance (B, m) of the accuracies of two lists of configs; 1 for the unknown constant."""
    same = _same(left, right)
    pairs = 0.5 * np.einsum("bmo,bmo->bm", same @ variances.pair, same)
    trends = (_along(left, place) * variances.trend) @ _along(right, place).T
    return np.asarray(1.0 + same @ variances.effect + pairs + trends)


def _own(variances: Variances, choices: Indices, place: Sequence[Floats]) -> Floats:
    """Prior variance (B,): the diagonal of ``_kernel``."""
    constant = 1.0 + variances.effect.sum() + 0.5 * variances.pair.sum()
    return np.asarray(constant + _along(choices, place) ** 2 @ variances.trend)


def _same(left: Indices, right: Indices) -> Floats:
    return np.asarray(left[:, np.newaxis, :] == right[np.newaxis, :, :], dtype=np.float64)


def _along(choices: Indices, place: Sequence[Floats]) -> Floats:
    return np.stack([positions[column] for positions, column in zip(place, choices.T, strict=True)], axis=1)
