"""``compass plan`` from files written by hand: what it prints, its exit codes, and its mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from compass_coordinator.cli import main
from compass_coordinator.commands import progress
from compass_coordinator.commands.progress import busy_with
from compass_coordinator.schemas import schema_of

PIPELINE = """\
schema = 1
name = "{name}"
version = "1.0.0"
output = "name"

[[operators]]
name = "find"
inputs = ["request"]
runtime = "python"
function = ".operators:find"
knobs = {{ model = ["small", "large"] }}
speed_class = "vision"

[[operators]]
name = "name"
inputs = ["find"]
runtime = "python"
function = ".operators:name"
"""

FLEET = """\
schema = 1
name = "street"

[[sites]]
name = "bell"
count = 2
tier = "device"
kind = "core"
cores = 1
slowdowns = { default = 5 }

[[sites]]
name = "pool"
tier = "cloud"
kind = "core"
cores = 2
prices = { core_s_usd = 1e-4 }

[[links]]
from = "bell-*"
to = "pool"
rtt_s = 0.04
up_bps = 2e6
down_bps = 8e6

[[queries]]
name = "visitor"
origin = "bell-*"
pipeline = "door"
rate_hz = 0.5
slo = { latency_p95_s = 0.5, accuracy = 0.9, cost_usd_per_1000 = 0.1 }

[[queries]]
name = "parcel"
origin = "bell-1"
pipeline = "gate"
rate_hz = 0.5
slo = { latency_p95_s = 0.5, accuracy = 0.9, cost_usd_per_1000 = 0.1 }

[[queries]]
name = "dream"
origin = "bell-2"
pipeline = "door"
rate_hz = 0.5
slo = { latency_p95_s = 0.01, accuracy = 0.9, cost_usd_per_1000 = 0.1 }
"""

WORK = {
    "find[model=small]": {"mean_s": 0.030, "output_mean_bytes": 2e4},
    "find[model=large]": {"mean_s": 0.120, "output_mean_bytes": 2e4},
    "name": {"mean_s": 0.010, "output_mean_bytes": 200},
}
ACCURACY = {"find[model=small];name": 0.8, "find[model=large];name": 0.95}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of two pipelines, profiles in a file for each."""
    (tmp_path / "fleet.toml").write_text(FLEET)
    for name in ("door", "gate"):
        (tmp_path / f"{name}.toml").write_text(PIPELINE.format(name=name))
        kind = {"kind": "core", "pipeline": name, "request_mean_bytes": 9e4, "operators": WORK}
        document: dict[str, Any] = {"schema": 1, "kind": "measurements", "kinds": [kind]}
        (tmp_path / f"{name}-profiles.json").write_text(json.dumps(document))
        configs = {key: {"mean": mean, "standard_error": 0, "count": 9} for key, mean in ACCURACY.items()}
        table = {"schema": 1, "kind": "accuracy", "pipeline": name, "metric": "m", "split": "s"}
        (tmp_path / f"{name}-accuracy.json").write_text(
            json.dumps({**table, "provenance": {"models": {}}, "configs": configs})
        )
    return tmp_path


def plan(folder: Path, *options: str, pipelines: tuple[str, ...] = ("door", "gate")) -> int:
    """Run ``compass plan`` on the files of some pipelines."""
    files = [f"--fleet={folder / 'fleet.toml'}"]
    for name in pipelines:
        files.append(f"--pipeline={folder / name}.toml")
        files.append(f"--profiles={folder / name}-profiles.json")
        files.append(f"--accuracy={folder / name}-accuracy.json")
    return main(["plan", *files, *options])


