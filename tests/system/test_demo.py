"""``compass demo`` as a user runs it: its structure and its accounting, not its timing."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from compass_agent.arrivals import arrivals
from compass_shared.fleet_file import load_fleet
from compass_shared.query import Query
from compass_shared.transport import TransportEvent
from support.brokers import Mosquitto
from support.demos import SPLIT, running_demo, shared_options, tiny_options
from support.fleets import BrokerProcess, retained_at, until

pytestmark = [pytest.mark.system, pytest.mark.broker, pytest.mark.timeout(600)]

READ_TEXT = Path(__file__).parents[2] / "examples" / "read_text"
Json = Mapping[str, Any]


def run_to_the_end(options: list[str], folder: Path) -> Json:
    """Run a demo, expect success, and return what it wrote."""
    document = folder / "demo.json"
    with running_demo([*options, "--json", str(document)], folder) as demo:
        code = demo.ended(500.0)
        assert code == 0, "\n".join(demo.shown) + demo.log.read_text()
        assert demo.family == [], "nothing outlives it"
        assert "Traceback" not in "\n".join(demo.shown)
        assert "Accounting: every request ended once" in demo.log.read_text()
    found: Json = json.loads(document.read_text())
    return found


def check_document(document: Json, fleet_file: Path, phases: list[str]) -> None:
    """Structure and accounting of any demo."""
    fleet = load_fleet(fleet_file)
    assert document["fleet_file"] == fleet_file.read_text()
    queries = msgspec.convert(document["queries"], tuple[Query, ...])
    assert queries == fleet.queries
    assert [phase["phase"] for phase in document["phases"]] == phases
    for phase in document["phases"]:
        sites = phase["planned"]["sites"]
        assert {name: site["emulated"] for name, site in sites.items()} == {
            agent.name: agent.profile for agent in fleet.agents
        }
        check_requests(phase, queries, document["seconds"], document["seed"])
        check_plans_were_followed(phase)
        check_totals(phase, queries)
        assert phase["accounting_problems"] == []


def check_requests(phase: Json, queries: tuple[Query, ...], seconds: float, seed: int) -> None:
    """Every request that was to be sent ended exactly once."""
    for query in queries:
        due = len(arrivals(query, seconds=seconds, seed=seed, groups=["any"]))
        ended = sorted(r["index"] for r in phase["requests"] if r["query"] == query.name)
        assert ended == list(range(due))


def check_plans_were_followed(phase: Json) -> None:
    """Operators ran where the plan said, and the workers saw the same calls as the origins."""
    reported: Counter[tuple[str, str, str]] = Counter()
    given_up = set()
    for request in phase["requests"]:
        query, plan = request["query"], phase["planned"]["queries"][request["query"]]["plan"]
        if "latency_s" not in request:
            assert (plan, request["error"]) == (None, "RefusedError"), "turned away, as it was planned"
            continue
        ran = {name: part["site"] for part in request["segments"] for name in part["operators"]}
        if request["error"] is None and request["source"] == "assigned":
            assert ran == plan["placement"]
        elif request["error"] is None:
            assert set(ran.values()) >= {request["query"].rpartition("-")[0]}
        if request["error"] is not None or request["attempts"] > 1:
            given_up.add(query)
        origin = phase["planned"]["queries"][query]["query"]["origin"]
        for part in request["segments"]:
            if part["site"] != origin:
                reported.update((part["site"], query, name) for name in part["operators"])
    counted = {
        (site, query, operator): calls
        for site, by_query in phase["worker_calls"].items()
        for query, operators in by_query.items()
        for operator, calls in operators.items()
        if calls
    }
    offloaded = {key: calls for key, calls in reported.items() if key[0] in phase["worker_calls"]}
    for key in offloaded | counted:
        seen, made = counted.get(key, 0), offloaded.get(key, 0)
        assert seen == made or (seen > made and key[1] in given_up), key


def check_totals(phase: Json, queries: tuple[Query, ...]) -> None:
    """Rows add up to the total, and the requests to the rows."""
    total, rows, requests = phase["total"], phase["queries"], phase["requests"]
    weights = {query.name: query.weight for query in queries}
    assert set(rows) == set(weights)
    for name, row in rows.items():
        own = [request for request in requests if request["query"] == name]
        answered = [request for request in own if request["error"] is None]
        assert row["sent"] == len(own) == row["answered"] + row["refused"] + row["failed"]
        assert row["answered"] == len(answered) == len(row["latencies_s"])
        assert row["refused"] == sum("latency_s" not in request for request in own)
        assert row["on_fallback"] == sum(request["source"] != "assigned" for request in answered)
        if answered:
            mean = sum(request["score"] for request in answered) / len(answered)
            assert row["accuracy"] == pytest.approx(mean)
    for field in ("sent", "answered", "refused", "failed"):
        assert total[field] == sum(row[field] for row in rows.values())
    assert total["sent"] == len(requests)
    planned = {name for name, said in phase["planned"]["queries"].items() if said["plan"] is not None}
    met = {name for name, row in rows.items() if row["verdict"] == "met"}
    assert (total["planned_queries"], total["met_queries"]) == (len(planned), len(met))
    assert total["planned_goodput"] == sum(weights[name] for name in planned)
    assert total["planned_goodput"] == pytest.approx(phase["planned"]["goodput"])
    assert total["met_goodput"] == sum(weights[name] for name in met)


# --- read-text, with real models ------------------------------------------------------------------


@pytest.fixture(scope="module")
def models() -> None:
    """The models of read-text; skips with the reason if they cannot be had."""
    command = [sys.executable, "-m", "compass_agent", "models", "fetch", str(READ_TEXT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    if done.returncode != 0:
        pytest.skip(f"the models of read-text cannot be fetched: {done.stderr.strip()[-300:]}")


@pytest.mark.network
@pytest.mark.usefixtures("models")
def test_the_demo_on_read_text(tmp_path: Path) -> None:
    options = ["--seconds", "5", "--policies", "compass,device", "--plain"]
    document = run_to_the_end(options, tmp_path)
    check_document(document, READ_TEXT / "fleet.toml", ["compass", "device"])
    compass, device = document["phases"]
    assert len(document["queries"]) >= 9
    assert len(compass["planned"]["sites"]) == 5
    assert compass["total"]["planned_goodput"] >= device["total"]["planned_goodput"]
    for said in device["planned"]["queries"].values():
        if said["plan"] is not None:
            assert set(said["plan"]["placement"].values()) == {said["query"]["origin"]}
    checks = document["accuracy_checks"]
    assert len(checks) == 4
    assert all(check["inputs"] > 0 for check in checks)
    assert all(check["now"] == pytest.approx(check["profile"], abs=0.05) for check in checks)


# --- a tiny bundle, which needs nothing from anywhere ---------------------------------------------


def test_the_demo_on_a_broker_of_ones_own_leaves_nothing_there(tmp_path: Path) -> None:
    others = "compass/1/tiny-demo/agents/somebody/hello"
    with Mosquitto(tmp_path) as process:
        broker = BrokerProcess(process)
        asyncio.run(_retain(broker, others))
        options = [*tiny_options(tmp_path), "--seconds", "3", "--policies", "compass,cloud"]
        document = run_to_the_end([*options, "--broker", process.url], tmp_path)
        left = asyncio.run(retained_at(broker, "compass"))
    check_document(document, tmp_path / "fleet.toml", ["compass", "cloud"])
    assert document["phases"][1]["worker_calls"]["cloud"], "the policy offloads whatever it serves"
    assert set(left) == {others}


def test_several_pipelines_share_a_fleet_and_a_query_starts_at_its_worker(tmp_path: Path) -> None:
    options = [*shared_options(tmp_path), "--seconds", "2", "--policies", "compass,fixed"]
    document = run_to_the_end(options, tmp_path)
    check_document(document, tmp_path / "fleet.toml", ["compass", "fixed"])
    pipelines = {query["name"]: query["pipeline"] for query in document["queries"]}
    for phase in document["phases"]:
        assert {name: row["pipeline"] for name, row in phase["queries"].items()} == pipelines
        assert {name: total["sent"] for name, total in phase["pipelines"].items()} == {
            pipeline: sum(row["sent"] for row in phase["queries"].values() if row["pipeline"] == pipeline)
            for pipeline in ("first", "second")
        }
    compass, fixed = document["phases"]
    assert set(compass["planned"]["queries"]["nightly"]["plan"]["placement"].values()) == {"cloud"}
    assert compass["queries"]["nightly"]["answered"] == compass["queries"]["nightly"]["sent"] > 0
    sites = {"device": "phone", "cloud": "cloud"}
    assert fixed["planned"]["queries"]["ask"]["plan"]["placement"] == {
        name: sites[tier] for name, tier in SPLIT.items()
    }
    assert fixed["planned"]["queries"]["look"]["plan"] is None, "its pipeline names no split"
    (said,) = (line for line in (tmp_path / "demo.log").read_text().splitlines() if "fixed split of" in line)
    assert said == "fixed split of first: device: scale | cloud: classify label"


async def _retain(broker: BrokerProcess, topic: str) -> None:
    transport = broker.transport("somebody", [], None)
    events: list[TransportEvent] = []
    transport.start(events.append)
    await until(lambda: events, "a connection")
    transport.publish(topic, b"not the demo's", retain=True)
    await transport.close(flush_s=10.0)
    assert set(await retained_at(broker, "compass")) == {topic}


@pytest.mark.parametrize("when", ["they measure themselves", "serving for"])
def test_ctrl_c_ends_everything(tmp_path: Path, when: str) -> None:
    with running_demo([*tiny_options(tmp_path), "--seconds", "300"], tmp_path) as demo:
        demo.until_shown(when)
        demo.until(lambda: len(demo.family) >= 3, "its processes")
        demo.interrupt()
        assert demo.ended(30.0) == 130
        assert demo.family == []
        assert "Traceback" not in "\n".join(demo.shown)


def test_a_service_manager_can_stop_it(tmp_path: Path) -> None:
    with running_demo([*tiny_options(tmp_path), "--seconds", "300"], tmp_path) as demo:
        demo.until_shown("they measure themselves and their links")
        demo.process.terminate()
        assert demo.ended(30.0) == 130
        assert demo.family == []


def test_a_process_that_dies_is_named_and_everything_ends(tmp_path: Path) -> None:
    with running_demo([*tiny_options(tmp_path), "--seconds", "300"], tmp_path) as demo:
        demo.until_shown("serving for")
        demo.child("compass_agent", "worker", "edge").kill()
        assert demo.ended(30.0) == 1
        assert demo.family == []
        assert any("edge ended with exit code -9" in line for line in demo.shown)
        assert "Traceback" not in "\n".join(demo.shown)


def test_without_its_parent_every_process_ends(tmp_path: Path) -> None:
    with running_demo([*tiny_options(tmp_path), "--seconds", "300"], tmp_path) as demo:
        demo.until_shown("they measure themselves and their links")
        demo.process.kill()
        assert demo.ended(30.0) == -9
        end_s = time.monotonic() + 60.0
        while demo.family and time.monotonic() < end_s:
            time.sleep(0.05)
        assert demo.family == []
