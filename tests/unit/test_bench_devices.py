"""Latency transfer on what was measured of real devices: the kept times are judged anew."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture(scope="module", autouse=True)
def _bench_on_path() -> Iterator[None]:
    sys.path.insert(0, str(BENCH))
    yield
    sys.path.remove(str(BENCH))


@pytest.fixture(scope="module")
def devices() -> Any:
    return importlib.import_module("profiling.devices")


@pytest.fixture(scope="module")
def rows(devices: Any) -> Any:
    return devices.judge(devices.read_measured(devices.RESULT), draws=1)


def test_unseen_variants_are_predicted_on_every_device(rows: Any) -> None:
    measured = [row for row in rows if row.skipped is None]
    assert len(measured) >= 4
    for row in measured:
        assert len(row.probes) == 5
        assert not set(row.probes) & set(row.p95_errors), "what is judged was not probed"
        assert row.p95 <= 0.15, row.target
        assert row.covered >= 0.75, row.target


def test_all_together_the_aim_is_met_and_simpler_ways_miss_it(devices: Any, rows: Any) -> None:
    judged = importlib.import_module("profiling.devices.judged")
    assert judged.overall(rows) <= judged.AIM
    stopped = [row for row in rows if row.target.startswith("CPU quota") and row.skipped is None]
    assert all(min(row.common, row.nearest, row.prior) > 3 * row.p95 for row in stopped)


def test_what_was_skipped_is_shown_with_its_reason(
    devices: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(devices.RESULT.read_text(encoding="utf-8"))
    document["settings"] = document["settings"][:2]
    document["settings"][1] |= {"skipped": "no such thing here", "classes": {}, "times_us": {}}
    (tmp_path / "times.json").write_text(json.dumps(document), encoding="utf-8")
    devices.print_rows(devices.judge(devices.read_measured(tmp_path / "times.json")))
    assert "skipped: no such thing here" in capsys.readouterr().out
