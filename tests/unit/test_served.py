"""What serving took, by variant: counted right, in little memory, and begun anew after every report."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from compass_agent.execution import SegmentResult
from compass_agent.served import KEPT, Served
from compass_shared.calls import OperatorTiming
from compass_shared.profile import OperatorProfile

TINY, LARGE = {"read": {"model": "tiny"}}, {"read": {"model": "large"}}


def ran(seconds: float, *, size: int | None = None, overrun_s: float = 0.0) -> SegmentResult:
    timing = OperatorTiming(operator="read", wall_s=seconds + overrun_s, cpu_s=seconds, device_s=seconds)
    sizes = {} if size is None else {"read": size}
    return SegmentResult(values={}, timings=(timing,), busy_s=seconds, sizes=sizes)


def operators(served: Served, pipeline: str = "p") -> Mapping[str, OperatorProfile]:
    return served.counted(0.0).operators.get(pipeline, {})


@pytest.fixture
def served() -> Served:
    return Served(rng=random.Random(0), since_s=100.0)


def test_each_variant_is_counted_by_itself(served: Served) -> None:
    served.add("p", TINY, ran(1.0, size=10))
    served.add("p", TINY, ran(3.0, size=30))
    served.add("p", LARGE, ran(9.0, size=5))
    served.add("q", TINY, ran(7.0, size=5))
    event = served.counted(160.0)
    assert event.over_s == 60.0
    found = event.operators["p"]["read[model=tiny]"]
    assert found.p95_s == pytest.approx(2.9)
    assert found == OperatorProfile(
        variant="read[model=tiny]",
        mean_s=2.0,
        var_s2=2.0,
        p95_s=found.p95_s,
        count=2,
        output_mean_bytes=20.0,
        output_var_bytes2=200.0,
    )
    assert event.operators["p"]["read[model=large]"].mean_s == 9.0
    assert event.operators["q"]["read[model=tiny]"].mean_s == 7.0


def test_items_of_a_fan_out_and_what_one_takes_are_told(served: Served) -> None:
    for count, seconds in ((0, 1.0), (2, 1.5), (4, 2.0)):
        result = ran(seconds, size=10)
        timings = tuple(replace(timing, items=count) for timing in result.timings)
        served.add("p", TINY, replace(result, timings=timings))
    found = operators(served)["read[model=tiny]"]
    assert (found.items_mean, found.items_var) == (2.0, 4.0)
    assert found.item_s == pytest.approx(0.25)


def test_a_report_begins_anew(served: Served) -> None:
    served.add("p", TINY, ran(1.0, size=10))
    served.counted(160.0)
    again = served.counted(170.0)
    assert (again.over_s, again.operators) == (10.0, {})


def test_what_a_busy_machine_added_to_an_emulated_call_does_not_count(served: Served) -> None:
    served.add("p", TINY, ran(1.0, size=10, overrun_s=5.0))
    assert operators(served)["read[model=tiny]"].mean_s == 1.0


def test_many_calls_keep_a_fair_sample_in_bounded_memory(served: Served) -> None:
    times = np.random.default_rng(1).permutation(np.arange(4000) / 4000)
    for seconds in times:
        served.add("p", TINY, ran(float(seconds), size=1))
    kept = served._variants["p"]["read[model=tiny]"].sample
    assert len(kept) == KEPT
    found = operators(served)["read[model=tiny]"]
    assert found.count == 4000
    assert found.mean_s == pytest.approx(times.mean())
    assert found.var_s2 == pytest.approx(times.var(ddof=1))
    assert found.p95_s == pytest.approx(0.95, abs=0.04)


def test_sizes_are_looked_at_once_and_then_seldom(served: Served) -> None:
    wanted = [served.wants_sizes("p") for _ in range(1600)]
    assert wanted[0]
    assert 50 < sum(wanted) < 160
    served.counted(0.0)
    assert served.wants_sizes("p")


def test_a_variant_of_unknown_size_waits_for_one(served: Served) -> None:
    served.add("p", TINY, ran(1.0))
    assert operators(served) == {}
    served.add("p", TINY, ran(3.0, size=10))
    assert operators(served)["read[model=tiny]"].count == 2, "nothing was forgotten meanwhile"
