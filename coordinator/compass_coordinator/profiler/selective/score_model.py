"""A model of all scores together: what some configs score on some inputs says about all others.

Inputs are exchangeable: the scores that all configs get on one input are one draw from a normal distribution
over configs, with mean ``mu`` and covariance ``sigma``, jointly with a few cheap features of the input that
are known for every input. Then everything follows from conditioning:

* *pairing*: a config's score on an input that it has not seen is predicted from what other configs scored on
  that very input, so two configs that fail on the same inputs need few of them to be told apart;
* *surrogate*: the mean of a config without any score follows from those with similar knobs;
* *strata*: the features tell how inputs nobody looked at differ from those that were;
* *finite set*: a config that was measured on every input has no uncertainty left.

``mu`` and ``sigma`` have priors whose kernel is a product over knobs: each knob that differs costs a factor,
found by maximum likelihood. ``sigma`` then leaves its prior as far as the scores ask for it (expectation
maximisation with an inverse Wishart prior of ``PRIOR_INPUTS`` inputs' weight). Scores are not normal, so
spreads are checked against what measuring brings (``beliefs``); what must hold for certain comes from
``certain``.

Configs look at inputs in one order, each at a prefix of it. So there are only as many patterns of missing
scores as distinct prefix lengths, and conditioning is one linear solve for each.

Sources: Little & Rubin, *Statistical Analysis with Missing Data*, chapter 11 (monotone normal data, EM);
Sarndal, Swensson & Wretman, *Model Assisted Survey Sampling* (1992), chapter 6 (estimates from predictions
over a finite set); Swersky, Snoek & Adams, *Multi-Task Bayesian Optimization* (2013), for predicting across
configs and inputs at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import t as student

from compass_coordinator.profiler.selective.kernel import LEVEL_VAR, Kernel, fit_inputs, fit_means
from compass_coordinator.profiler.selective.space import Floats, Indices

PRIOR_INPUTS = 30.0
"""Inputs' worth of evidence that the kernel counts for in ``sigma``."""
FEATURE_INPUTS = 30.0
"""Inputs after which features have half of the influence that the scores ask for."""
EM_ROUNDS = 3
FIT_CONFIGS = 40
"""Configs of a pattern that its likelihood is taken of."""
CHECKED = 4.0
"""Configs' worth of evidence for the kernel's own width."""
SURPRISE = 4.0
"""Largest squared error, in variances, that a single config counts with."""
VAGUE_VAR = 1.0
MOST_REACH = 4.0
JITTER = 1e-6
"""Least share of a variance that is a config's own; keeps solves well posed."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """What a model is fitted to; inputs are in the order in which all configs look at them."""

    values: Floats
    """(inputs, configs), NaN from ``seen`` on."""
    seen: Indices
    """(configs,) inputs that each was measured on."""
    features: Floats
    """(inputs, features) known for every input, each of mean 0 and variance 1; there may be none."""
    labels: Indices
    """(inputs,) stratum of each."""
    levels: Indices
    """(configs, knobs)."""

    @property
    def looked_at(self) -> int:
        """Inputs on which any config was measured."""
        return int(self.seen.max(initial=0))

    def patterns(self) -> Iterator[tuple[slice, Indices]]:
        """Runs of inputs, with the configs that were measured on them."""
        start = 0
        for end in np.unique(self.seen[self.seen > 0]):
            yield slice(start, int(end)), np.flatnonzero(self.seen >= end)
            start = int(end)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Belief:
    """What is known of the accuracies over the whole input set: a normal distribution."""

    mean: Floats
    """(configs,)."""
    covariance: Floats
    """(configs, configs); rows of configs that were measured on every input are 0."""
    input_var: Floats
    """(configs,) variance of scores over inputs."""
    next_var: Floats
    """(configs,) variance of the score on the next input, given what others scored on it."""

    @property
    def spread(self) -> Floats:
        """(configs,) standard deviations."""
        return np.sqrt(np.maximum(np.diag(self.covariance), 0.0))

    def inflated(self, factor: float) -> Belief:
        """The same with standard deviations ``factor`` times as large."""
        return replace(self, covariance=factor**2 * self.covariance)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoreModel:
    """A fitted model."""

    kernel: Kernel
    sigma: Floats
    """(features + configs, features + configs) covariance over inputs."""
    errors: Floats
    """(checked,) of predicting checked configs' accuracies without themselves, in standard deviations,
    ascending."""

    freedom: float
    """Inputs, less one, that every checked config was measured on: few, so tails are wider than normal."""

    def reach(self, confidence: float) -> float:
        """Standard deviations around a prediction that hold the accuracy with some confidence.

        The quantile of the checked configs' own errors (split conformal prediction: Lei et al., JASA 2018),
        and no less than Student's, nor more than ``MOST_REACH``.
        """
        normal = float(student.ppf(0.5 + confidence / 2, max(1.0, self.freedom)))
        place = math.ceil((len(self.errors) + 1) * confidence)
        if not len(self.errors):
            return normal
        return min(MOST_REACH, max(normal, float(self.errors[min(place, len(self.errors)) - 1])))


def fit(scores: Scores, kernel: Kernel, spread_out: Indices) -> ScoreModel:
    """Fit the kernel, then ``sigma``.

    Args:
        scores: At least one config on one input.
        kernel: Where the search starts: ``first_kernel``, or the fit before.
        spread_out: Configs that were not measured for what they promised. How well they are predicted without
            themselves says how well any config is.
    """
    kernel = _with_inputs(scores, kernel)
    own = scores.features.shape[1]
    prior = np.eye(own + len(scores.levels))
    prior[own:, own:] = kernel.sigma(scores.levels)
    model = ScoreModel(kernel=kernel, sigma=prior, errors=np.zeros(0), freedom=1.0)
    for _ in range(EM_ROUNDS):
        sigma = (PRIOR_INPUTS * prior + _moments(scores, model)) / (PRIOR_INPUTS + scores.looked_at)
        # Halfway to no influence of features is still a covariance.
        trust = scores.looked_at / (scores.looked_at + FEATURE_INPUTS)
        sigma[:own, own:] *= trust
        sigma[own:, :own] *= trust
        model = replace(model, sigma=sigma)
    kernel, errors = _with_means(scores, model, spread_out)
    freedom = float(scores.seen[spread_out].min(initial=scores.looked_at)) - 1
    return replace(model, kernel=kernel, errors=errors, freedom=freedom)


def believe(scores: Scores, model: ScoreModel) -> Belief:
    """Condition on all scores.

    Returns:
        The accuracies over the whole input set; configs measured on all of it are known exactly.
    """
    adjusted, sigma = _without_features(scores, model)
    mu, mu_cov = _level(scores, adjusted, model.kernel, sigma)
    inputs, configs = scores.values.shape
    rest = inputs - scores.looked_at
    mean, through, left = rest * mu, rest * np.eye(configs), rest * sigma
    next_var = np.diag(sigma).copy()
    for rows, seen in scores.patterns():
        count, gain = rows.stop - rows.start, _gain(sigma, seen)
        mean += count * mu + gain @ (adjusted[rows][:, seen] - mu[seen]).sum(axis=0)
        direct = np.eye(configs)
        direct[:, seen] -= gain
        through += count * direct
        alone = sigma - gain @ sigma[seen]
        left += count * alone
        starts = scores.seen == rows.start
        next_var[starts] = np.diag(alone)[starts]
    covariance = left / inputs**2 + through @ mu_cov @ through.T / inputs**2
    whole = scores.seen == inputs
    covariance[whole] = covariance[:, whole] = 0.0
    exact = np.where(whole, np.nan_to_num(scores.values).mean(axis=0), mean / inputs)
    return Belief(
        mean=np.clip(exact, 0.0, 1.0),
        covariance=(covariance + covariance.T) / 2,
        input_var=np.diag(model.sigma)[scores.features.shape[1] :].copy(),
        next_var=np.maximum(next_var, 0.0),
    )


def _gain(sigma: Floats, seen: Indices) -> Floats:
    """(configs, seen) regression of all scores of an input on those that were measured."""
    within = sigma[np.ix_(seen, seen)] + JITTER * np.diag(np.diag(sigma)[seen])
    return np.asarray(np.linalg.solve(within, sigma[seen]).T)


def _without_features(scores: Scores, model: ScoreModel) -> tuple[Floats, Floats]:
    """Scores less what features predict, which averages 0 over the whole set; and the covariance left."""
    own = scores.features.shape[1]
    if own == 0:
        return scores.values, model.sigma
    gain = _gain(model.sigma, np.arange(own))[own:]
    return scores.values - scores.features @ gain.T, model.sigma[own:, own:] - gain @ model.sigma[:own, own:]


def _level(scores: Scores, adjusted: Floats, kernel: Kernel, sigma: Floats) -> tuple[Floats, Floats]:
    """Posterior mean and covariance of ``mu``: one update for each pattern's mean scores."""
    taken = [adjusted[rows][:, seen].mean() for rows, seen in scores.patterns()]
    mu = np.full(len(scores.levels), float(np.mean(taken)) if taken else 0.5)
    covariance = LEVEL_VAR + kernel.mu(scores.levels)
    for rows, seen in scores.patterns():
        count = rows.stop - rows.start
        noise = sigma[np.ix_(seen, seen)] / count
        noise[np.diag_indices(len(seen))] *= 1 + JITTER
        gain = np.linalg.solve(covariance[np.ix_(seen, seen)] + noise, covariance[seen]).T
        mu = mu + gain @ (adjusted[rows][:, seen].mean(axis=0) - mu[seen])
        covariance = covariance - gain @ covariance[seen]
    return mu, covariance


