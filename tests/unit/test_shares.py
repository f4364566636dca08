"""Shares: who is admitted, how much a query gets, and which epoch is in force."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compass_agent.shares import BURST_REQUESTS, GRACE_S, HEADROOM, ShareTable, Ticket
from compass_shared.calls import CallHeader
from compass_shared.errors import RefusedError
from compass_shared.messages import ShareMessage
from compass_shared.plan import Epoch

SHARE = ShareMessage(
    query="q1",
    origin="phone",
    pipeline="tiny",
    digest="d" * 64,
    epoch=Epoch(coordinator=2, sequence=7),
    variants=("scale[factor=2.0]", "label"),
    rate_hz=2.0,
    cores=0.5,
    token="secret",
)
HEADER = CallHeader(
    request="r1",
    attempt=1,
    query="q1",
    pipeline="tiny",
    digest="d" * 64,
    epoch=SHARE.epoch,
    token="secret",
    deadline_s=1.0,
    operators=("scale", "label"),
    knobs={"scale": {"factor": 2.0}},
    exports=("label",),
)
NEXT = dataclasses.replace(SHARE, epoch=Epoch(coordinator=2, sequence=8), token="fresh")
PLANNED_S = SHARE.cores / SHARE.rate_hz


def _table(*shares: ShareMessage, now_s: float = 0.0) -> ShareTable:
    table = ShareTable()
    for share in shares or (SHARE,):
        assert table.take(share, now_s) is None
    return table


def _admit(table: ShareTable, request: str, now_s: float = 0.0) -> Ticket:
    return table.admit(dataclasses.replace(HEADER, request=request), now_s)


def _admitted(table: ShareTable, now_s: float, cost_s: float, *, limit: int = 1000) -> int:
    """How many calls in a row are run before one is refused."""
    for count in range(limit):
        try:
            ticket = _admit(table, f"{now_s}-{count}", now_s)
        except RefusedError:
            return count
        table.settle(ticket, cost_s)
    return limit


def test_the_token_of_a_share_is_known_until_its_grace_ends() -> None:
    table = _table(SHARE)
    assert table.knows("q1", "secret", 0.0)
    assert not table.knows("q1", "guess", 0.0)
    assert not table.knows("q2", "secret", 0.0)
    assert not table.knows("q1", "", 0.0)
    table.take(NEXT, 1.0)
    assert table.knows("q1", "secret", 1.0 + GRACE_S / 2)
    assert table.knows("q1", "fresh", 1.0 + GRACE_S / 2)
    assert not table.knows("q1", "secret", 1.0 + GRACE_S)
    table.withdraw("q1", 50.0)
    assert table.knows("q1", "fresh", 50.0)
    assert not table.knows("q1", "fresh", 50.0 + GRACE_S)


def test_what_was_assigned_is_admitted() -> None:
    assert _admit(_table(), "r1").reserved_s == PLANNED_S


@pytest.mark.parametrize(
    "change",
    [
        {"query": "q2"},
        {"token": "guess"},
        {"token": "sécret \udcff"},
        {"token": ""},
        {"epoch": Epoch(coordinator=2, sequence=6)},
        {"epoch": Epoch(coordinator=2, sequence=8)},
        {"pipeline": "huge"},
        {"digest": "e" * 64},
        {"knobs": {"scale": {"factor": 1.0}}},
        {"knobs": {"scale": {"factor": 2}}},
        {"knobs": {}},
        {"operators": ("scale", "classify")},
    ],
    ids=str,
)
def test_what_was_not_assigned_is_refused_for_good(change: dict[str, object]) -> None:
    table = _table()
    with pytest.raises(RefusedError) as caught:
        table.admit(dataclasses.replace(HEADER, **change), 0.0)  # type: ignore[arg-type]
    assert caught.value.retry_after_s is None
    assert _admitted(table, 0.0, PLANNED_S) == BURST_REQUESTS, "it cost the query nothing"


def test_an_unknown_query_and_a_wrong_token_sound_alike() -> None:
    said = []
    for table, change in ((ShareTable(), {}), (_table(), {"token": "guess"})):
        with pytest.raises(RefusedError) as caught:
            table.admit(dataclasses.replace(HEADER, **change), 0.0)  # type: ignore[arg-type]
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_a_burst_is_served_and_then_the_rate_holds() -> None:
    table = _table()
    assert _admitted(table, 0.0, 0.0) == BURST_REQUESTS
    with pytest.raises(RefusedError) as caught:
        _admit(table, "more")
    assert caught.value.retry_after_s == pytest.approx(1 / (SHARE.rate_hz * HEADROOM))
    assert _admitted(table, caught.value.retry_after_s or 0.0, 0.0) == 1


def test_core_seconds_hold_a_query_whose_requests_are_dearer_than_planned() -> None:
    table, busy_s, now_s = _table(), 0.0, 0.0
    cost_s = 4 * PLANNED_S
    for step in range(4000):  # 400 s at five times the planned rate
        now_s = step / 10
        try:
            ticket = _admit(table, f"r{step}", now_s)
        except RefusedError:
            continue
        table.settle(ticket, cost_s)
        busy_s += cost_s
    burst_s = BURST_REQUESTS * PLANNED_S
    assert busy_s / now_s == pytest.approx(SHARE.cores * HEADROOM, rel=0.05, abs=(burst_s + cost_s) / now_s)


def test_cheap_requests_are_not_held_by_core_seconds() -> None:
    table = _table()
    for step in range(200):
        table.settle(_admit(table, f"r{step}", step / SHARE.rate_hz), PLANNED_S)


def test_poisson_arrivals_at_the_planned_rate_are_hardly_refused() -> None:
    rng, table, now_s, refused = random.Random(3), _table(), 0.0, 0
    for count in range(20_000):
        now_s += rng.expovariate(SHARE.rate_hz)
        try:
            table.settle(_admit(table, f"r{count}", now_s), rng.uniform(0.5, 1.5) * PLANNED_S)
        except RefusedError:
            refused += 1
    assert refused / 20_000 < 0.002


def test_many_at_once_are_reserved_before_they_are_measured() -> None:
    table = _table(dataclasses.replace(SHARE, rate_hz=100.0, cores=0.1))
    admitted = 0
    while True:
        try:
            _admit(table, f"r{admitted}")
        except RefusedError:
            break
        admitted += 1
    assert admitted == pytest.approx(625, abs=1)  # 5 s of 100 Hz x 1.25, none of them settled


def test_segments_and_attempts_of_one_request_count_once() -> None:
    table = _table()
    for _ in range(BURST_REQUESTS * 3):
        table.settle(_admit(table, "same"), 0.0)
    assert _admitted(table, 0.0, 0.0) == BURST_REQUESTS - 1


def test_a_failed_call_is_charged_what_it_reserved() -> None:
    table = _table()
    for index in range(BURST_REQUESTS):
        table.settle(_admit(table, f"r{index}"), None)
    with pytest.raises(RefusedError):
        _admit(table, "more")


def test_a_call_that_never_started_costs_nothing() -> None:
    table = _table()
    for _ in range(BURST_REQUESTS * 3):
        table.refund(_admit(table, "r1"), "r1")
    assert _admitted(table, 0.0, PLANNED_S) == BURST_REQUESTS


def test_one_request_dearer_than_the_bucket_still_runs() -> None:
    table = _table()
    table.settle(_admit(table, "r1"), 1000.0)
    table.settle(_admit(table, "r2", now_s=100_000.0), 1000.0)
    with pytest.raises(RefusedError) as caught:
        _admit(table, "r3", now_s=100_000.0)
    assert caught.value.retry_after_s == pytest.approx(1000 / (SHARE.cores * HEADROOM), rel=0.01)


# --- epochs ---------------------------------------------------------------------------------------


def test_a_lower_coordinator_epoch_is_refused_for_every_query() -> None:
    table = _table()
    old = dataclasses.replace(SHARE, query="q2", epoch=Epoch(coordinator=1, sequence=99))
    assert "older than 2" in (table.take(old, 0.0) or "")
    assert table.queries == ("q1",)


def test_an_older_share_is_refused_and_the_same_one_changes_nothing() -> None:
    table = _table(NEXT)
    assert table.take(SHARE, 0.0) == "superseded by 2.8"
    fresh = dataclasses.replace(HEADER, epoch=NEXT.epoch, token="fresh")
    for index in range(BURST_REQUESTS):
        table.settle(table.admit(dataclasses.replace(fresh, request=f"r{index}"), 0.0), 0.0)
    assert table.take(NEXT, 0.0) is None
    with pytest.raises(RefusedError):
        table.admit(dataclasses.replace(fresh, request="more"), 0.0)


def test_calls_under_way_during_a_switch_are_served_for_a_while() -> None:
    table = _table(SHARE, NEXT, now_s=50.0)
    assert _admit(table, "r1", now_s=50.0 + 0.9 * GRACE_S)
    assert table.admit(dataclasses.replace(HEADER, epoch=NEXT.epoch, token="fresh"), 51.0)
    with pytest.raises(RefusedError):
        _admit(table, "r2", now_s=50.0 + GRACE_S)


def test_only_one_epoch_back_is_honoured() -> None:
    table = _table(SHARE, NEXT, dataclasses.replace(NEXT, epoch=Epoch(coordinator=2, sequence=9)))
    with pytest.raises(RefusedError):
        _admit(table, "r1")


def test_a_token_of_another_epoch_is_refused() -> None:
    table = _table(SHARE, NEXT)
    with pytest.raises(RefusedError):
        table.admit(dataclasses.replace(HEADER, epoch=NEXT.epoch), 0.0)


def test_a_withdrawn_query_ends_after_the_grace() -> None:
    table = _table()
    table.withdraw("q1", 50.0)
    table.withdraw("q1", 51.0)
    table.withdraw("never known", 51.0)
    assert table.queries == ()
    assert _admit(table, "r1", now_s=52.0)
    with pytest.raises(RefusedError):
        _admit(table, "r2", now_s=50.0 + GRACE_S)


@pytest.mark.parametrize(
    "change",
    [{"rate_hz": 0.0}, {"cores": 0.0}, {"cores": -1.0}, {"rate_hz": float("nan")}, {"token": ""}],
    ids=str,
)
def test_a_share_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    broken = dataclasses.replace(SHARE, **change)  # type: ignore[arg-type]
    assert "must" in (ShareTable().take(broken, 0.0) or "")


@given(
    costs=st.lists(st.floats(0, 20), min_size=1, max_size=200),
    gaps=st.lists(st.floats(0, 2), min_size=1, max_size=200),
)
def test_no_query_gets_more_than_its_share(costs: list[float], gaps: list[float]) -> None:
    table, now_s, busy_s, dearest_s = _table(), 0.0, 0.0, 0.0
    for index, (cost_s, gap_s) in enumerate(zip(costs, gaps, strict=False)):
        now_s += gap_s
        try:
            ticket = _admit(table, f"r{index}", now_s)
        except RefusedError:
            continue
        table.settle(ticket, cost_s)
        busy_s += cost_s
        dearest_s = max(dearest_s, cost_s)
    burst_s = BURST_REQUESTS * PLANNED_S
    assert busy_s <= burst_s + dearest_s + SHARE.cores * HEADROOM * now_s + 1e-6
