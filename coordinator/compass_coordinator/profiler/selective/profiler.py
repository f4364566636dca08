"""The selective profiler: says what to measure, is told what came of it, knows what follows for all configs.

It measures nothing itself and reads no clock, so that real processes, a log of an earlier run and a
benchmark's replay drive it alike: ``ask`` for jobs, ``tell`` what they gave, until ``finished``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from compass_coordinator.profiler.selective.alone import believe_alone
from compass_coordinator.profiler.selective.certain import bounds
from compass_coordinator.profiler.selective.decisions import Decide, Decisions, Stakes, stakes
from compass_coordinator.profiler.selective.observations import Observations
from compass_coordinator.profiler.selective.operator_times import OperatorTimes, Runs
from compass_coordinator.profiler.selective.pilot import pilot_configs
from compass_coordinator.profiler.selective.policy import Action, Prices, next_action
from compass_coordinator.profiler.selective.score_model import (
    Belief,
    Kernel,
    ScoreModel,
    Scores,
    believe,
    first_kernel,
    fit,
)
from compass_coordinator.profiler.selective.space import Floats, Indices, space_of
from compass_coordinator.profiler.sequential import Intervals
from compass_coordinator.profiler.strata import Strata, ordered, spreads_within, stratified
from compass_shared.errors import ProfileError
from compass_shared.measured import Done, InputInfo, Job
from compass_shared.pipeline import Pipeline

DECIDED = 1e-4
"""A config is decided once the share of queries that hinge on it is below this."""
REFIT_EVERY = 3
"""Actions between two fits of the kernel; conditioning is on all scores at all times."""
TRUSTED = 4.0
"""Predictions' worth of evidence for the model's own spreads before measurements correct them."""
CERTAIN = 0.01
"""Chance that certain bounds of a config miss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to go about it; the four savings can be switched off one by one."""

    strata: bool = True
    """Inputs are looked at in an order balanced over strata, and features predict scores."""
    reuse: bool = True
    """Operator results are shared between configs; tells prices only, whoever measures does it."""
    early_stopping: bool = True
    """Configs may stop before the end of the input set."""
    transfer: bool = True
    """Scores of other configs count (pairing and surrogate)."""
    delta: float = 0.01
    """Share of queries that may still be decided wrongly."""
    confidence: float = 0.95
    """Of the intervals reported."""
    pilot_configs: int = 36
    pilot_inputs: int = 12
    strata_count: int = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How far profiling is."""

    doing: str
    """What is being measured."""
    spent_s: float
    """Operator-seconds."""
    decided: int
    """Configs that no query's choice hinges on any more."""
    configs: int
    measured: int
    """Configs measured on at least one input."""
    wrong: float
    """Expected share of queries whose choice could still be wrong."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Known:
    """What is known of all configs' accuracies; arrays are (configs,)."""

    mean: Floats
    low: Floats
    """Of an interval around the accuracy over the named input set."""
    high: Floats
    standard_error: Floats
    """Of the mean as an estimate for new inputs from the same source: what is not known of the set, and the
    set's own."""
    counts: Indices
    """Inputs measured."""


