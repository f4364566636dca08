"""What was measured, as the model of scores reads it; and what operators took."""

from __future__ import annotations

import numpy as np
import pytest

from compass_coordinator.profiler.selective.observations import Observations
from compass_coordinator.profiler.selective.operator_times import Runs
from compass_coordinator.profiler.selective.space import space_of
from compass_shared.measured import Done, OperatorRun, Score
from compass_shared.pipeline import REQUEST
from support.agents import pipeline_of, python_operator

SPACE = space_of(
    pipeline_of(
        "two",
        python_operator("first", REQUEST, knobs={"k": (1, 2, 3)}),
        python_operator("last", "first"),
    )
)
A, B, C = SPACE.keys


def _done(place: int, scores: dict[str, tuple[float, float] | None], problem: str = "it broke") -> Done:
    return Done(
        id=0,
        input=place,
        scores={
            key: None if pair is None else Score(numerator=pair[0], denominator=pair[1])
            for key, pair in scores.items()
        },
        problems={key: problem for key, pair in scores.items() if pair is None},
    )


def test_scores_come_in_any_order_and_count_once() -> None:
    found = Observations(SPACE, 3)
    found.add(_done(2, {A: (0.5, 1.0), B: (1.0, 1.0)}))
    found.add(_done(2, {A: (0.9, 1.0), "of another pipeline": (1.0, 1.0)}))
    found.add(_done(0, {A: (0.1, 1.0)}))
    assert found.counts().tolist() == [2, 1, 0]
    assert found.values()[2].tolist() == pytest.approx([0.5, 1.0, np.nan], nan_ok=True)
    assert found.accuracies().tolist() == pytest.approx([0.3, 1.0, np.nan], nan_ok=True)


def test_seen_ends_at_the_first_gap_of_the_order() -> None:
    found = Observations(SPACE, 3)
    for place, keys in ((2, [A, B]), (0, [A]), (1, [A, B])):
        found.add(_done(place, dict.fromkeys(keys, (1.0, 1.0))))
    assert found.seen(np.array([2, 0, 1])).tolist() == [3, 1, 0]
    assert found.seen(np.array([1, 2, 0])).tolist() == [3, 2, 0]


def test_a_ratio_is_the_mean_of_its_linearised_scores() -> None:
    rng = np.random.default_rng(0)
    found = Observations(SPACE, 6)
    words = rng.integers(1, 50, size=(6, 3))
    right = words - rng.integers(-2, 60, size=(6, 3))
    for place in range(6):
        keys = SPACE.keys[: 3 if place < 4 else 1]
        found.add(
            _done(
                place,
                {key: (float(right[place, at]), float(words[place, at])) for at, key in enumerate(keys)},
            )
        )
    values = found.values()
    exact = [
        right[:6, 0].sum() / words[:6, 0].sum(),
        *(right[:4, 1:].sum(axis=0) / words[:4, 1:].sum(axis=0)),
    ]
    assert np.nanmean(values, axis=0) == pytest.approx(exact)
    assert found.accuracies() == pytest.approx(np.clip(exact, 0.0, 1.0))
    of_these = found.values(np.array([3, 1]))
    assert of_these.mean(axis=0) == pytest.approx(right[[1, 3]].sum(axis=0) / words[[1, 3]].sum(axis=0))


def test_inputs_with_nothing_to_count() -> None:
    found = Observations(SPACE, 2)
    found.add(_done(0, {A: (0.0, 0.0), B: (0.0, 0.0)}))
    found.add(_done(1, {B: (3.0, 4.0)}))
    assert found.accuracies().tolist() == pytest.approx([0.0, 0.75, np.nan], nan_ok=True)
    assert found.values()[0, 0] == 0.0
    assert np.nanmean(found.values()[:, 1]) == pytest.approx(0.75)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_a_failure_weighs_like_what_others_had(together: bool, first: bool) -> None:
    """Whether it came with them, before or after: else failing would raise the accuracy of a ratio."""
    found = Observations(SPACE, 2)
    others: dict[str, tuple[float, float] | None] = {A: (90.0, 100.0), C: (50.0, 80.0)}
    if together:
        found.add(_done(0, {B: None, **others}))
    else:
        parts: list[dict[str, tuple[float, float] | None]] = [others, {B: None}]
        for part in reversed(parts) if first else parts:
            found.add(_done(0, part))
    found.add(_done(1, {B: (10.0, 10.0)}))
    assert found.accuracies()[1] == pytest.approx(10 / 110)
    assert found.failures.tolist() == [0, 1, 0]
    assert found.problems == {B: "it broke"}


