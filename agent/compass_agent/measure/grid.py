"""Accuracy of a whole knob grid on one input, with every shared upstream result computed once.

Configs are walked in product order, the last operator's knobs fastest. Each operator result is remembered
by (operator, knob values, digests of what it read): configs that agree on a prefix share it, and so do
configs whose prefixes differ but happened to produce the same bytes (an orientation step that turned
nothing). Nothing is kept from one input to the next, so memory is bounded by one input's results.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from compass_shared.errors import InferenceError, MessageError, ProfileError
from compass_shared.framing import encode_value
from compass_shared.pipeline import REQUEST, Config, Knobs, Operator, Pipeline, variant_key
from compass_shared.values import Example, Value


class RunOperator(Protocol):
    """Runs one operator on its inputs."""

    def __call__(self, operator: Operator, inputs: Mapping[str, Value], knobs: Knobs) -> Value:
        """Compute the operator's output; raises InferenceError if the operator fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputResult:
    """Scores of every config on one input."""

    name: str
    group: str
    scores: tuple[float, ...]
    """In the order of the configs asked for; a config whose operator failed scores 0."""
    failures: int
    """Operator runs that failed."""
    seconds: Mapping[str, float]
    """Variant -> thread CPU seconds spent in it, each shared result counted once."""
    runs: Mapping[str, int]
    """Variant -> how often it really ran."""


@dataclass(slots=True)
class _Result:
    value: Value
    digest: bytes
    """Of the encoded value; of the error, where the operator failed."""
    failed: bool = False


@dataclass(slots=True)
class _Work:
    run: RunOperator
    known: dict[tuple[object, ...], _Result] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)
    failures: int = 0

    def result(self, operator: Operator, knobs: Knobs, upstream: Mapping[str, _Result]) -> _Result:
        variant = variant_key(operator.name, knobs)
        key = (variant, *(upstream[name].digest for name in operator.inputs))
        if key not in self.known:
            self.known[key] = self._compute(operator, knobs, upstream, variant)
        return self.known[key]

    def _compute(
        self, operator: Operator, knobs: Knobs, upstream: Mapping[str, _Result], variant: str
    ) -> _Result:
        if any(upstream[name].failed for name in operator.inputs):
            return _Result(None, b"failed upstream", failed=True)
        inputs = {name: upstream[name].value for name in operator.inputs}
        started_s = time.thread_time()
        try:
            value = self.run(operator, inputs, knobs)
        except InferenceError:
            return self._failed()
        finally:
            self.seconds[variant] = self.seconds.get(variant, 0.0) + time.thread_time() - started_s
            self.runs[variant] = self.runs.get(variant, 0) + 1
        try:
            return _Result(value, digest_of(value))
        except MessageError:  # what cannot be framed could not be sent on either
            return self._failed()

    def _failed(self) -> _Result:
        self.failures += 1
        return _Result(None, b"failed", failed=True)


def digest_of(value: Value) -> bytes:
    """Content address of a value."""
    return hashlib.blake2b(encode_value(value), digest_size=16).digest()


def measure_input(
    pipeline: Pipeline,
    configs: Sequence[Config],
    example: Example,
    *,
    run: RunOperator,
    score: Callable[[Value, Value], float],
) -> InputResult:
    """Score every config on one input.

    Args:
        pipeline: What is measured.
        configs: Which of its configs; neighbours in product order share the most.
        example: Input and ground truth.
        run: Runs one operator.
        score: The pipeline's metric, ``score(output, truth) -> [0, 1]``.

    Raises:
        ProfileError: The metric failed, or gave what is no score.
    """
    work = _Work(run)
    request = _Result(example.value, digest_of(example.value))
    scored: dict[bytes, float] = {}
    scores = []
    for config in configs:
        results = {REQUEST: request}
        for operator in pipeline.operators:
            results[operator.name] = work.result(operator, config.get(operator.name, {}), results)
        output = results[pipeline.output]
        if output.failed:
            scores.append(0.0)
            continue
        if output.digest not in scored:
            scored[output.digest] = _scored(score, output.value, example)
        scores.append(scored[output.digest])
    return InputResult(
        name=example.name,
        group=example.group,
        scores=tuple(scores),
        failures=work.failures,
        seconds=work.seconds,
        runs=work.runs,
    )


def _scored(score: Callable[[Value, Value], float], output: Value, example: Example) -> float:
    try:
        found = float(score(output, example.truth))
    except Exception as error:  # code of a bundle, which may raise anything
        problem = f"{type(error).__name__}: {error}"
        raise ProfileError(f"the metric failed on input {example.name!r}: {problem}") from error
    if not 0 <= found <= 1:
        raise ProfileError(f"the metric gave {found} on input {example.name!r}, not a score in [0, 1]")
    return found
