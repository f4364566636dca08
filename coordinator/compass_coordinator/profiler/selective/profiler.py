"""The selective profiler: says what to measure, is told what came of it, knows what follows for all configs.

It measures nothing itself and reads no clock, so that real processes, a log of an earlier run and a
benchmark's replay drive it alike: ``ask`` for jobs, ``tell`` what they gave, until ``finished``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from compass_coordinator.profiler.selective.alone import believe_alone, set_apart, without
from compass_coordinator.profiler.selective.certain import bounds
from compass_coordinator.profiler.selective.decisions import Decide, Decisions, Stakes, stakes
from compass_coordinator.profiler.selective.observations import Observations
from compass_coordinator.profiler.selective.operator_times import OperatorTimes, Runs
from compass_coordinator.profiler.selective.pilot import pilot_configs
from compass_coordinator.profiler.selective.policy import Action, Prices, next_actions
from compass_coordinator.profiler.selective.score_model import (
    Belief,
    Kernel,
    ScoreModel,
    Scores,
    believe,
    first_kernel,
    fit,
)
from compass_coordinator.profiler.selective.space import Floats, Indices, Mask, space_of
from compass_coordinator.profiler.statistics.sequential import Intervals
from compass_coordinator.profiler.statistics.strata import Strata, ordered, spreads_within, stratified
from compass_shared.errors import ProfileError
from compass_shared.measured import Done, InputInfo, Job
from compass_shared.pipeline import Pipeline

DECIDED = 1e-4
"""A config is decided once the share of queries that hinge on it is below this."""
REFIT = 1.05
"""Factor of spend between two fits of the model, and two looks at costs; all scores count at once."""
BATCH = 0.02
"""Share of the spend so far that may be spent before deciding anew what is worth most."""
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
        self._misses: list[float] = []
        """Squared errors of predictions, over the variance that was believed."""
        self._expected: dict[int, tuple[float, float]] = {}
        """Config -> mean and standard deviation that were believed before it was measured."""
        self._actions: tuple[Action, ...] = ()
        self._decisions: Decisions | None = None
        self._outstanding: dict[int, Job] = {}
        self._next_job = 0
        self._there = np.zeros((len(inputs), len(self.space.node_variant)), dtype=np.bool_)
        self._paid = np.zeros(len(self.space.variants))
        self._ran = np.zeros(len(self.space.variants))
        self._row = {key: at for at, key in enumerate(self.space.keys)}
        self._variant = {variant: at for at, variant in enumerate(self.space.variants)}
        self._found: Stakes | None = None
        self._certainly = _anything(len(self.space))
        self._bounded = np.zeros(len(self.space), dtype=np.intp)
        """(configs,) inputs measured when bounds were last looked at."""
        self._fitted_s = 0.0
        """Operator-seconds spent at the last fit."""
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
            self._actions = self._next()
            if not self._actions:
                self.finished = True
                break
            if jobs := self._jobs_of(self._actions):
                return jobs
        return ()

    def tell(self, done: Done) -> None:
        """Take the answer to a job, or one of an earlier run of the same measurement."""
        if not 0 <= done.input < self.observations.inputs:
            raise ProfileError(f"a measurement of input {done.input}, there are {self.observations.inputs}")
        self._outstanding.pop(done.id, None)
        self.observations.add(done)
        self.runs.take(done)
        self._count(done)

    @property
    def status(self) -> Status:
        """How far it is."""
        blame = self._found.blame if self._found is not None else np.ones(len(self.space))
        doing = "first configs" if not self._pilot_done else "nothing"
        if self._actions and not self.finished:
            others = f" and {len(self._actions) - 1} more" if len(self._actions) > 1 else ""
            doing = f"{self.space.keys[self._actions[0].config]} on {self._actions[0].upto} inputs{others}"
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
        missing = np.isnan(self.observations.numerators[:, self._pilot])
        wanted = {
            int(place): [self.space.keys[config] for config in self._pilot[missing[place]]]
            for place in self._order[:upto]
            if missing[place].any()
        }
        return self._posted(wanted)

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

    def _next(self) -> tuple[Action, ...]:
        scores = self._scores()
        self._settle(scores)
        if self._decisions is None or self.runs.spent_s >= REFIT * self._fitted_s:
            self._refit(scores)
        assert self._decisions is not None, "set by the first fit"
        belief, certain = self._belief(scores), self._certain(scores)
        self._found = stakes(self._decisions, belief, certain.low, certain.high, self._rng)
        if self._found.wrong < self.options.delta:
            return ()
        actions = self._worthiest(self._decisions, belief, self._found, scores.seen)
        self._expected = {
            action.config: (float(belief.mean[action.config]), float(belief.spread[action.config]))
            for action in actions
        }
        return actions

    def _refit(self, scores: Scores) -> None:
        """Look anew at what costs time to look at."""
        self._decisions = self._decide(self.times)
        self._fitted_s = self.runs.spent_s
        if self.options.transfer:
            self._model = self._fitted(scores)
            self._kernel = self._model.kernel

    def _worthiest(
        self, decisions: Decisions, belief: Belief, found: Stakes, seen: Indices
    ) -> tuple[Action, ...]:
        """The best actions, as many as are worth looking at everything again."""
        ran = np.divide(self._ran, self._paid, out=np.ones_like(self._ran), where=self._paid > 0)
        prices = Prices.of(self.space, seen, self.times, reuse=self.options.reuse, ran=np.minimum(1.0, ran))
        inputs, partly = len(self._order), self.options.early_stopping
        ranked = next_actions(decisions, belief, found, seen, prices, inputs=inputs, partly=partly)
        paid = np.cumsum([action.price_s for action in ranked])
        return tuple(ranked[: 1 + int(np.searchsorted(paid, BATCH * self.runs.spent_s))])

    def _settle(self, scores: Scores) -> None:
        """Compare configs that are now measured on all inputs with what was predicted for them."""
        for config, (mean, spread) in self._expected.items():
            if scores.seen[config] == len(scores.values) and spread > 0:
                truth = float(scores.values[:, config].mean())
                # A single surprise is to widen intervals, not to end their use.
                self._misses.append(min(16.0, ((truth - mean) / spread) ** 2))
        self._expected = {}

    @property
    def calibration(self) -> float:
        """Factor on the model's standard deviations, >= 1, by how its predictions fared."""
        return max(1.0, math.sqrt((TRUSTED + sum(self._misses)) / (TRUSTED + len(self._misses))))

    def _belief(self, scores: Scores) -> Belief:
        broken = self._broken()
        sound = without(scores, broken)
        alone = believe_alone(scores)
        if not self.options.transfer or sound.looked_at == 0:
            return alone
        if self._model is None:  # stopped before the first decision
            self._model = self._fitted(scores)
        return set_apart(believe(sound, self._model).inflated(self.calibration), alone, broken)

    def _fitted(self, scores: Scores) -> ScoreModel:
        broken = self._broken()
        return fit(without(scores, broken), self._kernel, self._pilot[~broken[self._pilot]])

    def _broken(self) -> Mask:
        """Configs that have failed throughout: that says nothing of others, unless all have."""
        broken = self.observations.broken()
        return broken & ~broken[self.observations.counts() > 0].all()

    def _reach(self) -> float:
        if self._model is None:
            return float(norm.ppf(0.5 + self.options.confidence / 2))
        return self._model.reach(self.options.confidence)

    def _certain(self, scores: Scores) -> Intervals:
        if self._kind != "mean" or not self.options.early_stopping:
            return _anything(len(self.space))
        changed = np.flatnonzero(scores.seen != self._bounded)
        labels = self._strata.labels[self._order]
        self._certainly = bounds(scores, labels, CERTAIN, self._certainly, changed)
        self._bounded = scores.seen
        return self._certainly

    def _scores(self) -> Scores:
        seen = self.observations.seen(self._order)
        values = self.observations.values()[self._order]
        values[np.arange(len(values))[:, np.newaxis] >= seen] = np.nan
        labels = self._strata.labels[self._order]
        return Scores(values=values, seen=seen, features=_indicators(labels), levels=self.space.levels)

    # --- jobs -------------------------------------------------------------------------------------

    def _jobs_of(self, actions: tuple[Action, ...]) -> tuple[Job, ...]:
        wanted: dict[int, list[str]] = {}
        for action in sorted(actions, key=lambda action: action.config):
            column = self.observations.numerators[self._order[: action.upto], action.config]
            for place in self._order[: action.upto][np.isnan(column)]:
                wanted.setdefault(int(place), []).append(self.space.keys[action.config])
        return self._posted(wanted)

    def _posted(self, wanted: Mapping[int, Sequence[str]]) -> tuple[Job, ...]:
        """Jobs for configs that are wanted, by input."""
        first = self._next_job
        jobs = tuple(
            Job(id=first + at, input=place, configs=tuple(keys))
            for at, (place, keys) in enumerate(wanted.items())
        )
        self._next_job += len(jobs)
        self._outstanding = {job.id: job for job in jobs}
        return jobs

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


def _anything(configs: int) -> Intervals:
    return Intervals(low=np.zeros(configs), high=np.ones(configs))


def _indicators(labels: Indices) -> Floats:
    """(inputs, strata - 1) of mean 0 and variance 1: which stratum an input is of, the last one left out."""
    marks = (labels[:, np.newaxis] == np.arange(labels.max(initial=0))).astype(np.float64)
    return np.asarray((marks - marks.mean(axis=0)) / np.maximum(marks.std(axis=0), 1e-9))
