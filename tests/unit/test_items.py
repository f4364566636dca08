"""Fan-outs: what calls tell of their items, and what another number of items makes of their times."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from compass_coordinator.measurements import (
    MeasurementsDocument,
    SiteWork,
    VariantWork,
    load_measurements,
    save_document,
)
from compass_coordinator.profiler.files.pooling import pooled
from compass_coordinator.profiler.latency.feedback import Evidence, mixed
from compass_coordinator.profiler.latency.transfer import fit_speed
from compass_shared.codec import decode, encode
from compass_shared.items import Items, items_of
from compass_shared.messages import ProfileMessage
from compass_shared.profile import OperatorProfile, SiteProfile, at_items
from compass_shared.topics import Kind

CONSTANT_S, ITEM_S = 0.004, 0.002


def _profile(counts: np.ndarray, times_s: np.ndarray) -> OperatorProfile:
    items = items_of(zip(counts.tolist(), times_s.tolist(), strict=True))
    return OperatorProfile(
        variant="read",
        mean_s=float(times_s.mean()),
        var_s2=float(times_s.var(ddof=1)),
        p95_s=float(np.quantile(times_s, 0.95)),
        count=len(counts),
        output_mean_bytes=10.0,
        speed_class="onnx",
        mean_interval_s=(float(times_s.mean()) * 0.99, float(times_s.mean()) * 1.01),
        items_mean=items.mean,
        items_var=items.var,
        item_s=items.item_s,
    )


def _calls(rng: np.random.Generator, counts: np.ndarray) -> np.ndarray:
    """Times of calls with so many items: a constant, each item, and what varies beside."""
    times_s = CONSTANT_S + ITEM_S * counts + 0.0008 * rng.standard_normal(len(counts))
    return np.asarray(np.maximum(times_s, 1e-4))


@pytest.fixture(scope="module")
def measured() -> OperatorProfile:
    rng = np.random.default_rng(0)
    counts = rng.poisson(3.0, 20_000)
    return _profile(counts, _calls(rng, counts))


def test_the_time_of_an_item_is_the_slope(measured: OperatorProfile) -> None:
    assert measured.item_s == pytest.approx(ITEM_S, rel=0.02)
    assert measured.items_mean == pytest.approx(3, rel=0.02)
    assert measured.items_var == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize(
    ("calls", "found"),
    [
        ([], Items()),
        ([(None, 0.1), (None, 0.2)], Items()),
        ([(2, 0.1), (2, 0.3)], Items(mean=2.0)),
        ([(1, 0.3), (3, 0.1)], Items(mean=2.0, var=2.0)),
        ([(0, 0.0), (2, 0.4)], Items(mean=1.0, var=2.0, item_s=0.2)),
        ([(1, 0.0), (3, 0.4)], Items(mean=2.0, var=2.0, item_s=0.1)),
    ],
)
def test_what_is_not_known_of_items_is_left_open(calls: list[tuple[int | None, float]], found: Items) -> None:
    """Without a spread there is no slope; more items never take less, nor more than there is.

    The last two differ in that: by the slope alone calls without items would take -0.2 s.
    """
    assert items_of(calls) == found


@pytest.mark.parametrize(
    ("mean", "spread"), [(8.0, "poisson"), (1.0, "poisson"), (5.0, "none"), (2.0, "wide")]
)
def test_figures_at_other_items_are_those_of_calls_with_them(
    measured: OperatorProfile, mean: float, spread: str
) -> None:
    rng = np.random.default_rng(1)
    counts = {
        "poisson": rng.poisson(mean, 20_000),
        "none": np.full(20_000, int(mean)),
        "wide": rng.binomial(10, mean / 10, 20_000),
    }[spread]
    truth = _profile(counts, _calls(rng, counts))
    found = at_items(measured, float(counts.mean()), float(counts.var()))
    assert found.mean_s == pytest.approx(truth.mean_s, rel=0.02)
    assert found.var_s2 == pytest.approx(truth.var_s2, rel=0.06)
    assert found.p95_s == pytest.approx(truth.p95_s, rel=0.05)
    assert found.items_mean == float(counts.mean())
    assert found.mean_interval_s is not None
    assert found.mean_interval_s[0] < found.mean_s < found.mean_interval_s[1]


def test_the_same_items_change_nothing(measured: OperatorProfile) -> None:
    assert measured.items_mean is not None
    same = at_items(measured, measured.items_mean, measured.items_var)
    assert same.var_s2 == pytest.approx(measured.var_s2)
    assert dataclasses.replace(same, var_s2=measured.var_s2, p95_s=measured.p95_s) == measured
    other = dataclasses.replace(measured, items_mean=None, items_var=0.0, item_s=0.0)
    assert at_items(other, 9.0, 1.0) == other, "no fan-out"
    unknown = dataclasses.replace(measured, item_s=0.0)
    assert at_items(unknown, 9.0, 1.0) == dataclasses.replace(unknown, items_mean=9.0, items_var=1.0)


# --- on their way ---------------------------------------------------------------------------------


def test_items_come_back_from_files_and_messages(measured: OperatorProfile, tmp_path: Path) -> None:
    site = SiteProfile(
        site="here", pipeline="p", digest="d", operators={"read": measured}, request_mean_bytes=1.0
    )
    file = tmp_path / "profiles.json"
    save_document(file, MeasurementsDocument(schema=1, kind="measurements", sites=(SiteWork.of(site),)))
    (work,) = load_measurements(file).sites
    assert work.operators["read"].profile("read", "") == measured
    message = ProfileMessage(session=1, profile=site)
    assert decode(Kind.PROFILE, encode(message)) == message


def test_a_slower_device_takes_longer_for_each(measured: OperatorProfile) -> None:
    assert measured.scaled(3.0, 0.01).item_s == 3 * measured.item_s
    here = SiteProfile(
        site="here",
        pipeline="p",
        digest="",
        operators={"read": measured, "one": measured},
        request_mean_bytes=1,
    )
    slow = fit_speed(here, {"one": measured.scaled(4.0, 0.0)}).predict("read")
    assert slow.item_s / measured.item_s == pytest.approx(slow.mean_s / measured.mean_s)
    assert slow.items_mean == measured.items_mean


def test_serving_and_profile_mix_their_items(measured: OperatorProfile) -> None:
    served = dataclasses.replace(measured, items_mean=5.0, items_var=1.0, item_s=0.0)
    both = mixed(Evidence(weight=1, figures=measured), Evidence(weight=1, figures=served)).figures
    assert both.items_mean == pytest.approx(((measured.items_mean or 0) + 5) / 2)
    assert both.items_var > (measured.items_var + 1) / 2, "the means differ as well"
    assert both.item_s == measured.item_s
    silent = dataclasses.replace(measured, items_mean=None, items_var=0.0, item_s=0.0)
    both = mixed(Evidence(weight=1, figures=measured), Evidence(weight=1, figures=silent)).figures
    assert both.items_mean == measured.items_mean


def test_pooled_calls_have_the_items_of_all() -> None:
    rng = np.random.default_rng(2)
    parts = [rng.poisson(mean, 400) for mean in (2.0, 6.0)]
    works = [
        VariantWork(
            mean_s=float(counts.mean()),
            output_mean_bytes=1.0,
            count=len(counts),
            items_mean=float(counts.mean()),
            items_var=float(counts.var(ddof=1)),
            item_s=0.002 * (1 + at),
        )
        for at, counts in enumerate(parts)
    ]
    both, together = pooled(works), np.concatenate(parts)
    assert both.items_mean == pytest.approx(together.mean())
    assert both.items_var == pytest.approx(together.var(ddof=1))
    assert both.item_s == pytest.approx(0.003)
