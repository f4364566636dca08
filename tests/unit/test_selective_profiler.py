"""The profiler from its first question to its last, over made-up pipelines whose truth is known."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from compass_coordinator.profiler.files.profiled import accuracy_table, speeds_here
from compass_coordinator.profiler.selective import Decide, Options, Profiler, Target, of_any, of_targets
from compass_shared.errors import ConfigError, ProfileError
from compass_shared.measured import Done, Job, Ready
from compass_shared.pipeline import REQUEST
from compass_shared.profile_file import load_accuracy, save_accuracy
from support.agents import pipeline_of, python_operator
from support.replayed import FAILED, Replayed, drive, right

FEW = Options(pilot_configs=8, pilot_inputs=8, delta=0.02)
ALONE = pipeline_of("alone", python_operator("shrink", REQUEST), python_operator("read", "shrink"))


def _asked(jobs: tuple[Job, ...]) -> Counter[tuple[int, str]]:
    return Counter((job.input, key) for job in jobs for key in job.configs)


def _answered(told: list[Done]) -> Counter[tuple[int, str]]:
    return Counter((done.input, key) for done in told for key in done.scores)


def _decide(replayed: Replayed) -> Decide:
    queries = replayed.queries()
    return lambda _: queries


@functools.cache
def _run(seed: int, kind: str) -> tuple[Replayed, Profiler, list[Done]]:
    """A whole run; nobody changes it any more."""
    replayed = Replayed(seed=seed, kind=kind)
    profiler = replayed.profiler(_decide(replayed), FEW)
    return replayed, profiler, drive(replayed, profiler)


@pytest.mark.parametrize(("seed", "kind"), [(3, "mean"), (5, "mean"), (3, "ratio")])
def test_choices_are_right_at_a_fraction_of_the_cost(seed: int, kind: str) -> None:
    replayed, profiler, told = _run(seed, kind)
    queries, known = replayed.queries(), profiler.known()
    assert profiler.finished
    assert profiler.ask() == ()
    assert (profiler.status.wrong or 0.0) < FEW.delta
    assert right(queries, replayed.truth, known.mean) >= 0.95
    assert right(queries, replayed.truth, np.full(24, replayed.truth.mean())) < 0.8, (
        "it is no foregone choice"
    )
    assert replayed.spent_s < 0.5 * replayed.exhaustive_s
    assert max(_answered(told).values()) == 1, "nothing is measured twice"
    assert np.mean((known.low - 1e-9 <= replayed.truth) & (replayed.truth <= known.high + 1e-9)) >= 0.9
    whole = known.counts == replayed.inputs
    assert known.mean[whole] == pytest.approx(replayed.truth[whole])
    assert np.array_equal(known.low[whole], known.high[whole])
    assert (known.low <= known.mean).all()
    assert (known.mean <= known.high).all()


@pytest.mark.parametrize("saving", ["strata", "early_stopping", "transfer"])
def test_without_a_saving_choices_are_as_right(saving: str) -> None:
    replayed = Replayed(seed=3)
    queries = replayed.queries()
    profiler = replayed.profiler(lambda _: queries, replace(FEW, **{saving: False}))
    drive(replayed, profiler)
    known = profiler.known()
    assert profiler.finished
    assert right(queries, replayed.truth, known.mean) >= 0.95
    if saving == "early_stopping":
        assert set(known.counts.tolist()) == {0, replayed.inputs}
        whole = known.counts > 0
        assert known.mean[whole] == pytest.approx(replayed.truth[whole])
    if saving == "transfer":
        assert known.high[known.counts == 0] == pytest.approx(1.0)
        assert known.low[known.counts == 0] == pytest.approx(0.0)


def test_prices_do_not_change_what_is_right() -> None:
    """Where results are not shared, every config pays for all of its operators."""
    replayed = Replayed(seed=3)
    profiler = replayed.profiler(_decide(replayed), replace(FEW, reuse=False))
    drive(replayed, profiler)
    assert profiler.finished
    assert right(replayed.queries(), replayed.truth, profiler.known().mean) >= 0.95


def test_a_run_that_stops_in_its_first_configs_goes_on_with_exactly_the_rest() -> None:
    """Even of a ratio: what is measured in the end is the same, to the last score."""
    whole, _, uninterrupted = _run(3, "ratio")
    parted = Replayed(seed=3, kind="ratio")
    kept = drive(parted, parted.profiler(_decide(parted), FEW), jobs=5)
    resumed = parted.profiler(_decide(parted), FEW)
    for done in kept:
        resumed.tell(done)
    rest = drive(parted, resumed)
    assert len(kept) == 5
    assert _answered(kept + rest) == _answered(uninterrupted)
    assert resumed.runs.spent_s == pytest.approx(whole.spent_s)


@pytest.mark.parametrize("part", [0.7, 1.0])
def test_a_run_that_stops_later_measures_nothing_twice(part: float) -> None:
    replayed, _, told = _run(3, "mean")
    kept = told[: int(part * len(told))]
    again = Replayed(seed=3)
    resumed = again.profiler(_decide(again), FEW)
    for done in reversed(kept):
        resumed.tell(done)
    rest = drive(again, resumed)
    assert resumed.finished
    assert max(_answered(kept + rest).values()) == 1
    if part == 1.0:
        assert rest == []
    assert right(replayed.queries(), replayed.truth, resumed.known().mean) >= 0.95


def test_jobs_that_are_out_are_waited_for() -> None:
    replayed = Replayed()
    profiler = replayed.profiler(_decide(replayed), FEW)
    jobs = profiler.ask()
    assert [len(job.configs) for job in jobs] == [8] * 8
    for job in jobs:
        assert profiler.ask() == ()
        profiler.tell(replayed.answer(job))
    more = profiler.ask()
    assert more
    assert not _asked(more) & _asked(jobs)
    assert not {job.id for job in more} & {job.id for job in jobs}


def test_answers_to_other_questions_are_refused() -> None:
    replayed = Replayed()
    profiler = replayed.profiler(_decide(replayed), FEW)
    for place in (-1, 40):
        with pytest.raises(ProfileError, match=f"input {place}, there are 40"):
            profiler.tell(Done(id=0, input=place, scores={}))
    with pytest.raises(ProfileError, match="no inputs"):
        Profiler(replayed.pipeline, (), _decide(replayed), np.random.default_rng(0))


@pytest.mark.parametrize("inputs", [1, 2, 5])
def test_small_input_sets_are_measured_whole(inputs: int) -> None:
    replayed = Replayed(inputs=inputs)
    profiler = replayed.profiler(of_any(replayed.space), FEW)
    drive(replayed, profiler)
    known = profiler.known()
    assert profiler.finished
    assert set(known.counts.tolist()) <= {0, inputs}
    assert known.mean[known.counts == inputs] == pytest.approx(replayed.truth[known.counts == inputs])
    assert np.isfinite(known.standard_error).all()


@pytest.mark.parametrize("kind", ["mean", "ratio"])
def test_every_config_fails(kind: str) -> None:
    replayed = Replayed(kind=kind)
    replayed.fails = frozenset(replayed.space.keys)
    profiler = replayed.profiler(of_any(replayed.space), FEW)
    drive(replayed, profiler)
    known = profiler.known()
    assert profiler.finished
    assert known.mean == pytest.approx(0.0, abs=0.01)
    assert np.isfinite(known.high).all()
    assert profiler.observations.failures.sum() == known.counts.sum()
    assert set(profiler.observations.problems.values()) == {FAILED}


@pytest.mark.parametrize("kind", ["mean", "ratio"])
def test_a_config_that_always_fails_is_of_use_to_nobody(kind: str) -> None:
    best = int(Replayed(seed=3, kind=kind).truth.argmax())
    replayed = Replayed(seed=3, kind=kind, fails=frozenset([Replayed().space.keys[best]]))
    queries = replayed.queries()
    profiler = replayed.profiler(lambda _: queries, FEW)
    drive(replayed, profiler)
    known = profiler.known()
    assert replayed.truth[best] == 0.0
    assert profiler.finished
    assert best not in queries.chosen(known.mean)
    assert right(queries, replayed.truth, known.mean) >= 0.95
    whole = known.counts == replayed.inputs
    assert known.mean[whole] == pytest.approx(replayed.truth[whole])


def test_a_pipeline_without_a_choice() -> None:
    replayed = Replayed(pipeline=ALONE)
    profiler = replayed.profiler(of_targets(replayed.space, [Target(accuracy=0.55)]))
    drive(replayed, profiler)
    known = profiler.known()
    assert profiler.finished
    assert known.counts[0] >= 12
    assert known.low[0] <= replayed.truth[0] <= known.high[0]


def test_inputs_without_features_are_one_stratum() -> None:
    replayed = Replayed()
    inputs = [msgspec.structs.replace(info, features=()) for info in replayed.infos]
    profiler = Profiler(replayed.pipeline, inputs, _decide(replayed), np.random.default_rng(0), options=FEW)
    told = drive(replayed, profiler, jobs=12)
    assert len(told) == 12, "beyond the first configs on 8 inputs"


def test_what_is_known_before_the_end() -> None:
    replayed = Replayed()
    profiler = replayed.profiler(of_any(replayed.space), FEW)
    nothing = profiler.known()
    assert (nothing.high - nothing.low > 0.9).all()
    assert (profiler.status.wrong, profiler.status.decided, profiler.status.measured) == (None, 0, 0)
    drive(replayed, profiler, jobs=5)
    some = profiler.known()
    assert profiler.status.doing == "first configs"
    assert sorted(set(some.counts.tolist())) == [0, 5]
    assert (some.high - some.low < 1).any()


# --- targets --------------------------------------------------------------------------------------


def test_targets_are_met_with_the_least_work() -> None:
    replayed = Replayed()
    targets = [Target(accuracy=0.6), Target(accuracy=0.6, latency_p95_s=0.01)]
    profiler = replayed.profiler(of_targets(replayed.space, targets), FEW)
    drive(replayed, profiler)
    decisions = of_targets(replayed.space, targets)(profiler.times)
    chosen = decisions.chosen(profiler.known().mean)
    work_s = replayed.times_s[replayed.space.node_variant[replayed.space.nodes]].sum(axis=1)
    enough = np.flatnonzero(replayed.truth >= 0.6)
    assert chosen.tolist() == [enough[work_s[enough].argmin()], -1]


# --- what is written ------------------------------------------------------------------------------


def test_the_table_and_the_times_that_are_written(tmp_path: Path) -> None:
    replayed = Replayed(fails=frozenset([Replayed().space.keys[0]]))
    profiler = replayed.profiler(_decide(replayed), FEW)
    drive(replayed, profiler, jobs=15)
    ready = Ready(
        pipeline="pages",
        digest="d",
        code_sha256="c",
        split="profiling",
        metric="words",
        kind="mean",
        inputs=replayed.infos,
        provenance={"machine": "a box", "runtimes": {"python": "3"}},
    )
    known, today = profiler.known(), "2026-01-02"
    table = accuracy_table(ready, profiler, known, today=today, seed=7)
    assert list(table.configs) == list(replayed.space.keys)
    save_accuracy(tmp_path / "accuracy.json", table)
    assert load_accuracy(tmp_path / "accuracy.json", replayed.pipeline) == table
    predicted = [entry for entry in table.configs.values() if entry.predicted]
    assert len(predicted) == int((known.counts == 0).sum()) > 0
    assert all(entry.low is not None and entry.low <= entry.mean for entry in table.configs.values())
    assert table.provenance["savings"] == ["strata", "reuse", "early_stopping", "transfer"]
    assert table.provenance["failures"] == profiler.observations.failures.sum()
    speeds = speeds_here(replayed.pipeline, ready, profiler, site="here", today=today)
    written = speeds.sites[0].operators
    assert sorted(written) == sorted(replayed.space.variants)
    for variant, seconds in zip(replayed.space.variants, replayed.times_s, strict=True):
        assert written[variant].mean_s == pytest.approx(seconds)


def test_too_many_configs_are_refused() -> None:
    much = pipeline_of("much", python_operator("only", REQUEST, knobs={"k": tuple(range(3001))}))
    replayed = Replayed()
    with pytest.raises(ConfigError, match="more than the 3000"):
        Profiler(much, replayed.infos, _decide(replayed), np.random.default_rng(0))