class Profiler:
    """Profiles the accuracy of all configs of one pipeline.

    Args:
        pipeline: What is profiled.
        inputs: Its labelled inputs.
        kind: Of its metric: "mean" or "ratio".
        decide: The queries in the light of operators' times.
        options: Switches and limits.
        rng: All randomness.

    Raises:
        ConfigError: If the pipeline has too many configs.
        ProfileError: If there are no inputs.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        inputs: Sequence[InputInfo],
        decide: Decide,
        rng: np.random.Generator,
        *,
        kind: str = "mean",
        options: Options | None = None,
    ) -> None:
        if not inputs:
            raise ProfileError(f"pipeline {pipeline.name!r} brings no inputs to profile on")
        self.options = options or Options()
        self.space = space_of(pipeline)
        self.observations = Observations(self.space, len(inputs))
        self.runs = Runs(self.space, len(inputs))
        self._kind = kind
        self._decide = decide
        self._rng = rng
        self._strata = self._stratified(inputs)
        self._order = ordered(self._strata, rng)
        self._pilot = pilot_configs(self.space, self.options.pilot_configs, rng)
        self._pilot_done = False
        self._model: ScoreModel | None = None
        self._kernel: Kernel = first_kernel(self.space.levels.shape[1])
        self._actions = 0
        self._misses: list[float] = []
        """Squared errors of predictions, over the variance that was believed."""
        self._expected: tuple[Action, float, float] | None = None
        self._action: Action | None = None
        self._outstanding: dict[int, Job] = {}
        self._next_job = 0
        self._there = np.zeros((len(inputs), len(self.space.node_variant)), dtype=np.bool_)
        self._paid = np.zeros(len(self.space.variants))
        self._ran = np.zeros(len(self.space.variants))
        self._row = {key: at for at, key in enumerate(self.space.keys)}
        self._variant = {variant: at for at, variant in enumerate(self.space.variants)}
        self._found: Stakes | None = None
        self.finished = False

    # --- ask and tell -----------------------------------------------------------------------------

    def ask(self) -> tuple[Job, ...]:
        """Jobs to measure now, in any order and side by side; none while some are out, or when finished."""
        if self._outstanding or self.finished:
            return ()
        if not self._pilot_done:
            jobs = self._pilot_jobs()
            if jobs:
                return jobs
            self._end_pilot()
        while not self.finished:
            self._action = self._next()
            if self._action is None:
                self.finished = True
                break
            if jobs := self._jobs_of(self._action):
                return jobs
        return ()

    def tell(self, done: Done) -> None:
        """Take the answer to a job, or one of an earlier run of the same measurement."""
        if not 0 <= done.input < self.observations.inputs:
            raise ProfileError(f"a measurement of input {done.input}, there are {self.observations.inputs}")
        self._outstanding.pop(done.id, None)
        self.observations.add(done)
        for run in done.runs:
            self.runs.add(run, done.input)
        self._count(done)

    @property
    def status(self) -> Status:
        """How far it is."""
        blame = self._found.blame if self._found is not None else np.ones(len(self.space))
        doing = "first configs" if not self._pilot_done else "nothing"
        if self._action is not None and not self.finished:
            doing = f"{self.space.keys[self._action.config]} on {self._action.upto} inputs"
        return Status(
            doing=doing,
            spent_s=self.runs.spent_s,
            decided=int((blame < DECIDED).sum()),
            configs=len(self.space),
            measured=int((self.observations.counts() > 0).sum()),
            wrong=self._found.wrong if self._found is not None else 1.0,
        )

    @property
    def times(self) -> OperatorTimes:
        """What operators took so far."""
        return self.runs.times()

    def known(self) -> Known:
        """What is known of all configs so far."""
        scores = self._scores()
        belief, certain = self._belief(scores), self._certain(scores)
        mean = np.clip(belief.mean, certain.low, certain.high)
        reach = self._reach() * belief.spread
        whole = scores.seen == len(scores.values)
        mean = np.where(whole, np.nan_to_num(self.observations.accuracies(), nan=0.0), mean)
        reach = np.where(whole, 0.0, reach)
        return Known(
            mean=mean,
            low=np.where(whole, mean, np.minimum(mean, np.clip(mean - reach, certain.low, certain.high))),
            high=np.where(whole, mean, np.maximum(mean, np.clip(mean + reach, certain.low, certain.high))),
            standard_error=np.sqrt(belief.spread**2 + belief.input_var / len(scores.values)),
            counts=self.observations.counts(),
        )

    # --- the pilot --------------------------------------------------------------------------------

    def _pilot_jobs(self) -> tuple[Job, ...]:
        upto = min(self.options.pilot_inputs, len(self._order))
        if not self.options.early_stopping:
            upto = len(self._order)
        return self._jobs(self._pilot, 0, upto)

    def _end_pilot(self) -> None:
        """Order what is left by what the pilot says of the strata's spreads."""
        self._pilot_done = True
        # Exactly the pilot's own, so that a resumed run comes to the same order.
        prefix = self._order[: self.options.pilot_inputs]
        if self.options.strata and len(prefix) < len(self._order):
            values = self.observations.values(prefix)[:, self._pilot]
            labels = self._strata.labels[prefix]
            spreads = spreads_within(values.T, labels, len(self._strata.sizes))
            self._order = ordered(self._strata, self._rng, spreads=spreads, seen=prefix)

    # --- what follows -----------------------------------------------------------------------------

    def _next(self) -> Action | None:
        scores = self._scores()
        self._settle(scores)
        if self.options.transfer and (self._model is None or self._actions % REFIT_EVERY == 0):
            self._model = fit(scores, self._kernel, self._pilot)
            self._kernel = self._model.kernel
        belief, certain, times = self._belief(scores), self._certain(scores), self.times
        decisions = self._decide(times)
        self._found = stakes(decisions, belief, certain.low, certain.high, self._rng)
        if self._found.wrong < self.options.delta:
            return None
        action = self._worthiest(decisions, belief, scores.seen, times)
        if action is not None:
            self._actions += 1
            spread = float(belief.spread[action.config])
            self._expected = action, float(belief.mean[action.config]), spread
        return action

    def _worthiest(
        self, decisions: Decisions, belief: Belief, seen: Indices, times: OperatorTimes
    ) -> Action | None:
        assert self._found is not None, "set just before"
        ran = np.divide(self._ran, self._paid, out=np.ones_like(self._ran), where=self._paid > 0)
        return next_action(
            decisions,
            belief,
            self._found,
            seen,
            Prices.of(self.space, seen, times, reuse=self.options.reuse, ran=np.minimum(1.0, ran)),
            inputs=len(self._order),
            partly=self.options.early_stopping,
        )

    def _settle(self, scores: Scores) -> None:
        """Compare a config that is now measured on all inputs with what was predicted for it."""
        if self._expected is None:
            return
        action, mean, spread = self._expected
        self._expected = None
        if scores.seen[action.config] == len(scores.values) and spread > 0:
            truth = float(scores.values[:, action.config].mean())
            # A single surprise is to widen intervals, not to end their use.
            self._misses.append(min(16.0, ((truth - mean) / spread) ** 2))

    @property
    def calibration(self) -> float:
        """Factor on the model's standard deviations, >= 1, by how its predictions fared."""
        return max(1.0, math.sqrt((TRUSTED + sum(self._misses)) / (TRUSTED + len(self._misses))))

    def _belief(self, scores: Scores) -> Belief:
        if not self.options.transfer or scores.looked_at == 0:
            return believe_alone(scores)
        if self._model is None:  # stopped before the first decision
            self._model = fit(scores, self._kernel, self._pilot)
        return believe(scores, self._model).inflated(self.calibration)

    def _reach(self) -> float:
        if self._model is None:
            return float(norm.ppf(0.5 + self.options.confidence / 2))
        return self._model.reach(self.options.confidence)

    def _certain(self, scores: Scores) -> Intervals:
        if self._kind != "mean" or not self.options.early_stopping:
            return Intervals(low=np.zeros(len(self.space)), high=np.ones(len(self.space)))
        return bounds(scores, self._strata.labels[self._order], CERTAIN)

    def _scores(self) -> Scores:
        seen = self.observations.seen(self._order)
        values = self.observations.values()[self._order]
        values[np.arange(len(values))[:, np.newaxis] >= seen] = np.nan
        labels = self._strata.labels[self._order]
        return Scores(values=values, seen=seen, features=_indicators(labels), levels=self.space.levels)

    # --- jobs -------------------------------------------------------------------------------------

    def _jobs_of(self, action: Action) -> tuple[Job, ...]:
        start = int(self.observations.seen(self._order)[action.config])
        return self._jobs(np.array([action.config], dtype=np.intp), start, action.upto)

    def _jobs(self, configs: Indices, start: int, upto: int) -> tuple[Job, ...]:
        missing = np.isnan(self.observations.numerators[:, configs])
        jobs = []
        for place in self._order[start:upto]:
            keys = tuple(self.space.keys[config] for config in configs[missing[place]])
            if keys:
                jobs.append(Job(id=self._next_job, input=int(place), configs=keys))
                self._next_job += 1
        self._outstanding = {job.id: job for job in jobs}
        return tuple(jobs)

    def _count(self, done: Done) -> None:
        """Keep count of the operator runs that prices expect, and of those that were needed."""
        rows = [self._row[key] for key in done.scores if key in self._row]
        nodes = np.unique(self.space.nodes[rows]) if rows else np.zeros(0, dtype=np.intp)
        new = nodes[~self._there[done.input, nodes]]
        self._there[done.input, new] = self.options.reuse
        np.add.at(self._paid, self.space.node_variant[new], 1)
        for run in done.runs:
            if run.variant in self._variant:
                self._ran[self._variant[run.variant]] += 1

    def _stratified(self, inputs: Sequence[InputInfo]) -> Strata:
        if not self.options.strata:
            labels = np.zeros(len(inputs), dtype=np.intp)
            return Strata(labels=labels, sizes=np.bincount(labels))
        features = np.array([info.features for info in inputs], dtype=np.float64)
        return stratified(features.reshape(len(inputs), -1), self.options.strata_count, self._rng)


def _indicators(labels: Indices) -> Floats:
    """(inputs, strata - 1) of mean 0 and variance 1: which stratum an input is of, the last one left out."""
    marks = (labels[:, np.newaxis] == np.arange(labels.max(initial=0))).astype(np.float64)
    return np.asarray((marks - marks.mean(axis=0)) / np.maximum(marks.std(axis=0), 1e-9))
