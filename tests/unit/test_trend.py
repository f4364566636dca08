"""Heat and clock governors: found where they are, not where inputs or noise only look like them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from compass_agent.measure.series import Sample
from compass_agent.measure.trend import Trend, last_third, swaps, trend_of

ROUNDS = 60


def samples_of(times: NDArray[np.float64], *, step_s: float = 1.0) -> list[Sample]:
    """(rounds, works) seconds -> samples, every work once a round."""
    rounds, works = times.shape
    return [
        Sample(
            variant=f"v{work % 3}",
            work=work,
            at_s=step_s * (turn * works + work),
            lasted_s=float(times[turn, work]),
            busy_s=0.0,
            output_bytes=0,
        )
        for turn in range(rounds)
        for work in range(works)
    ]


def noisy(
    rng: np.random.Generator, *, rounds: int = ROUNDS, works: int = 4, memory: float = 0.0
) -> NDArray[np.float64]:
    """Steady times: works from 10 ms to 1 s, 5% of noise each, 3% that a whole round shares and remembers."""
    typical = np.geomspace(0.01, 1.0, works)
    shared = np.zeros(rounds)
    for turn in range(1, rounds):
        shared[turn] = memory * shared[turn - 1] + rng.normal(0, 0.03)
    noise = rng.normal(0, 0.05, (rounds, works)) + shared[:, None]
    return typical * np.exp(noise)


def found(times: NDArray[np.float64]) -> Trend:
    trend = trend_of(samples_of(times))
    assert trend is not None
    return trend


@pytest.mark.parametrize("memory", [0.0, 0.5])
def test_a_steady_machine_is_called_steady(memory: float) -> None:
    """The stated rate: at most 1% without memory; correlated noise is allowed 4%."""
    rng = np.random.default_rng(11)
    alarms = sum(found(noisy(rng, memory=memory)).p_value < 0.01 for _ in range(60))
    assert alarms <= (3 if memory == 0 else 6), "binomial: exceeded by chance about once in 200"


def test_a_throttling_machine_is_found() -> None:
    rng = np.random.default_rng(2)
    times = noisy(rng)
    times[ROUNDS // 3 :] *= 1.18
    trend = found(times)
    assert trend.found
    assert trend.settled
    assert trend.change == pytest.approx(0.18, abs=0.04)
    assert str(trend) == f"slows by {trend.change:.0%} over 4 min: figures are of the last third"


def test_a_machine_that_goes_on_slowing_says_so() -> None:
    times = noisy(np.random.default_rng(3)) * np.linspace(1.0, 1.6, ROUNDS)[:, None]
    trend = found(times)
    assert trend.found
    assert not trend.settled
    assert "measure longer" in str(trend)


def test_a_machine_that_wakes_up_speeds_up() -> None:
    times = noisy(np.random.default_rng(4))
    times[: ROUNDS // 4] *= 1.5
    trend = found(times)
    assert trend.change < -0.2
    assert str(trend).startswith("speeds up by")


def test_heavy_inputs_late_are_no_heat() -> None:
    """Unpaired, the second half takes four times as long; each work by itself never changes."""
    rng = np.random.default_rng(6)
    steady = samples_of(noisy(rng, rounds=ROUNDS))
    end_s = steady[-1].at_s
    drifting = [s for s in steady if (s.work in {0, 1, 2}) == (s.at_s < end_s / 2)]
    late, early = (
        np.mean([s.lasted_s for s in drifting if (s.at_s < end_s / 2) is half]) for half in (False, True)
    )
    assert late > 4 * early
    trend = trend_of(drifting)
    assert trend is not None
    assert not trend.found


def test_a_change_not_worth_a_word_is_none() -> None:
    times = np.full((ROUNDS, 6), 1.0)
    times[ROUNDS // 2 :] = 1.01
    trend = found(times)
    assert trend.p_value < 0.01
    assert not trend.found
    assert str(trend) == "steady over 6 min"


def test_times_that_never_vary_are_steady() -> None:
    assert found(np.full((ROUNDS, 6), 1.0)).p_value == 1.0


def test_too_little_work_done_twice_says_nothing() -> None:
    assert trend_of([]) is None
    assert trend_of(samples_of(np.ones((1, 200)))) is None, "no work came again"
    assert trend_of(samples_of(np.ones((6, 5)))) is None, "too few"


def test_the_last_third_is_by_time() -> None:
    samples = samples_of(np.ones((9, 1)))
    assert [sample.at_s for sample in last_third(samples)] == [6.0, 7.0, 8.0]
    assert last_third([]) == []


def test_what_changes_places_is_named() -> None:
    early = {"int8": 1.0, "fp32": 1.4, "tiny": 0.2, "gone": 0.1}
    late = {"int8": 2.0, "fp32": 1.5, "tiny": 0.4}
    assert swaps(early, late) == [("int8", "fp32")]
    assert swaps(early, early) == []
    assert swaps({"a": 1.0, "b": 1.01}, {"a": 1.01, "b": 1.0}) == [], "as good as equal"
