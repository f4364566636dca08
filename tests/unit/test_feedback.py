"""Serving updates estimates: it converges when something shifted, and keeps still when nothing did."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compass_coordinator.profiler.latency.drift import Seen, common_drift
from compass_coordinator.profiler.latency.feedback import (
    ENOUGH,
    FURTHEST,
    HALF_LIFE_S,
    MAX_WEIGHT,
    MOVED,
    PRIOR_WEIGHT,
    WINDOW_WEIGHT,
    Feedback,
)
from compass_shared.messages import ServedMessage
from compass_shared.profile import OperatorProfile, SiteProfile

MINUTE_S = 60.0
FEW = settings(max_examples=20, deadline=None)


def figures(
    variant: str, mean_s: float, *, count: int = 20, cv: float = 0.1, size: float = 100.0
) -> OperatorProfile:
    return OperatorProfile(
        variant=variant,
        mean_s=mean_s,
        var_s2=(cv * mean_s) ** 2,
        p95_s=(1 + 1.645 * cv) * mean_s,
        count=count,
        output_mean_bytes=size,
        speed_class="onnx" if variant.startswith("net") else "python",
    )


def profile_of(**means_s: float) -> SiteProfile:
    return SiteProfile(
        site="phone",
        pipeline="p",
        digest="d",
        operators={name: figures(name, mean_s) for name, mean_s in means_s.items()},
        request_mean_bytes=1.0,
    )


def served(*windows: OperatorProfile, session: int = 1) -> ServedMessage:
    operators = {window.variant: window for window in windows}
    return ServedMessage(session=session, pipeline="p", digest="d", operators=operators, over_s=MINUTE_S)


PROFILE = profile_of(net=0.1, net2=0.2, cut=0.01)


class Phone:
    """A site's feedback, fed a minute at a time."""

    def __init__(self, profile: SiteProfile = PROFILE, *, half_life_s: float = HALF_LIFE_S) -> None:
        self.feedback = Feedback(half_life_s=half_life_s)
        self.profile = profile
        self.now_s = 0.0
        self.feedback.take_profile(1, None, profile, self.now_s)

    def serve(self, *windows: OperatorProfile, after_s: float = MINUTE_S) -> bool:
        self.now_s += after_s
        return self.feedback.take_served("phone", served(*windows), self.profile, self.now_s)

    def probe(self, **means_s: float) -> None:
        fresh = {name: figures(name, mean_s, count=30) for name, mean_s in means_s.items()}
        before, self.profile = (
            self.profile,
            replace(self.profile, operators={**self.profile.operators, **fresh}),
        )
        self.feedback.take_profile(1, before, self.profile, self.now_s)

    def now(self) -> SiteProfile:
        return self.feedback.applied(self.profile)

    def mean_s(self, variant: str = "net") -> float:
        return self.now().operators[variant].mean_s


# --- one variant ----------------------------------------------------------------------------------


def test_without_serving_a_profile_is_what_it_was() -> None:
    assert Phone().now() is PROFILE


def test_a_window_counts_by_its_runs_beside_the_profile() -> None:
    phone = Phone()
    phone.serve(figures("net", 0.2, count=5))
    old = PRIOR_WEIGHT  # it begins to fade with the first window
    assert phone.mean_s() == pytest.approx((old * 0.1 + 5 * 0.2) / (old + 5))
    found = phone.now().operators["net"]
    share = 5 / (old + 5)
    between = share * (1 - share) * 0.1**2
    assert found.var_s2 == pytest.approx((1 - share) * 0.01**2 + share * 0.02**2 + between)
    assert found.count == 25
    low, high = found.mean_interval_s or (math.nan, math.nan)
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(found.var_s2 / 25))
    assert found.speed_class == "onnx"


