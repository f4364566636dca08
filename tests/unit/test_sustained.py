"""Minutes of work on a machine whose time is virtual: throttling is found, and late figures count."""

from __future__ import annotations

import pytest

from compass_agent.measure.findings import brief_findings, sustained_findings
from compass_shared.errors import ProfileError
from support.machines import LOADING_S, VARIANTS, Machine

WARM_S = LOADING_S * len(VARIANTS) + 200.0
"""When every model is loaded here, or a little later."""
HOT_S = WARM_S + 5_000.0
FOR_S = 20_000.0


def throttling(variant: str, now_s: float) -> float:
    """Everything slows by half when it is hot; one variant more than the others."""
    if now_s < HOT_S:
        return 1.0
    return 3.0 if variant == "read[beam=1]" else 1.5


def test_a_steady_machine_is_measured_as_it_is() -> None:
    machine = Machine()
    report = machine.sustained(duration_s=FOR_S)
    assert report.trend is not None
    assert not report.trend.found
    assert (report.trends, report.swaps) == ({}, ())
    assert report.profile.operators.keys() == VARIANTS
    assert report.profile.operators["shrink[side=1]"].mean_s == pytest.approx(10.0)
    assert sustained_findings(report).notes[0].startswith("steady over")


def test_a_throttling_machine_is_measured_as_it_will_be() -> None:
    report = Machine(slowing=throttling).sustained(duration_s=FOR_S)
    assert report.trend is not None
    assert report.trend.found
    assert report.trend.settled
    assert report.trend.change == pytest.approx(0.5, abs=0.01)
    assert report.profile.operators["shrink[side=1]"].mean_s == pytest.approx(15.0)
    assert report.trends.keys() == VARIANTS
    assert report.trends["read[beam=1]"].change == pytest.approx(2.0, abs=0.01)


def test_variants_that_change_places_are_said() -> None:
    report = Machine(slowing=throttling).sustained(
        duration_s=FOR_S, variants=["read[beam=1]", "read[beam=2]"]
    )
    notes = sustained_findings(report).notes
    assert "slows by" in notes[0]
    # Not these: twice the work stays more than 3.0 / 1.5 times as much.
    assert not any("faster than" in note for note in notes)

    def crossing(variant: str, now_s: float) -> float:
        return 2 * throttling(variant, now_s) if variant == "read[beam=1]" and now_s >= HOT_S else 1.0

    crossed = Machine(slowing=crossing).sustained(duration_s=FOR_S)
    assert "read[beam=1] is faster than read[beam=2] at first, and slower in the end" in map(
        str, crossed.swaps
    )


def test_too_short_a_time_is_said_to_be_too_short() -> None:
    report = Machine().sustained(duration_s=1.0)
    assert report.trend is None
    assert "measure longer" in sustained_findings(report).notes[0]
    assert report.profile.operators.keys() == VARIANTS, "one round in any case"


def test_what_always_fails_does_not_go_on_forever() -> None:
    with pytest.raises(ProfileError, match="failed on every input"):
        Machine({("shrink", 1): 0, ("shrink", 4): 0}).sustained(duration_s=FOR_S)
    report = Machine({("read", 2): 0}).sustained(duration_s=FOR_S)
    assert report.profile.operators.keys() == VARIANTS - {"read[beam=2]"}
    assert list(report.failed) == ["read[beam=2]"]
    with pytest.raises(ProfileError, match="brings no inputs"):
        Machine().sustained((), duration_s=1.0)


def test_progress_is_the_share_of_the_time() -> None:
    shares: list[float] = []
    Machine().sustained(duration_s=FOR_S, on_progress=shares.append)
    assert shares == sorted(shares)
    assert shares[0] < 0.05
    assert 1.0 <= shares[-1] < 1.1


def test_a_stall_is_a_note() -> None:
    report = Machine(stall=lambda call: 500.0 if call == 31 else 0.0).report(budget_s=1e9)
    (note,) = brief_findings(report).notes
    assert note.startswith("1 hiccups of the machine")
    assert "up to 500000 ms" in note
