"""Measurements of a fleet as a file, and ``compass plan`` from it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from compass_coordinator.cli import main
from compass_coordinator.measurements import load_measurements, save_measurements
from compass_coordinator.what_if import problem_from, site_of
from compass_shared.errors import ProfileError
from compass_shared.fleet_file import load_fleet
from compass_shared.pipeline import variant_key
from compass_shared.pipeline_file import load_pipeline
from compass_shared.problem import Problem
from compass_shared.profile import OperatorProfile, Provenance, SiteProfile
from compass_shared.site import Link, Tier
from support.bundles import tiny_accuracy, write_tiny_accuracy, write_tiny_bundle

FLEET = """\
schema = 1
name = "small"

[[agents]]
name = "edge"
tier = "edge"
profile = "edge-nuc"
cores = 2

[[agents]]
name = "phone"
tier = "device"
profile = "phone-midrange"
utilisation_cap = 0.5

[[queries]]
name = "quick"
origin = "phone"
pipeline = "tiny"
rate_hz = 1.0
slo = { latency_p95_s = 0.1, accuracy = 0.9, cost_usd_per_1000 = 1.0 }

[[queries]]
name = "dreamer"
origin = "phone"
pipeline = "tiny"
rate_hz = 1.0
slo = { latency_p95_s = 0.1, accuracy = 0.99, cost_usd_per_1000 = 1.0 }