def _moments(scores: Scores, model: ScoreModel) -> Floats:
    """Expected sum over the inputs looked at of (features, scores - mu) squared, given what was measured."""
    own = scores.features.shape[1]
    adjusted, sigma = _without_features(scores, model)
    mu, _ = _level(scores, adjusted, model.kernel, sigma)
    total = np.zeros_like(model.sigma)
    for rows, seen in scores.patterns():
        count = rows.stop - rows.start
        known = np.concatenate([np.arange(own), own + seen])
        gain = _gain(model.sigma, known)
        found = (
            np.concatenate([scores.features[rows], scores.values[rows][:, seen] - mu[seen]], axis=1) @ gain.T
        )
        total += found.T @ found + count * (model.sigma - gain @ model.sigma[known])
    return total


def _with_inputs(scores: Scores, kernel: Kernel) -> Kernel:
    """The kernel, fitted to how scores vary over inputs."""
    return fit_inputs([_sampled(scores, rows, seen) for rows, seen in scores.patterns()], kernel)


def _with_means(scores: Scores, model: ScoreModel, spread_out: Indices) -> tuple[Kernel, Floats]:
    """The kernel, fitted to all measured means and as wide as it errs; and its errors."""
    measured = np.flatnonzero(scores.seen > 0)
    adjusted, sigma = _without_features(scores, model)
    mean, _ = _level(scores, adjusted, replace(model.kernel, mean_variance=VAGUE_VAR), sigma)
    target = mean[measured] - mean[measured].mean()
    # What configs have in common, having seen the same inputs, moves their level and no difference.
    noise = model.kernel.own * np.diag(sigma)[measured] / scores.seen[measured]
    found, errors = fit_means(scores.levels[measured], target, noise, model.kernel)
    checked = errors[np.isin(measured, spread_out)]
    # A single config that nothing foretold is for ``reach``; it does not make all others doubtful.
    bounded = np.minimum(checked, SURPRISE)
    wider = max(1.0, float((CHECKED + bounded.sum()) / (CHECKED + len(checked))))
    return replace(found, mean_variance=found.mean_variance * wider), np.sort(np.sqrt(checked / wider))


def _sampled(scores: Scores, rows: slice, seen: Indices) -> tuple[Indices, Floats]:
    """A pattern's scores, of at most ``FIT_CONFIGS`` of its configs."""
    at = np.linspace(0, len(seen) - 1, min(FIT_CONFIGS, len(seen))).astype(np.intp)
    return scores.levels[seen[at]], scores.values[rows][:, seen[at]]
