"""Runs configs on inputs, each operator result computed once.

A result follows from the operator with its knob values (and its code and model) and from the digests of what
it read, and is named by these. Configs that agree on a prefix share it, and so do configs whose prefixes
differ but happened to produce the same bytes (an orientation step that turned nothing).

What an operator reads went through the framing, as between machines: what comes from the cache and what was
just computed cannot be told apart.

Of sequences an input is a clip: an operator runs over all of its requests in order, with what it keeps from
one to the next as in serving, and the result is what it made of each. Where it fails, that request is lost,
and so is what follows from it; the clip goes on, and a stateful operator starts afresh. An operator that made
something of no request has failed.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, cast

from compass_agent.measure.clips import (
    Frame,
    Lost,
    Request,
    decode_clip,
    encode_clip,
    is_sequence,
    pack_frames,
    requests_of,
)
from compass_agent.measure.results_cache import Result, ResultsCache, failure, result_from, result_of
from compass_agent.states import StateBook
from compass_shared.errors import InferenceError, MessageError
from compass_shared.framing import decode_value
from compass_shared.items import items_in
from compass_shared.measured import OperatorRun, RequestRun
from compass_shared.pipeline import ENDPOINT_CLASS, REQUEST, Config, Knobs, Operator, Pipeline, variant_key
from compass_shared.values import Example, State, Value


class RunOperator(Protocol):
    """Runs one operator on its inputs."""

    def __call__(
        self, operator: Operator, inputs: Mapping[str, Value], knobs: Knobs, state: State | None = None
    ) -> Value:
        """Compute the operator's output; raises InferenceError if the operator fails.

        Args:
            operator: Which one.
            inputs: One value per upstream operator.
            knobs: Its knob values.
            state: Of a stateful operator, given to no other.
        """


def request_of(pipeline: Pipeline, example: Example) -> Result:
    """An input as ``Walk.output`` takes it.

    Raises:
        MessageError: If it cannot be framed.
    """
    if is_sequence(pipeline):
        return result_from(encode_clip(requests_of(pipeline, example)))
    return result_of(example.value)


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
        self._sequences = is_sequence(pipeline)
        self._values: dict[str, tuple[bytes, Value | list[Request]]] = {}
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
            request: The input, from ``request_of``.
            config: Which config.
        """
        results = {REQUEST: request}
        for operator in self._pipeline.operators:
            results[operator.name] = self._result(operator, config.get(operator.name, {}), results)
        return results[self._pipeline.output]

    def value(self, name: str, result: Result) -> Value:
        """The value of a result of that operator; it may be shared, and its arrays are read-only.

        Of a clip a list of values, None where a request was lost.
        """
        if self._sequences:
            return [None if isinstance(value, Lost) else value for value in self._clip(name, result)]
        return cast("Value", self._decoded(name, result))

    def _clip(self, name: str, result: Result) -> list[Request]:
        return cast("list[Request]", self._decoded(name, result))

    def _decoded(self, name: str, result: Result) -> Value | list[Request]:
        digest, value = self._values.get(name, (b"", None))
        if digest != result.digest:
            value = decode_clip(result.payload) if self._sequences else decode_value(result.payload)
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
        if self._sequences:
            result = self._over_clip(operator, knobs, upstream)
        else:
            inputs = {name: self.value(name, upstream[name]) for name in operator.inputs}
            self._before_run(operator, inputs, knobs)
            result = self._once(operator, knobs, inputs, StateBook(), 0)
        self.runs.append(_run_of(operator, knobs, result))
        return result

    def _over_clip(self, operator: Operator, knobs: Knobs, upstream: Mapping[str, Result]) -> Result:
        clips = {name: self._clip(name, upstream[name]) for name in operator.inputs}
        states = StateBook()
        results: list[Result | None] = []
        for place, values in enumerate(zip(*clips.values(), strict=True)):
            if any(isinstance(value, Lost) for value in values):
                results.append(None)
                continue
            inputs = cast("Mapping[str, Value]", dict(zip(clips, values, strict=True)))
            if not any(results):
                self._before_run(operator, inputs, knobs)
            results.append(self._once(operator, knobs, inputs, states, place))
        return _joined(operator, results)

    def _once(
        self, operator: Operator, knobs: Knobs, inputs: Mapping[str, Value], states: StateBook, place: int
    ) -> Result:
        """What an operator makes of one request."""
        cpu_s, wall_s = time.thread_time(), time.perf_counter()
        try:
            made = self._made(operator, knobs, inputs, states, place)
        except InferenceError as error:
            made = error
        cpu_s, wall_s = time.thread_time() - cpu_s, time.perf_counter() - wall_s
        if operator.speed_class == ENDPOINT_CLASS:
            cpu_s = wall_s  # another machine works meanwhile: its time is what a request and a budget pay
        result = failure(str(made)) if isinstance(made, InferenceError) else _framed(operator, made)
        return replace(result, cpu_s=cpu_s, wall_s=wall_s, items=items_in(operator, inputs))

    def _made(
        self, operator: Operator, knobs: Knobs, inputs: Mapping[str, Value], states: StateBook, place: int
    ) -> Value | InferenceError:
        if not operator.stateful:
            return self._run(operator, inputs, knobs)
        held = states.of(query="", stream=0, position=place)
        with held.held(operator.name, variant_key(operator.name, knobs)) as state:
            return self._run(operator, inputs, knobs, state)


def _joined(operator: Operator, results: Sequence[Result | None]) -> Result:
    """The results of a clip's requests as one; None where nothing came from upstream."""
    ran = [result for result in results if result is not None]
    problems = [result.problem for result in ran if result.problem is not None]
    frames: list[Frame] = [
        None if result is None or result.problem is not None else result.payload for result in results
    ]
    if any(frame is not None for frame in frames):
        joined = result_from(pack_frames(frames))
    else:
        joined = failure(problems[0] if problems else f"operator {operator.name!r}: it got no request whole")
    counts = [result.items for result in ran if result.items is not None]
    return replace(
        joined,
        cpu_s=sum(result.cpu_s for result in ran),
        wall_s=sum(result.wall_s for result in ran),
        items=sum(counts) if counts else None,
        each=tuple(
            None
            if result is None or result.problem is not None
            else RequestRun(result.cpu_s, len(result.payload), result.items)
            for result in results
        ),
    )


def _run_of(operator: Operator, knobs: Knobs, result: Result) -> OperatorRun:
    sizes = [one.output_bytes for one in result.each if one is not None]
    return OperatorRun(
        variant=variant_key(operator.name, knobs),
        cpu_s=result.cpu_s,
        wall_s=result.wall_s,
        output_bytes=sum(sizes) if sizes else len(result.payload),
        failed=result.problem is not None,
        items=result.items,
        each=result.each,
    )


def _framed(operator: Operator, value: Value) -> Result:
    try:
        return result_of(value)
    except MessageError as error:  # what cannot be framed could not be sent on either
        return failure(f"operator {operator.name!r}: its output {error}")
