"""A machine whose time is virtual: it throttles, naps and stalls as the test says."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compass_agent.bundles import Bundle
from compass_agent.measure.speed import SpeedReport, measure_speed
from compass_agent.measure.sustained import SustainedReport, measure_sustained
from compass_agent.operators import OperatorHost
from compass_agent.pace import Pace
from compass_shared.clock import VirtualClock
from compass_shared.model_ref import ModelRef
from compass_shared.pipeline import REQUEST, variant_key
from compass_shared.profile import SiteProfile
from compass_shared.values import Example, KnobValue, Model, Value
from support.agents import pipeline_of, python_operator

PAGES = pipeline_of(
    "pages",
    python_operator("shrink", REQUEST, knobs={"side": (1, 4)}),
    python_operator("read", "shrink", knobs={"beam": (1, 2, 3)}),
    python_operator("join", "shrink", "read"),
)
VARIANTS = {variant_key(op.name, knobs) for op in PAGES.operators for knobs in op.variants()}
LOADING_S = 100.0


class NoModels:
    """No operator here has a model."""

    def fetch(self, ref: ModelRef, *, name: str = "", **_options: object) -> Path:
        raise AssertionError(name)


class Machine:
    """Runs ``PAGES`` in virtual time: an operator takes seconds by its knobs and by how long its input is.

    Args:
        breaks: (Operator, knob value) -> length of the inputs that it fails on; 0 for all of them.
        slowing: (Variant, seconds since the start) -> factor on its time.
        stall: Seconds for which another process holds up the call of that number.
        waits: Operators that wait for something else than the core.
        nap: Factor on the time of the first call after a rest.
    """

    def __init__(
        self,
        breaks: Mapping[tuple[str, int], int] | None = None,
        *,
        slowing: Callable[[str, float], float] = lambda _variant, _now_s: 1.0,
        stall: Callable[[int], float] = lambda _call: 0.0,
        waits: tuple[str, ...] = (),
        nap: float = 1.0,
    ) -> None:
        self.clock = VirtualClock()
        self.cpu = VirtualClock()
        self.calls: Counter[str] = Counter()
        self.requests: list[int] = []
        self.rests: list[float] = []
        self._breaks = breaks or {}
        self._slowing = slowing
        self._stall = stall
        self._waits = waits
        self._nap = nap
        self._cold = False
        functions = {name: self._function(name) for name in ("shrink", "read", "join")}
        bundle = Bundle(folder=Path(), pipeline=PAGES, code_sha256="", package="", functions=functions)
        self.host = OperatorHost([bundle], NoModels())

    def _function(self, name: str) -> Any:
        def run(inputs: Mapping[str, Any], knobs: Mapping[str, KnobValue], model: Model | None) -> Value:
            knob = int(next(iter(knobs.values()), 1))
            variant = variant_key(name, knobs)
            self.calls[variant] += 1
            if self.calls[variant] == 1:
                self.clock.advance(LOADING_S)
            length = len(inputs.get(REQUEST, inputs.get("shrink", b"")))
            if name == "shrink":
                self.requests.append(length)
            if self._breaks.get((name, knob), -1) in {0, length}:
                raise ValueError("cannot")
            factor = self._slowing(variant, self.clock.now_s()) * (self._nap if self._cold else 1.0)
            self._work(name, factor * knob * length)
            return bytes(length // knob) if name == "shrink" else "text"

        return run

    def _work(self, name: str, seconds: float) -> None:
        self._cold = False
        self.clock.advance(seconds + self._stall(self.calls.total()))
        if name not in self._waits:
            self.cpu.advance(seconds)

    def rest(self, seconds: float) -> None:
        """Idle for a while."""
        self.rests.append(seconds)
        self.clock.advance(seconds)
        self._cold = True

    def measure(self, lengths: tuple[int, ...] = (8,) * 20, **options: Any) -> SiteProfile:
        """What ``report`` says of the operators."""
        return self.report(lengths, **options).profile

    def report(
        self, lengths: tuple[int, ...] = (8,) * 20, *, slowdown: float = 1.0, seed: int = 0, **options: Any
    ) -> SpeedReport:
        """Measure this machine with inputs of these lengths."""
        return measure_speed(
            self.host,
            PAGES,
            examples(lengths),
            site="phone",
            pace=self._pace(slowdown),
            clock=self.clock,
            rng=random.Random(seed),
            rest=self.rest,
            **options,
        )

    def sustained(self, lengths: tuple[int, ...] = (8, 12), **options: Any) -> SustainedReport:
        """Let this machine work for long."""
        return measure_sustained(
            self.host,
            PAGES,
            examples(lengths),
            site="phone",
            pace=self._pace(1.0),
            clock=self.clock,
            **options,
        )

    def _pace(self, slowdown: float) -> Pace:
        return Pace(
            {"default": slowdown},
            thread_time=self.cpu.now_s,
            wall_time=self.clock.now_s,
            sleep=self.clock.advance,
        )


def examples(lengths: tuple[int, ...]) -> list[Example]:
    """Inputs of these lengths."""
    return [Example(f"page-{index}", bytes(length), "", "all") for index, length in enumerate(lengths)]
