"""Passes through a pipeline, timed operator by operator: what every speed measurement is made of.

A pass runs the pipeline once, operator after operator, as a request would: what ran before has left its
traces in the caches. (Running all variants of one operator in a row is quicker, and measured up to a fifth
less CPU time than the same calls took while serving.)
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from compass_agent.measure.series import Sample, hiccup_of, waited_unusually
from compass_agent.operators import OperatorHost
from compass_agent.pace import Pace, Paced
from compass_shared.clock import Clock
from compass_shared.errors import ConfigError, InferenceError
from compass_shared.framing import framed_size
from compass_shared.pipeline import REQUEST, Operator, Pipeline, variant_key
from compass_shared.values import Example, Value

_WAITS_KEPT = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """What one pass took."""

    samples: tuple[Sample, ...]
    failed: str | None = None
    """The variant that failed on what it was given; the pass ended there."""


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
        ConfigError: If there is no such variant, or none was given.
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
        self._knobs = {
            key: knobs
            for op in self.operators
            for key, knobs in zip(keys[op.name], op.variants(), strict=True)
        }

    @property
    def elapsed_s(self) -> float:
        """Time since the start."""
        return self._clock.now_s() - self._started_s

    def warm_up(self, runs: int = 1) -> None:
        """Load every model and run it on the first input, at full speed.

        Args:
            runs: Most runs of each variant; it is warm when a run is no longer a tenth faster than the last.
        """
        full_speed = Pace()
        upstream: list[dict[str, Value]] = [{REQUEST: self._examples[0].value}]
        for operator in self.operators:
            value: Value = None
            for key in self.choices[operator.name]:
                before_s = float("inf")
                for _ in range(runs):
                    began_s = self._clock.now_s()
                    done = self._call(operator, key, upstream, full_speed)
                    if done is None:
                        break
                    (value,) = done.value
                    lasted_s = self._clock.now_s() - began_s
                    if lasted_s >= 0.9 * before_s:
                        break
                    before_s = lasted_s
            upstream[0][operator.name] = value

    def run(self, example: int, choose: Callable[[str], str], *, rested: bool = False) -> Pass:
        """Run the pipeline once.

        Args:
            example: Index of the input; the others of a batch follow it.
            choose: Operator -> the variant to run.
            rested: Whether an idle gap came before, for the record.
        """
        examples = [self._examples[(example + step) % len(self._examples)] for step in range(self._batch)]
        upstream: list[dict[str, Value]] = [{REQUEST: found.value} for found in examples]
        work: tuple[int | str, ...] = (example,)
        samples: list[Sample] = []
        for operator in self.operators:
            key = choose(operator.name)
            at_s = self.elapsed_s
            done = self._call(operator, key, upstream, self._pace)
            if done is None:
                return Pass(samples=tuple(samples), failed=key)
            sample = Sample(
                variant=key,
                work=work,
                at_s=at_s,
                lasted_s=done.device_s,
                busy_s=done.busy_s,
                output_bytes=sum(map(framed_size, done.value)) // self._batch,
                rested=rested,
            )
            samples.append(self._judged(sample, partial(self._call, operator, key, upstream, self._pace)))
            for values, value in zip(upstream, done.value, strict=True):
                values[operator.name] = value
            work = (*work, key)
        return Pass(samples=tuple(samples))

    def _judged(self, sample: Sample, again: Callable[[], Paced[list[Value]] | None]) -> Sample:
        """The sample without what the machine added to it, found out by a repeat where that is suspected."""
        waits = self._waits.setdefault(sample.variant, deque(maxlen=_WAITS_KEPT))
        usual_s = statistics.median(waits) if waits else 0.0
        if waited_unusually(sample.lasted_s, sample.busy_s, usual_s):
            repeat = again()
            added_s = hiccup_of(sample.lasted_s, repeat.device_s) if repeat is not None else 0.0
            if repeat is not None and added_s > 0:
                sample = replace(sample, lasted_s=repeat.device_s, busy_s=repeat.busy_s, hiccup_s=added_s)
        waits.append(max(0.0, sample.lasted_s - sample.busy_s))
        return sample

    def _call(
        self, operator: Operator, key: str, upstream: Sequence[Mapping[str, Value]], pace: Pace
    ) -> Paced[list[Value]] | None:
        """Run one variant; None if it fails on this input."""
        call = self._host.bind(self._pipeline.name, operator.name, self._knobs[key])
        inputs = [{name: values[name] for name in operator.inputs} for values in upstream]
        try:
            return pace.run(operator.speed_class, lambda: [call(each) for each in inputs])
        except InferenceError:
            return None


def _needed(pipeline: Pipeline, wanted: Collection[str]) -> tuple[Operator, ...]:
    """The operators that are wanted and what they are fed by, in topological order."""
    needed = set(wanted)
    for operator in reversed(pipeline.operators):
        if operator.name in needed:
            needed.update(operator.inputs)
    return tuple(operator for operator in pipeline.operators if operator.name in needed)
