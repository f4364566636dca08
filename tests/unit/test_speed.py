"""Speed of a pipeline's operators, on a machine whose time is virtual: every second is accounted for."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from compass_agent.bundles import Bundle
from compass_agent.measure.speed import MIN_TRIES, SpeedProgress, measure_speed
from compass_agent.operators import OperatorHost
from compass_agent.pace import Pace
from compass_shared.clock import VirtualClock
from compass_shared.errors import ProfileError
from compass_shared.framing import framed_size
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

    def fetch(self, ref: ModelRef, *, name: str = "", base: Path | None = None) -> Path:
        raise AssertionError(name)


class Machine:
    """Runs ``PAGES`` in virtual time: an operator takes seconds by its knobs and by how long its input is.

    Args:
        breaks: (Operator, knob value) -> length of the inputs that it fails on; 0 for all of them.
    """

    def __init__(self, breaks: Mapping[tuple[str, int], int] | None = None) -> None:
        self.clock = VirtualClock()
        self.calls: Counter[str] = Counter()
        self.requests: list[int] = []
        self._breaks = breaks or {}
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
            self.clock.advance(knob * length)
            return bytes(length // knob) if name == "shrink" else "text"

        return run

    def measure(
        self, lengths: tuple[int, ...] = (8,) * 20, *, slowdown: float = 1.0, seed: int = 0, **options: Any
    ) -> SiteProfile:
        now_s = self.clock.now_s
        return measure_speed(
            self.host,
            PAGES,
            [Example(f"page-{index}", bytes(length), "", "all") for index, length in enumerate(lengths)],
            site="phone",
            pace=Pace({"default": slowdown}, thread_time=now_s, wall_time=now_s, sleep=self.clock.advance),
            clock=self.clock,
            rng=random.Random(seed),
            **options,
        ).profile


def test_every_variant_is_tried_until_its_mean_is_known() -> None:
    steps: list[SpeedProgress] = []
    profile = Machine().measure(budget_s=1e9, on_progress=steps.append)
    assert profile.operators.keys() == VARIANTS
    assert all(found.variant == key for key, found in profile.operators.items())
    assert min(found.count for found in profile.operators.values()) >= MIN_TRIES
    assert [step.passes for step in steps] == list(range(1, len(steps) + 1))
    assert steps[-1].variants == len(VARIANTS)
    assert 2 <= steps[-1].settled <= len(VARIANTS), "the time of shrinking does not vary here"
    assert (profile.site, profile.pipeline, profile.digest) == ("phone", "pages", PAGES.digest)
    assert profile.emulated is None


def test_a_pass_is_a_request_like_any_other() -> None:
    """Each operator once, on what the one before it made: no variant right after another of its own."""
    machine = Machine()
    steps: list[SpeedProgress] = []
    machine.measure(budget_s=0.0, on_progress=steps.append)
    warm_up = Counter(VARIANTS)
    assert sum((machine.calls - warm_up).values()) == len(steps) * len(PAGES.operators)


def test_a_variant_takes_what_it_takes_and_loading_does_not_count() -> None:
    profile = Machine().measure(budget_s=1e9)
    for side in (1, 4):
        found = profile.operators[f"shrink[side={side}]"]
        assert (found.mean_s, found.var_s2, found.p95_s) == (8.0 * side, 0.0, 8.0 * side)
        assert found.output_mean_bytes == framed_size(bytes(8 // side))
        assert found.output_var_bytes2 == 0.0
    assert profile.request_mean_bytes == framed_size(bytes(8))


def test_the_spread_is_over_inputs_and_over_what_ran_upstream() -> None:
    profile = Machine().measure((8, 40, 80), budget_s=1e9)
    shrink = profile.operators["shrink[side=1]"]
    assert shrink.mean_s == pytest.approx((8 + 40 + 80) / 3, rel=0.2)
    assert shrink.var_s2 == pytest.approx(statistics.pvariance((8, 40, 80)), rel=0.4)
    assert profile.request_var_bytes2 > 0
    alike = Machine().measure(budget_s=1e9)
    read = alike.operators["read[beam=1]"]
    assert 2.0 < read.mean_s < 8.0, "after either side, for the very same input"
    assert read.var_s2 > 0


def test_an_emulated_device_is_measured_at_its_own_speed() -> None:
    machine = Machine()
    profile = machine.measure(slowdown=3.0, budget_s=1e9, emulated="old-phone")
    assert profile.operators["shrink[side=1]"].mean_s == 24.0
    assert profile.emulated == "old-phone"


def test_models_are_loaded_at_full_speed() -> None:
    """What is slow once must not take the budget of what is measured."""
    machine = Machine()
    steps: list[SpeedProgress] = []
    machine.measure(slowdown=3.0, on_progress=steps.append)
    warm_up_s = LOADING_S * len(VARIANTS)
    assert warm_up_s < steps[0].spent_s < warm_up_s * 2


def test_without_time_every_variant_is_still_tried_often_enough() -> None:
    lengths = tuple(range(4, 84, 4))
    profile = Machine().measure(lengths, budget_s=0.0)
    counts = {key: found.count for key, found in profile.operators.items()}
    assert min(counts.values()) == MIN_TRIES
    # The widest operator needs so many passes; the others are tried in all of them.
    assert sum(count for key, count in counts.items() if key.startswith("read")) == 3 * MIN_TRIES
    assert counts["join"] == 3 * MIN_TRIES


def test_with_time_the_means_that_spread_are_measured_on() -> None:
    short, long = (Machine().measure(tuple(range(4, 84, 4)), budget_s=budget_s) for budget_s in (0.0, 1e9))
    for key, found in long.operators.items():
        assert found.count > short.operators[key].count


def test_no_pass_is_started_after_the_budget() -> None:
    lengths = tuple(range(4, 84, 4))
    steps: list[SpeedProgress] = []
    Machine().measure(lengths, budget_s=1e9, on_progress=steps.append)
    some = 4 * MIN_TRIES
    budget_s = steps[some].spent_s - 0.5
    assert steps[some - 1].spent_s < budget_s
    short: list[SpeedProgress] = []
    Machine().measure(lengths, budget_s=budget_s, on_progress=short.append)
    assert short == steps[: some + 1], "the last was under way when the time was up"


def test_passes_are_bounded_whatever_is_known() -> None:
    machine = Machine()
    machine.measure((8, 16), max_passes=5, budget_s=1e9)
    warm_up = 2
    assert sorted(machine.requests[warm_up:]) == sorted([8, 16, 8, 16, 8]) or sorted(
        machine.requests[warm_up:]
    ) == sorted([16, 8, 16, 8, 16])


def test_the_same_seed_measures_the_same() -> None:
    lengths = tuple(range(8, 48, 4))
    assert Machine().measure(lengths) == Machine().measure(lengths)
    assert Machine().measure(lengths) != Machine().measure(lengths, seed=1)


def test_a_variant_that_always_fails_is_an_error_and_does_not_go_on_forever() -> None:
    machine = Machine({("read", 2): 0})
    with pytest.raises(ProfileError, match=r"read\[beam=2\] failed on every input"):
        machine.measure(budget_s=1e9)
    warm_up = 1
    assert machine.calls["read[beam=2]"] == warm_up + MIN_TRIES


def test_a_variant_that_fails_on_some_input_is_measured_on_the_others() -> None:
    profile = Machine({("shrink", 4): 16}).measure((8, 16) * 6, budget_s=1e9)
    assert profile.operators.keys() == VARIANTS
    assert profile.operators["shrink[side=4]"].count >= 1
    assert profile.operators["shrink[side=4]"].mean_s == 32.0


def test_nothing_to_measure_with_is_an_error() -> None:
    with pytest.raises(ProfileError, match="'pages' brings no inputs"):
        Machine().measure(())