@FEW
@given(shift=st.sampled_from([0.3, 0.8, 1.25, 3.0]), runs=st.integers(1, 500), every_s=st.floats(60.0, 120.0))
def test_of_a_shift_just_the_stated_share_is_left(shift: float, runs: int, every_s: float) -> None:
    phone = Phone()
    for _ in range(40):
        phone.serve(figures("net", 0.1, count=runs), after_s=every_s)
    weight, kept = min(runs, WINDOW_WEIGHT), 0.5 ** (every_s / HALF_LIFE_S)
    for windows in range(1, 16):
        phone.serve(figures("net", 0.1 * shift, count=runs), after_s=every_s)
        left = (phone.mean_s() - 0.1 * shift) / (0.1 - 0.1 * shift)
        assert -1e-9 <= left <= (1 + weight / MAX_WEIGHT) ** -windows + 1e-9
        if weight / (1 - kept) < MAX_WEIGHT:  # the cap does not bite
            assert left == pytest.approx(kept**windows, rel=0.1)


def test_without_a_shift_estimates_stay_within_their_noise_and_nothing_moves() -> None:
    rng = np.random.default_rng(1)
    phone = Phone(profile_of(net=0.1))
    errors, moved, covered = [], 0, 0
    for _ in range(500):
        times_s = rng.normal(0.1, 0.03, 40)
        window = replace(figures("net", float(times_s.mean()), count=40), var_s2=float(times_s.var(ddof=1)))
        moved += phone.serve(window)
        found = phone.now().operators["net"]
        low, high = found.mean_interval_s or (math.nan, math.nan)
        errors.append(found.mean_s - 0.1)
        covered += low <= 0.1 <= high
    assert moved <= 1, "the profile's spread was too small by a factor of three: noticed once at most"
    assert np.std(errors) < 0.03 / math.sqrt(MAX_WEIGHT)
    assert covered > 0.93 * 500


@FEW
@given(
    means_s=st.lists(st.floats(0.05, 0.2), min_size=2, max_size=3),
    seed=st.randoms(use_true_random=False),
    gaps_s=st.lists(st.floats(0.0, 5.0), min_size=3, max_size=3),
)
def test_order_and_lateness_do_no_harm(means_s: list[float], seed: object, gaps_s: list[float]) -> None:
    windows = [figures("net", mean_s, count=10 + at) for at, mean_s in enumerate(means_s)]

    def after(order: Sequence[OperatorProfile], gaps: Sequence[float]) -> float:
        phone = Phone()
        for window, gap_s in zip(order, gaps, strict=False):
            phone.serve(window, after_s=gap_s)
        return phone.mean_s()

    assert after(windows, [0.0] * 3) == pytest.approx(after(windows[::-1], [0.0] * 3), rel=1e-9)
    # Late by seconds beside a half-life of minutes: hardly a difference, whatever the order.
    assert after(windows, gaps_s) == pytest.approx(after(windows[::-1], [0.0] * 3), rel=0.05)


def test_a_window_that_comes_twice_counts_once_and_a_steady_one_counts_every_time() -> None:
    once, twice, steady = Phone(), Phone(), Phone()
    window = figures("net", 0.2)
    for phone in (once, twice, steady):
        phone.serve(window)
    twice.serve(window, after_s=1.0)
    steady.serve(window, after_s=MINUTE_S)
    assert twice.mean_s() == once.mean_s() < steady.mean_s()


def test_one_absurd_window_moves_little_and_a_real_change_gets_there() -> None:
    phone = Phone()
    phone.serve(figures("net", 1e6, count=10**9))
    assert phone.mean_s() <= 0.1 * FURTHEST
    real = Phone()
    for minute in range(30):
        real.serve(figures("net", 10.0, count=50 + minute))
    assert real.mean_s() == pytest.approx(10.0, rel=0.02)


def test_time_alone_moves_nothing_and_what_is_old_yields_to_what_is_new() -> None:
    phone = Phone()
    phone.serve(figures("net", 0.2, count=50))
    before = phone.mean_s()
    phone.now_s += 1e6
    assert phone.mean_s() == before
    phone.serve(figures("net", 0.3, count=5))
    assert phone.mean_s() == pytest.approx(0.3)


def test_a_fresh_probe_takes_the_place_of_the_profile() -> None:
    phone = Phone()
    phone.serve(figures("net", 0.3, count=10))
    phone.probe(net=0.3)
    assert phone.mean_s() == pytest.approx(0.3)


