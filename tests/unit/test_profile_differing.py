"""``compass profile diff`` and ``merge``: what changed is told from what chance does."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compass_coordinator.cli import main
from compass_coordinator.measurements import (
    LinkFigures,
    MeasurementsDocument,
    SiteWork,
    VariantWork,
    load_measurements,
    save_document,
)
from compass_coordinator.profiler.files.differing import accuracy_differences, measurement_differences
from compass_coordinator.profiler.files.uncertainty import accuracy_interval
from compass_shared.errors import ProfileError
from compass_shared.profile import Accuracy, AccuracyTable, Provenance
from compass_shared.profile_file import load_accuracy, save_accuracy

SHA_A, SHA_B = "a" * 64, "b" * 64


def table(*means: float, count: int = 100, standard_error: float = 0.01, **fields: Any) -> AccuracyTable:
    configs = {
        f"c{index}": Accuracy(mean=mean, standard_error=standard_error, count=count)
        for index, mean in enumerate(means)
    }
    kept = {"pipeline": "p", "metric": "right", "split": "profiling", "provenance": {"models": {"m": SHA_A}}}
    return AccuracyTable(configs=configs, **(kept | fields))


def test_only_what_chance_does_not_explain_changed() -> None:
    found = accuracy_differences(table(0.8, 0.8, 0.8), table(0.82, 0.87, 0.73))
    assert [(change.where, change.before, change.after) for change in found.changed] == [
        ("c1", 0.8, 0.87),
        ("c2", 0.8, 0.73),
    ]
    assert (found.compared, found.same) == (3, False)
    assert found.changed[0].allowed == pytest.approx(2.394 * 0.01 * 2**0.5, rel=1e-3)


def test_extra_metrics_are_compared_where_both_have_them() -> None:
    def recall(mean: float) -> dict[str, dict[str, Accuracy]]:
        return {"recall": {"c0": Accuracy(mean=mean, standard_error=0.01, count=50)}}

    found = accuracy_differences(table(0.8, others=recall(0.5)), table(0.8, others=recall(0.7)))
    assert [(change.where, change.figure, change.after) for change in found.changed] == [
        ("c0", "others.recall", 0.7)
    ]
    assert accuracy_differences(table(0.8, others=recall(0.5)), table(0.8)).same


def test_measuring_hundreds_of_configs_twice_raises_no_false_alarm() -> None:
    """Each pair alone at 95%, 15 of 300 would; together at 95%, one diff in 20 does."""
    rng = np.random.default_rng(3)
    alarms = 0
    for _ in range(40):
        one, other = (table(*(0.8 + 0.01 * rng.standard_normal(300))) for _ in range(2))
        alarms += not accuracy_differences(one, other).same
    assert alarms <= 6


def test_the_same_inputs_scored_otherwise_is_a_change_however_small() -> None:
    one, other = table(0.8, inputs=100), table(0.8001, inputs=100)
    assert not accuracy_differences(one, other).same
    assert accuracy_differences(one, other, tolerance=0.01).same
    assert accuracy_differences(one, table(0.800001, inputs=100)).same, "files are rounded"


def test_a_few_inputs_that_score_alike_are_no_certainty() -> None:
    few = table(1.0, count=4, standard_error=0.0)
    low, high = accuracy_interval(few.configs["c0"], few)
    assert [low, high] == pytest.approx([0.05**0.25, 1.0])
    assert accuracy_differences(few, table(0.9)).same


def test_added_and_removed_configs_and_other_models_are_differences() -> None:
    one, other = table(0.8, 0.8), table(0.8)
    assert accuracy_differences(one, other).removed == ("c1",)
    assert accuracy_differences(other, one).added == ("c1",)
    found = accuracy_differences(other, table(0.8, provenance={"models": {"m": SHA_B}, "date": "today"}))
    assert [(said.what, said.decisive) for said in found.provenance] == [("models.m", True), ("date", False)]
    assert not found.same
    assert accuracy_differences(other, table(0.8, provenance={"models": {"m": SHA_A}, "date": "today"})).same


@pytest.mark.parametrize("fields", [{"pipeline": "q"}, {"metric": "words"}, {"split": "heldout"}])
def test_tables_of_different_things_are_not_compared(fields: dict[str, Any]) -> None:
    with pytest.raises(ProfileError, match="cannot be compared"):
        accuracy_differences(table(0.8), table(0.8, **fields))


# --- measurements ---------------------------------------------------------------------------------

LINK = LinkFigures(
    source="s", target="t", rtt_s=0.1, rtt_var_s2=1e-4, bandwidth_bps=1e6, bandwidth_rel_sd=0.1
)


def document(
    mean_s: float = 1.0, *, var_s2: float = 0.04, link: LinkFigures = LINK, **fields: Any
) -> MeasurementsDocument:
    found = VariantWork(mean_s=mean_s, var_s2=var_s2, count=100, output_mean_bytes=100.0, speed_class="x")
    site = SiteWork(site="s", pipeline="p", request_mean_bytes=10.0, operators={"a": found}, **fields)
    return MeasurementsDocument(schema=1, kind="measurements", sites=(site,), links=(link,))


def test_times_changed_where_their_spread_and_count_do_not_explain_it() -> None:
    assert measurement_differences(document(), document(1.05)).same
    found = measurement_differences(document(), document(1.3))
    assert [(change.where, change.figure) for change in found.changed] == [
        ("site s, p: a", "mean_s"),
        ("site s, p: a", "p95_s"),
    ]
    assert measurement_differences(document(), document(1.3), tolerance=0.5).same


def test_items_changed_where_their_spread_does_not_explain_it() -> None:
    def counted(mean: float) -> MeasurementsDocument:
        found = VariantWork(mean_s=1.0, count=100, output_mean_bytes=1.0, items_mean=mean, items_var=4.0)
        site = SiteWork(site="s", pipeline="p", request_mean_bytes=10.0, operators={"a": found})
        return MeasurementsDocument(schema=1, kind="measurements", sites=(site,))

    assert measurement_differences(counted(3.0), counted(3.3)).same
    (change,) = measurement_differences(counted(3.0), counted(5.0)).changed
    assert (change.figure, change.before, change.after) == ("items_mean", 3.0, 5.0)


def test_slowdowns_are_part_of_the_time() -> None:
    same = document(0.5, var_s2=0.01, slowdowns={"x": 1.9}, overhead_s=0.05)
    assert measurement_differences(document(), same).same
    assert not measurement_differences(document(), document(slowdowns={"x": 2.0})).same


def test_links_change_too() -> None:
    slower = LinkFigures(source="s", target="t", rtt_s=0.11, bandwidth_bps=2e5)
    found = measurement_differences(document(), document(link=slower))
    assert [(change.where, change.figure) for change in found.changed] == [("link s > t", "bandwidth_bps")]


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"digest": "e"}, "site s, p: digest"),
        ({"emulated": "phone"}, "site s, p: emulated"),
        ({"provenance": Provenance(models={"m": SHA_B})}, "site s, p: models.m"),
    ],
)
def test_measurements_of_other_things_differ_whatever_they_say(fields: dict[str, Any], what: str) -> None:
    provenance = Provenance(models={"m": SHA_A})
    kept: dict[str, Any] = {"digest": "d", "provenance": provenance}
    found = measurement_differences(document(**kept), document(**(kept | fields)))
    assert [said.what for said in found.provenance if said.decisive] == [what]
    assert (found.changed, found.same) == ((), False)


# --- the command ----------------------------------------------------------------------------------


def test_diff_says_it_with_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = str(tmp_path / "one.json"), str(tmp_path / "other.json")
    save_accuracy(Path(one), table(0.8, 0.8))
    save_accuracy(Path(other), table(0.81, 0.9, 0.5))
    assert main(["profile", "diff", one, one]) == 0
    assert "the same within their uncertainty: 0 of 2 figures changed" in capsys.readouterr().out
    assert main(["profile", "diff", one, other]) == 1
    shown = capsys.readouterr().out
    assert "  c1: mean 0.8 -> 0.9 (+0.1, chance explains 0.032)" in shown
    assert "they differ: 1 of 2 figures changed, 0 removed, 1 added" in shown
    assert main(["profile", "diff", one, other, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["same"], [change["where"] for change in found["changed"]], found["added"]) == (
        False,
        ["c1"],
        ["c2"],
    )


def test_what_cannot_be_compared_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accuracy, measured = str(tmp_path / "accuracy.json"), str(tmp_path / "measured.json")
    save_accuracy(Path(accuracy), table(0.8))
    save_document(Path(measured), document())
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    for other, said in (
        (measured, "an accuracy table and measurements cannot be compared"),
        (str(tmp_path / "none.json"), "none.json: cannot be read: No such file"),
        (str(broken), "broken.json: no profile"),
    ):
        assert main(["profile", "diff", accuracy, other]) == 2
        assert said in capsys.readouterr().err


def test_merged_files_load_and_say_what_disagreed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other, out = (tmp_path / f"{name}.json" for name in ("one", "other", "out"))
    save_accuracy(one, table(0.8, 0.8))
    save_accuracy(other, table(0.9, count=200))
    assert main(["profile", "merge", str(one), str(other), "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert f"{out}: 2 configs of 2 files, 1 disagreements" in captured.out
    assert "disagreement: c0: 0.9 in other.json" in captured.err
    merged = load_accuracy(out)
    assert [found.mean for found in merged.configs.values()] == [0.9, 0.8]
    assert [name in str(merged.provenance["sources"]) for name in ("one.json", "other.json")] == [True, True]


def test_measurements_are_merged_and_not_with_accuracies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, other, out = (tmp_path / f"{name}.json" for name in ("one", "other", "out"))
    save_document(one, document())
    save_document(other, document(1.02, provenance=Provenance(device="box")))
    assert main(["profile", "merge", str(one), str(other), "--out", str(out)]) == 0
    (site,) = load_measurements(out).sites
    assert site.operators["a"].count == 200
    assert site.provenance is not None
    assert [name.split()[0] for name in site.provenance.sources] == ["one.json", "other.json"]
    save_accuracy(other, dataclasses.replace(table(0.8)))
    capsys.readouterr()
    assert main(["profile", "merge", str(one), str(other), "--out", str(out)]) == 2
    assert "cannot be merged into one file" in capsys.readouterr().err
