"""``compass-agent probe``: what it measures, prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compass_agent.cli import main
from compass_coordinator.measurements import load_measurements
from support.bundles import write_tiny_bundle

VARIANTS = {
    "scale[factor=1.0]",
    "scale[factor=2.0]",
    "classify[model=plain]",
    "classify[model=steep]",
    "label",
}


@pytest.fixture
def tiny(tmp_path: Path) -> list[str]:
    """Options to measure a tiny bundle with."""
    return [
        "--bundle",
        str(write_tiny_bundle(tmp_path)),
        "--cache",
        str(tmp_path / "cache"),
        "--seconds",
        "0.01",
    ]


def test_a_profile_is_a_file_that_can_be_planned_with(tiny: list[str], tmp_path: Path) -> None:
    out = tmp_path / "phone.json"
    assert main(["probe", *tiny, "--out", str(out), "--name", "phone", "--rate", "50"]) == 0
    (site,) = load_measurements(out).sites
    assert (site.site, site.pipeline) == ("phone", "tiny")
    assert site.operators.keys() == VARIANTS
    for found in site.operators.values():
        assert found.count > 0
        assert found.mean_interval_s is not None
        assert found.mean_interval_s[0] <= found.mean_s <= found.mean_interval_s[1]
    assert site.provenance is not None
    assert site.provenance.models.keys() == {"plain", "steep"}
    assert site.provenance.runtimes["onnx"].startswith("onnxruntime")
    assert "1 thread a call" in site.provenance.device


def test_threads_and_batches_stand_apart(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "phone.json"
    options = ["--threads", "1,2", "--batch", "1,3", "--count", "2", "--json", "--out", str(out)]
    assert main(["probe", *tiny, *options]) == 0
    report = json.loads(capsys.readouterr().out)
    ways = [(each["threads"], each["batch"]) for each in report["variations"]]
    assert ways == [(1, 3), (2, 1), (2, 3)]
    document = load_measurements(out)
    assert len(document.sites) == 1, "plans are made with one thread and one request alone"
    variations = document.provenance["variations"]
    assert isinstance(variations, list)
    assert len(variations) == 3
    assert document.sites[0].operators.keys() == report["profiles"][0]["operators"].keys() < VARIANTS


def test_minutes_of_work_say_whether_the_machine_keeps_its_speed(
    tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["probe", *tiny, "--minutes", "0.001", "--variant", "label"]) == 0
    shown = capsys.readouterr().out
    assert "label" in shown
    assert any(word in shown for word in ("steady over", "slows by", "speeds up by", "measure longer"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--variant", "label[x=1]"], "no variant 'label[x=1]'"),
        (["--variant", "label", "--count", "2"], "leave --count away"),
        (["--minutes", "1", "--rate", "1"], "one at a time"),
        (["--emulate", "laptop", "--threads", "2"], "--threads 1"),
        (["--emulate", "pocket-calculator"], "pocket-calculator"),
        (["--name", "My Phone"], "must match"),
    ],
)
def test_what_does_not_go_together_is_exit_code_2(
    tiny: list[str], options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["probe", *tiny, *options]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--out", "x.json"], ["--count", "3"], ["--minutes", "1"]])
def test_measuring_needs_a_bundle(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", *options]) == 2
    assert "--bundle" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [["--threads", "0"], ["--batch", "a"], ["--count", "0"], ["--rate", "-1"]]
)
def test_numbers_that_make_no_sense_name_the_option(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["probe", *options])
    assert exit_.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_exit_code_1(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["probe", *tiny, "--variant", "label", "--out", str(tmp_path / "tiny" / "labels.txt" / "x")])
        == 1
    )
    assert "cannot be written" in capsys.readouterr().err
