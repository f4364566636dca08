"""Per-query Bayesian optimisation with prefix reuse, the way of the planners before this one.

Every evaluation is a config on all inputs. A Gaussian process over the knobs learns accuracy; cost and
latency follow from the operators' times. For each query in turn the config with the largest expected
constrained improvement (Gardner et al., ICML 2014) is evaluated until none is left that the query could gain
from. Accuracies depend on no query, so evaluations, operator outputs and the process are shared by all.

It stops by the criterion of the selective profiler: by its own posterior, the expected share of queries whose
choice is still wrong falls below ``delta``.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
from numpy.random import Generator
from scipy.special import ndtr
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from compass_coordinator.estimator import Floats, Indices
from profiling.queries import TOLERANCE, Decisions
from profiling.score import Knowledge, Z
from profiling.study import Study
from profiling.truth import choices_of

FIRST = 12
"""Configs at random before the process is asked, and as many more as it takes to see every variant."""
REFIT = 8
"""Evaluations between two fits of the kernel's lengths."""
WORTH = 0.01
"""A query is left alone once its expected improvement, relative to its cost, is below this."""


@dataclass(slots=True, eq=False)
class _Posterior:
    """Accuracy of every config: exact where it was evaluated."""

    levels: Floats
    """(C, knobs): positions along the values."""
    accuracy: Floats
    """(C,); nan where it was not evaluated."""
    mean: Floats = field(init=False)
    spread: Floats = field(init=False)
    _process: GaussianProcessRegressor = field(init=False)
    _fitted: int = 0

    def __post_init__(self) -> None:
        size = self.levels.shape[1]
        kernel = ConstantKernel(1.0, (0.05, 20.0)) * RBF(np.ones(size), (0.3, 30.0)) + WhiteKernel(
            1e-4, (1e-6, 1e-1)
        )
        self._process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0)

    def learn(self) -> None:
        """Condition on all evaluations; lengths are fitted now and then."""
        known = np.flatnonzero(~np.isnan(self.accuracy))
        process = self._process
        if len(known) >= self._fitted + REFIT:
            self._fitted = len(known)
            with warnings.catch_warnings():
                # A length at its bound: a knob without effect.
                warnings.simplefilter("ignore", ConvergenceWarning)
                process.fit(self.levels[known], self.accuracy[known])
            process.set_params(kernel=process.kernel_)
        else:
            optimiser = process.optimizer
            process.set_params(optimizer=None)
            process.fit(self.levels[known], self.accuracy[known])
            process.set_params(optimizer=optimiser)
        mean, spread = process.predict(self.levels, return_std=True)
        self.mean = np.where(np.isnan(self.accuracy), mean, self.accuracy)
        self.spread = np.where(np.isnan(self.accuracy), spread, 0.0)

    def enough(self, needed: Floats) -> Floats:
        """(Q, C) probability that each config is accurate enough."""
        margin = self.mean - needed[:, np.newaxis]
        certain = self.spread == 0
        return np.where(certain, margin >= 0, ndtr(margin / np.where(certain, 1.0, self.spread)))


def bayesian(study: Study, rng: Generator, *, delta: float) -> None:
    """Query after query; ``delta`` is a share of queries."""
    decisions = study.decisions
    configs = decisions.truth.scores.shape[1]
    posterior = _Posterior(levels=_levels(decisions), accuracy=np.full(configs, np.nan))
    for config in _first(choices_of(decisions.truth.pipeline), rng):
        _evaluate(study, posterior, config)
    posterior.learn()
    cost = study.costs()

    def known() -> Knowledge:
        return _knowledge(study, posterior)

    study.look(known)
    for query in range(len(decisions.needed)):
        while not study.exhausted:
            worth, config = _improvement(posterior, cost[query], float(decisions.needed[query]))
            if worth < WORTH or _wrong(posterior, cost, decisions.needed) < delta:
                break
            _evaluate(study, posterior, config)
            posterior.learn()
            cost = study.costs()
            study.look(known)
    study.look(known, last=True)


def _evaluate(study: Study, posterior: _Posterior, config: int) -> None:
    scores = [
        study.measure(page, [config]).scores[study.decisions.truth.configs[config]]
        for page in range(len(study.replay.measured))
    ]
    posterior.accuracy[config] = np.mean([score.numerator if score is not None else 0.0 for score in scores])


def _improvement(posterior: _Posterior, cost: Floats, needed: float) -> tuple[float, int]:
    """Largest expected constrained improvement, relative to what the query pays now, and its config.

    A query that is served by nothing yet gains the probability of being served.
    """
    enough = posterior.enough(np.array([needed]))[0]
    open_ = np.isnan(posterior.accuracy) & np.isfinite(cost)
    served = cost[(posterior.accuracy >= needed) & np.isfinite(cost)]
    paid = served.min() if len(served) else np.inf
    saved = 1 - cost / paid if np.isfinite(paid) else 1 / (1 + cost / np.min(cost, initial=np.inf))
    gain = np.where(open_, np.maximum(saved, 0.0) * enough, 0.0)
    best = int(gain.argmax())
    return float(gain[best]), best


def _wrong(posterior: _Posterior, cost: Floats, needed: Floats) -> float:
    """Expected share of queries whose choice is wrong: it fails, or one that is clearly cheaper would do."""
    enough = posterior.enough(needed)
    trusted = np.where(posterior.mean >= needed[:, np.newaxis], cost, np.inf)
    rows, chosen = np.arange(len(cost)), trusted.argmin(axis=1)
    paid = trusted[rows, chosen]
    holds = np.where(np.isfinite(paid), enough[rows, chosen], 1.0)
    cheaper = cost < (paid / (1 + TOLERANCE))[:, np.newaxis]
    none = np.where(cheaper, 1 - enough, 1.0).prod(axis=1)
    return float(1 - (holds * none).mean())


def _knowledge(study: Study, posterior: _Posterior) -> Knowledge:
    half = Z * posterior.spread
    return Knowledge(
        mean=np.clip(posterior.mean, 0.0, 1.0),
        low=np.clip(posterior.mean - half, 0.0, 1.0),
        high=np.clip(posterior.mean + half, 0.0, 1.0),
        figures=study.figures(),
    )


def _levels(decisions: Decisions) -> Floats:
    """Knobs of every config: position in [0, 1] along its values; knobs of one value are left out."""
    pipeline = decisions.truth.pipeline
    knobs = [(op.name, name, values) for op in pipeline.operators for name, values in op.knobs.items()]
    configs = list(pipeline.configs())
    columns = [
        [values.index(config[operator][name]) / max(1, len(values) - 1) for config in configs]
        for operator, name, values in knobs
        if len(values) > 1
    ]
    return np.asarray(np.array(columns, np.float64).T)


def _first(choices: Indices, rng: Generator) -> list[int]:
    """Configs at random, the first of them such that every variant of every operator is among them."""
    missing, found = set(np.unique(choices).tolist()), list[int]()
    order = rng.permutation(len(choices)).tolist()
    while missing:
        best = max(order, key=lambda config: len(missing.intersection(choices[config].tolist())))
        found.append(best)
        missing.difference_update(choices[best].tolist())
    return found + [config for config in order if config not in found][: max(0, FIRST - len(found))]