def test_what_was_never_measured_is_known_after_enough_runs() -> None:
    phone = Phone()
    assert not phone.serve(figures("net9", 0.5, count=int(ENOUGH) - 1))
    assert "net9" not in phone.now().operators
    assert phone.serve(figures("net9", 0.5, count=int(ENOUGH)))
    assert phone.now().operators["net9"].mean_s == pytest.approx(0.5)


def test_a_restart_forgets_and_what_is_late_from_before_it_is_not_taken() -> None:
    phone = Phone()
    phone.serve(figures("net", 0.3, count=50))
    feedback = phone.feedback
    assert not feedback.take_served("phone", served(figures("cut", 0.01), session=2), PROFILE, 70.0)
    assert phone.mean_s() == 0.1
    feedback.take_served("phone", served(figures("net", 0.3, count=50)), PROFILE, 80.0)
    assert phone.mean_s() == 0.1


def test_sizes_follow_too_and_a_changed_size_is_reason_to_plan_again() -> None:
    phone = Phone()
    moved = [phone.serve(figures("net", 0.1, count=50 + at, size=300.0)) for at in range(5)]
    assert any(moved)
    assert phone.now().operators["net"].output_mean_bytes == pytest.approx(300.0, rel=0.1)


# --- hysteresis -----------------------------------------------------------------------------------


def test_it_moves_once_until_it_was_planned_with_and_then_only_if_it_goes_on() -> None:
    phone = Phone()
    assert not phone.serve(figures("net", 0.1 * (1 + MOVED / 2), count=50))
    assert phone.serve(figures("net", 0.13, count=50))
    phone.now()  # plans are made with it
    assert not phone.serve(figures("net", 0.13, count=51))


def test_a_few_noisy_runs_are_no_movement() -> None:
    assert not Phone().serve(figures("net", 0.2, count=2, cv=0.5))


# --- what a class has in common -------------------------------------------------------------------


def test_drift_of_what_serves_is_applied_to_its_class_with_its_uncertainty_and_to_no_other() -> None:
    phone = Phone()
    for minute in range(20):
        phone.serve(figures("net", 0.2, count=50 + minute))
    now, was = phone.now().operators, PROFILE.operators
    assert now["cut"] == was["cut"]
    assert now["net2"].mean_s == pytest.approx(0.4, rel=0.05)
    assert now["net2"].p95_s == pytest.approx(2 * was["net2"].p95_s, rel=0.05)
    scaled = 4 * was["net2"].var_s2
    assert now["net2"].var_s2 > scaled + (0.4 * math.log(2) / 3) ** 2, "one says little of how others differ"


def test_no_drift_is_applied_where_there_is_none() -> None:
    phone = Phone()
    phone.serve(figures("net", 0.1003, count=50))
    assert phone.now().operators["net2"] == PROFILE.operators["net2"]


def test_what_is_measured_hot_is_not_heated_again() -> None:
    phone = Phone()
    for minute in range(20):
        phone.serve(figures("net", 0.2, count=50 + minute))
    phone.probe(net2=0.4)
    assert phone.mean_s("net2") == pytest.approx(0.4, rel=0.05)
    phone.probe(net=0.2)  # the one that serves, too: what its class drifted is known all the same
    assert phone.mean_s("net2") == pytest.approx(0.4, rel=0.05)


def test_common_drift_is_the_mean_of_several_and_knows_how_far_they_lie_apart() -> None:
    rng = np.random.default_rng(3)
    theta, tau, sampling = 0.5, 0.2, 0.05
    hits, widths = 0, []
    for _ in range(200):
        logs = theta + tau * rng.normal(size=8) + sampling * rng.normal(size=8)
        found = common_drift([Seen(log_ratio=float(log), var=sampling**2) for log in logs])
        assert found is not None
        widths.append(math.sqrt(found.own_var))
        hits += abs(found.log_ratio - theta) <= 2.36 * math.sqrt(found.shared_var)  # t with 7 degrees
    assert hits >= 0.9 * 200
    assert np.median(widths) == pytest.approx(tau, rel=0.2)


@FEW
@given(st.lists(st.floats(-0.05, 0.05), max_size=6))
def test_small_noisy_differences_are_no_drift(logs: list[float]) -> None:
    assert common_drift([Seen(log_ratio=log, var=0.1**2 * len(logs)) for log in logs]) is None
