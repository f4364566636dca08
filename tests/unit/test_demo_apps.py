"""What ``compass demo`` is told: applications, bundles and options, without running anything."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec
import pytest

from compass_coordinator.commands import demo
from compass_coordinator.demo import apps
from compass_coordinator.demo.agents import needed_bundles
from compass_coordinator.demo.apps import APPS, app_of, bundles_for, listing
from compass_coordinator.demo.downloads import missing_models
from compass_coordinator.demo.options import DemoOptions
from compass_shared.errors import ConfigError
from compass_shared.fleet_file import load_fleet
from compass_shared.model_cache import ModelCache, sha256_of
from compass_shared.pipeline_file import load_pipeline
from compass_shared.query import Query, Slo
from support.bundles import write_tiny_accuracy, write_tiny_bundle
from support.demos import shared_options, tiny_options

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def parsed(options: list[str], work: Path) -> DemoOptions:
    parser = argparse.ArgumentParser()
    demo.add_options(parser)
    return demo.options_from(parser.parse_args(options), work)


# --- applications ---------------------------------------------------------------------------------


def test_the_default_is_read_text_as_it_always_was(tmp_path: Path) -> None:
    options = parsed([], tmp_path)
    assert options.bundles == {"read-text": EXAMPLES / "read_text"}
    assert options.fleet_file == EXAMPLES / "read_text" / "fleet.toml"
    assert options.accuracy == {"read-text": EXAMPLES / "read_text" / "profile" / "accuracy.json"}
    assert options.phases == ("compass", "device", "cloud")
    assert (options.check_configs, options.measure_s, options.seconds) == (4, 20.0, 15.0)


def test_every_application_has_a_line_and_compares_with_a_fixed_split() -> None:
    lines = listing().splitlines()
    assert [line.split()[0] for line in lines] == list(APPS) == ["read-text", *list(APPS)[1:]]
    assert set(APPS) == {"read-text", "meeting", "gaming", "driving", "mixed"}
    assert all("fixed" in app.policies for app in APPS.values() if app.name != "read-text")


def test_an_unknown_application_is_told_which_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        app_of("chess")
    assert "'chess' is no application" in str(caught.value)
    assert listing() in str(caught.value)


def test_they_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    demo.add_options(parser)
    assert demo.run(parser.parse_args(["--list"])) == 0
    assert capsys.readouterr().out == f"{listing()}\n"


# --- bundles --------------------------------------------------------------------------------------


def test_bundles_come_from_the_command_line_and_else_from_the_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = write_tiny_bundle(tmp_path, name="own")
    example = write_tiny_bundle(tmp_path, name="two-words").rename(tmp_path / "two_words")
    monkeypatch.setattr(apps, "data_folder", lambda _name: tmp_path)
    assert bundles_for({"own", "two-words"}, [own]) == {"own": own, "two-words": example}
    assert bundles_for({"own"}, []) == {"own": own}


def test_a_pipeline_that_nothing_brings_is_named(tmp_path: Path) -> None:
    own = write_tiny_bundle(tmp_path)
    with pytest.raises(ConfigError, match="pipeline 'other', which no --bundle and no example brings"):
        bundles_for({"tiny", "other"}, [own])
    with pytest.raises(ConfigError, match="two bundles bring pipeline 'tiny'"):
        bundles_for({"tiny"}, [own, own])


def test_a_device_runs_the_bundles_of_its_queries_and_a_worker_those_of_all(tmp_path: Path) -> None:
    options = parsed(shared_options(tmp_path), tmp_path)
    fleet = load_fleet(options.fleet_file)
    unused = {**options.bundles, "unused": tmp_path}
    assert {agent.name: set(needed_bundles(agent, unused, fleet.queries)) for agent in fleet.agents} == {
        "cloud": {"first", "second"},
        "phone": {"first"},
        "laptop": {"second"},
    }
    assert needed_bundles(fleet.agents[0], unused, []) == unused, "an agent without a query has some"


# --- mixed: its queries follow from the applications' own fleets ----------------------------------


@pytest.mark.parametrize(("app", "device"), [("gaming", "phone"), ("driving", "car"), ("meeting", "laptop")])
def test_the_queries_of_mixed_follow_their_rule(app: str, device: str) -> None:
    grid: Any = msgspec.toml.decode((EXAMPLES / app / "fleet.toml").read_bytes())["query_grid"]
    latency, accuracy, cost = (sorted(grid[f]) for f in ("latency_p95_s", "accuracy", "cost_usd_per_1000"))
    mixed = {query.name: query for query in load_fleet(EXAMPLES / "mixed" / "fleet.toml").queries}
    wanted = {"origin": device, "pipeline": app, "rate_hz": min(grid["rate_hz"])}
    fast = Slo(latency_p95_s=latency[1], accuracy=accuracy[0], cost_usd_per_1000=cost[2])
    good = Slo(latency_p95_s=latency[2], accuracy=accuracy[2], cost_usd_per_1000=cost[1])
    assert mixed[f"{device}-fast"] == Query(name=f"{device}-fast", slo=fast, weight=2.0, **wanted)
    assert mixed[f"{device}-good"] == Query(name=f"{device}-good", slo=good, weight=1.0, **wanted)
    own = [query for query in load_fleet(EXAMPLES / app / "fleet.toml").queries if query.origin == "cloud"]
    assert mixed[own[0].name] == own[0]
    assert sum(query.pipeline == app for query in mixed.values()) == 3


# --- options --------------------------------------------------------------------------------------


def test_tables_are_the_bundles_own_or_those_given(tmp_path: Path) -> None:
    options = shared_options(tmp_path)
    given = write_tiny_accuracy(tmp_path / "second").rename(tmp_path / "given.json")
    assert parsed([*options, "--accuracy", str(given)], tmp_path).accuracy == {
        "first": tmp_path / "first" / "profile" / "accuracy.json",
        "second": given,
    }
    with pytest.raises(ConfigError, match="pipeline 'second' has no accuracy table"):
        parsed(options, tmp_path)


def test_what_is_given_goes_before_the_applications_own(tmp_path: Path) -> None:
    options = parsed([*tiny_options(tmp_path), "--policies", "fixed"], tmp_path)
    assert (options.phases, options.check_configs, options.measure_s) == (("fixed",), 0, 0.2)


def test_missing_models_are_those_that_the_cache_lacks(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path)
    pipelines, cache = {"tiny": load_pipeline(bundle)}, ModelCache(tmp_path / "cache")
    assert missing_models(pipelines, cache) == {"tiny": ["labels", "plain", "steep"]}
    for file in ("labels.txt", "plain.onnx"):
        cache.put(bundle / file, sha256_of(bundle / file))
    assert missing_models(pipelines, cache) == {"tiny": ["steep"]}
    cache.put(bundle / "steep.onnx", sha256_of(bundle / "steep.onnx"))
    assert missing_models(pipelines, cache) == {}
