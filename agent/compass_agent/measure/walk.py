"""Runs configs on inputs, each operator result computed once.

A result follows from the operator with its knob values (and its code and model) and from the digests of what
it read, and is named by these. Configs that agree on a prefix share it, and so do configs whose prefixes
differ but happened to produce the same bytes (an orientation step that turned nothing).

What an operator reads went through the framing, as between machines: what comes from the cache and what was
just computed cannot be told apart.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

from compass_agent.measure.results_cache import Result, ResultsCache, failure, result_of
from compass_shared.errors import InferenceError, MessageError
from compass_shared.framing import decode_value
from compass_shared.measured import OperatorRun
from compass_shared.pipeline import REQUEST, Config, Knobs, Operator, Pipeline, variant_key
from compass_shared.values import Value


class RunOperator(Protocol):
    """Runs one operator on its inputs."""

    def __call__(self, operator: Operator, inputs: Mapping[str, Value], knobs: Knobs) -> Value:
        """Compute the operator's output; raises InferenceError if the operator fails."""


def _nothing(operator: Operator, inputs: Mapping[str, Value], knobs: Knobs) -> None: ...


class Walk:
    """Runs configs of one pipeline.

    Args:
        pipeline: Whose configs.
        run: Runs one operator.
        cache: Where results are found and kept.
        identity: What an operator with these knob values is: everything its output follows from beside
            its inputs. Its variant's key is enough for a cache that no other bundle and version sees.
        before_run: Called before an operator runs, outside the time that is taken of it.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        run: RunOperator,
        cache: ResultsCache,
        identity: Callable[[Operator, Knobs], str] = lambda operator, knobs: variant_key(
            operator.name, knobs
        ),
        before_run: Callable[[Operator, Mapping[str, Value], Knobs], None] = _nothing,
    ) -> None:
        self._pipeline = pipeline
        self._run = run
        self._cache = cache
        self._identity = identity
        self._before_run = before_run
        self._values: dict[str, tuple[bytes, Value]] = {}
        """Operator -> digest and value of what was last read of it; neighbouring configs read it again."""
        self.runs: list[OperatorRun] = []
        """What ran, in order."""
        self.recalled: list[OperatorRun] = []
        """What ran in other processes and was found on disk, in order."""
        self.reused = 0
        """Results that were found in the cache."""

    def output(self, request: Result, config: Config) -> Result:
        """What a config makes of an input.

        Args:
            request: The input, from ``result_of``.
            config: Which config.
        """
        results = {REQUEST: request}
        for operator in self._pipeline.operators:
            results[operator.name] = self._result(operator, config.get(operator.name, {}), results)
        return results[self._pipeline.output]

    def value(self, name: str, result: Result) -> Value:
        """The value of a result of that operator; it may be shared, and its arrays are read-only."""
        digest, value = self._values.get(name, (b"", None))
        if digest != result.digest:
            value = decode_value(result.payload)
            self._values[name] = (result.digest, value)
        return value

    def _result(self, operator: Operator, knobs: Knobs, upstream: Mapping[str, Result]) -> Result:
        for name in operator.inputs:
            if upstream[name].problem is not None:
                return upstream[name]
        digests = b"".join(upstream[name].digest for name in operator.inputs)
        key = hashlib.sha256(self._identity(operator, knobs).encode() + b"\0" + digests).hexdigest()
        found = self._cache.get(key)
        if found is not None:
            self.reused += 1
            if found.recalled:
                self.recalled.append(_run_of(operator, knobs, found))
            return found
        computed = self._computed(operator, knobs, upstream)
        self._cache.put(key, computed)
        return computed

    def _computed(self, operator: Operator, knobs: Knobs, upstream: Mapping[str, Result]) -> Result:
        inputs = {name: self.value(name, upstream[name]) for name in operator.inputs}
        self._before_run(operator, inputs, knobs)
        cpu_s, wall_s = time.thread_time(), time.perf_counter()
        try:
            made: Value | InferenceError = self._run(operator, inputs, knobs)
        except InferenceError as error:
            made = error
        cpu_s, wall_s = time.thread_time() - cpu_s, time.perf_counter() - wall_s
        result = failure(str(made)) if isinstance(made, InferenceError) else _framed(operator, made)
        result = replace(result, cpu_s=cpu_s, wall_s=wall_s)
        self.runs.append(_run_of(operator, knobs, result))
        return result


def _run_of(operator: Operator, knobs: Knobs, result: Result) -> OperatorRun:
    return OperatorRun(
        variant=variant_key(operator.name, knobs),
        cpu_s=result.cpu_s,
        wall_s=result.wall_s,
        output_bytes=len(result.payload),
        failed=result.problem is not None,
    )


def _framed(operator: Operator, value: Value) -> Result:
    try:
        return result_of(value)
    except MessageError as error:  # what cannot be framed could not be sent on either
        return failure(f"operator {operator.name!r}: its output {error}")
