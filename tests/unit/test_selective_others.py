"""Extra metrics in a profiling run: scored on what was measured anyway, and told with their own errors."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from compass_coordinator.commands.profile_summary import summary_of, told
from compass_coordinator.profiler.files.profiled import accuracy_table
from compass_coordinator.profiler.selective import Options, Profiler, of_any
from compass_coordinator.profiler.selective.operator_times import Runs
from compass_shared.measured import Done, InputInfo, Job, OperatorRun, Ready, RequestRun, Score
from support.replayed import Replayed

METRIC = "half"


def _with_half(done: Done) -> Done:
    """A further metric that gives half of what the first does."""
    halves = {
        key: None if score is None else msgspec.structs.replace(score, numerator=score.numerator / 2)
        for key, score in done.scores.items()
    }
    return msgspec.structs.replace(done, others={METRIC: halves})


def _profiler(replayed: Replayed) -> Profiler:
    return Profiler(
        replayed.pipeline,
        replayed.infos,
        of_any(replayed.space),
        np.random.default_rng(7),
        kind=replayed.kind,
        extra_metrics=[METRIC],
        options=Options(pilot_configs=6, pilot_inputs=10),
    )


def _driven(replayed: Replayed, jobs: int) -> tuple[Profiler, list[Done]]:
    profiler = _profiler(replayed)
    answers: list[Done] = []
    while len(answers) < jobs and (asked := profiler.ask()):
        for job in asked[: jobs - len(answers)]:
            answers.append(_with_half(replayed.answer(job)))
            profiler.tell(answers[-1])
    return profiler, answers


@pytest.mark.parametrize("kind", ["mean", "ratio"])
def test_an_extra_metric_is_known_where_its_config_was_measured(kind: str) -> None:
    replayed = Replayed(kind=kind, fails=frozenset([Replayed().space.keys[3]]))
    profiler, answers = _driven(replayed, jobs=20)
    found = profiler.known_others()[METRIC]
    counts = profiler.observations.counts()
    assert counts.any()
    assert (found.counts <= counts).all()
    truth = 0.5 * replayed.truth
    for at in np.flatnonzero(found.counts):
        assert abs(found.mean[at] - truth[at]) <= 5 * found.standard_error[at] + 1e-9
    resumed = _profiler(replayed)
    for done in answers:
        resumed.tell(done)
    assert resumed.known_others()[METRIC].mean == pytest.approx(found.mean)


def test_a_config_on_all_inputs_is_known_exactly() -> None:
    replayed = Replayed(inputs=12)
    profiler = _profiler(replayed)
    for at in range(replayed.inputs):
        job = Job(id=at, input=at, configs=replayed.space.keys[:2])
        profiler.tell(_with_half(replayed.answer(job)))
    found = profiler.known_others()[METRIC]
    assert found.counts.tolist() == [12, 12, *[0] * (len(replayed.space) - 2)]
    assert found.mean[:2] == pytest.approx(0.5 * replayed.truth[:2])


def test_a_process_that_ended_has_nothing_by_any_metric() -> None:
    replayed = Replayed(inputs=2)
    profiler, key = _profiler(replayed), replayed.space.keys[0]
    ended = Done(id=0, input=0, scores={key: None}, problems={key: "the measuring process ended"})
    profiler.tell(ended)
    profiler.tell(
        Done(id=1, input=1, scores={key: Score(numerator=1.0)}, others={METRIC: {key: Score(numerator=1.0)}})
    )
    found = profiler.known_others()[METRIC]
    assert (found.mean[0], found.counts[0]) == (0.5, 2)


def test_they_are_in_the_table_and_in_the_summary() -> None:
    replayed = Replayed()
    profiler, _ = _driven(replayed, jobs=20)
    known = profiler.known()
    ready = Ready(
        pipeline="pages",
        digest="d",
        code_sha256="c",
        split="profiling",
        metric="words",
        kind="mean",
        extra_metrics={METRIC: "mean"},
        inputs=replayed.infos,
        provenance={},
    )
    table = accuracy_table(ready, profiler, known, today="2026-01-02", seed=7)
    others = table.others[METRIC]
    assert set(others) == {key for key, one in table.configs.items() if one.count}
    assert all(0 < one.count <= table.configs[key].count for key, one in others.items())
    summary = summary_of(ready, profiler, known, Path("a.json"), Path("a.log"))
    (line,) = (line for line in told(summary).splitlines() if METRIC in line)
    assert f"over {len(others)} configs" in line


def test_figures_of_clips_are_of_their_requests() -> None:
    """Two clips of two and three requests: the mean is over five, and what was lost is in none."""
    replayed = Replayed(inputs=2)
    variant = replayed.space.variants[0]
    runs = Runs(replayed.space, [2, 3])
    each = (
        (RequestRun(1.0, 10, 0), RequestRun(3.0, 30, 2)),
        (RequestRun(2.0, 20, 1), None, RequestRun(4.0, 40, 3)),
    )
    for place, clip in enumerate(each):
        total_s = sum(one.cpu_s for one in clip if one is not None)
        run = OperatorRun(variant=variant, cpu_s=total_s, wall_s=total_s, output_bytes=0, each=clip)
        runs.take(Done(id=0, input=place, scores={}, runs=(run,)))
    times = runs.times()
    assert times.count[0] == 4
    assert times.mean_s[0] == pytest.approx(2.5, rel=0.01)
    assert times.var_s2[0] == pytest.approx(1.25, rel=0.05)
    assert times.output_mean_bytes[0] == pytest.approx(25, rel=0.01)
    assert times.items_mean[0] == pytest.approx(1.5, rel=0.02)
    assert times.item_s[0] == pytest.approx(1.0, rel=0.01)
    assert runs.spent_s == 10.0


def test_an_input_knows_its_requests() -> None:
    """A page is one request; a clip has as many as sizes."""
    info = InputInfo(name="clip", group="", features=(), size_bytes=60, request_bytes=(10, 20, 30))
    assert info.requests == (10, 20, 30)
    assert InputInfo(name="page", group="", features=(), size_bytes=60).requests == (60,)
