from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from compass_agent.measure.telemetry import read_telemetry


def sensor(value: float | None) -> Any:
    return SimpleNamespace(current=value)


def test_this_machine_can_be_read() -> None:
    reading = read_telemetry()
    assert 0.0 <= reading.cpu_share <= 1.0
    assert 0 < reading.memory_used_bytes <= reading.memory_total_bytes
    assert reading.battery is None or 0.0 <= reading.battery <= 1.0


@pytest.mark.parametrize(
    ("sensors", "expected"),
    [
        ({}, None),
        ({"nvme": [sensor(80.0)]}, None),
        ({"acpitz": [sensor(20.0)], "coretemp": [sensor(51.0), sensor(63.5)]}, 63.5),
        ({"CPU-therm": [sensor(47.0)], "GPU-therm": [sensor(70.0)]}, 47.0),
        ({"coretemp": [sensor(None), sensor(0.0), sensor(-273.0), sensor(65_535.0)]}, None),
        ({"coretemp": [sensor(0.0)], "acpitz": [sensor(33.0)]}, 33.0),
    ],
)
def test_the_temperature_is_the_processors(
    monkeypatch: pytest.MonkeyPatch, sensors: dict[str, list[Any]], expected: float | None
) -> None:
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: sensors, raising=False)
    assert read_telemetry().temperature_c == expected


@pytest.mark.parametrize(("percent", "expected"), [(None, None), (42.0, 0.42), (101.0, 1.0)])
def test_the_battery(monkeypatch: pytest.MonkeyPatch, percent: float | None, expected: float | None) -> None:
    battery = None if percent is None else SimpleNamespace(percent=percent)
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
    assert read_telemetry().battery == expected


@pytest.mark.parametrize("error", [OSError("odd file"), ValueError("odd number"), AttributeError("absent")])
def test_what_cannot_be_read_is_absent(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(psutil, "sensors_battery", fail, raising=False)
    monkeypatch.setattr(psutil, "sensors_temperatures", fail, raising=False)
    reading = read_telemetry()
    assert (reading.battery, reading.temperature_c) == (None, None)
