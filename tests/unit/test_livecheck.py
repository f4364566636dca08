"""Which configs the demo measures afresh: those that plans are likely to use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from compass_coordinator.demo.livecheck import worth_measuring
from compass_shared.pipeline import Pipeline
from compass_shared.pipeline_file import load_pipeline
from compass_shared.profile import AccuracyTable
from compass_shared.profile_file import load_accuracy

BUNDLE = Path(__file__).resolve().parents[2] / "examples" / "read_text"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return load_pipeline(BUNDLE)


@pytest.fixture(scope="module")
def known() -> AccuracyTable:
    return load_accuracy(BUNDLE / "profile" / "accuracy.json")


@pytest.mark.parametrize("count", [1, 2, 6, 17, 40, 324])
def test_so_many_different_ones(pipeline: Pipeline, known: AccuracyTable, count: int) -> None:
    chosen = worth_measuring(pipeline, known, count)
    assert len(set(chosen)) == len(chosen) == count
    assert set(chosen) <= set(known.configs)


def test_the_fastest_and_the_most_accurate_are_among_them(pipeline: Pipeline, known: AccuracyTable) -> None:
    chosen = worth_measuring(pipeline, known, 2)
    assert chosen[-1] == max(known.configs, key=lambda key: known.configs[key].mean)
    assert "det-tiny,side=320" in chosen[0]


def test_none_of_them_is_beaten(pipeline: Pipeline, known: AccuracyTable) -> None:
    means = [known.configs[key].mean for key in worth_measuring(pipeline, known, 6)]
    assert means == sorted(means), "slower ones are more accurate"


def test_without_known_times_they_are_spread_over_the_grid(pipeline: Pipeline, known: AccuracyTable) -> None:
    chosen = worth_measuring(pipeline, replace(known, provenance={}), 3)
    keys = [pipeline.config_key(config) for config in pipeline.configs()]
    assert (chosen[0], chosen[-1]) == (keys[0], keys[-1])
