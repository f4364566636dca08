"""``compass profile`` and ``compass-agent probe`` on sequences: state, a fan-out, extra metrics, resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compass_agent.cli import main as agent
from compass_coordinator import cli
from compass_coordinator.measurements import load_measurements
from compass_shared.pipeline_file import load_pipeline
from compass_shared.profile_file import load_accuracy
from support.frames import FRAMES, write_frames_bundle

STRIDES = (1, 2)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_frames_bundle(tmp_path, modes=("all",), strides=STRIDES, clips=4)


def _key(stride: int, fast: str = "true") -> str:
    return f"find[stride={stride}];square[fast={fast}];total[mode=all]"


def test_a_stateful_pipeline_is_profiled_and_resumed(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--cache", str(tmp_path / "models"), "--results", str(tmp_path / "results"), "--workers", "1"]

    def profile(*options: str) -> dict[str, Any]:
        assert cli.main(["profile", str(bundle), *places, "--json", *options]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    assert profile("--budget", "1e-9")["finished"] is False
    log = bundle / "profile" / "accuracy.measured.jsonl"
    before = log.read_bytes()
    speeds = tmp_path / "speeds.json"
    summary = profile("--resume", "--speeds", str(speeds))
    assert log.read_bytes().startswith(before)
    assert summary["finished"] is True
    assert summary["extra_metrics"]["counted"]["of_most_accurate"] == 1.0
    assert summary["items"]["square[fast=true]"]["mean"] > 0

    table = load_accuracy(bundle / "profile" / "accuracy.json", load_pipeline(bundle))
    assert table.configs[_key(1)].mean == 1.0
    assert 1 / 2 <= table.configs[_key(2)].mean < 0.8, "every other answer is that of the frame before"
    assert table.others["lost"][_key(2)].mean == 1.0
    assert set(table.others) == {"lost", "counted"}

    (site,) = load_measurements(speeds).sites
    every, second = (site.operators[f"find[stride={stride}]"] for stride in STRIDES)
    assert every.count % FRAMES == 0, "of single requests"
    assert 0.3 * every.mean_s < second.mean_s < 0.8 * every.mean_s
    assert second.var_s2 > every.var_s2 / 4
    square = site.operators["square[fast=false]"]
    assert square.item_s == pytest.approx(4e-4, rel=0.5)


def test_a_probe_writes_items(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "here.json"
    options = ["--bundle", str(bundle), "--cache", str(tmp_path / "models"), "--seconds", "0.01"]
    assert agent(["probe", *options, "--out", str(out)]) == 0
    assert " ms each" in capsys.readouterr().out
    (site,) = load_measurements(out).sites
    assert site.operators["square[fast=false]"].items_mean is not None
    assert site.operators["find[stride=1]"].items_mean is None
