"""Emulating a slower machine honestly: a piece of compute lasts slowdown x its thread CPU time.

Wall time would stretch the neighbours' noise as well: with busy neighbours it gave a p95 of 165 ms where 81
was right, CPU time 82. What cannot be emulated is counted: where the machine was so busy that a call took
longer than it should have lasted, that is an overrun, and the time measured for it is not the device's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from compass_shared.errors import ConfigError
from compass_shared.pipeline import ENDPOINT_CLASS

Result = TypeVar("Result")

DEFAULT = "default"
"""Key for the speed classes that are not listed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Paced(Generic[Result]):
    """What a call returned and how long it took."""

    value: Result
    wall_s: float
    """Emulation included."""
    cpu_s: float
    """CPU time of the calling thread, as it was."""
    busy_s: float
    """Time for which the emulated core was busy: slowdown x CPU time."""
    overrun_s: float
    """How much longer than ``busy_s`` an emulated call took; 0 where nothing is emulated."""

    @property
    def device_s(self) -> float:
        """Time that the machine needs: what a busy neighbour adds to an emulated call is not the device's."""
        return self.wall_s - self.overrun_s


class Pace:
    """Runs calls at the speed of the machine that is emulated; any number of threads may use it at once.

    Args:
        slowdown: Speed class -> slowdown, with ``default`` for the others; 1 where that is missing.
        thread_time: CPU seconds of the calling thread.
        wall_time: Monotonic seconds.
        sleep: Waits for some seconds.

    Raises:
        ConfigError: If a slowdown is no positive number, or that of all other classes is less than 1: no
            machine can be made faster than it is.
    """

    def __init__(
        self,
        slowdown: Mapping[str, float] | None = None,
        *,
        thread_time: Callable[[], float] = time.thread_time,
        wall_time: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._slowdown = dict(slowdown or {})
        for name, factor in self._slowdown.items():
            if not 0 < factor < float("inf"):  # also refuses NaN
                raise ConfigError(
                    f"{factor} is not a slowdown: it must be positive", field=f"slowdown.{name}"
                )
        self._default = _playable(DEFAULT, self._slowdown.get(DEFAULT, 1.0))
        self._thread_time = thread_time
        self._wall_time = wall_time
        self._sleep = sleep

    def slowdown(self, speed_class: str) -> float:
        """Slowdown of one speed class, >= 1.

        Raises:
            ConfigError: If the class is faster than this machine, as accelerators are: only plans can use it.
        """
        if speed_class == ENDPOINT_CLASS:
            return 1.0
        return _playable(speed_class, self._slowdown.get(speed_class, self._default))

    def run(self, speed_class: str, call: Callable[[], Result]) -> Paced[Result]:
        """Make one call in this thread and let it last as long as it should; what it raises comes at once."""
        slowdown = self.slowdown(speed_class)
        wall_start_s, cpu_start_s = self._wall_time(), self._thread_time()
        value = call()
        cpu_s = self._thread_time() - cpu_start_s
        wall_s = self._wall_time() - wall_start_s
        if speed_class == ENDPOINT_CLASS:
            # It waits for another machine, and holds its thread for as long.
            return Paced(value=value, wall_s=wall_s, cpu_s=cpu_s, busy_s=wall_s, overrun_s=0.0)
        busy_s, overrun_s = slowdown * cpu_s, 0.0
        if slowdown > 1:
            if wall_s < busy_s:
                self._sleep(busy_s - wall_s)
                wall_s = self._wall_time() - wall_start_s
            else:
                overrun_s = wall_s - busy_s
        return Paced(value=value, wall_s=wall_s, cpu_s=cpu_s, busy_s=busy_s, overrun_s=overrun_s)


def _playable(speed_class: str, factor: float) -> float:
    if factor < 1:
        raise ConfigError(
            f"the device is {1 / factor:.3g} times as fast as the reference core here: emulation cannot "
            "speed up; plan with it, or run on the device itself",
            field=f"slowdown.{speed_class}",
        )
    return factor
