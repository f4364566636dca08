"""Speed of a pipeline's operators, on a machine whose time is virtual: every second is accounted for."""

from __future__ import annotations

import statistics
from collections import Counter

import pytest

from compass_agent.measure.findings import brief_findings
from compass_agent.measure.series import rested_ratio
from compass_agent.measure.speed import SpeedProgress
from compass_agent.measure.turns import MIN_TRIES
from compass_shared.errors import ConfigError, ProfileError
from compass_shared.framing import framed_size
from support.machines import LOADING_S, PAGES, VARIANTS, Machine


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


def test_a_variant_that_always_fails_is_left_out_and_does_not_go_on_forever() -> None:
    machine = Machine({("read", 2): 0})
    report = machine.report(budget_s=1e9)
    assert report.profile.operators.keys() == VARIANTS - {"read[beam=2]"}
    assert list(report.failed) == ["read[beam=2]"]
    assert "failed on every input" in report.failed["read[beam=2]"]
    assert "read[beam=2] is left out" in brief_findings(report).notes[0]
    warm_up = 1
    assert machine.calls["read[beam=2]"] == warm_up + MIN_TRIES


def test_what_follows_an_operator_that_always_fails_is_not_waited_for() -> None:
    machine = Machine({("read", beam): 0 for beam in (1, 2, 3)})
    report = machine.report(budget_s=1e9)
    assert report.profile.operators.keys() == {"shrink[side=1]", "shrink[side=4]"}
    assert sorted(report.failed) == ["join", "read[beam=1]", "read[beam=2]", "read[beam=3]"]
    assert machine.calls["read[beam=1]"] < 10 * MIN_TRIES
    with pytest.raises(ProfileError, match="failed on every input"):
        Machine({("shrink", 1): 0, ("shrink", 4): 0}).measure(budget_s=1e9)


def test_a_variant_that_fails_on_some_input_is_measured_on_the_others() -> None:
    profile = Machine({("shrink", 4): 16}).measure((8, 16) * 6, budget_s=1e9)
    assert profile.operators.keys() == VARIANTS
    assert profile.operators["shrink[side=4]"].count >= 1
    assert profile.operators["shrink[side=4]"].mean_s == 32.0


def test_nothing_to_measure_with_is_an_error() -> None:
    with pytest.raises(ProfileError, match="'pages' brings no inputs"):
        Machine().measure(())


# --- what a machine does to the figures -----------------------------------------------------------


def test_what_a_stall_adds_is_shared_among_all_variants() -> None:
    """One call of a hundred stalls for long: no variant is thought to be slow for its bad luck."""
    quiet = Machine().measure(budget_s=1e9)
    machine = Machine(stall=lambda call: 500.0 if call == 31 else 0.0)
    report = machine.report(budget_s=1e9)
    (stall_s,) = report.hiccups.sizes_s
    assert stall_s == pytest.approx(500.0)
    for key, found in report.profile.operators.items():
        share_s = 500.0 * found.mean_s / report.hiccups.busy_s
        assert found.mean_s == pytest.approx(quiet.operators[key].mean_s + share_s, rel=0.35)
    worked_s = sum(found.mean_s * found.count for found in report.profile.operators.values())
    assert worked_s == pytest.approx(report.hiccups.busy_s + 500.0, rel=0.05), "nothing of it is lost"


def test_a_heavy_input_stays_heavy() -> None:
    """An input that takes fifty times as long keeps the core busy: it is the input's, and is kept."""
    report = Machine().report((8, 8, 400), budget_s=1e9)
    assert report.hiccups.sizes_s == ()
    heavy = report.profile.operators["shrink[side=1]"]
    assert heavy.p95_s > 50
    assert heavy.var_s2 > 50**2


def test_an_operator_that_waits_for_its_heavy_inputs_keeps_them() -> None:
    """It is off the core, as if held up; but the repeat on the same input waits as long."""
    report = Machine(waits=("shrink",)).report((8, 8, 400), budget_s=1e9)
    assert report.hiccups.sizes_s == ()
    assert report.profile.operators["shrink[side=1]"].p95_s > 50


