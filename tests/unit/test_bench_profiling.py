"""The profiler's benchmark: a truth is what was kept, a replay charges what ran, scores follow from both."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from compass_shared.measured import InputInfo, Job
from compass_shared.pipeline import REQUEST, Operator, Pipeline

BENCH = Path(__file__).resolve().parents[2] / "bench"
SHRINK = Operator(name="shrink", inputs=(REQUEST,), runtime="python", knobs={"by": (1, 2)})
READ = Operator(
    name="read", inputs=("shrink",), runtime="onnx", knobs={"model": ("a", "b")}, speed_class="onnx-fp32"
)
PIPELINE = Pipeline(name="small", version="1", description="", operators=(SHRINK, READ), output="read")


@pytest.fixture(scope="module", autouse=True)
def _bench_on_path() -> Iterator[None]:
    sys.path.insert(0, str(BENCH))
    yield
    sys.path.remove(str(BENCH))


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"profiling.{name}")


def _page(index: int, *, same: bool) -> Any:
    """Both ways to shrink may make the same content, which is then read only once by each model."""
    runs = [(0, [0], 1), (2, [1], 2), (3, [1], 3), (1, [0], 1 if same else 4)]
    runs += [] if same else [(2, [4], 2), (3, [4], 5)]
    return _module("truth").Page(
        info=InputInfo(name=f"page-{index}", group="", features=(float(index),), size_bytes=50_000),
        variant=[variant for variant, _, _ in runs],
        read=[read for _, read, _ in runs],
        made=[made for _, _, made in runs],
        cpu_us=[(10_000, 7_000, 20_000, 90_000)[variant] + 100 * index for variant, _, _ in runs],
        wall_us=[0] * len(runs),
        size_bytes=[50_000, 40_000, 10, 11, 20_000, 9],
        scores={2: 0.2 + 0.01 * index, 3: 0.9, 5: 0.7},
    )


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Any:
    module = _module("truth")
    kept = module.Kept(
        pipeline="small",
        provenance={},
        variants=list(module.variants_of(PIPELINE)),
        pages=[_page(index, same=index % 2 == 0) for index in range(6)],
    )
    file = tmp_path_factory.mktemp("kept") / "truth.json.gz"
    module.keep_truth(kept, file)
    return module.load_truth(PIPELINE, file)


def test_scores_follow_contents_downstream(truth: Any) -> None:
    assert truth.scores[2].tolist() == [0.22, 0.9, 0.22, 0.9]
    assert truth.scores[3].tolist() == [0.23, 0.9, 0.23, 0.7]


def test_a_truth_of_other_variants_is_refused(truth: Any) -> None:
    other = replace(PIPELINE, operators=(SHRINK, replace(READ, knobs={})))
    kept = _module("truth").Kept(pipeline="small", provenance={}, variants=list(truth.variants), pages=[])
    with pytest.raises(ValueError, match="measure it again"):
        _module("truth").truth_of(other, kept)


def test_nothing_runs_twice_on_the_same_content(truth: Any) -> None:
    replay = _module("replay").Replay(truth)
    first = replay.answer(Job(id=7, input=0, configs=truth.configs[:2]))
    assert first.id == 7
    assert [run.variant for run in first.runs] == ["shrink[by=1]", "read[model=a]", "read[model=b]"]
    then = replay.answer(Job(id=8, input=0, configs=truth.configs[2:]))
    assert [run.variant for run in then.runs] == ["shrink[by=2]"]
    assert then.reused == 3
    assert replay.spent_s == pytest.approx(0.127)


def test_without_reuse_every_config_pays_for_all_of_its_operators(truth: Any) -> None:
    replay = _module("replay").Replay(truth, reuse=False)
    for page in range(6):
        replay.measure(page, range(4))
    assert replay.spent_s == pytest.approx(truth.exhaustive_s)
    assert truth.reused_s < truth.exhaustive_s


def test_classical_intervals_need_two_scores_and_end_at_the_whole_set(truth: Any) -> None:
    replay = _module("replay").Replay(truth)
    for page in range(6):
        replay.measure(page, [0])
    replay.measure(0, [1, 3])
    replay.measure(1, [3])
    mean, low, high = replay.classical(1.96)
    assert low[0] == high[0] == mean[0] == pytest.approx(truth.accuracy[0])
    assert (low[1], high[1], low[2], high[2]) == (0.0, 1.0, 0.0, 1.0)
    half = 1.96 * np.sqrt(0.02 / 2 * (1 - 2 / 6))  # of 0.9 and 0.7
    assert (low[3], high[3]) == (pytest.approx(0.8 - half), pytest.approx(0.8 + half))


def test_plans_are_priced_as_the_projects_estimator_does(truth: Any) -> None:
    decisions = _module("queries").make_decisions(truth, 30)
    assert _module("plans").largest_difference(decisions.plans, decisions.figures, 30) < 1e-9


def test_knowing_everything_plans_everything_right_and_knowing_nothing_does_not(truth: Any) -> None:
    score, study = _module("score"), _module("study").Study(_module("queries").make_decisions(truth, 40))
    for page in range(6):
        study.measure(page, range(4))
    study.look(study.classical, last=True)
    (found,) = study.trace
    assert found.right == found.right_timed == found.coverage == 1.0
    assert (found.violated, found.largest_error, found.width) == (0.0, 0.0, 0.0)
    assert found.spent_share_reused == pytest.approx(1.0)
    hopeful = replace(study.classical(), mean=np.ones(4), low=np.zeros(4), high=np.zeros(4))
    judged = score.judge(study.decisions, study.replay, hopeful)
    assert judged.violated > 0
    assert judged.right < 1
    assert judged.coverage == 0.0


def test_every_rival_comes_to_an_end(truth: Any) -> None:
    rivals = {
        "random_sampling": ("random_configs", "random_inputs", "random_scores"),
        "halving": ("successive_halving",),
    }
    decisions = _module("queries").make_decisions(truth, 20)
    for module, names in rivals.items():
        for name in names:
            study = _module("study").Study(decisions)
            getattr(_module(f"rivals.{module}"), name)(study, np.random.default_rng(0))
            assert study.trace[-1].right == 1.0, name
