"""What follows from the scores so far: what is believed of accuracies, and what is certain."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import norm

from compass_coordinator.profiler.selective.alone import believe_alone, set_apart, without
from compass_coordinator.profiler.selective.certain import bounds
from compass_coordinator.profiler.selective.kernel import Kernel, first_kernel
from compass_coordinator.profiler.selective.options import Options
from compass_coordinator.profiler.selective.policy import Action
from compass_coordinator.profiler.selective.score_model import Belief, ScoreModel, Scores, believe, fit
from compass_coordinator.profiler.selective.space import Indices, Mask
from compass_coordinator.profiler.statistics.sequential import Intervals

TRUSTED = 4.0
"""Predictions' worth of evidence for the model's own spreads before measurements correct them."""
SURPRISE = 16.0
"""Largest squared error, in variances: a single one is to widen intervals, not to end their use."""
CERTAIN = 0.01
"""Chance that the certain bounds of a config miss."""


class Beliefs:
    """The model of scores, how its predictions fared, and the bounds that hold without it.

    Args:
        configs: How many there are.
        knobs: Of the configs.
        options: Whether configs say anything of each other, and whether they may stop early.
        pilot: Configs that were not chosen for what they promised.
        bounded: Whether scores lie in [0, 1], as certain bounds need.
    """

    def __init__(self, configs: int, knobs: int, options: Options, pilot: Indices, *, bounded: bool) -> None:
        self._options = options
        self._pilot = pilot
        self._kernel: Kernel = first_kernel(knobs)
        self._model: ScoreModel | None = None
        self._bounded = bounded and options.early_stopping
        self._certain = Intervals(low=np.zeros(configs), high=np.ones(configs))
        self._bounded_at = np.zeros(configs, dtype=np.intp)
        """(configs,) inputs measured when bounds were last looked at."""
        self._expected: dict[int, tuple[float, float]] = {}
        """Config -> mean and standard deviation that were believed before it was measured."""
        self._misses: list[float] = []
        """Squared errors of predictions, over the variance that was believed."""

    def refit(self, scores: Scores, broken: Mask) -> None:
        """Fit the model to all scores so far, but of configs that failed throughout."""
        if self._options.transfer:
            self._model = fit(without(scores, broken), self._kernel, self._pilot[~broken[self._pilot]])
            self._kernel = self._model.kernel

    def belief(self, scores: Scores, broken: Mask) -> Belief:
        """What is believed given all scores.

        Args:
            scores: So far.
            broken: (configs,) those that failed throughout, which says nothing of others.
        """
        sound = without(scores, broken)
        if not self._options.transfer or sound.looked_at == 0:
            return believe_alone(scores)
        if self._model is None:  # stopped before the first decision
            self.refit(scores, broken)
        assert self._model is not None, "it was just fitted"
        belief = believe(sound, self._model).inflated(self.calibration)
        return set_apart(belief, believe_alone(scores), broken) if broken.any() else belief

    def certain(self, scores: Scores) -> Intervals:
        """Bounds that hold whatever was measured; they only become narrower."""
        if self._bounded:
            changed = np.flatnonzero(scores.seen != self._bounded_at)
            self._certain = bounds(scores, CERTAIN, self._certain, changed)
            self._bounded_at = scores.seen
        return self._certain

    @property
    def reach(self) -> float:
        """Standard deviations that an interval reaches to either side."""
        if self._model is None:
            return float(norm.ppf(0.5 + self._options.confidence / 2))
        return self._model.reach(self._options.confidence)

    def expect(self, actions: Sequence[Action], belief: Belief) -> None:
        """Note what the model, uncorrected, believes of configs that are about to be measured."""
        own = belief.spread / self.calibration
        self._expected = {
            action.config: (float(belief.mean[action.config]), float(own[action.config]))
            for action in actions
        }

    def settle(self, scores: Scores) -> None:
        """Compare configs that are now measured on all inputs with what was expected of them."""
        for config, (mean, spread) in self._expected.items():
            if scores.seen[config] == len(scores.values) and spread > 0:
                truth = float(scores.values[:, config].mean())
                self._misses.append(min(SURPRISE, ((truth - mean) / spread) ** 2))
        self._expected = {}

    @property
    def calibration(self) -> float:
        """Factor on the model's standard deviations, >= 1, by how its predictions fared."""
        return max(1.0, math.sqrt((TRUSTED + sum(self._misses)) / (TRUSTED + len(self._misses))))
