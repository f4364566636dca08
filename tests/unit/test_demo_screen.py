"""The demo's tables say the same on narrow and on wide screens."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from compass_coordinator.demo.scores import Served, Verdict
from compass_coordinator.demo.screen import WIDE, query_table
from compass_shared.query import Query, Slo

QUERY = Query(
    name="phone-1",
    origin="phone",
    pipeline="p",
    rate_hz=1.4,
    slo=Slo(latency_p95_s=1.5, accuracy=0.94, cost_usd_per_1000=0.002),
)
ROW = Served(
    query="phone-1",
    sent=26,
    answered=26,
    refused=0,
    failed=0,
    on_fallback=0,
    latencies_s=(0.9,),
    latency_p95_s=1.038,
    accuracy=0.98,
    accuracy_se=0.01,
    cost_usd_per_1000=0.00019,
    verdict=Verdict.MET,
    in_time=26,
    unaccounted_s=0.0,
)
LINE = "phone: prepare(90, 1.0) | edge: detect(det-v5, 640) crop orientation(enabled) recognise(rec-tiny)"
PLANNED: dict[str, Any] = {
    "sites": {"phone": {"emulated": "phone-midrange"}},
    "queries": {
        "phone-1": {
            "line": LINE,
            "refusal": None,
            "plan": {
                "estimate": {"latency_p95_s": 1.457, "accuracy": 0.963, "cost_usd_per_1000": 0.00018},
            },
        }
    },
}


@pytest.mark.parametrize("width", [80, 100, WIDE, 170])
def test_nothing_is_cut_off(width: int) -> None:
    console = Console(width=width, record=True, file=None, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(query_table("compass", [QUERY], PLANNED, {"phone-1": ROW}, width=width))
    text = capture.get()
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= width
    for word in (
        "phone-1",
        "1.4",
        "26",
        "1500",
        "1457",
        "1038",
        "0.94",
        "0.96",
        "0.98",
        "2.00",
        "0.18",
        "met",
    ):
        assert word in text, word
    for word in LINE.replace("(", " ").replace(")", " ").replace(",", " ").split():
        assert word in text, word


def test_a_refusal_shows_its_reason_and_no_figures() -> None:
    decision = {"line": None, "refusal": "costs [too] much", "plan": None}
    planned = {**PLANNED, "queries": {"phone-1": decision}}
    console = Console(width=170, color_system=None)
    with console.capture() as capture:
        console.print(query_table("compass", [QUERY], planned, {"phone-1": ROW}, width=170))
    assert "refused: costs [too] much" in capture.get()
    assert "1500 | - | 1038" in capture.get()