def test_several_pipelines_are_planned_together(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(folder) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "visitor-1: 0.5/s, p95 <= 500 ms" in captured.out
    assert "parcel: 0.5/s" in captured.out
    assert "find(large)" in captured.out
    assert "3 of 4 queries served, goodput 3 of at most 3" in captured.out


def test_queries_of_other_pipelines_are_left_out_and_said_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plan(folder, pipelines=("gate",)) == 0
    captured = capsys.readouterr()
    assert "1 of 1 queries served" in captured.out
    assert "compass: 3 queries of pipelines without --pipeline are left out: door" in captured.err


def test_json_is_valid_by_its_schema(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(folder, "--json", "--explain", "visitor-1") == 0
    document = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator(schema_of("plan")).validate(document)
    assert document["queries"]["visitor-1"]["plan"]["placement"]
    assert document["queries"]["dream"]["binding"] == "latency"
    assert document["queries"]["dream"]["relaxed"]["latency_p95_s"] > 0.01
    explained = document["explanation"]
    assert explained["query"]["name"] == "visitor-1"
    assert explained["chosen"][0]["line"] == document["queries"]["visitor-1"]["line"]
    assert {"cheapest", "fastest", "most accurate"} <= {each["title"] for each in explained["alternatives"]}


def test_an_explanation_for_people(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(folder, "--explain", "visitor-1") == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("visitor-1: 0.5/s")
    assert shown[0].endswith("weight 1, from bell-1")
    assert shown[1].startswith("chosen               ")
    assert "to spare" in shown[2]
    assert any(line.startswith("fastest") for line in shown)
    assert any("MISSES by" in line for line in shown), "the small model is not accurate enough"
    assert plan(folder, "--explain", "dream") == 0
    assert "relax latency by" in capsys.readouterr().out


def test_an_unknown_query_cannot_be_explained(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(folder, "--explain", "visitors") == 2
    said = capsys.readouterr().err
    assert "no query is called 'visitors'; there are visitor-1, visitor-2, parcel, dream" in said


def test_at_least_cost_everything_has_to_be_served(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(folder, "--objective", "cost") == 1
    shown = capsys.readouterr().out
    assert "not everything can be served: 1 of 4 queries have no plan" in shown
    assert "  dream: the fastest plan" in shown
    fleet = folder / "fleet.toml"
    fleet.write_text(fleet.read_text().replace("latency_p95_s = 0.01", "latency_p95_s = 1.0"))
    assert plan(folder, "--objective", "cost") == 0
    assert "everything is served for" in capsys.readouterr().out


def test_units_are_bought_as_needed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fleet = folder / "fleet.toml"
    text = fleet.read_text().replace(
        "cores = 2\n", "units = { cores = 1, usd_per_hour = 0.5, maximum = 9 }\n"
    )
    fleet.write_text(text.replace("latency_p95_s = 0.01", "latency_p95_s = 0.9"))
    assert plan(folder, "--provision", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator(schema_of("plan")).validate(document)
    bought = document["provision"]
    count = bought["counts"]["pool"]
    assert 1 <= count < 9
    assert bought["units_usd_per_hour"] == 0.5 * count
    assert bought["goodput"] == 1
    assert document["sites"]["pool"]["cores"] == count
    assert plan(folder, "--provision", "--goodput", "0.5") == 0
    shown = capsys.readouterr().out
    assert "buy " in shown
    assert "USD an hour: " in shown


def test_provisioning_says_what_it_lacks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(folder, "--provision") == 1
    assert "no site comes in units" in capsys.readouterr().err
    assert plan(folder, "--goodput", "0.5") == 2
    assert "give both, or neither" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        plan(folder, "--provision", "--goodput", "1.5")
    assert "above 0 and at most 1" in capsys.readouterr().err


def test_of_many_queries_there_is_an_overview(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fleet = folder / "fleet.toml"
    fleet.write_text(fleet.read_text().replace("count = 2", "count = 45"))
    assert plan(folder, "--policy", "device", pipelines=("door",)) == 0
    shown = capsys.readouterr().out
    assert "    46 refused for accuracy (45), latency (1)" in shown
    assert "... and 43 more; --json lists all" in shown
    assert plan(folder, "--policy", "cloud", pipelines=("door",)) == 0
    shown = capsys.readouterr().out
    assert "cloud\n" in shown
    assert "busiest: pool" in shown
    assert len(shown.splitlines()) < 20


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('kind = "core"\ncores = 2', 'kind = "rack"\ncores = 2', "have no kind 'rack'; they have core"),
        ('from = "bell-*"', 'from = "ball-*"', "[links[0].from]: no agent or site is called 'ball-*'"),
        ("slowdowns = { default = 5 }", "slowdowns = { default = 0 }", "[sites[0].slowdowns[...]]"),
    ],
)
def test_mistakes_are_exit_code_2_with_file_and_field(
    folder: Path, old: str, new: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = folder / "fleet.toml"
    assert FLEET.count(old) == 1
    fleet.write_text(FLEET.replace(old, new))
    assert plan(folder) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(fleet) in line
    assert said in line


def test_wrong_profiles_are_exit_code_1_with_the_next_step(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "door-profiles.json"
    file.write_text(file.read_text().replace("find[model=small]", "find[model=smal]"))
    assert plan(folder) == 1
    assert "did you mean 'find[model=small]'?" in capsys.readouterr().err


def test_what_a_pipeline_declares_is_kept_and_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A fan-out that must stay on the device, a floor for an extra metric, a split by hand."""
    pipeline = folder / "door.toml"
    pipeline.write_text(
        pipeline.read_text()
        + 'items = "find"\nmust_run_on = "origin"\n\n[metric]\nname = "m"\nfunction = ".m:m"\n\n'
        + '[[extra_metrics]]\nname = "calm"\nfunction = ".m:calm"\n\n'
        + '[fixed_split]\nfind = "cloud"\nname = "device"\n'
    )
    fleet = folder / "fleet.toml"
    floor = "cost_usd_per_1000 = 0.1, metrics = { calm = 0.5 } }"
    fleet.write_text(fleet.read_text().replace("cost_usd_per_1000 = 0.1 }", floor))
    table = folder / "door-accuracy.json"
    document = json.loads(table.read_text())
    calm = {"mean": 0.7, "standard_error": 0, "count": 9}
    document["others"] = {"calm": dict.fromkeys(document["configs"], calm)}
    table.write_text(json.dumps(document))
    work = folder / "door-profiles.json"
    profiles = json.loads(work.read_text())
    profiles["kinds"][0]["operators"]["name"] |= {"items_mean": 1.0, "items_var": 0.5, "item_s": 0.008}
    work.write_text(json.dumps(profiles))
    for policy in ("compass", "fixed"):
        assert plan(folder, "--policy", policy, pipelines=("door",)) == 0
        shown = capsys.readouterr().out
        assert "calm >= 0.5" in shown
        assert "accuracy 0.950, calm 0.700" in shown
    assert plan(folder, "--json", "--items", "name=3,2", pipelines=("door",)) == 0
    busier = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator(schema_of("plan")).validate(busier)
    assert plan(folder, "--json", pipelines=("door",)) == 0
    before = json.loads(capsys.readouterr().out)
    found = [each["queries"]["visitor-1"]["plan"] for each in (before, busier)]
    assert {each["placement"]["name"] for each in found} == {"bell-1"}
    assert [each["estimate"]["metrics"] for each in found] == [{"calm": 0.7}] * 2
    # Two items more, 8 ms each, on a device that takes five times as long.
    work_s = [each["estimate"]["demand"]["cores@bell-1"] / 0.5 for each in found]
    assert work_s[1] - work_s[0] == pytest.approx(5 * 2 * 0.008)
    assert plan(folder, "--items", "find=3", pipelines=("door",)) == 2
    assert "'find' is no operator that works item by item; there are door/name" in capsys.readouterr().err
    fleet.write_text(fleet.read_text().replace("calm = 0.5", "clam = 0.5"))
    assert plan(folder, pipelines=("door",)) == 2
    error = capsys.readouterr().err
    assert "the metric 'clam'; the extra metrics of pipeline 'door' are: calm" in error
    assert str(fleet) in error


def test_long_work_is_announced_and_short_work_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[tuple[float, Any, tuple[str, ...]]] = []

    class Timer:
        """Runs when the test says so."""

        def __init__(self, seconds: float, function: Any, args: tuple[str, ...]) -> None:
            started.append((seconds, function, args))
            self.cancelled = False

        def start(self) -> None:
            """Wait for the test."""

        def cancel(self) -> None:
            """Nothing is announced any more."""
            started.clear()

    monkeypatch.setattr("compass_coordinator.commands.progress.threading.Timer", Timer)
    with busy_with("counting"):
        ((seconds, function, args),) = started
        assert seconds == progress.PATIENCE_S
        function(*args)
    assert started == []
    assert capsys.readouterr().err == "compass: counting ...\n"
