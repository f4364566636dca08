"""What is known of each config from its own scores alone: without pairing, without surrogate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from compass_coordinator.profiler.selective.score_model import Belief, Scores
from compass_coordinator.profiler.selective.space import Floats, Indices, Mask
from compass_coordinator.profiler.statistics.strata import estimated

UNKNOWN_VAR = 1 / 12
"""Of an accuracy of which nothing is known: uniform over [0, 1]."""
PRIOR_SAMPLES = 4.0
"""Weight of the common variance in each config's own, in inputs."""


def believe_alone(scores: Scores) -> Belief:
    """Means over the input set, with the variance of drawing inputs without replacement.

    Of configs that were measured in every stratum the unbiased stratified estimates, of others plain means.
    """
    inputs = len(scores.values)
    count = scores.seen.astype(np.float64)
    mean = np.divide(np.nansum(scores.values, axis=0), count, out=np.full(len(count), 0.5), where=count > 0)
    squares = np.nansum((scores.values - mean) ** 2, axis=0)
    freedom = np.maximum(count - 1, 0)
    common = float(squares.sum() / freedom.sum()) if freedom.sum() > 0 else UNKNOWN_VAR
    variance: Floats = (squares + PRIOR_SAMPLES * common) / (freedom + PRIOR_SAMPLES)
    sampled = (1 - count / inputs) * variance / np.maximum(count, 1)
    for upto, members in _over_all_strata(scores):
        labels, sizes = scores.labels[:upto], np.bincount(scores.labels)
        found = estimated(scores.values[:upto, members].T, labels, sizes)
        mean[members] = found.mean
        # Few samples, one of each stratum at worst, do not tell their own variance.
        drawn, free = np.bincount(labels, minlength=len(sizes)), upto - len(sizes)
        prior = common * float((sizes * (sizes - drawn) / drawn).sum()) / inputs**2
        sampled[members] = (free * found.variance + PRIOR_SAMPLES * prior) / (free + PRIOR_SAMPLES)
    return Belief(
        mean=np.clip(mean, 0.0, 1.0),
        covariance=np.diag(np.where(count > 0, np.minimum(sampled, UNKNOWN_VAR), UNKNOWN_VAR)),
        input_var=variance,
        next_var=variance,
    )


def _over_all_strata(scores: Scores) -> Iterator[tuple[int, Indices]]:
    """Sample counts that reach every stratum, with the configs that have them."""
    needed = int(np.unique(scores.labels, return_index=True)[1].max(initial=0)) + 1
    for upto in np.unique(scores.seen[scores.seen >= needed]):
        yield int(upto), np.flatnonzero(scores.seen == upto)


def without(scores: Scores, configs: Mask) -> Scores:
    """As if these configs had not been measured."""
    values = scores.values.copy()
    values[:, configs] = np.nan
    return replace(scores, values=values, seen=np.where(configs, 0, scores.seen))


def set_apart(belief: Belief, alone: Belief, configs: Mask) -> Belief:
    """A belief in which these configs stand for themselves: nothing follows from them, nor for them."""
    return Belief(
        mean=np.where(configs, alone.mean, belief.mean),
        covariance=np.where(configs | configs[:, np.newaxis], alone.covariance, belief.covariance),
        input_var=np.where(configs, alone.input_var, belief.input_var),
        next_var=np.where(configs, alone.next_var, belief.next_var),
    )
