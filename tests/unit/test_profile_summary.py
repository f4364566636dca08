"""What a profiling run says at its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from compass_coordinator.commands.profile_summary import FEWEST, summary_of, told
from compass_coordinator.profiler.selective import Known, Profiler
from compass_coordinator.profiler.statistics.generalise import student_interval
from compass_shared.measured import Job, Ready
from support.replayed import Replayed

INPUTS = 20


def _measured(replayed: Replayed, config: int, count: int) -> Profiler:
    """One config measured on the first inputs of the set, and another on all."""
    profiler = replayed.profiler(lambda _: replayed.queries())
    for at in range(replayed.inputs):
        configs = (replayed.space.keys[0], *((replayed.space.keys[config],) if at < count else ()))
        profiler.tell(replayed.answer(Job(id=at, input=at, configs=configs)))
    return profiler


def _most_accurate(
    replayed: Replayed, profiler: Profiler, means: Mapping[int, float]
) -> tuple[Mapping[str, object], list[str]]:
    """What the summary says of it, for machines and people; configs without a mean have 0.1."""
    mean = np.full(len(replayed.space), 0.1)
    mean[list(means)] = list(means.values())
    known = Known(mean=mean, low=mean, high=mean, standard_error=mean, counts=profiler.observations.counts())
    ready = Ready(
        pipeline="pages",
        digest="",
        code_sha256="",
        split="profiling",
        metric="words",
        kind=replayed.kind,
        inputs=replayed.infos,
    )
    summary = summary_of(ready, profiler, known, Path("a.json"), Path("a.log"))
    found = summary["most_accurate"]
    assert isinstance(found, Mapping)
    lines = [
        line for line in told(summary).splitlines() if "most accurate" in line or "on new inputs" in line
    ]
    return found, lines


@pytest.mark.parametrize(
    ("count", "basis"),
    [
        (0, " (predicted)"),
        (FEWEST - 1, f" (on {FEWEST - 1} of {INPUTS} inputs)"),
        (FEWEST, f" (on {FEWEST} of {INPUTS} inputs)"),
        (INPUTS, ""),
    ],
)
def test_the_most_accurate_of_all_configs_and_what_that_rests_on(count: int, basis: str) -> None:
    replayed = Replayed(inputs=INPUTS)
    profiler = _measured(replayed, 5, count)
    found, lines = _most_accurate(replayed, profiler, {0: 0.6, 5: 0.9})
    assert (found["config"], found["on_inputs"]) == (replayed.space.keys[5], count)
    assert lines[0] == f"most accurate: 0.9000{basis}  {replayed.space.keys[5]}"
    assert (found["on_new_inputs"] is not None) == (len(lines) == 2) == (count >= FEWEST)


def test_of_equals_the_one_that_was_measured() -> None:
    replayed = Replayed(inputs=INPUTS)
    found, _ = _most_accurate(replayed, _measured(replayed, 5, INPUTS), {3: 0.9, 5: 0.9, 7: 0.9})
    assert found["config"] == replayed.space.keys[5]


def test_a_config_that_was_always_right_may_be_wrong_on_new_inputs() -> None:
    replayed = Replayed(inputs=INPUTS)
    replayed.above[:] = 1.0
    found, _ = _most_accurate(replayed, _measured(replayed, 5, INPUTS), {5: 1.0})
    ends = found["on_new_inputs"]
    assert isinstance(ends, list)
    assert 0.5 < ends[0] < 0.95
    assert ends[1] == 1.0


def test_the_order_of_a_sorted_set_is_no_evidence() -> None:
    """Bets on inputs in order of their scores would be sure of the first ones' mean."""
    replayed = Replayed(inputs=100)
    replayed.above[:, 5] = np.arange(100) >= 50
    found, _ = _most_accurate(replayed, _measured(replayed, 5, 100), {5: 0.5})
    ends = found["on_new_inputs"]
    assert isinstance(ends, list)
    assert ends[0] < 0.5 < ends[1]


def test_ratios_have_students_interval_unless_it_is_a_point() -> None:
    replayed = Replayed(inputs=INPUTS, kind="ratio")
    found, _ = _most_accurate(replayed, _measured(replayed, 5, INPUTS), {5: 0.9})
    expected = student_interval(replayed.above[:, 5], replayed.below[:, 5], alpha=0.05)
    assert found["on_new_inputs"] == [round(expected.low, 4), round(expected.high, 4)]
    replayed.above[:] = replayed.below
    found, lines = _most_accurate(replayed, _measured(replayed, 5, INPUTS), {5: 1.0})
    assert found["on_new_inputs"] is None
    assert len(lines) == 1
