"""The selective profiler: says what to measure, is told what came of it, knows what follows for all configs.

It measures nothing itself and reads no clock, so that real processes, a log of an earlier run and a
benchmark's replay drive it alike: ``ask`` for jobs, ``tell`` what they gave, until ``finished``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from compass_coordinator.profiler.selective.beliefs import Beliefs
from compass_coordinator.profiler.selective.decisions import Decide, Decisions, Stakes, draws_for, stakes
from compass_coordinator.profiler.selective.input_order import InputOrder
from compass_coordinator.profiler.selective.observations import Observations
from compass_coordinator.profiler.selective.operator_times import OperatorTimes, Runs
from compass_coordinator.profiler.selective.options import Options
from compass_coordinator.profiler.selective.others import KnownOther, Others
from compass_coordinator.profiler.selective.pilot import pilot_configs
from compass_coordinator.profiler.selective.policy import Action, Prices, next_actions
from compass_coordinator.profiler.selective.score_model import Belief, Scores
from compass_coordinator.profiler.selective.sharing import Sharing
from compass_coordinator.profiler.selective.space import Floats, Indices, Mask, space_of
from compass_shared.errors import ProfileError
from compass_shared.measured import Done, InputInfo, Job
from compass_shared.pipeline import Pipeline

DECIDED = 1e-4
"""A config is decided once the share of queries that hinge on it is below this."""
REFIT = 1.05
"""Factor of spend between two fits of the model, and two looks at costs; all scores count at once."""
JOB = 8
"""Most configs of a job."""
BATCH = 0.02
"""Share of the spend so far that may be spent before deciding anew what is worth most."""


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
    wrong: float | None
    """Expected share of queries whose choice could still be wrong; None before the first look."""


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
        extra_metrics: Further metrics, scored beside it; nothing is measured for them alone.
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
        extra_metrics: Iterable[str] = (),
        options: Options | None = None,
    ) -> None:
        if not inputs:
            raise ProfileError(f"pipeline {pipeline.name!r} brings no inputs to profile on")
        self.options = options or Options()
        self.space = space_of(pipeline)
        self.observations = Observations(self.space, len(inputs))
        self.runs = Runs(self.space, [len(info.requests) for info in inputs])
        self._others = Others(self.space, len(inputs), extra_metrics)
        self._requests = float(np.mean([len(info.requests) for info in inputs]))
        """Of an input, on average."""
        self._decide = decide
        self._rng = rng
        self._order = InputOrder(inputs, self.options, rng)
        self._pilot = pilot_configs(self.space, self.options.pilot_configs, rng)
        self._pilot_done = False
        self._beliefs = Beliefs(
            len(self.space),
            self.space.levels.shape[1],
            self.options,
            self._pilot,
            bounded=kind == "mean",
        )
        self._sharing = Sharing(self.space, len(inputs), reuse=self.options.reuse)
        self._actions: tuple[Action, ...] = ()
        self._outstanding: dict[int, Job] = {}
        self._next_job = 0
        self._decisions: Decisions | None = None
        self._found: Stakes | None = None
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
            self._order.reconsider(self.observations, self._pilot)
            self._pilot_done = True
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
        self._others.add(done)
        self.runs.take(done)
        self._sharing.take(done)

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
            wrong=self._found.wrong if self._found is not None else None,
        )

    @property
    def times(self) -> OperatorTimes:
        """What operators took so far."""
        return self.runs.times()

    def known(self) -> Known:
        """What is known of all configs so far."""
        scores = self._order.scores(self.observations)
        belief, certain = self._beliefs.belief(scores, self._broken()), self._beliefs.certain(scores)
        whole = scores.seen == len(scores.values)
        exact = np.nan_to_num(self.observations.accuracies(), nan=0.0)
        mean = np.where(whole, exact, np.clip(belief.mean, certain.low, certain.high))
        reach = np.where(whole, 0.0, self._beliefs.reach * belief.spread)
        low, high = (np.clip(end, certain.low, certain.high) for end in (mean - reach, mean + reach))
        return Known(
            mean=mean,
            low=np.where(whole, mean, np.minimum(mean, low)),
            high=np.where(whole, mean, np.maximum(mean, high)),
            standard_error=np.sqrt(belief.spread**2 + belief.input_var / len(scores.values)),
            counts=self.observations.counts(),
        )

    def known_others(self) -> dict[str, KnownOther]:
        """Extra metric -> what is known of it so far."""
        return self._others.known(self._order)

    def assess(self) -> None:
        """Look anew at what is at stake, as a run that was stopped has not."""
        scores = self._order.scores(self.observations)
        self._decisions = self._decide(self.times)
        self._look(scores, self._beliefs.belief(scores, self._broken()), self._decisions)

    # --- what follows -----------------------------------------------------------------------------

    def _next(self) -> tuple[Action, ...]:
        scores = self._order.scores(self.observations)
        self._beliefs.settle(scores)
        if self._decisions is None or self.runs.spent_s >= REFIT * self._fitted_s:
            # What takes time to look at, and hardly changes from one job to the next.
            self._decisions = self._decide(self.times)
            self._beliefs.refit(scores, self._broken())
            self._fitted_s = self.runs.spent_s
        belief = self._beliefs.belief(scores, self._broken())
        planned, found = self._look(scores, belief, self._decisions)
        if found.wrong < self.options.delta:
            return ()
        actions = self._worthiest(self._decisions, planned, found, scores.seen)
        self._beliefs.expect(actions, belief)
        return actions

    def _look(self, scores: Scores, belief: Belief, decisions: Decisions) -> tuple[Belief, Stakes]:
        """What planners would believe, and what is at stake."""
        certain = self._beliefs.certain(scores)
        # Planners compare an accuracy less its standard error on new inputs, however well the set is known.
        margin = self.options.accuracy_z * np.sqrt(belief.input_var / len(scores.values))
        planned = replace(belief, mean=belief.mean - margin)
        draws = draws_for(decisions, self.options.delta)
        low, high = certain.low - margin, certain.high - margin
        self._found = stakes(decisions, planned, low, high, self._rng, draws=draws)
        return planned, self._found

    def _worthiest(
        self, decisions: Decisions, belief: Belief, found: Stakes, seen: Indices
    ) -> tuple[Action, ...]:
        """The best actions, as many as are worth looking at everything again."""
        prices = Prices.of(
            self.space,
            seen,
            self.times,
            reuse=self.options.reuse,
            ran=self._sharing.ran,
            requests=self._requests,
        )
        inputs, partly = len(self._order), self.options.early_stopping
        ranked = next_actions(decisions, belief, found, seen, prices, inputs=inputs, partly=partly)
        paid = np.cumsum([action.price_s for action in ranked])
        return tuple(ranked[: 1 + int(np.searchsorted(paid, BATCH * self.runs.spent_s))])

    def _broken(self) -> Mask:
        """Configs that have failed throughout: that says nothing of others, unless all have."""
        broken = self.observations.broken()
        return broken & ~broken[self.observations.counts() > 0].all()

    # --- jobs -------------------------------------------------------------------------------------

    def _pilot_jobs(self) -> tuple[Job, ...]:
        upto = self.options.pilot_inputs if self.options.early_stopping else len(self._order)
        return self._missing([(int(config), upto) for config in self._pilot])

    def _jobs_of(self, actions: Sequence[Action]) -> tuple[Job, ...]:
        # In the order of configs, so that neighbours share most.
        return self._missing(sorted((action.config, action.upto) for action in actions))

    def _missing(self, wanted: Sequence[tuple[int, int]]) -> tuple[Job, ...]:
        """Jobs for what is not there yet of configs on their first so many inputs."""
        by_input: dict[int, list[str]] = {}
        for config, upto in wanted:
            places = self._order.places[:upto]
            for place in places[np.isnan(self.observations.numerators[places, config])]:
                by_input.setdefault(int(place), []).append(self.space.keys[config])
        return self._posted(by_input)

    def _posted(self, wanted: Mapping[int, Sequence[str]]) -> tuple[Job, ...]:
        """Jobs for configs that are wanted, by input: small ones, since all that is out is paid for."""
        parts = [
            (place, keys[start : start + JOB])
            for place, keys in wanted.items()
            for start in range(0, len(keys), JOB)
        ]
        first = self._next_job
        jobs = tuple(
            Job(id=first + at, input=place, configs=tuple(keys)) for at, (place, keys) in enumerate(parts)
        )
        self._next_job += len(jobs)
        self._outstanding = {job.id: job for job in jobs}
        return jobs
