"""Clips: operators with state over sequences of requests, as if one request were run after the other."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compass_agent.bundles import Bundle, load_bundle
from compass_agent.inputs import load_examples
from compass_agent.measure.clips import LOST, decode_clip, encode_clip, pack_frames
from compass_agent.measure.grid import measure_input
from compass_agent.measure.results_cache import ResultsCache
from compass_agent.measure.session import MeasuringSession
from compass_agent.measure.speed import measure_speed
from compass_agent.measure.turns import MIN_TRIES
from compass_agent.measure.walk import Walk, request_of
from compass_agent.models import ModelStore
from compass_agent.operators import OperatorHost
from compass_agent.pace import Pace
from compass_shared.clock import MonotonicClock
from compass_shared.errors import ConfigError, InferenceError, MessageError
from compass_shared.measured import Done, Job, RequestRun, Score
from compass_shared.model_cache import ModelCache
from compass_shared.pipeline import REQUEST, InputSet, Knobs, Operator
from compass_shared.values import Example, State, Value
from support.agents import pipeline_of, python_operator
from support.frames import CLIPS, FRAMES, STRIDES, write_frames_bundle

_OPERATORS = (
    python_operator("sum", REQUEST, knobs={"scale": (1, 2)}),
    python_operator("double", REQUEST),
    python_operator("join", "sum", "double", knobs={"sign": (1, -1)}),
)
STATEFUL = {"sum", "join"}
CHAIN = dataclasses.replace(
    pipeline_of(
        "chain",
        *(dataclasses.replace(op, stateful=op.name in STATEFUL) for op in _OPERATORS),
    ),
    inputs=InputSet(function=".data:load", splits={"profiling": 1}, sequences=True),
)


def _compute(
    operator: Operator, inputs: Mapping[str, Any], knobs: Mapping[str, Any], state: State | None = None
) -> Value:
    """Running sums; values that end in 7 cannot be doubled, nor sums that end in 3 be joined."""
    if operator.name == "double":
        if inputs[REQUEST] % 10 == 7:
            raise InferenceError("double", "seven")
        return 2 * int(inputs[REQUEST])
    assert state is not None
    state["seen"] = state.get("seen", 0) + 1
    total = sum(inputs.values()) * sum(knobs.values()) + state.get("sum", 0) + 100 * state.gap
    if operator.name == "join" and total % 10 == 3:
        raise InferenceError("join", "three")
    state["sum"] = total
    return int(total)


def _naively(config: Mapping[str, Knobs], values: Sequence[int]) -> list[Value]:
    """One request after the other through the whole pipeline; a state that failed is thrown away."""
    states: dict[str, tuple[State, int]] = {}
    outputs: list[Value] = []
    for place, request in enumerate(values):
        found: dict[str, Any] = {REQUEST: request}
        for operator in CHAIN.operators:
            if any(name not in found for name in operator.inputs):
                continue
            inputs = {name: found[name] for name in operator.inputs}
            state, last = states.pop(operator.name, (State(), place - 1))
            state.gap = place - last - 1
            try:
                if operator.stateful:
                    found[operator.name] = _compute(operator, inputs, config[operator.name], state)
                    states[operator.name] = (state, place)
                else:
                    found[operator.name] = _compute(operator, inputs, config[operator.name])
            except InferenceError:
                pass
        outputs.append(found.get(CHAIN.output))
    return outputs


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=9), min_size=1, max_size=3))
def test_a_walk_over_clips_is_one_request_after_the_other(clips: list[list[int]]) -> None:
    cache = ResultsCache()
    for index, values in enumerate(clips):
        example = Example(f"clip-{index}", values, values, "")
        walk = Walk(CHAIN, run=_compute, cache=cache)
        for config in CHAIN.configs():
            result = walk.output(request_of(CHAIN, example), config)
            expected = _naively(config, values)
            if result.problem is None:
                assert walk.value(CHAIN.output, result) == expected
            else:
                assert expected == [None] * len(values)


def test_what_configs_share_runs_once_over_a_clip_and_each_request_is_told() -> None:
    walk = Walk(CHAIN, run=_compute, cache=ResultsCache())
    request = request_of(CHAIN, Example("clip", [1, 17, 2], [0, 0, 0], ""))
    for config in CHAIN.configs():
        walk.output(request, config)
    assert Counter(run.variant.partition("[")[0] for run in walk.runs) == {"sum": 2, "double": 1, "join": 4}
    double = next(run for run in walk.runs if run.variant == "double")
    assert [one is None for one in double.each] == [False, True, False]
    assert list(double.requests) == [0, 2]
    assert not double.failed
    assert double.output_bytes == sum(one.output_bytes for one in double.requests.values())
    assert double.cpu_s >= sum(one.cpu_s for one in double.requests.values()) >= 0


def test_an_operator_that_fails_throughout_a_clip_has_failed() -> None:
    walk = Walk(CHAIN, run=_compute, cache=ResultsCache())
    result = walk.output(request_of(CHAIN, Example("clip", [7, 17], [0, 0], "")), next(CHAIN.configs()))
    assert result.problem == "operator 'double': seven"
    assert [run.failed for run in walk.runs] == [False, True]
    assert walk.runs[-1].requests == {}


def test_clips_are_larger_than_a_frame_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compass_shared.framing.MAX_FRAME_BYTES", 100)
    payload = encode_clip([bytes(80), bytes(90)])
    assert decode_clip(payload) == [bytes(80), bytes(90)]
    assert decode_clip(pack_frames([None])) == [LOST]
    for wrong in (b"", b"\xc1", b"\x01", b"\x91\x01"):
        with pytest.raises(MessageError, match="not a clip"):
            decode_clip(wrong)


# --- a bundle -------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(ModelCache(tmp_path / "models"))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return load_bundle(write_frames_bundle(tmp_path))


def _session(bundle: Bundle, store: ModelStore, **cache: Any) -> MeasuringSession:
    return MeasuringSession(
        bundle,
        load_examples(bundle, "profiling", store),
        split="profiling",
        host=OperatorHost([bundle], store),
        cache=ResultsCache(**cache),
    )


def _key(stride: int, mode: str = "all") -> str:
    return f"find[stride={stride}];square[fast=true];total[mode={mode}]"


def _measured(session: MeasuringSession, *keys: str, index: int = 0) -> Done:
    return session.measure(Job(id=0, input=index, configs=keys))


def test_inputs_are_clips_with_a_size_for_each_request(bundle: Bundle, store: ModelStore) -> None:
    ready = _session(bundle, store).ready()
    assert [len(info.requests) for info in ready.inputs] == [FRAMES] * CLIPS
    assert all(info.size_bytes == sum(info.request_bytes) for info in ready.inputs)
    assert len({len(info.features) for info in ready.inputs}) == 1
    assert ready.extra_metrics == {"lost": "mean", "counted": "ratio"}


def test_every_metric_scores_the_clip(bundle: Bundle, store: ModelStore) -> None:
    done = _measured(_session(bundle, store), _key(1), _key(2), _key(1, "fails"))
    assert done.scores[_key(1)] == Score(numerator=1.0)
    second = done.scores[_key(2)]
    assert second is not None
    assert 0.5 <= second.numerator < 1, "between looks the last answer stands"
    assert done.others["lost"][_key(1)] == Score(numerator=1.0)
    lost = done.others["lost"][_key(1, "fails")]
    assert lost is not None
    assert 0 < lost.numerator < 1, "requests that failed are None, the others are scored"
    counted = done.others["counted"][_key(1)]
    assert counted is not None
    assert counted.numerator == counted.denominator > 1


def test_times_and_items_of_single_requests_outlive_the_process(
    bundle: Bundle, store: ModelStore, tmp_path: Path
) -> None:
    kept = {"folder": tmp_path / "results", "disk_bytes": 1 << 20}
    first = _measured(_session(bundle, store, **kept), _key(2))
    again = _measured(_session(bundle, store, **kept), _key(2))
    assert again.runs == ()
    assert again.recalled == first.runs
    square = next(run for run in first.runs if run.variant.startswith("square"))
    each = [one for one in square.each if isinstance(one, RequestRun)]
    assert len(each) == FRAMES
    assert [one.items for one in each][1::2] == [0] * (FRAMES // 2), "nothing to do on frames between"
    assert square.items == sum(one.items or 0 for one in each) > 0


def test_a_metric_that_goes_wrong_costs_no_other(bundle: Bundle, store: ModelStore) -> None:
    file = bundle.folder / "data.py"
    file.write_text(file.read_text().replace("for output in outputs) / len(outputs)", "in 1)"))
    session = _session(load_bundle(bundle.folder), store)
    done = _measured(session, _key(1))
    assert done.scores[_key(1)] == Score(numerator=1.0)
    assert done.others["lost"][_key(1)] is None
    assert done.others["counted"][_key(1)] is not None
    (notice,) = done.notices
    assert notice.startswith("extra metric 'lost': the metric failed on input 'clip-0'")
    assert _measured(session, _key(1), index=1).notices == (), "it is said once"


@pytest.mark.parametrize(
    ("frames", "problem"),
    [
        ("frames[:-1]", f"{FRAMES - 1} requests with {FRAMES} truths"),
        ("[]", "one request or more"),
        ("b'clip'", "value and truth are lists"),
    ],
)
def test_clips_that_are_none_are_refused(
    bundle: Bundle, store: ModelStore, frames: str, problem: str
) -> None:
    file = bundle.folder / "data.py"
    file.write_text(file.read_text().replace('f"clip-{index}", frames', f'f"clip-{{index}}", {frames}'))
    with pytest.raises(ConfigError, match=problem):
        load_examples(load_bundle(bundle.folder), "profiling", store)


def test_a_whole_grid_counts_requests(bundle: Bundle, store: ModelStore) -> None:
    host, example = OperatorHost([bundle], store), load_examples(bundle, "profiling", store)[0]

    def run(
        operator: Operator, inputs: Mapping[str, Value], knobs: Knobs, state: State | None = None
    ) -> Value:
        return host.bind("clips", operator.name, knobs)(inputs, state)

    pipeline = bundle.pipeline
    configs = list(pipeline.configs())
    found = measure_input(
        pipeline, configs, example, run=run, score=bundle.metric(), extra=bundle.extra_metrics()
    )
    assert found.runs["find[stride=1]"] == FRAMES
    assert max(found.scores) == 1.0
    done = _measured(_session(bundle, store), *map(pipeline.config_key, configs))
    for name, scores in done.others.items():
        expected = [None if one is None else (one.numerator, one.denominator) for one in scores.values()]
        assert list(found.others[name]) == expected


# --- devices --------------------------------------------------------------------------------------


def _speed(bundle: Bundle, store: ModelStore, rest: Callable[[float], object] = float, **options: Any) -> Any:
    return measure_speed(
        OperatorHost([bundle], store),
        bundle.pipeline,
        load_examples(bundle, "profiling", store),
        site="here",
        pace=Pace(),
        clock=MonotonicClock(),
        rng=random.Random(0),
        budget_s=0.0,
        rest=rest,
        **options,
    )


def test_a_device_is_timed_request_by_request_with_state(bundle: Bundle, store: ModelStore) -> None:
    report = _speed(bundle, store)
    found = report.profile.operators
    assert found.keys() == {
        *(f"find[stride={stride}]" for stride in STRIDES),
        *(f"square[fast={fast}]" for fast in ("true", "false")),
        *(f"total[mode={mode}]" for mode in ("all", "fails")),
    }
    assert all(one.count >= MIN_TRIES for one in found.values())
    assert found["find[stride=1]"].count % FRAMES == 0, "all of a clip with one variant"
    by_stride = {
        stride: [s for s in report.samples if s.variant == f"find[stride={stride}]"] for stride in STRIDES
    }
    nothing = min(sample.output_bytes for sample in by_stride[4])
    for stride, samples in by_stride.items():
        looked = [sample.work[1] for sample in samples if sample.output_bytes > nothing]
        assert looked == [place for place in range(FRAMES) if place % stride == 0] * (len(samples) // FRAMES)
    square, fast = found["square[fast=false]"], found["square[fast=true]"]
    assert (square.items_mean, square.items_var) == (fast.items_mean, fast.items_var), "what there was to do"
    counts = [sample.items for sample in report.samples if sample.items is not None]
    assert square.items_mean == pytest.approx(sum(counts) / len(counts))
    assert square.items_mean is not None
    assert square.items_var > 0
    assert 4e-4 * 0.5 < square.item_s < square.mean_s
    assert found["find[stride=1]"].items_mean is None
    assert report.profile.request_mean_bytes < 40, "of one frame"


def test_idle_gaps_come_before_every_request(bundle: Bundle, store: ModelStore) -> None:
    rests: list[float] = []
    report = _speed(bundle, store, rest=rests.append, rate_hz=5.0, variants=["find[stride=2]"])
    rested = [sample for sample in report.samples if sample.rested]
    assert len(rests) == len(rested) >= FRAMES
    assert 0.1 < rests[0] < 0.2


def test_requests_of_clips_make_no_batches(bundle: Bundle, store: ModelStore) -> None:
    with pytest.raises(ConfigError, match="they make no batches"):
        _speed(bundle, store, batch=2)
