"""How the machine is doing, as plain data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

_CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal", "acpitz")
"""Sensors of the processor, best first; Jetsons and other boards name theirs after ``cpu``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look at the machine."""

    cpu_share: float
    """Busy share of all cores since the look before (at first: since the start), in [0, 1]."""
    memory_used_bytes: int
    memory_total_bytes: int
    battery: float | None
    """Charge, in [0, 1]; None without a battery."""
    temperature_c: float | None
    """Of the hottest processor sensor; None without one."""


def read_telemetry() -> Reading:
    """Look at the machine; takes well under a millisecond, and what it does not tell is None."""
    memory = psutil.virtual_memory()
    return Reading(
        cpu_share=min(1.0, max(0.0, psutil.cpu_percent(interval=None) / 100)),
        memory_used_bytes=memory.total - memory.available,
        memory_total_bytes=memory.total,
        battery=_battery(),
        temperature_c=_temperature_c(),
    )


def resident_bytes() -> int:
    """Memory that this process has in use now."""
    return int(psutil.Process().memory_info().rss)


def _battery() -> float | None:
    with contextlib.suppress(AttributeError, OSError, ValueError):  # not on every system; odd files in /sys
        battery = psutil.sensors_battery()
        if battery is not None:
            return min(1.0, max(0.0, float(battery.percent) / 100))
    return None


def _temperature_c() -> float | None:
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sensors = psutil.sensors_temperatures()
        named = [chip for chip in _CHIPS if chip in sensors]
        named += [chip for chip in sensors if "cpu" in chip.lower() and chip not in named]
        for chip in named:
            hottest = _hottest(sensor.current for sensor in sensors[chip])
            if hottest is not None:
                return hottest
    return None


def _hottest(readings_c: Iterable[float]) -> float | None:
    # Broken sensors read 0 or far outside of what silicon survives.
    return max((float(value) for value in readings_c if value is not None and 0 < value < 150), default=None)
