"""Passes through a pipeline, timed operator by operator: what every speed measurement is made of.

A pass runs the pipeline once, operator after operator, as a request would: what ran before has left its
traces in the caches. (Running all variants of one operator in a row is quicker, and measured up to a fifth
less CPU time than the same calls took while serving.)

Of sequences a pass runs over a clip, request after request: operators keep from one to the next what they
keep while serving, and every request is timed alone.
"""

from __future__ import annotations

import logging
import statistics
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TypeAlias

from compass_agent.measure.clips import is_sequence, requests_of
from compass_agent.measure.series import Sample, hiccup_of, waited_unusually
from compass_agent.measure.telemetry import resident_bytes
from compass_agent.operators import OperatorHost
from compass_agent.pace import Pace, Paced
from compass_agent.states import RequestStates, StateBook
from compass_shared.clock import Clock
from compass_shared.errors import ConfigError, InferenceError, ModelLoadError
from compass_shared.framing import framed_size
from compass_shared.items import items_in
from compass_shared.pipeline import REQUEST, Operator, Pipeline, variant_key
from compass_shared.values import Example, State, Value

Choice: TypeAlias = Mapping[str, str]
"""Operator -> the variant to run."""

logger = logging.getLogger(__name__)

MAX_REQUESTS = 48
"""Requests of a clip that a pass runs; a longer one is left after these."""
_WAITS_KEPT = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What one pass took."""

    samples: tuple[Sample, ...]
    failed: tuple[str, ...] = ()
    """Variant that failed on what it was given, of every request that ended there."""


@dataclass(frozen=True, slots=True)
class _Step:
    """One request of a pass, or several side by side."""

    work: tuple[int, ...]
    """Which input, and which request of it."""
    values: list[dict[str, Value]]
    """Of each request what operators made so far."""
    states: RequestStates
    rested: bool


class Passes:
    """Runs passes, of the whole pipeline or of what some variants need.

    Args:
        host: Runs operators.
        pipeline: What to measure.
        examples: Inputs to draw from.
        pace: Speed to run at.
        clock: Time of the measurement.
        variants: Keys to measure; None: all. Operators that only feed them run with their first variant.
        batch: Requests that go through the pipeline side by side: each operator is called for all of them in
            one go, and that is one sample.

    Raises:
        ConfigError: If there is no such variant, or none was given, or clips are to be batched.
    """

    def __init__(
        self,
        host: OperatorHost,
        pipeline: Pipeline,
        examples: Sequence[Example],
        *,
        pace: Pace,
        clock: Clock,
        variants: Collection[str] | None = None,
        batch: int = 1,
    ) -> None:
        self._host = host
        self._pipeline = pipeline
        self._examples = examples
        self._sequences = is_sequence(pipeline)
        if self._sequences and batch > 1:
            raise ConfigError(f"requests of {pipeline.name!r} follow each other: they make no batches")
        self._batch = batch
        self._pace = pace
        self._clock = clock
        self._started_s = clock.now_s()
        self._waits: dict[str, deque[float]] = {}
        """Variant -> how long its latest calls were off the core."""
        keys = {
            op.name: [variant_key(op.name, knobs) for knobs in op.variants()] for op in pipeline.operators
        }
        everything = {key for found in keys.values() for key in found}
        wanted = everything if variants is None else set(variants)
        if unknown := sorted(wanted - everything):
            raise ConfigError(f"pipeline {pipeline.name!r} has no variant {unknown[0]!r}")
        if not wanted:
            raise ConfigError("no variant was given to measure")
        self.wanted = wanted
        self.partial = variants is not None
        """Whether only some variants were asked for."""
        self.operators = _needed(pipeline, {name for name, found in keys.items() if wanted & set(found)})
        self.choices: dict[str, tuple[str, ...]] = {
            op.name: tuple(key for key in keys[op.name] if key in wanted) or (keys[op.name][0],)
            for op in self.operators
        }
        """Operator -> variants that passes choose among."""
        self.unusable: dict[str, str] = {}
        """Variants whose model cannot be had or opened here -> why; they are none of the choices any more."""
        self.memory_bytes: dict[str, int] = {}
        """Variant -> what it was seen to need when it was opened and first run."""
        self._knobs = {
            key: knobs
            for op in self.operators
            for key, knobs in zip(keys[op.name], op.variants(), strict=True)
        }

    @property
    def elapsed_s(self) -> float:
        """Time since the start."""
        return self._clock.now_s() - self._started_s

    def requests(self, example: int) -> Sequence[Value]:
        """The values of the requests that a pass over an input runs."""
        return requests_of(self._pipeline, self._examples[example])[:MAX_REQUESTS]

    def warm_up(self, runs: int = 1) -> None:
        """Load every model and run it on the first request, at full speed.

        Args:
            runs: Most runs of each variant; it is warm when a run is no longer a tenth faster than the last.

        Raises:
            ModelLoadError: If no model of an operator can be had or opened.
        """
        step = self._step(0, 0, [self.requests(0)[0]])
        for operator in self.operators:
            value: Value = None
            for key in self.choices[operator.name]:
                try:
                    self._host.bind(self._pipeline.name, operator.name, self._knobs[key])
                except ModelLoadError as error:
                    self._leave_out(operator.name, key, error)
                    continue
                before_s, resident = float("inf"), resident_bytes()
                for run in range(runs):
                    began_s = self._clock.now_s()
                    done = self._call(operator, key, replace(step, states=_fresh()), Pace())
                    if run == 0:
                        self._remember_memory(operator, key, resident_bytes() - resident)
                    if done is None:
                        break
                    (value,) = done.value
                    lasted_s = self._clock.now_s() - began_s
                    if lasted_s >= 0.9 * before_s:
                        break
                    before_s = lasted_s
            step.values[0][operator.name] = value

    def _leave_out(self, operator: str, key: str, error: ModelLoadError) -> None:
        left = tuple(other for other in self.choices[operator] if other != key)
        if not left:
            raise error
        logger.warning("%s is left out: %s", key, error)
        self.unusable[key] = str(error)
        self.choices[operator] = left

    def _remember_memory(self, operator: Operator, key: str, grown: int) -> None:
        opened = self._host.opened_bytes(self._pipeline.name, operator, self._knobs[key])
        self.memory_bytes[key] = opened + max(0, grown)

    def run(
        self, example: int, choices: Sequence[Choice], *, rest: Callable[[], object] | None = None
    ) -> Pass:
        """Run the pipeline once: a request, or all of a clip.

        Args:
            example: Index of the input; the others of a batch follow it.
            choices: Of every request; a stateful operator whose variant changes starts afresh, as in serving.
            rest: Waits before every request, which is noted.
        """
        samples: list[Sample] = []
        failed: list[str] = []
        book = StateBook()
        for place, (value, choice) in enumerate(zip(self.requests(example), choices, strict=True)):
            if rest is not None:
                rest()
            beside = [
                self._examples[(example + step) % len(self._examples)] for step in range(1, self._batch)
            ]
            step = self._step(example, place, [value, *(one.value for one in beside)], book=book)
            ended = self._run_step(replace(step, rested=rest is not None), choice, samples)
            if ended is not None:
                failed.append(ended)
        return Pass(samples=tuple(samples), failed=tuple(failed))

    def _step(
        self, example: int, place: int, values: Sequence[Value], *, book: StateBook | None = None
    ) -> _Step:
        return _Step(
            work=(example, place) if self._sequences else (example,),
            values=[{REQUEST: value} for value in values],
            states=_fresh() if book is None else book.of(query="", stream=0, position=place),
            rested=False,
        )

    def _run_step(self, step: _Step, choice: Choice, samples: list[Sample]) -> str | None:
        """Run all operators and add what they took; the variant that failed, if one did."""
        work: tuple[int | str, ...] = step.work
        for operator in self.operators:
            key = choice[operator.name]
            at_s = self.elapsed_s
            done = self._call(operator, key, step, self._pace)
            if done is None:
                return key
            counts = [items_in(operator, values) for values in step.values]
            sample = Sample(
                variant=key,
                work=work,
                at_s=at_s,
                lasted_s=done.device_s,
                busy_s=done.busy_s,
                output_bytes=sum(map(framed_size, done.value)) // self._batch,
                rested=step.rested,
                items=None if operator.items is None else sum(count or 0 for count in counts),
            )
            samples.append(self._judged(sample, operator, step))
            for values, value in zip(step.values, done.value, strict=True):
                values[operator.name] = value
            work = (*work, key)
        return None

    def _judged(self, sample: Sample, operator: Operator, step: _Step) -> Sample:
        """The sample without what the machine added to it, found out by a repeat where that is suspected.

        What keeps something from call to call is not repeated: the repeat would be another call.
        """
        waits = self._waits.setdefault(sample.variant, deque(maxlen=_WAITS_KEPT))
        usual_s = statistics.median(waits) if waits else 0.0
        if not operator.stateful and waited_unusually(sample.lasted_s, sample.busy_s, usual_s):
            repeat = self._call(operator, sample.variant, step, self._pace)
            added_s = hiccup_of(sample.lasted_s, repeat.device_s) if repeat is not None else 0.0
            if repeat is not None and added_s > 0:
                sample = replace(sample, lasted_s=repeat.device_s, busy_s=repeat.busy_s, hiccup_s=added_s)
        waits.append(max(0.0, sample.lasted_s - sample.busy_s))
        return sample

    def _call(self, operator: Operator, key: str, step: _Step, pace: Pace) -> Paced[list[Value]] | None:
        """Run one variant; None if it fails on this input."""
        call = self._host.bind(self._pipeline.name, operator.name, self._knobs[key])
        inputs = [{name: values[name] for name in operator.inputs} for values in step.values]
        try:
            with self._state(operator, key, step) as state:
                return pace.run(operator.speed_class, lambda: [call(each, state) for each in inputs])
        except InferenceError:
            return None

    def _state(self, operator: Operator, key: str, step: _Step) -> AbstractContextManager[State | None]:
        # Requests of a batch stand side by side: none of them follows another.
        if not operator.stateful or self._batch > 1:
            return nullcontext()
        return step.states.held(operator.name, key)


def _fresh() -> RequestStates:
    """States of a stream that begins."""
    return StateBook().of(query="", stream=0, position=0)


def _needed(pipeline: Pipeline, wanted: Collection[str]) -> tuple[Operator, ...]:
    """The operators that are wanted and what they are fed by, in topological order."""
    needed = set(wanted)
    for operator in reversed(pipeline.operators):
        if operator.name in needed:
            needed.update(operator.inputs)
    return tuple(operator for operator in pipeline.operators if operator.name in needed)