def test_failures_count_as_0_and_the_first_problem_is_kept() -> None:
    found = Observations(SPACE, 2)
    found.add(_done(0, {B: None}, "first"))
    found.add(_done(0, {B: None}, "again"))
    found.add(_done(1, {B: None}, "second"))
    assert found.accuracies()[1] == 0.0
    assert found.failures.tolist() == [0, 2, 0]
    assert found.problems == {B: "first"}
    assert found.broken().tolist() == [False, True, False]


def _run(variant: str, cpu_s: float, size: int = 10, *, failed: bool = False) -> OperatorRun:
    return OperatorRun(variant=variant, cpu_s=cpu_s, wall_s=cpu_s, output_bytes=size, failed=failed)


def _tell(runs: Runs, run: OperatorRun, place: int) -> None:
    runs.take(Done(id=0, input=place, scores={}, runs=(run,)))


def test_times_are_those_of_runs_that_did_not_fail() -> None:
    runs = Runs(SPACE, [1] * 2)
    _tell(runs, _run("first[k=1]", 0.1, 10), 0)
    _tell(runs, _run("first[k=1]", 0.3, 30), 1)
    _tell(runs, _run("first[k=2]", 9.0, failed=True), 0)
    _tell(runs, _run("unknown", 1.0), 0)
    times = runs.times()
    assert runs.spent_s == pytest.approx(10.4), "failed runs were paid for"
    assert times.mean_s.tolist() == pytest.approx([0.2, np.nan, np.nan, np.nan], nan_ok=True)
    assert times.output_mean_bytes[0] == pytest.approx(20.0)
    assert times.var_s2[0] == pytest.approx(0.01, rel=0.2)
    assert 0.2 < times.p95_s[0] <= 0.3
    assert times.count.tolist() == [2, 0, 0, 0]


def test_a_variant_is_as_slow_on_new_inputs_as_others_say() -> None:
    """It ran on the quick ones only; its operator's other variants ran on all."""
    runs = Runs(SPACE, [1] * 40)
    slow = np.where(np.arange(40) < 20, 1.0, 5.0)
    for place, factor in enumerate(slow):
        _tell(runs, _run("first[k=1]", 0.1 * factor), place)
        _tell(runs, _run("first[k=2]", 0.2 * factor), place)
        if place < 20:
            _tell(runs, _run("first[k=3]", 0.4), place)
    times = runs.times()
    assert times.mean_s[:3] == pytest.approx([0.3, 0.6, 1.2], rel=0.05)
    assert times.var_s2[2] == pytest.approx((0.4 * 2) ** 2, rel=0.1)


def test_runs_too_short_for_the_clock_spoil_nothing() -> None:
    runs = Runs(SPACE, [1] * 20)
    for place in range(20):
        _tell(runs, _run("first[k=1]", 0.0), place)
        _tell(runs, _run("first[k=2]", 1e-4), place)
        if place % 2:
            _tell(runs, _run("first[k=3]", 2e-4), place)
    assert runs.times().mean_s[:3] == pytest.approx([0.0, 1e-4, 2e-4], rel=0.05)


def test_nothing_ran() -> None:
    times = Runs(SPACE, [1] * 3).times()
    for values in (times.mean_s, times.var_s2, times.p95_s, times.output_mean_bytes, times.output_var_bytes2):
        assert np.isnan(values).all()
    assert not times.count.any()


def test_what_was_found_on_disk_is_told_for_its_times_alone() -> None:
    """By every process that finds it, and by the one that ran it."""
    runs = Runs(SPACE, [1] * 2)
    here, before = _run("first[k=1]", 0.25), _run("last", 0.5)
    runs.take(Done(id=0, input=0, scores={A: None}, runs=(here,), recalled=(before,)))
    runs.take(Done(id=1, input=0, scores={A: None}, recalled=(here, before)))
    runs.take(Done(id=2, input=1, scores={A: None}, recalled=(here,)))
    times = runs.times()
    assert runs.spent_s == 0.25
    assert times.count.tolist() == [2, 0, 0, 1]
    assert times.mean_s[[0, 3]] == pytest.approx([0.25, 0.5])
