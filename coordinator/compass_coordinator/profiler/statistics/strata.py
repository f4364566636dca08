"""Strata of inputs: made from cheap features, drawn from in one shared order, added up to unbiased estimates.

Inputs alike in size or length tend to be equally hard. Drawing a fixed share from each kind takes the
differences between kinds out of the estimate's variance. Source: Cochran, *Sampling Techniques* (1977),
chapters 5, 5A and 6.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans

from compass_coordinator.profiler.statistics.sequential import Floats, Labels

FLOOR = 2
"""Fewest inputs of a stratum (or all it has), so that there is a variance to estimate."""
_STARTS = 10
"""k-means runs from several starts and keeps the best."""
_PRIOR_SAMPLES = 4
"""Weight of the pooled spread in a stratum's own, in samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strata:
    """A partition of the input set."""

    labels: Labels
    """(inputs,) stratum of each"""
    sizes: Labels
    """(strata,) inputs of each, none empty"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimates:
    """Estimated accuracies over the whole input set, one for each config."""

    mean: Floats
    """(configs,) float64"""
    variance: Floats
    """(configs,) of ``mean`` over random orders, at a fixed number of samples"""


def stratified(features: npt.ArrayLike, count: int, rng: np.random.Generator) -> Strata:
    """Group inputs by k-means over standardised features.

    Args:
        features: (inputs, features); those that are constant, or not finite for some input, are left out.
        count: Strata wanted; there are fewer where fewer distinct inputs are.
        rng: Where k-means starts from.

    Returns:
        Strata in order of their first input; a single one where no feature tells inputs apart.
    """
    scaled = _standardised(np.asarray(features, dtype=np.float64))
    distinct = len(np.unique(scaled, axis=0)) if scaled.size else 1
    clusters = min(count, distinct)
    if clusters <= 1:
        return _strata(np.zeros(len(scaled), dtype=np.intp))
    model = KMeans(n_clusters=clusters, n_init=_STARTS, random_state=int(rng.integers(2**31)))
    return _strata(model.fit(scaled).labels_)


def ordered(
    strata: Strata,
    rng: np.random.Generator,
    *,
    spreads: npt.ArrayLike | None = None,
    seen: npt.ArrayLike = (),
) -> Labels:
    """The order in which all configs look at inputs: strata in proportion to size x spread at every prefix.

    That is Neyman's allocation, with `FLOOR` of each first. Within a stratum the order is uniformly random.
    Later inputs may be ordered anew by spreads that were estimated from the earlier ones.

    Args:
        strata: Of the input set.
        rng: Of the order within strata.
        spreads: (strata,) standard deviations within; None, or all 0, takes them as equal.
        seen: (prefix,) inputs looked at so far; they stay where they are.

    Returns:
        (inputs,) a permutation that starts with ``seen``.
    """
    prefix = np.asarray(seen, dtype=np.intp)
    even = np.ones(len(strata.sizes))
    wanted = _shares(strata.sizes, even if spreads is None else np.asarray(spreads, dtype=np.float64))
    counts = np.bincount(strata.labels[prefix], minlength=len(strata.sizes))
    left = np.setdiff1d(np.arange(len(strata.labels)), prefix)
    shuffled = rng.permutation(left)
    queues = [list(shuffled[strata.labels[shuffled] == stratum]) for stratum in range(len(strata.sizes))]
    # Between equal claims chance decides, once.
    tie = rng.permutation(len(strata.sizes))
    order = list(prefix)
    for _ in range(len(left)):
        stratum = tie[_next(counts[tie], strata.sizes[tie], wanted[tie])]
        counts[stratum] += 1
        order.append(queues[stratum].pop())
    return np.array(order, dtype=np.intp)


def spreads_within(values: npt.ArrayLike, labels: npt.ArrayLike, count: int) -> Floats:
    """Standard deviations within strata, those of small samples drawn to the pooled one.

    Args:
        values: (configs, samples) scores, or residuals of a linearised ratio, of complete rows.
        labels: (samples,) stratum of each sample.
        count: Strata there are.

    Returns:
        (strata,) root mean squares over configs, for the one order that serves them all.
    """
    rows, strata = np.atleast_2d(np.asarray(values, dtype=np.float64)), np.asarray(labels, dtype=np.intp)
    drawn = np.bincount(strata, minlength=count)
    squares = _squares(rows, strata, count).mean(axis=0)
    freedom = np.maximum(drawn - 1, 0)
    pooled = squares.sum() / max(freedom.sum(), 1)
    spreads: Floats = np.sqrt((squares + _PRIOR_SAMPLES * pooled) / (freedom + _PRIOR_SAMPLES))
    return spreads


def estimated(values: npt.ArrayLike, labels: npt.ArrayLike, sizes: npt.ArrayLike) -> Estimates:
    """Means over the whole input set from a sample of every stratum.

    At a fixed number of samples in each stratum both figures are unbiased; not where scores decided when to
    stop.

    Args:
        values: (configs, samples) scores.
        labels: (samples,) stratum of each sample.
        sizes: (strata,) inputs of each stratum in the whole set.

    Returns:
        Means and their variances, with the finite-population correction: 0 where every input was seen. A
        stratum with a single sample of several inputs lends the pooled variance, and the variance is then no
        longer unbiased.

    Raises:
        ValueError: If a stratum has no sample.
    """
    rows, strata = np.atleast_2d(np.asarray(values, dtype=np.float64)), np.asarray(labels, dtype=np.intp)
    counts = np.asarray(sizes, dtype=np.intp)
    drawn = np.bincount(strata, minlength=len(counts))
    if np.any(drawn == 0):
        raise ValueError(f"no sample of stratum {int(np.argmin(drawn))}: look at more inputs of the order")
    weights = counts / counts.sum()
    squares = _squares(rows, strata, len(counts))
    pooled = squares.sum(axis=1, keepdims=True) / max(rows.shape[1] - len(counts), 1)
    variances = np.where(drawn > 1, squares / np.maximum(drawn - 1, 1), pooled)
    return Estimates(
        mean=(_means(rows, strata, len(counts)) * weights).sum(axis=1),
        variance=(weights**2 * (1 - drawn / counts) * variances / drawn).sum(axis=1),
    )


def _standardised(features: Floats) -> Floats:
    finite = features[:, np.isfinite(features).all(axis=0)]
    spread = finite.std(axis=0)
    # A constant column of large figures has a spread of rounding errors.
    varied = spread > 1e-12 * np.abs(finite).max(axis=0, initial=0.0)
    scaled: Floats = (finite[:, varied] - finite[:, varied].mean(axis=0)) / spread[varied]
    return scaled


def _strata(found: npt.NDArray[np.integer]) -> Strata:
    _, first, labels = np.unique(found, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    renamed = rank[labels].astype(np.intp)
    return Strata(labels=renamed, sizes=np.bincount(renamed))


def _shares(sizes: Labels, spreads: Floats) -> Floats:
    weights = sizes * spreads
    return weights if weights.sum() > 0 else sizes.astype(np.float64)


def _next(counts: Labels, sizes: Labels, wanted: Floats) -> int:
    """The stratum with the strongest claim to the next input: below the floor first, else by Sainte-Lague."""
    open_ = counts < sizes
    short = open_ & (counts < FLOOR)
    if short.any():
        # Every stratum once before any twice; the largest first.
        return int(np.lexsort((-sizes, counts, ~short))[0])
    claims = np.where(open_, np.maximum(wanted, 1e-9 * wanted.max()) / (2 * counts + 1), -1.0)
    return int(np.argmax(claims))


def _means(rows: Floats, strata: Labels, count: int) -> Floats:
    drawn = np.bincount(strata, minlength=count)
    totals = rows @ (strata[:, np.newaxis] == np.arange(count))
    means: Floats = totals / np.maximum(drawn, 1)
    return means


def _squares(rows: Floats, strata: Labels, count: int) -> Floats:
    """(configs, strata) sums of squared deviations from each stratum's own mean."""
    deviations = rows - _means(rows, strata, count)[:, strata]
    squares: Floats = deviations**2 @ (strata[:, np.newaxis] == np.arange(count))
    return squares
