"""The demo's tables say the same on narrow and on wide screens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from compass_coordinator.demo.scores import Served, Verdict
from compass_coordinator.demo.screen import WIDE, fixed_split_lines, hint, query_table, split_line
from compass_shared.pipeline import Pipeline
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
    clips=None,
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


@pytest.mark.parametrize("width", [80, 170])
def test_queries_stand_below_their_pipelines_where_there_are_several(width: int) -> None:
    own, other = replace(QUERY, pipeline="reading"), replace(QUERY, name="car-1", pipeline="driving")
    planned = {**PLANNED, "queries": {**PLANNED["queries"], "car-1": PLANNED["queries"]["phone-1"]}}
    rows = {"phone-1": ROW, "car-1": replace(ROW, query="car-1")}
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(query_table("fixed", [other, own], planned, rows, width=width))
    shown = capture.get()
    assert "a fixed split" in shown
    places = [shown.index(word) for word in ("driving", "car-1", "reading", "phone-1")]
    assert places == sorted(places)


def test_floors_of_extra_metrics_stand_below_the_plan() -> None:
    query = replace(QUERY, slo=replace(QUERY.slo, metrics={"recall": 0.7, "unknown": 0.1}))
    decision = {"line": LINE, "refusal": None, "plan": {"estimate": {"metrics": {"recall": 0.8}}}}
    console = Console(width=170, color_system=None)
    with console.capture() as capture:
        console.print(
            query_table(
                "compass", [query], {**PLANNED, "queries": {"phone-1": decision}}, {"phone-1": ROW}, width=170
            )
        )
    assert "recall 0.80, SLO 0.7" in capture.get()
    assert "unknown" not in capture.get()


def test_a_fixed_split_is_said_by_tier_in_the_order_of_operators() -> None:
    split = {"prepare": "device", "detect": "edge", "track": "device", "classify": "cloud"}
    assert split_line(split) == "device: prepare track | edge: detect | cloud: classify"
    fields: dict[str, Any] = {"version": "1", "description": "", "operators": (), "output": "x"}
    pipelines = [Pipeline(name="none", **fields), Pipeline(name="some", fixed_split=split, **fields)]
    assert fixed_split_lines(pipelines) == [f"fixed split of some: {split_line(split)}"]


def test_the_hint_says_how_much_verdicts_rest_on() -> None:
    few, idle = replace(ROW, sent=7), replace(ROW, sent=90, answered=0)
    assert str(hint([{"a": ROW, "b": idle}, {"a": few}])).startswith(
        "Verdicts rest on 7 to 26 requests a query:"
    )
    assert "requests a query, accuracies of streams on 3 clips:" in str(hint([{"a": replace(ROW, clips=3)}]))
    assert hint([{"b": idle}]) is None
