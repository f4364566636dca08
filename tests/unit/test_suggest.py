"""``compass-agent probe --suggest``: kernels, the nearest device profiles, and the file that it makes."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from compass_agent.cli import main
from compass_agent.commands import suggest as command
from compass_agent.kernels import REFERENCE_S, interpreted, kernels, time_kernels
from compass_agent.suggest import CORES_SD, Measured, nearest, suggested
from compass_shared.device_profile import (
    DeviceProfile,
    find_device_profile,
    known_device_profiles,
    load_device_profile,
)
from compass_shared.errors import ModelLoadError

if TYPE_CHECKING:
    from pathlib import Path

KNOWN = known_device_profiles()
TODAY = "2026-11-24"
CLASSES = ("python", "onnx-fp32", "onnx-int8")


def like(profile: DeviceProfile) -> Measured:
    """What a device that is exactly as its profile says would measure."""
    slowdowns = profile.slowdowns()
    return Measured(
        slowdowns={name: slowdowns.get(name, slowdowns["default"]) for name in CLASSES},
        rel_sd=0.3,
        cores=int(profile.cores.value),
        memory_bytes=int(profile.memory_bytes.value),
    )


# --- kernels --------------------------------------------------------------------------------------


def test_every_kernel_runs_here_and_has_a_time_on_the_reference_core() -> None:
    works = kernels()
    assert works.keys() == REFERENCE_S.keys()
    assert all(seconds > 0 for seconds in REFERENCE_S.values())
    for work in works.values():
        work()


@pytest.mark.parametrize(("name", "element"), [("onnx-fp32", np.float32), ("onnx-int8", np.uint8)])
def test_the_networks_are_real_convolutions(name: str, element: type[np.generic]) -> None:
    (result,) = cast("dict[str, Any]", kernels()[name]()).values()
    assert result.shape == (1, 64, 56, 56)
    assert result.dtype == element
    assert len(np.unique(result)) > 10


def test_without_onnx_runtime_the_interpreter_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise ModelLoadError(f"no {name} here")

    monkeypatch.setattr("compass_agent.kernels.open_runtime", missing)
    assert kernels().keys() == {"python"}


def test_the_interpreter_does_the_same_work_each_time() -> None:
    assert interpreted() == interpreted() > 0


def test_the_fastest_run_counts_and_a_busy_spell_meets_all_kernels() -> None:
    clock = count(0.0, 1.0)
    cpu = iter([0.0, 9.0, 0.0, 8.0, 0.0, 2.0, 0.0, 3.0, 0.0, 4.0, 0.0, 1.0])  # start and end of six runs
    found = time_kernels(
        {"a": lambda: None, "b": lambda: None},
        budget_s=2.5,
        thread_time=lambda: next(cpu),
        wall_time=lambda: next(clock),
    )
    assert {name: (timed.seconds, timed.runs) for name, timed in found.items()} == {
        "a": (2.0, 2),
        "b": (3.0, 2),
    }


# --- the nearest profiles -------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_a_device_as_its_profile_says_is_nearest_to_it(name: str) -> None:
    first, second, third = nearest(like(KNOWN[name]), KNOWN)
    assert first.profile.name == name
    assert first.distance == pytest.approx(0, abs=0.02)
    assert first.distance < second.distance <= third.distance
    assert all(ratio == pytest.approx(1, rel=0.05) for ratio in first.ratios.values())


def test_uncertain_figures_weigh_less() -> None:
    box = KNOWN["raspberry-pi-5"]
    measured = like(box)
    slower = replace(measured, slowdowns={name: 2 * value for name, value in measured.slowdowns.items()})
    (far,) = nearest(slower, {"box": box})
    (near,) = nearest(replace(slower, rel_sd=3.0), {"box": box})
    assert far.distance > 1 > near.distance
    assert far.ratios["python"] == pytest.approx(2, rel=0.01)


def test_what_differs_is_named() -> None:
    box = KNOWN["raspberry-pi-5"]
    (match,) = nearest(replace(like(box), cores=int(4 * box.cores.value)), {"box": box})
    assert match.ratios["cores"] == 4
    assert match.distance == pytest.approx(np.log(4) / CORES_SD / np.sqrt(5), rel=0.01)


# --- the file -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_the_file_is_a_device_profile(name: str, tmp_path: Path) -> None:
    nearby = KNOWN[name]
    measured = replace(like(nearby), slowdowns={"python": 1.875, "onnx-fp32": 0.5}, cores=3)
    path = tmp_path / "mine.toml"
    path.write_text(suggested(measured, nearby, name="mine", today=TODAY), encoding="utf-8")
    made = load_device_profile(path)
    assert (made.name, made.tier, made.cores.value) == ("mine", nearby.tier, 3)
    assert made.memory_bytes.value == measured.memory_bytes
    assert made.slowdowns() == {"default": 1.88, "python": 1.88, "onnx-fp32": 0.5, "tflite": 0.5}
    assert made.slowdown["python"].source == "measured by compass-agent probe --suggest"
    assert not made.slowdown["python"].derived
    assert made.links.keys() == nearby.links.keys()
    for kind, link in made.links.items():
        assert link.up_bps.value == pytest.approx(nearby.links[kind].up_bps.value, rel=0.005)
        assert link.up_bps.derived
        assert name in link.up_bps.source
    assert made.prices().core_s_usd == pytest.approx(nearby.prices().core_s_usd, rel=0.005)


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "BUDGET_S", 0.0)


def test_it_says_what_this_machine_is_like(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "--suggest", "--name", "bench"]) == 0
    said = capsys.readouterr()
    assert 'name = "bench"' in said.out
    assert sum(f"  {name} " in said.out for name in KNOWN) == 3
    assert "measuring python, onnx-fp32, onnx-int8" in said.err


def test_the_file_it_writes_is_found_by_its_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.toml"
    assert main(["probe", "--suggest", "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    made = find_device_profile(str(out))
    assert made.slowdowns()["python"] == pytest.approx(said["measured"]["slowdowns"]["python"], rel=0.01)
    assert said["nearest"][0]["distance"] <= said["nearest"][1]["distance"]
    assert said["profile"].strip() == out.read_text(encoding="utf-8").strip()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--bundle", "somewhere"], "leave --bundle"),
        (["--emulate", "laptop"], "leave --bundle and --emulate away"),
        (["--out", "bench.json"], "must end in .toml"),
        (["--out", "Big Box.toml"], "--out"),
        (["--out", "nowhere/bench.toml"], "cannot write"),
    ],
)
def test_what_does_not_go_together(
    options: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["probe", "--suggest", *options]) == 2
    assert problem in capsys.readouterr().err