def test_after_gaps_and_back_to_back_are_mixed_as_the_rate_says() -> None:
    machine = Machine(nap=2.0)
    # One request takes shrink 8 + read 8 + join 8 s on the first variants: busy for a quarter of the time.
    report = machine.report(budget_s=1e9, rate_hz=0.01, variants=["shrink[side=1]", "read[beam=1]", "join"])
    gaps = report.gaps
    assert gaps is not None
    assert gaps.busy_share == pytest.approx(0.24)
    assert set(machine.rests) == {gaps.gap_s} == {2.0}
    shrink = [sample for sample in report.samples if sample.variant.startswith("shrink")]
    assert rested_ratio(shrink) == pytest.approx(2.0)
    # The first operator alone feels the nap here: 0.76 of the calls take twice as long.
    assert report.profile.operators["shrink[side=1]"].mean_s == pytest.approx(8 * (0.24 + 2 * 0.76))
    assert report.profile.operators["join"].mean_s == pytest.approx(8.0)
    assert "76% of the calls find the machine idle" in str(gaps)


def test_a_machine_that_is_always_busy_has_no_gaps() -> None:
    machine = Machine(nap=2.0)
    assert machine.report(budget_s=0.0, rate_hz=1.0).gaps is None
    assert machine.rests == []


def test_only_what_is_asked_for_is_measured_with_what_feeds_it() -> None:
    machine = Machine()
    profile = machine.measure(variants=["read[beam=2]"])
    assert profile.operators.keys() == {"shrink[side=1]", "read[beam=2]"}
    assert machine.calls.keys() == profile.operators.keys(), "nothing else ran"
    assert profile.operators["read[beam=2]"].mean_s == 16.0


@pytest.mark.parametrize("variants", [["read[beam=9]"], []])
def test_what_there_is_not_cannot_be_measured(variants: list[str]) -> None:
    with pytest.raises(ConfigError, match="variant"):
        Machine().measure(variants=variants)


def test_a_batch_is_timed_as_a_whole() -> None:
    one, four = (Machine().measure(batch=batch, budget_s=1e9) for batch in (1, 4))
    assert four.operators["shrink[side=4]"].mean_s == 4 * one.operators["shrink[side=4]"].mean_s
    assert (
        four.operators["shrink[side=4]"].output_mean_bytes
        == one.operators["shrink[side=4]"].output_mean_bytes
    )


def test_a_variant_is_warmed_up_until_it_gets_no_faster() -> None:
    machine = Machine()
    machine.measure(budget_s=0.0, warm_up_runs=4, variants=["join"])
    assert machine.calls["join"] - MIN_TRIES == 3, "loading, a fast one, and one that was no faster"


def test_waiting_for_a_quiet_moment_costs_no_budget() -> None:
    machine = Machine()
    steps: list[SpeedProgress] = []
    machine.measure(budget_s=0.0, before_pass=lambda: machine.clock.advance(1e6), on_progress=steps.append)
    assert steps[-1].spent_s < 1e6


def test_means_come_with_intervals() -> None:
    profile = Machine().measure(tuple(range(4, 84, 4)), budget_s=1e9)
    for found in profile.operators.values():
        assert found.mean_interval_s is not None
        low_s, high_s = found.mean_interval_s
        assert low_s < found.mean_s < high_s


def test_one_that_always_fails_does_not_lose_the_others_that_were_asked_for() -> None:
    asked = ["read[beam=1]", "read[beam=2]"]
    profile = Machine({("read", 2): 0}).measure(variants=asked, budget_s=0.0)
    assert profile.operators.keys() == {"shrink[side=1]", "read[beam=1]"}
    with pytest.raises(ProfileError, match=r"read\[beam=2\] failed on every input"):
        Machine({("read", 2): 0}).measure(variants=asked[1:], budget_s=0.0)
