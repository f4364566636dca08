"""Prior of the score model: how alike configs are by their knobs, found by maximum likelihood."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize

from compass_coordinator.profiler.selective.space import Floats, Indices

LEVEL_VAR = 0.05
"""Prior variance of the accuracies' common level."""
FIT_STEPS = 15
PRIOR_SPREAD = 1.5
"""Standard deviation of the kernel's own prior, in logits and logarithms."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kernel:
    """Prior of ``mu`` and ``sigma``."""

    alike: Floats
    """(knobs,) correlation of two configs' scores left by each knob that differs."""
    own: float
    """Share of the scores' variance that is a config's own."""
    variance: float
    """Of scores over inputs."""
    mean_alike: Floats
    """(knobs,) the same for the accuracies."""
    mean_variance: float

    def sigma(self, levels: Indices) -> Floats:
        """(configs, configs) prior covariance of scores on one input."""
        shared = (1 - self.own) * _product(levels, self.alike)
        return self.variance * (shared + self.own * np.eye(len(levels)))

    def mu(self, levels: Indices) -> Floats:
        """(configs, configs) prior covariance of the accuracies around their common level."""
        return self.mean_variance * _product(levels, self.mean_alike)


def first_kernel(knobs: int) -> Kernel:
    """Before anything is known."""
    return Kernel(
        alike=np.full(knobs, 0.8), own=0.08, variance=0.09, mean_alike=np.full(knobs, 0.7), mean_variance=0.03
    )


def fit_inputs(samples: Sequence[tuple[Indices, Floats]], kernel: Kernel) -> Kernel:
    """The kernel whose ``sigma`` makes scores likeliest around their means.

    Args:
        samples: Levels (configs, knobs) of some configs and their scores (inputs, configs) on some inputs.
        kernel: Where the search starts.
    """
    knobs = len(kernel.alike)

    def unpacked(packed: Floats) -> Kernel:
        shares, logs = _bounded(packed, knobs + 1)
        return replace(
            kernel, alike=shares[:knobs], own=float(shares[knobs]), variance=float(np.exp(logs[0]))
        )

    def cost(packed: Floats) -> float:
        return sum(_unlikely(unpacked(packed), levels, values) for levels, values in samples)

    def packed(found: Kernel) -> Floats:
        return np.concatenate([_logit(found.alike), _logit(np.array([found.own])), [np.log(found.variance)]])

    return unpacked(_least(cost, packed(kernel), packed(first_kernel(knobs))))


def fit_means(levels: Indices, means: Floats, noise: Floats, kernel: Kernel) -> tuple[Kernel, Floats]:
    """The kernel whose ``mu`` makes measured means likeliest, and how well each follows from the others.

    Args:
        levels: (configs, knobs) of the measured configs.
        means: (configs,) around 0.
        noise: (configs,) variance of each.
        kernel: Where the search starts.

    Returns:
        The kernel, and squared errors (configs,) of predicting each mean without itself, in units of the
        variance that was predicted (Rasmussen & Williams, equation 5.12).
    """
    knobs = len(kernel.mean_alike)

    def unpacked(packed: Floats) -> Kernel:
        shares, logs = _bounded(packed, knobs)
        return replace(kernel, mean_alike=shares, mean_variance=float(np.exp(logs[0])))

    def covariance(found: Kernel) -> Floats:
        return LEVEL_VAR + found.mu(levels) + np.diag(noise)

    def cost(packed: Floats) -> float:
        root = np.linalg.cholesky(covariance(unpacked(packed)))
        return 0.5 * float((np.linalg.solve(root, means) ** 2).sum()) + float(np.log(np.diag(root)).sum())

    def packed(found: Kernel) -> Floats:
        return np.concatenate([_logit(found.mean_alike), [np.log(found.mean_variance)]])

    found = unpacked(_least(cost, packed(kernel), packed(first_kernel(knobs))))
    inverse = np.linalg.inv(covariance(found))
    return found, np.asarray((inverse @ means) ** 2 / np.diag(inverse))


def _product(levels: Indices, alike: Floats) -> Floats:
    same = levels[:, np.newaxis, :] == levels[np.newaxis, :, :]
    return np.asarray(np.exp(~same @ np.log(alike)))


def _least(cost: Callable[[Floats], float], start: Floats, prior: Floats) -> Floats:
    """Least cost, held near a prior while scores are few."""

    def held(packed: Floats) -> float:
        return cost(packed) + 0.5 * float(((packed - prior) ** 2).sum()) / PRIOR_SPREAD**2

    return np.asarray(minimize(held, start, method="L-BFGS-B", options={"maxiter": FIT_STEPS}).x)


def _unlikely(kernel: Kernel, levels: Indices, values: Floats) -> float:
    """Negative log likelihood of scores around their means."""
    root = np.linalg.cholesky(kernel.sigma(levels))
    found = 0.5 * float((np.linalg.solve(root, (values - values.mean(axis=0)).T) ** 2).sum())
    return found + (len(values) - 1) * float(np.log(np.diag(root)).sum())


def _logit(shares: Floats) -> Floats:
    return np.asarray(np.log(shares / (1 - shares)))


def _bounded(packed: Floats, shares: int) -> tuple[Floats, Floats]:
    """Shares in (0, 1) from the first coordinates, and the others, kept from extremes."""
    held = np.clip(packed, -12.0, 12.0)
    return 1 / (1 + np.exp(-held[:shares])), held[shares:]
