"""What a demo's requests come to: by hand, and sums that hold for any requests."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compass_coordinator.demo.scores import (
    Verdict,
    nearest_rank,
    phase_total,
    request_cost_usd,
    served,
    totals_by_pipeline,
    unaccounted_s,
)
from compass_shared.query import Query, Slo

SITES: Mapping[str, Any] = {
    "phone": {"compute_s_usd": 0.001, "egress_byte_usd": 1e-8},
    "cloud": {"compute_s_usd": 0.01, "egress_byte_usd": 1e-7},
}
QUERY = Query(
    name="q1",
    origin="phone",
    pipeline="p",
    rate_hz=1.0,
    slo=Slo(latency_p95_s=0.5, accuracy=0.8, cost_usd_per_1000=3.0),
    weight=2.0,
)
LOCAL = {
    "site": "phone",
    "operators": ["a"],
    "wall_s": 0.11,
    "timings": [{"device_s": 0.1}],
    "sent_bytes": 0,
    "received_bytes": 0,
}
REMOTE = {
    "site": "cloud",
    "operators": ["b", "c"],
    "wall_s": 0.25,
    "timings": [{"device_s": 0.1}, {"device_s": 0.05}],
    "sent_bytes": 20_000,
    "received_bytes": 1_000,
}
LOCAL_USD = 0.1 * 0.001
REMOTE_USD = 0.15 * 0.01 + 20_000 * 1e-8 + 1_000 * 1e-7


def answered(latency_s: float = 0.4, score: float | None = 0.9, **changes: Any) -> dict[str, Any]:
    """A request that got its answer."""
    return {
        "query": "q1",
        "error": None,
        "latency_s": latency_s,
        "score": score,
        "source": "assigned",
        "segments": [LOCAL, REMOTE],
        **changes,
    }


def failed() -> dict[str, Any]:
    """A request that began and ended with an error."""
    return answered(error="DeadlineError", score=None, segments=[])


def refused() -> dict[str, Any]:
    """A request that was turned away before it began."""
    return {"query": "q1", "error": "RefusedError", "problem": "no plan"}


def test_nearest_rank() -> None:
    values = [5.0, 1.0, 3.0, 2.0, 4.0]
    assert [nearest_rank(values, share) for share in (0.01, 0.2, 0.21, 0.5, 0.95, 1.0)] == [1, 1, 2, 3, 5, 5]
    assert nearest_rank([1.0] * 19 + [math.inf], 0.95) == 1.0
    assert nearest_rank([1.0] * 18 + [math.inf] * 2, 0.95) == math.inf


def test_a_request_costs_its_compute_and_what_each_site_sends() -> None:
    assert request_cost_usd(answered(), SITES, "phone") == pytest.approx(LOCAL_USD + REMOTE_USD)
    assert request_cost_usd(answered(segments=[LOCAL]), SITES, "phone") == pytest.approx(LOCAL_USD)


def test_what_segments_do_not_explain_is_unaccounted() -> None:
    assert unaccounted_s(answered(latency_s=0.4)) == pytest.approx(0.04)


def test_a_query_in_numbers() -> None:
    requests = [answered(0.2, 1.0), answered(0.4, 0.9), answered(0.6, 0.8, source="fallback"), failed()]
    row = served(QUERY, requests, SITES)
    assert (row.sent, row.answered, row.refused, row.failed, row.on_fallback) == (4, 3, 0, 1, 1)
    assert row.latencies_s == (0.2, 0.4, 0.6)
    assert row.latency_p95_s is None, "the request that failed took for ever"
    assert row.accuracy == pytest.approx(0.9)
    assert row.accuracy_se == pytest.approx(0.1 / math.sqrt(3))
    assert row.cost_usd_per_1000 == pytest.approx(1000 * (LOCAL_USD + REMOTE_USD))
    assert row.in_time == 2
    assert row.unaccounted_s == pytest.approx(0.04)


def test_a_clip_is_one_score_whatever_its_length() -> None:
    clips = [("walk", 0.8, 10), ("run", 1.0, 20), ("walk", 0.6, 10)]
    played = [(name, score) for name, score, length in clips for _ in range(length)]
    requests = [answered(score=score, input=name, index=i) for i, (name, score) in enumerate(played)]
    row = served(QUERY, [*reversed(requests), failed()], SITES, clips=True)
    assert row.accuracy == pytest.approx(34 / 40), "the longer clip counts for more"
    assert row.clips == 3
    assert row.accuracy_se == pytest.approx(0.2 / math.sqrt(3))
    assert served(QUERY, requests, SITES).clips is None


@pytest.mark.parametrize(
    ("requests", "verdict"),
    [
        ([], Verdict.IDLE),
        ([refused(), refused()], Verdict.REFUSED),
        ([answered(), answered()], Verdict.MET),
        ([answered(0.51), answered(9.0, 0.0)], Verdict.LATENCY),
        ([answered(0.5, 0.79)], Verdict.ACCURACY),
        ([answered(segments=[LOCAL, REMOTE, REMOTE])], Verdict.COST),
        ([failed()], Verdict.FAILED),
        ([answered(), failed()], Verdict.FAILED),
        ([answered(), refused()], Verdict.FAILED),
        ([*[answered()] * 19, failed()], Verdict.MET),
        ([*[answered()] * 18, failed(), failed()], Verdict.FAILED),
    ],
)
def test_the_verdict_is_the_first_objective_that_broke(
    requests: list[dict[str, Any]], verdict: Verdict
) -> None:
    assert served(QUERY, requests, SITES).verdict is verdict


def test_an_error_of_a_refusing_worker_is_no_refusal_of_the_query() -> None:
    row = served(QUERY, [answered(error="RefusedError", score=None)], SITES)
    assert (row.refused, row.failed) == (0, 1)


def test_a_phase_in_one_line() -> None:
    other = Query(name="q2", origin="phone", pipeline="p", rate_hz=1.0, slo=QUERY.slo, weight=3.0)
    slow = [answered(0.6), answered(0.3)]
    rows = {
        "q1": served(QUERY, [answered(), answered()], SITES),
        "q2": served(other, [*slow, failed(), refused()], SITES),
    }
    planned = {"q1": {"plan": {}}, "q2": {"plan": None}}
    total = phase_total("compass", [QUERY, other], rows, planned, seconds=4.0)
    assert (total.planned_queries, total.planned_goodput) == (1, 2.0)
    assert (total.met_queries, total.met_goodput) == (1, 2.0)
    assert (total.sent, total.answered, total.refused, total.failed) == (6, 4, 1, 1)
    assert total.good_per_s == pytest.approx(3 / 4), "two of the first, one of the second"
    assert total.cost_usd_per_hour == pytest.approx(3600 * 4 * (LOCAL_USD + REMOTE_USD) / 4)


def test_each_pipeline_has_a_line_of_its_own_where_there_are_several() -> None:
    other = Query(name="q2", origin="phone", pipeline="q", rate_hz=1.0, slo=QUERY.slo, weight=3.0)
    rows = {"q1": served(QUERY, [answered()], SITES), "q2": served(other, [answered(), failed()], SITES)}
    planned = {"q1": {"plan": {}}, "q2": {"plan": None}}
    totals = totals_by_pipeline("compass", [QUERY, other], rows, planned, seconds=4.0)
    assert {name: (total.sent, total.planned_goodput) for name, total in totals.items()} == {
        "p": (1, 2.0),
        "q": (2, 0),
    }
    assert totals_by_pipeline("compass", [QUERY], rows, planned, seconds=4.0) == {}


def test_requests_without_quality_are_not_good_ones() -> None:
    rows = {"q1": served(QUERY, [answered(0.1, 0.5)], SITES)}
    total = phase_total("compass", [QUERY], rows, {"q1": {"plan": {}}}, seconds=1.0)
    assert (rows["q1"].in_time, total.good_per_s) == (1, 0.0)


REQUESTS = st.lists(
    st.one_of(
        st.builds(answered, st.floats(0.01, 2.0), st.floats(0, 1)), st.builds(failed), st.builds(refused)
    ),
    max_size=40,
)


@given(REQUESTS)
def test_everything_sent_is_counted_once(requests: list[dict[str, Any]]) -> None:
    row = served(QUERY, requests, SITES)
    assert row.sent == len(requests) == row.answered + row.refused + row.failed
    assert 0 <= row.in_time <= row.answered == len(row.latencies_s)
    if row.verdict is Verdict.MET:
        assert not row.refused
        assert row.latency_p95_s is not None
        assert row.latency_p95_s <= QUERY.slo.latency_p95_s
        assert row.accuracy is not None
        assert row.accuracy >= QUERY.slo.accuracy
    total = phase_total("p", [QUERY], {"q1": row}, {"q1": {"plan": {}}}, seconds=2.0)
    assert total.sent == row.sent
    assert total.good_per_s <= row.in_time / 2.0
