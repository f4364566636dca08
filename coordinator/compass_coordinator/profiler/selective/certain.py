"""What accuracies certainly are not: bounds that hold whatever was measured for whatever reason.

A config that is measured on part of the inputs has two: from its own scores, and from its differences to a
config that was measured on all of them. Inputs come in an order that is balanced over strata, so each stratum
has bets of its own (``stratified_intervals``). Both bounds together miss an accuracy with probability
``alpha`` at most, for each config and the config it is compared with; which one that is follows from knobs
and from what was measured whole, so over all configs that could have been chosen the claim is weaker by their
number.
"""

from __future__ import annotations

import numpy as np

from compass_coordinator.profiler.selective.score_model import Scores
from compass_coordinator.profiler.selective.space import Floats, Indices
from compass_coordinator.profiler.statistics.sequential import Intervals, consistent
from compass_coordinator.profiler.statistics.stratified_intervals import product_intervals

FEWEST = 8
"""Inputs below which a bound would say nothing."""


def bounds(scores: Scores, alpha: float, so_far: Intervals, changed: Indices) -> Intervals:
    """Certain bounds on accuracies over the whole input set, of a metric that is a mean of scores in [0, 1].

    Args:
        scores: In the common order.
        alpha: Chance that the bounds of a config ever miss.
        so_far: Bounds of an earlier look, 0 to 1 at first; they only become narrower.
        changed: Configs that were measured since.

    Returns:
        The accuracy itself for those that are measured on all inputs.
    """
    inputs = len(scores.values)
    low, high = so_far.low.copy(), so_far.high.copy()
    whole = np.flatnonzero(scores.seen == inputs)
    low[whole] = high[whole] = scores.values[:, whole].mean(axis=0)
    part = changed[(scores.seen[changed] >= FEWEST) & (scores.seen[changed] < inputs)]
    if len(part):
        found = _own(scores, part, alpha / 2)
        if len(whole):
            found = found.narrowed(_paired(scores, part, whole, alpha / 2))
        found = Intervals(low=low[part], high=high[part]).narrowed(found)
        low[part], high[part] = found.low, found.high
    return Intervals(low=low, high=high)


def _own(scores: Scores, part: Indices, alpha: float) -> Intervals:
    return _by_strata(scores, scores.values[: _looked_at(scores, part), part], alpha)


def _paired(scores: Scores, part: Indices, whole: Indices, alpha: float) -> Intervals:
    """The accuracy of the whole config with the most knobs in common, plus how far others are from it."""
    upto = _looked_at(scores, part)
    same = (scores.levels[part][:, np.newaxis] == scores.levels[whole][np.newaxis]).sum(axis=2)
    partner = whole[same.argmax(axis=1)]
    gains = (scores.values[:upto, part] - scores.values[:upto, partner] + 1) / 2
    found = _by_strata(scores, gains, alpha)
    base: Floats = scores.values[:, partner].mean(axis=0)
    return consistent(
        np.clip(base + 2 * found.low - 1, 0.0, 1.0), np.clip(base + 2 * found.high - 1, 0.0, 1.0)
    )


def _looked_at(scores: Scores, part: Indices) -> int:
    return int(scores.seen[part].max())


def _by_strata(scores: Scores, values: Floats, alpha: float) -> Intervals:
    """Bounds on means of values (inputs looked at, configs) in [0, 1], up to rounding."""
    labels = scores.labels
    return product_intervals(
        np.clip(values.T, 0.0, 1.0), labels[: len(values)], np.bincount(labels), alpha=alpha
    )
