"""Accuracy of a knob grid on one input: shared results run once, and the scores are as if they had not."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compass_agent.measure.accuracy import aggregated
from compass_agent.measure.grid import InputResult, measure_input
from compass_agent.measure.results_cache import result_of
from compass_shared.errors import InferenceError, ProfileError, TransportError
from compass_shared.pipeline import REQUEST, Config, Knobs, Metric, Operator, Pipeline, variant_key
from compass_shared.values import Example, State, Value
from support.agents import pipeline_of, python_operator

EXAMPLE = Example("page-1", 1, 0, "clean")
Compute = Callable[[Operator, Mapping[str, Any], Knobs], Any]

PAGES = pipeline_of(
    "pages",
    python_operator("prepare", REQUEST, knobs={"scale": (1, 2)}),
    python_operator("detect", "prepare", knobs={"side": (10, 20, 30)}),
    python_operator("turn", "detect", knobs={"on": (0, 1)}),
    python_operator("read", "prepare", "turn", knobs={"beam": (1, 5)}),
)


class Runs:
    """Runs operators and remembers every call."""

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __call__(
        self, operator: Operator, inputs: Mapping[str, Value], knobs: Knobs, state: State | None = None
    ) -> Value:
        assert state is None, "none of these operators has any"
        value: Value = self.compute(operator, inputs, knobs)
        return value

    def compute(self, operator: Operator, inputs: Mapping[str, Any], knobs: Mapping[str, Any]) -> Any:
        assert tuple(inputs) == operator.inputs
        self.calls.append((variant_key(operator.name, knobs), tuple(inputs.values())))
        return self._compute(operator, inputs, knobs)


def score(output: Any, truth: Any) -> float:
    return float((output + truth) % 7) / 7


def add_up(operator: Operator, inputs: Mapping[str, Any], knobs: Mapping[str, Any]) -> Any:
    return sum(inputs.values()) * 1000 + sum(knobs.values())


def measured(run: Runs, pipeline: Pipeline = PAGES, *, configs: list[Config] | None = None) -> InputResult:
    return measure_input(
        pipeline, list(pipeline.configs()) if configs is None else configs, EXAMPLE, run=run, score=score
    )


def naively(compute: Compute, pipeline: Pipeline, config: Config) -> float:
    """Score of one config, everything computed for it alone."""
    values: dict[str, Any] = {REQUEST: EXAMPLE.value}
    try:
        for operator in pipeline.operators:
            inputs = {name: values[name] for name in operator.inputs}
            values[operator.name] = compute(operator, inputs, config[operator.name])
    except InferenceError:
        return 0.0
    return score(values[pipeline.output], EXAMPLE.truth)


def test_what_configs_share_runs_once() -> None:
    """2 x 3 x 2 x 2 = 24 configs of 4 operators would be 96 runs."""
    run = Runs(add_up)
    result = measured(run)
    assert Counter(variant.split("[")[0] for variant, _ in run.calls) == {
        "prepare": 2,
        "detect": 2 * 3,
        "turn": 2 * 3 * 2,
        "read": 2 * 3 * 2 * 2,
    }
    assert result.runs == Counter(variant for variant, _ in run.calls)
    assert result.seconds.keys() == result.runs.keys()
    assert all(seconds >= 0 for seconds in result.seconds.values())
    assert (result.name, result.group, result.failures) == ("page-1", "clean", 0)


def test_upstream_results_that_are_alike_are_shared_too() -> None:
    """Turning what is upright changes nothing, so that reading it again is not needed."""

    def upright(operator: Operator, inputs: Mapping[str, Any], knobs: Mapping[str, Any]) -> Any:
        return inputs["detect"] if operator.name == "turn" else add_up(operator, inputs, knobs)

    run = Runs(upright)
    measured(run)
    assert Counter(variant.split("[")[0] for variant, _ in run.calls)["read"] == 2 * 3 * 2


def test_only_the_configs_asked_for_are_run() -> None:
    first = next(PAGES.configs())
    run = Runs(add_up)
    assert measured(run, configs=[first, first]).scores == (naively(add_up, PAGES, first),) * 2
    assert len(run.calls) == 4


def test_a_config_whose_operator_failed_scores_nothing_and_others_go_on() -> None:
    def breaks(operator: Operator, inputs: Mapping[str, Any], knobs: Mapping[str, Any]) -> Any:
        if knobs.get("side") == 20:
            raise InferenceError(operator.name, "out of memory")
        return add_up(operator, inputs, knobs)

    run = Runs(breaks)
    result = measured(run)
    for config, found in zip(PAGES.configs(), result.scores, strict=True):
        assert found == (0.0 if config["detect"]["side"] == 20 else naively(breaks, PAGES, config))
    assert result.failures == 2, "one for each scale; what would have followed did not run"
    assert result.runs["detect[side=20]"] == 2
    assert Counter(variant.split("[")[0] for variant, _ in run.calls)["turn"] == 2 * 2 * 2


def test_a_result_that_cannot_be_framed_is_a_failure() -> None:
    """It could not leave the machine, so that whoever runs this config remotely would fail."""
    run = Runs(lambda operator, inputs, knobs: object() if operator.name == "turn" else 1)
    result = measured(run)
    assert set(result.scores) == {0.0}
    assert result.failures == 2
    assert {variant.split("[")[0] for variant, _ in run.calls} == {"prepare", "detect", "turn"}


def test_a_ratio_keeps_both_counts_and_a_failure_counts_as_much_as_others() -> None:
    def breaks(operator: Operator, inputs: Mapping[str, Any], knobs: Mapping[str, Any]) -> Any:
        if knobs.get("side") == 20:
            raise InferenceError(operator.name, "out of memory")
        return add_up(operator, inputs, knobs)

    def counted(output: Any, truth: Any) -> tuple[int, int]:
        return output % 7, 9

    metric = Metric(name="words", function=".data:score", kind="ratio")
    ratio = dataclasses.replace(PAGES, metric=metric)
    configs = list(ratio.configs())
    result = measure_input(ratio, configs, EXAMPLE, run=Runs(breaks), score=counted)
    assert set(result.denominators) == {9}
    for config, found in zip(configs, result.scores, strict=True):
        assert (found == 0) or config["detect"]["side"] != 20
    assert len(set(result.scores)) > 2


def test_ratios_are_of_sums_with_the_error_of_what_is_linear_in_them() -> None:
    """By hand: R = 6/10, residuals -0.2, 0.2 and 0, so that the error is sqrt(3/2 * 0.08) / 10."""
    results = [
        InputResult(name=str(i), group="", scores=(n,), denominators=(d,), failures=0, seconds={}, runs={})
        for i, (n, d) in enumerate([(1, 2), (2, 3), (3, 5)])
    ]
    ratios, errors = aggregated(results)
    assert ratios == pytest.approx([0.6])
    assert errors == pytest.approx([math.sqrt(3 / 2 * (0.2**2 + 0.2**2 + 0)) / 10])
    nothing = [dataclasses.replace(result, denominators=(0.0,)) for result in results]
    with pytest.raises(ProfileError, match="counted nothing"):
        aggregated(nothing)


def test_a_mean_is_a_ratio_whose_denominators_are_one() -> None:
    scores = np.random.default_rng(3).random((20, 2))
    results = [
        InputResult(name=str(i), group="", scores=tuple(row), failures=0, seconds={}, runs={})
        for i, row in enumerate(scores)
    ]
    means, errors = aggregated(results)
    assert means == pytest.approx(scores.mean(axis=0))
    assert errors == pytest.approx(scores.std(axis=0, ddof=1) / math.sqrt(20))
    assert aggregated(results[:1])[1].tolist() == [0, 0]


def test_the_same_output_is_scored_once() -> None:
    scored: list[Any] = []

    def counting(output: Any, truth: Any) -> float:
        scored.append((output, truth))
        return 0.5

    run = Runs(lambda operator, inputs, knobs: "text")
    result = measure_input(PAGES, list(PAGES.configs()), EXAMPLE, run=run, score=counting)
    assert set(result.scores) == {0.5}
    assert scored == [("text", 0)]


@pytest.mark.parametrize("bad", [1.5, -0.1, float("nan"), "high", None])
def test_what_is_no_score_is_refused(bad: Any) -> None:
    run = Runs(add_up)
    with pytest.raises(ProfileError, match="input 'page-1'"):
        measure_input(PAGES, list(PAGES.configs()), EXAMPLE, run=run, score=lambda output, truth: bad)


def test_a_metric_that_fails_says_on_which_input() -> None:
    def fails(output: Any, truth: Any) -> float:
        raise KeyError("labels")

    with pytest.raises(ProfileError, match="the metric failed on input 'page-1': KeyError: 'labels'"):
        measure_input(PAGES, list(PAGES.configs()), EXAMPLE, run=Runs(add_up), score=fails)


def test_a_fault_that_is_not_the_operators_is_not_hidden_in_a_score() -> None:
    def unreachable(operator: Operator, inputs: Mapping[str, Any], knobs: Mapping[str, Any]) -> Any:
        raise TransportError("no model server")

    with pytest.raises(TransportError):
        measured(Runs(unreachable))


def test_digests_tell_values_apart() -> None:
    values: list[Value] = [
        None,
        0,
        0.0,
        False,
        "",
        b"",
        [],
        {},
        "0",
        [0],
        [[0]],
        {"a": 0},
        np.zeros(2, np.float32),
        np.zeros(2, np.float64),
        np.zeros((2, 1), np.float32),
    ]
    assert len({result_of(value).digest for value in values}) == len(values)
    rows = np.arange(6).reshape(3, 2).T.T.reshape(2, 3)
    assert result_of(np.arange(6).reshape(2, 3)) == result_of(rows)


@st.composite
def pipelines(draw: st.DrawFn) -> Pipeline:
    """Random DAGs of up to four operators with up to three variants each."""
    operators: list[Operator] = []
    for index in range(draw(st.integers(1, 4))):
        known = [REQUEST, *(operator.name for operator in operators)]
        inputs = draw(st.lists(st.sampled_from(known), min_size=1, max_size=2, unique=True))
        knobs = {"k": tuple(range(draw(st.integers(1, 3))))}
        operators.append(python_operator(f"op{index}", *inputs, knobs=knobs))
    pipeline = pipeline_of("random", *operators)
    needed = {pipeline.output}
    for operator in reversed(operators):
        if operator.name in needed:
            needed.update(operator.inputs)
    return dataclasses.replace(pipeline, operators=tuple(op for op in operators if op.name in needed))


@given(pipeline=pipelines(), salt=st.integers(0, 50), failing=st.integers(2, 9), alike=st.integers(1, 6))
@settings(max_examples=200)
def test_sharing_changes_no_score_and_runs_each_different_call_once(
    pipeline: Pipeline, salt: int, failing: int, alike: int
) -> None:
    """Operators that often give the same result for different knobs, and fail now and then."""

    def compute(operator: Operator, inputs: Mapping[str, Any], knobs: Mapping[str, Any]) -> Any:
        mixed = salt + sum(inputs.values()) * 31 + knobs["k"] * 17 + len(operator.name + operator.inputs[0])
        if mixed % failing == 1:
            raise InferenceError(operator.name, "cannot")
        return mixed % alike

    run = Runs(compute)
    result = measured(run, pipeline)
    alone = Runs(compute)
    naive = [naively(alone.compute, pipeline, config) for config in pipeline.configs()]
    assert list(result.scores) == naive
    assert len(set(run.calls)) == len(run.calls), "no call is made twice"
    assert set(run.calls) >= set(alone.calls), "and none is left out"
    assert result.runs == Counter(variant for variant, _ in run.calls)