[[queries]]
name = "other"
origin = "phone"
pipeline = "something-else"
rate_hz = 1.0
slo = { latency_p95_s = 0.1, accuracy = 0.9, cost_usd_per_1000 = 1.0 }
"""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    bundle = write_tiny_bundle(tmp_path)
    write_tiny_accuracy(bundle)
    (tmp_path / "fleet.toml").write_text(FLEET)
    return bundle


def profile(bundle: Path, site: str, mean_s: float) -> SiteProfile:
    """Every variant takes as long."""
    pipeline = load_pipeline(bundle)
    classes = {
        variant_key(op.name, knobs): op.speed_class for op in pipeline.operators for knobs in op.variants()
    }
    return SiteProfile(
        site=site,
        pipeline=pipeline.name,
        digest=pipeline.digest,
        operators={
            key: OperatorProfile(
                variant=key,
                mean_s=mean_s,
                var_s2=(mean_s / 10) ** 2,
                p95_s=1.2 * mean_s,
                count=9,
                output_mean_bytes=100.0,
                speed_class=speed_class,
            )
            for key, speed_class in classes.items()
        },
        request_mean_bytes=1000.0,
        emulated="phone-midrange" if site == "phone" else None,
    )


def measured(bundle: Path, *, sites: Sequence[str] = ("phone", "edge")) -> Problem:
    """A slow phone and a quick edge server with a quick link."""
    pipeline = load_pipeline(bundle)
    fleet = load_fleet(bundle.parent / "fleet.toml")
    links = [
        Link(source=source, target=target, rtt_s=0.002, bandwidth_bps=1e7, bandwidth_rel_sd=0.1)
        for source, target in (("phone", "edge"), ("edge", "phone"))
    ]
    return Problem(
        pipelines={pipeline.name: pipeline},
        sites={agent.name: site_of(agent) for agent in fleet.agents},
        links={(link.source, link.target): link for link in links},
        profiles={
            (site, pipeline.name): profile(bundle, site, {"phone": 0.1, "edge": 0.001}[site])
            for site in sites
        },
        accuracy={pipeline.name: tiny_accuracy(bundle)},
        queries=tuple(query for query in fleet.queries if query.pipeline == pipeline.name),
    )


def test_measurements_come_back_as_they_were(bundle: Path, tmp_path: Path) -> None:
    problem, file = measured(bundle), tmp_path / "measured.json"
    save_measurements(file, problem)
    fleet = load_fleet(tmp_path / "fleet.toml")
    found = problem_from(fleet, problem.pipelines, [load_measurements(file)], problem.accuracy)
    assert found == problem


def test_sites_are_as_fleet_file_and_device_profile_say(bundle: Path, tmp_path: Path) -> None:
    edge, phone = map(site_of, load_fleet(tmp_path / "fleet.toml").agents)
    assert (edge.tier, edge.cores, edge.power_w) == (Tier.EDGE, 2.0, 0.0)
    assert edge.compute_s_usd > 0
    assert (phone.tier, phone.utilisation_cap) == (Tier.DEVICE, 0.5)
    assert phone.cores >= 1
    assert phone.power_w > 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "truncated"),
        ("[]", "Expected `object`"),
        ('{"schema": 1}', "missing required field `kind`"),
        ('{"schema": 2, "kind": "measurements", "sites": [], "links": []}', "of schema 1"),
        ('{"schema": 1, "kind": "accuracy", "sites": [], "links": []}', "expected measurements"),
        ('{"schema": 1, "kind": "measurements", "sites": [], "links": [], "more": 1}', "unknown field"),
    ],
)
def test_what_is_no_measurements_is_refused_with_its_path(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "measured.json"
    file.write_text(content)
    with pytest.raises(ProfileError, match=said) as caught:
        load_measurements(file)
    assert str(file) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="No such file"):
        load_measurements(tmp_path / "none.json")


# --- compass plan ---------------------------------------------------------------------------------


def plan(bundle: Path, *options: str, problem: Problem | None = None) -> int:
    """Run ``compass plan`` on saved measurements."""
    file = bundle.parent / "measured.json"
    save_measurements(file, problem or measured(bundle))
    fleet = bundle.parent / "fleet.toml"
    files = ["--pipeline", str(bundle), "--fleet", str(fleet), "--profiles", str(file)]
    return main(["plan", *files, *options])


def test_a_plan_for_people(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(bundle) == 0
    shown = capsys.readouterr().out
    assert "quick: 1/s, p95 <= 100 ms, accuracy >= 0.9" in shown
    assert "edge: scale(" in shown
    assert "classify(steep)" in shown
    assert "refused: " in shown
    assert "1 of 2 queries served, goodput 1 of at most 1" in shown
    assert "other" not in shown


def test_a_plan_for_programs(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(bundle, "--json") == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    quick, dreamer = document["queries"]["quick"], document["queries"]["dreamer"]
    assert set(quick["plan"]["placement"].values()) == {"edge"}
    assert quick["plan"]["estimate"]["latency_p95_s"] < 0.1
    assert (dreamer["plan"], dreamer["binding"]) == (None, "accuracy")
    assert "0.99" in dreamer["refusal"]
    assert document["profiled"] == ["edge", "phone"]
    assert document["links"] == ["edge>phone", "phone>edge"]
    assert {name: site["emulated"] for name, site in document["sites"].items()} == {
        "edge": None,
        "phone": "phone-midrange",
    }


def test_a_policy_restricts_the_places(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(bundle, "--json", "--policy", "device") == 0
    document = json.loads(capsys.readouterr().out)
    assert [said["plan"] for said in document["queries"].values()] == [None, None]
    assert document["queries"]["quick"]["binding"] == "latency"


def test_an_accuracy_table_may_be_given(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = bundle / "profile" / "accuracy.json"
    elsewhere = own.rename(tmp_path / "accuracy.json")
    assert plan(bundle, "--accuracy", str(elsewhere)) == 0
    assert plan(bundle) == 2
    assert "compass-agent accuracy" in capsys.readouterr().err


def test_a_site_that_was_not_measured_is_not_used(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(bundle, "--json", problem=measured(bundle, sites=["phone"])) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["queries"]["quick"]["plan"] is None
    assert plan(bundle, "--json", problem=measured(bundle, sites=["edge"])) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["goodput"] == 0
    assert document["queries"]["quick"]["plan"] is None


def test_measurements_of_another_version_are_refused(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = measured(bundle)
    file = bundle / "pipeline.toml"
    file.write_text(file.read_text().replace('version = "1.0.0"', 'version = "1.0.1"'))
    assert plan(bundle, problem=problem) == 1
    assert "measure again" in capsys.readouterr().err


def of_models(problem: Problem, **models: str) -> Problem:
    """The same, measured with these models and with what is known of them written down."""
    profiles = {
        where: dataclasses.replace(
            found,
            operators={
                key: dataclasses.replace(
                    work,
                    mean_interval_s=(work.mean_s / 2, work.mean_s),
                    p95_interval_s=(work.mean_s, work.p95_s),
                )
                for key, work in found.operators.items()
            },
            provenance=Provenance(device="a box", date="2026-11-23", runtimes={"x": "1"}, models=models),
        )
        for where, found in problem.profiles.items()
    }
    return dataclasses.replace(problem, profiles=profiles)


def test_provenance_and_intervals_come_back(bundle: Path, tmp_path: Path) -> None:
    problem, file = of_models(measured(bundle), some="a" * 64), tmp_path / "measured.json"
    save_measurements(file, problem)
    fleet = load_fleet(tmp_path / "fleet.toml")
    assert problem_from(fleet, problem.pipelines, [load_measurements(file)], problem.accuracy) == problem


def test_measurements_of_another_model_are_refused_with_both_hashes(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = of_models(measured(bundle), plain="b" * 64)
    assert plan(bundle, problem=problem) == 1
    said = capsys.readouterr().err
    assert f"site 'phone', pipeline 'tiny': measured with model 'plain' {'b' * 64}" in said
    assert f"the pipeline names {load_pipeline(bundle).models['plain'].sha256}; measure again" in said


def test_an_interval_that_holds_nothing_is_refused(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "measured.json"
    save_measurements(file, of_models(measured(bundle)))
    document = json.loads(file.read_text())
    next(iter(document["sites"][0]["operators"].values()))["mean_interval_s"] = [2, 1]
    file.write_text(json.dumps(document))
    with pytest.raises(ProfileError, match=r"measured.json: \[operators.*2.0 to 1.0 holds nothing"):
        load_measurements(file)


def test_wrong_files_are_named(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fleet.toml").write_text("schema = 7")
    fleet, none = str(tmp_path / "fleet.toml"), str(tmp_path / "none.json")
    assert main(["plan", "--pipeline", str(bundle), "--fleet", fleet, "--profiles", none]) == 2
    assert "fleet.toml" in capsys.readouterr().err
    (tmp_path / "fleet.toml").write_text(FLEET)
    assert main(["plan", "--pipeline", str(bundle), "--fleet", fleet, "--profiles", none]) == 1
    assert "none.json" in capsys.readouterr().err


def test_devices_do_not_serve_each_other(bundle: Path) -> None:
    other = '[[agents]]\nname = "tablet"\ntier = "device"\nprofile = "phone-midrange"\n\n[[queries]]'
    (bundle / "two.toml").write_text(FLEET.replace("[[queries]]", other, 1))
    pipelines = {"tiny": load_pipeline(bundle)}
    problem = problem_from(load_fleet(bundle / "two.toml"), pipelines, [], {})
    assert problem.reachable["quick"] == ("edge",)
