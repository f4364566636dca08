"""Several profiles as one: nothing counted twice or mixed with other things, no disagreement hidden."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import numpy as np
import pytest

from compass_coordinator.measurements import (
    KindWork,
    LinkFigures,
    MeasurementsDocument,
    SiteWork,
    VariantWork,
)
from compass_coordinator.profiler.files.merging import merge_accuracy, merge_measurements
from compass_coordinator.profiler.files.pooling import pooled
from compass_shared.errors import ProfileError
from compass_shared.profile import Accuracy, AccuracyTable, Provenance

SHA_A, SHA_B = "a" * 64, "b" * 64


def known(mean: float, count: int = 50, standard_error: float = 0.01, **fields: Any) -> Accuracy:
    return Accuracy(mean=mean, standard_error=standard_error, count=count, **fields)


def table(configs: dict[str, Accuracy], **fields: Any) -> AccuracyTable:
    said = {"date": "2026-11-01", "models": {"m": SHA_A}} | fields.pop("provenance", {})
    kept = {"pipeline": "p", "metric": "right", "split": "profiling", **fields}
    return AccuracyTable(configs=configs, provenance=said, **kept)


# --- accuracy -------------------------------------------------------------------------------------


def test_the_better_known_entry_of_every_config_is_kept() -> None:
    guess = known(0.7, count=0, standard_error=0.001, predicted=True)
    one = table({"a": known(0.8, count=50), "b": known(0.7, standard_error=0.02), "c": guess, "d": guess})
    other = table(
        {"a": known(0.81, count=90), "b": known(0.71), "c": known(0.72, count=3, standard_error=0.1)}
    )
    for order in ([("one", one), ("other", other)], [("other", other), ("one", one)]):
        merged = merge_accuracy(order)
        assert dict(merged.table.configs) == {
            "a": other.configs["a"],
            "b": other.configs["b"],
            "c": other.configs["c"],
            "d": guess,
        }
        assert merged.disagreements == ()


def test_of_extra_metrics_the_better_known_entries_are_kept() -> None:
    one = table({"a": known(0.8)}, others={"recall": {"a": known(0.4, count=10), "b": known(0.5)}})
    other = table(
        {"a": known(0.8)}, others={"recall": {"a": known(0.6, count=30)}, "speed": {"a": known(1.0)}}
    )
    for order in ([("one", one), ("other", other)], [("other", other), ("one", one)]):
        merged = merge_accuracy(order).table.others
        assert merged == {
            "recall": {"a": known(0.6, count=30), "b": known(0.5)},
            "speed": {"a": known(1.0)},
        }


def test_provenance_names_its_sources_and_every_model() -> None:
    one = table(
        {"a": known(0.8)}, provenance={"machine": "x", "numpy": "1", "models": {"m": SHA_A, "n": SHA_B}}
    )
    other = table({"a": known(0.8)}, provenance={"machine": "x", "numpy": "2", "date": "2026-11-02"})
    merged = merge_accuracy([("one", one), ("other", other)]).table
    assert merged.provenance == {
        "date": "2026-11-02",
        "machine": "x",
        "models": {"m": SHA_A, "n": SHA_B},
        "sources": [
            {"file": "one", "date": "2026-11-01", "numpy": "1"},
            {"file": "other", "date": "2026-11-02", "numpy": "2"},
        ],
    }
    again = merge_accuracy([("merged", merged), ("other", other)]).table
    assert again.provenance["sources"] == merged.provenance["sources"]


def test_what_cannot_both_be_true_is_said_and_kept_in_the_file() -> None:
    one, other = (
        table({"a": known(0.8), "b": known(0.5)}),
        table({"a": known(0.9, count=60), "b": known(0.52)}),
    )
    merged = merge_accuracy([("one", one), ("other", other)])
    assert merged.disagreements == ("a: 0.9 in other, 0.8 in one: their intervals do not touch",)
    assert merged.table.provenance["disagreements"] == list(merged.disagreements)


def test_other_code_of_operators_is_said() -> None:
    one, other = (table({"a": known(0.8)}, provenance={"code_sha256": code}) for code in "xy")
    (said,) = merge_accuracy([("one", one), ("other", other), ("again", one)]).disagreements
    assert said.startswith("the operators' code was y in other, x in one")


def test_what_was_measured_on_every_input_is_exact() -> None:
    """Two tables of the same 50 inputs differ because something else did, not by chance."""
    one, other = table({"a": known(0.8)}, inputs=50), table({"a": known(0.801)})
    assert len(merge_accuracy([("one", one), ("other", other)]).disagreements) == 1
    assert merge_accuracy([("one", other), ("other", other)]).disagreements == ()


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"pipeline": "q"}, "pipeline is 'q', 'p' in one"),
        ({"metric": "words"}, "metric is 'words'"),
        ({"split": "heldout"}, "split is 'heldout'"),
        ({"inputs": 60}, "inputs in the split is 60, 50 in one"),
        ({"confidence": 0.9}, "confidence is 0.9"),
        (
            {"provenance": {"models": {"m": SHA_B}}},
            f"model 'm' {SHA_B}, the other tables with {SHA_A}; merge",
        ),
    ],
)
def test_tables_of_different_things_are_refused(fields: dict[str, Any], problem: str) -> None:
    entries = {"a": known(0.8, low=0.7, high=0.9)}
    with pytest.raises(ProfileError, match=f"^other: .*{problem}"):
        merge_accuracy([("one", table(entries, inputs=50)), ("other", table(entries, **fields))])


# --- measurements ---------------------------------------------------------------------------------


def of_calls(seconds: Any, sizes: Any) -> VariantWork:
    """Figures as an agent makes them."""
    return VariantWork(
        mean_s=float(np.mean(seconds)),
        var_s2=float(np.var(seconds, ddof=1)) if len(seconds) > 1 else 0.0,
        p95_s=float(np.quantile(seconds, 0.95)),
        count=len(seconds),
        output_mean_bytes=float(np.mean(sizes)),
        output_var_bytes2=float(np.var(sizes, ddof=1)) if len(sizes) > 1 else 0.0,
    )


def work(operators: dict[str, VariantWork], **fields: Any) -> SiteWork:
    return SiteWork(site="s", pipeline="p", request_mean_bytes=10.0, operators=operators, **fields)


def document(*sites: SiteWork, **fields: Any) -> MeasurementsDocument:
    return MeasurementsDocument(schema=1, kind="measurements", sites=sites, **fields)


def test_pooled_calls_are_as_if_measured_at_once() -> None:
    rng = np.random.default_rng(1)
    seconds, sizes = rng.gamma(4.0, 0.01, 400), rng.gamma(9.0, 100.0, 400)
    bounds = [(0, 1), (1, 40), (40, 400)]
    parts = [of_calls(seconds[low:high], sizes[low:high]) for low, high in bounds]
    found, expected = pooled(parts), of_calls(seconds, sizes)
    assert found.count == 400
    for field in ("mean_s", "var_s2", "output_mean_bytes", "output_var_bytes2"):
        assert getattr(found, field) == pytest.approx(getattr(expected, field), rel=1e-12)
    assert found.p95_s == pytest.approx(expected.p95_s, rel=0.05)


def test_the_percentile_of_two_kinds_of_calls_is_that_of_their_mixture() -> None:
    rng = np.random.default_rng(2)
    quick, slow = rng.normal(1.0, 0.1, 3000), rng.normal(2.0, 0.1, 1000)
    found = pooled([of_calls(quick, [1, 1]), of_calls(slow, [1, 1])])
    assert found.p95_s == pytest.approx(np.quantile([*quick, *slow], 0.95), rel=0.02)


def test_what_nobody_counted_gives_way_and_copies_count_once() -> None:
    counted = of_calls([1.0, 2.0], [3, 4])
    guess = VariantWork(mean_s=9.0, output_mean_bytes=1.0)
    assert pooled([guess, counted, counted]) == counted
    assert pooled([guess, msgspec.structs.replace(guess, mean_s=8.0)]) == guess


def test_intervals_of_independent_means_shrink() -> None:
    one = VariantWork(mean_s=1.0, count=100, output_mean_bytes=1.0, mean_interval_s=(0.8, 1.4))
    other = msgspec.structs.replace(one, mean_s=1.2, mean_interval_s=(1.0, 1.6), p95_interval_s=(1, 9))
    found = pooled([one, other])
    assert found.mean_interval_s == pytest.approx((1.1 - 0.2 / 2**0.5, 1.1 + 0.4 / 2**0.5))
    assert found.p95_interval_s is None


def test_sites_are_pooled_and_links_are_the_last_files() -> None:
    link = LinkFigures(source="s", target="t", rtt_s=0.1, bandwidth_bps=1e6)
    kind = KindWork(kind="k", pipeline="p", request_mean_bytes=1.0, operators={})
    one = document(work({"a": of_calls([1.0, 1.1], [1, 1])}), links=(link,), kinds=(kind,))
    later = msgspec.structs.replace(link, rtt_s=0.2)
    operators = {"a": of_calls([1.05, 1.07], [1, 1]), "b": of_calls([5.0, 5.1], [1, 1])}
    other = document(work(operators), links=(later,))
    merged = merge_measurements([("one", one), ("other", other)])
    (site,), (same,) = merged.document.sites, merged.document.kinds
    assert {key: found.count for key, found in site.operators.items()} == {"a": 4, "b": 2}
    assert site.provenance is not None
    assert site.provenance.sources == ("one", "other")
    assert (same.kind, merged.document.links, merged.disagreements) == ("k", (later,), ())


def test_merging_again_counts_nothing_twice() -> None:
    one, other, third = (
        document(work({"a": of_calls([1.0, 1.1, 1.2 + more], [1])})) for more in (0.0, 0.1, 0.2)
    )
    both = merge_measurements([("one", one), ("other", other)]).document
    assert merge_measurements([("both", both), ("one", one)]).document.sites == both.sites
    overlapping = merge_measurements([("one", one), ("third", third)]).document
    with pytest.raises(
        ProfileError, match="partly merged from the same files; merge the files they were made of"
    ):
        merge_measurements([("both", both), ("overlapping", overlapping)])


def test_times_that_chance_does_not_explain_are_said() -> None:
    one = document(work({"a": of_calls([1.0, 1.01, 0.99], [1])}))
    other = document(work({"a": of_calls([2.0, 2.01, 1.99], [1])}))
    mean, *_ = merge_measurements([("one", one), ("other", other)]).disagreements
    assert mean == "site s, p: a: mean_s 1 in one, 2 in other: further apart than chance explains"


BOX = Provenance(device="box", date="2026-11-01", runtimes={"onnx": "1"}, models={"m": SHA_A})


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"digest": "e"}, "digest is 'e', 'd' in one"),
        ({"emulated": "phone"}, "emulated is 'phone', None in one"),
        ({"slowdowns": {"x": 2.0}}, "slowdowns is"),
        ({"provenance": dataclasses.replace(BOX, models={"m": SHA_B})}, f"'m' {SHA_B}, others with {SHA_A}"),
    ],
)
def test_measurements_of_different_things_are_never_pooled(fields: dict[str, Any], problem: str) -> None:
    one, other = (
        work({}, digest="d", provenance=BOX),
        work({}, **{"digest": "d", "provenance": BOX, **fields}),
    )
    with pytest.raises(ProfileError, match=problem):
        merge_measurements([("one", document(one)), ("other", document(other))], force=True)


@pytest.mark.parametrize(
    ("change", "merged"),
    [
        ({"device": "rack"}, {"device": "box; rack"}),
        ({"runtimes": {"onnx": "2"}}, {"runtimes": {"onnx": "1; 2"}}),
    ],
)
def test_another_device_or_runtime_takes_force_and_is_named(
    change: dict[str, Any], merged: dict[str, Any]
) -> None:
    other = dataclasses.replace(BOX, date="2026-11-02", **change)
    files = [("one", document(work({}, provenance=BOX))), ("other", document(work({}, provenance=other)))]
    with pytest.raises(ProfileError, match=r"site s, p: other: measured with .*; --force merges them anyway"):
        merge_measurements(files)
    (site,) = merge_measurements(files, force=True).document.sites
    assert site.provenance == dataclasses.replace(other, sources=("one", "other"), **merged)


def test_what_only_one_knows_is_taken_from_it() -> None:
    files = [("one", document(work({}))), ("other", document(work({}, digest="d", provenance=BOX)))]
    (site,) = merge_measurements(files).document.sites
    assert site.digest == "d"
    assert site.provenance == dataclasses.replace(BOX, sources=("one", "other"))
