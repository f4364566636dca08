"""Measuring processes for real: a pool scores a bundle, and outlives operators that end their process."""

from __future__ import annotations

from pathlib import Path

import psutil

from compass_coordinator.measuring.pool import MeasuringPool
from compass_shared.measured import Job, Score
from support.measuring import key_of, write_words_bundle


def test_a_crash_in_the_middle_loses_nothing(tmp_path: Path) -> None:
    """What an operator prints is no answer either."""
    bundle = write_words_bundle(tmp_path)
    results = tmp_path / "results"
    with MeasuringPool(bundle, tmp_path / "models", "profiling", workers=1, cache_folder=results) as pool:
        ready = pool.start()
        assert [one.name for one in ready.inputs] == ["profiling-0", "profiling-1", "profiling-2"]
        pool.submit(Job(id=0, input=0, configs=(key_of("prints"), key_of("crashes"))))
        pool.submit(Job(id=1, input=2, configs=(key_of("crashes"),)))
        pool.submit(Job(id=2, input=2, configs=(key_of("half"),)))
        first, crashed, last = pool.results()
        one, half = Score(numerator=1.0), Score(numerator=0.5)
        assert first.scores == {key_of("prints"): one, key_of("crashes"): one}
        assert crashed.scores == {key_of("crashes"): None}
        problem = "the measuring process ended with exit code 9; it said last: so it ends"
        assert crashed.problems == {key_of("crashes"): problem}
        assert last.scores == {key_of("half"): half}
        assert [run.variant for run in last.runs] == ["pick[mode=half]"], "the rest is on disk"
        children = psutil.Process().children()
    assert len(children) >= 1
    assert not [child for child in children if child.is_running() and "measure" in child.cmdline()]
