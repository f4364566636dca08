"""Emulation against fake clocks: what a call lasts follows from its CPU time alone."""

from __future__ import annotations

import math

import pytest

from compass_agent.pace import Pace, Paced
from compass_shared.errors import ConfigError


class Machine:
    """A machine whose calls take the CPU and wall time that they are told to."""

    def __init__(self) -> None:
        self.wall_s = 100.0
        self.cpu_s = 5.0
        self.slept_s: list[float] = []

    def pace(self, slowdown: dict[str, float] | None = None) -> Pace:
        return Pace(
            slowdown, thread_time=lambda: self.cpu_s, wall_time=lambda: self.wall_s, sleep=self._sleep
        )

    def work(self, cpu_s: float, *, noise_s: float = 0.0) -> str:
        self.cpu_s += cpu_s
        self.wall_s += cpu_s + noise_s
        return "done"

    def _sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.wall_s += seconds


def _run(machine: Machine, slowdown: dict[str, float] | None, *, noise_s: float = 0.0) -> Paced[str]:
    return machine.pace(slowdown).run("onnx", lambda: machine.work(0.5, noise_s=noise_s))


def test_without_emulation_nothing_sleeps() -> None:
    machine = Machine()
    done = _run(machine, None, noise_s=3.0)
    assert (done.value, done.wall_s, done.cpu_s, done.busy_s) == ("done", 3.5, 0.5, 0.5)
    assert done.overrun_s == 0
    assert machine.slept_s == []


def test_a_call_lasts_slowdown_times_its_cpu_time() -> None:
    machine = Machine()
    done = _run(machine, {"onnx": 4.0})
    assert (done.wall_s, done.cpu_s, done.busy_s, done.overrun_s) == (2.0, 0.5, 2.0, 0)
    assert machine.slept_s == [1.5]


def test_noise_shortens_the_sleep_and_nothing_else() -> None:
    machine = Machine()
    done = _run(machine, {"onnx": 4.0}, noise_s=1.25)
    assert done.wall_s == 2.0
    assert machine.slept_s == [0.25]


def test_more_noise_than_there_is_room_for_is_an_overrun() -> None:
    machine = Machine()
    done = _run(machine, {"onnx": 4.0}, noise_s=1.75)
    assert (done.wall_s, done.busy_s, done.overrun_s) == (2.25, 2.0, 0.25)
    assert machine.slept_s == []


def test_speed_classes_have_their_own_slowdown() -> None:
    pace = Machine().pace({"default": 3.0, "onnx": 4.0})
    assert [pace.slowdown(name) for name in ("onnx", "python")] == [4.0, 3.0]
    assert Machine().pace({"onnx": 4.0}).slowdown("python") == 1.0


def test_an_error_comes_at_once() -> None:
    machine = Machine()
    with pytest.raises(ZeroDivisionError):
        machine.pace({"default": 9.0}).run("python", lambda: 1 // 0)
    assert machine.slept_s == []


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf])
def test_a_slowdown_is_a_positive_number(factor: float) -> None:
    with pytest.raises(ConfigError) as caught:
        Pace({"onnx": factor})
    assert caught.value.field == "slowdown.onnx"


def test_no_machine_can_be_made_faster() -> None:
    with pytest.raises(ConfigError, match="2 times as fast as the reference core") as caught:
        Pace({"default": 0.5})
    assert caught.value.field == "slowdown.default"


def test_an_accelerator_is_refused_where_it_would_be_played() -> None:
    """A device profile may describe one: what runs on its cores can still be emulated."""
    pace = Machine().pace({"default": 3.0, "onnx-cuda": 0.25})
    assert pace.slowdown("python") == 3.0
    with pytest.raises(ConfigError, match=r"4 times as fast .* emulation cannot speed up") as caught:
        pace.run("onnx-cuda", lambda: None)
    assert caught.value.field == "slowdown.onnx-cuda"


def test_the_real_clocks_agree_with_the_rule() -> None:
    done = Pace({"default": 1.5}).run("python", lambda: sum(range(20_000)))
    assert done.cpu_s > 0
    assert done.busy_s == pytest.approx(1.5 * done.cpu_s)
    assert done.wall_s >= done.busy_s
