"""Fleets, pipelines, profiles and accuracy tables put together: profiles by kind, and what does not fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from compass_coordinator.measurements import MeasurementsDocument, load_measurements
from compass_coordinator.what_if import problem_from
from compass_shared.errors import CompassError, ConfigError, ProfileError
from compass_shared.fleet_file import load_fleet
from compass_shared.pipeline import variant_key
from compass_shared.pipeline_file import load_pipeline
from compass_shared.problem import Z95, Problem
from support.bundles import tiny_accuracy, write_tiny_bundle

FLEET = """\
schema = 1
name = "small"

[[sites]]
name = "phone"
count = 3
tier = "device"
kind = "core"
cores = 1
slowdowns = { default = 2, onnx-fp32 = 4 }
overhead_s = 0.001
reach_some = { "edge-*" = 1 }

[[sites]]
name = "edge"
count = 2
tier = "edge"
kind = "core"
cores = 8

[[sites]]
name = "attic"
tier = "edge"
cores = 1

[[links]]
from = "phone-*"
to = "edge-*"
rtt_s = 0.002
up_bps = 1e7
down_bps = 1e7

[[queries]]
name = "look"
origin = "phone-*"
pipeline = "tiny"
rate_hz = 1.0
slo = { latency_p95_s = 0.1, accuracy = 0.9, cost_usd_per_1000 = 1.0 }
"""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_tiny_bundle(tmp_path)


def profiles(bundle: Path, **changes: Any) -> dict[str, Any]:
    """Work of one kind, and of the site that has none."""
    keys = [variant_key(op.name, knobs) for op in load_pipeline(bundle).operators for knobs in op.variants()]
    operators: dict[str, Any] = {key: {"mean_s": 0.01, "output_mean_bytes": 100} for key in keys}
    operators["classify[model=steep]"] = {"mean_s": 0.01, "var_s2": 1e-6, "output_mean_bytes": 5}
    work = {"pipeline": "tiny", "request_mean_bytes": 1000, "operators": operators}
    document = {
        "schema": 1,
        "kind": "measurements",
        "kinds": [{"kind": "core", **work}],
        "sites": [{"site": "attic", "emulated": "laptop", **work}],
    }
    return document | changes


def read(bundle: Path, document: Mapping[str, Any]) -> MeasurementsDocument:
    file = bundle.parent / "profiles.json"
    file.write_text(json.dumps(document))
    return load_measurements(file)


def problem(bundle: Path, *documents: Mapping[str, Any], fleet: str = FLEET) -> Problem:
    file = bundle.parent / "fleet.toml"
    file.write_text(fleet)
    pipeline = load_pipeline(bundle)
    return problem_from(
        load_fleet(file),
        {pipeline.name: pipeline},
        [read(bundle, document) for document in documents or [profiles(bundle)]],
        {pipeline.name: tiny_accuracy(bundle)},
    )


def test_sites_of_a_kind_share_their_work_and_their_slowdowns(bundle: Path) -> None:
    found = problem(bundle).profiles
    first, second, edge = (found[name, "tiny"] for name in ("phone-1", "phone-2", "edge-1"))
    assert first.operators is second.operators is edge.operators
    assert first.slowdowns is second.slowdowns
    assert first.slowdowns == {"onnx-fp32": 4.0, "python": 2.0}, "default stands for the classes not listed"
    assert edge.slowdowns == {"onnx-fp32": 1.0, "python": 1.0}
    assert first.digest == load_pipeline(bundle).digest


def test_figures_at_a_site_are_slowed_by_the_class_of_the_operator(bundle: Path) -> None:
    found = problem(bundle).profiles["phone-1", "tiny"]
    model, code = found.measured("classify[model=steep]"), found.measured("label")
    assert model is not None
    assert code is not None
    assert model.mean_s == pytest.approx(4 * 0.01 + 0.001)
    assert model.var_s2 == pytest.approx(16e-6)
    assert code.mean_s == pytest.approx(2 * 0.01 + 0.001)


def test_figures_by_hand_need_no_quantile_and_no_count(bundle: Path) -> None:
    found = problem(bundle).profiles["edge-1", "tiny"].operators["classify[model=steep]"]
    assert (found.variant, found.count, found.speed_class) == ("classify[model=steep]", 0, "onnx-fp32")
    assert found.p95_s == pytest.approx(0.01 + Z95 * 1e-3)


def test_a_site_may_have_been_measured_itself(bundle: Path) -> None:
    assert problem(bundle).profiles["attic", "tiny"].emulated == "laptop"
    document = profiles(bundle)
    document["sites"].append({**document["sites"][0], "site": "phone-2"})
    found = problem(bundle, document).profiles
    assert (found["phone-2", "tiny"].slowdowns, found["phone-1", "tiny"].emulated) == ({}, None)


def test_reach_restricts_queries(bundle: Path) -> None:
    found = problem(bundle)
    assert found.reachable == {"look-1": ("edge-1",), "look-2": ("edge-2",), "look-3": ("edge-1",)}
    assert [found.sites_for(query) for query in found.queries][:2] == [
        ("phone-1", "edge-1"),
        ("phone-2", "edge-2"),
    ]


def test_of_several_files_the_last_counts(bundle: Path) -> None:
    faster = profiles(bundle, sites=[])
    for work in faster["kinds"][0]["operators"].values():
        work["mean_s"] = 0.001
    found = problem(bundle, profiles(bundle), faster)
    assert found.profiles["edge-1", "tiny"].operators["label"].mean_s == 0.001
    assert ("attic", "tiny") in found.profiles


def test_links_of_the_fleet_take_the_place_of_measured_ones(bundle: Path) -> None:
    link = {"rtt_s": 0.5, "bandwidth_bps": 1e3}
    measured = [
        {"source": source, "target": target, **link}
        for source, target in (("phone-1", "edge-1"), ("phone-1", "attic"), ("attic", "phone-1"))
    ]
    found = problem(bundle, profiles(bundle, links=measured)).links
    assert found["phone-1", "edge-1"].rtt_s == 0.002
    assert found["phone-1", "attic"].rtt_s == 0.5


@pytest.mark.parametrize(
    ("old", "new", "kind", "said"),
    [
        ('count = 2\ntier = "edge"\nkind = "core"', 'count = 2\ntier = "edge"\nkind = "cpu"', ConfigError,
         "site 'edge-1': the profiles have no kind 'cpu'; they have core"),
        ('name = "attic"', 'name = "cellar"', ConfigError, "give it a kind of theirs (attic, core)"),
        ('to = "edge-*"', 'to = "edge-1"', ConfigError, "'phone-2' reaches 'edge-2', but neither"),
    ],
)  # fmt: skip
def test_a_fleet_that_the_profiles_do_not_fit_is_refused(
    bundle: Path, old: str, new: str, kind: type[CompassError], said: str
) -> None:
    assert FLEET.count(old) == 1
    with pytest.raises(kind) as caught:
        problem(bundle, fleet=FLEET.replace(old, new))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"digest": "0" * 64}, "kind 'core' measured 'tiny' 000000000000, the pipeline is"),
        ({"operators": {"clasify[model=steep]": {"mean_s": 1, "output_mean_bytes": 1}}},
         "no variant 'clasify[model=steep]'; did you mean 'classify[model=steep]'?"),
        ({"operators": {"label": {"mean_s": -1, "output_mean_bytes": 1}}}, ">= 0.0"),
        ({"operators": {"label": {"mean_ms": 1, "output_mean_bytes": 1}}}, "unknown field `mean_ms`"),
        ({"operators": {"label": {"mean_s": 1}}}, "missing required field `output_mean_bytes`"),
        ({"request_mean_bytes": 1e30}, "<= 1e+18"),
    ],
)  # fmt: skip
def test_profiles_that_do_not_fit_are_refused(bundle: Path, change: Mapping[str, Any], said: str) -> None:
    document = profiles(bundle)
    document["kinds"][0] |= change
    with pytest.raises(ProfileError) as caught:
        problem(bundle, document)
    assert said in str(caught.value)
