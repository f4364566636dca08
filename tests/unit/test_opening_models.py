"""Opening models to measure them: the memory that they take, and what becomes of those that cannot be had."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from compass_agent import operators
from compass_agent.bundles import load_bundle
from compass_agent.inputs import load_examples
from compass_agent.measure import passes
from compass_agent.measure.speed import SpeedReport, measure_speed
from compass_agent.measuring import merged
from compass_agent.models import ModelStore
from compass_agent.operators import OperatorHost
from compass_agent.pace import Pace
from compass_agent.runtimes import open_runtime
from compass_agent.runtimes.base import LoadedModel
from compass_shared.clock import MonotonicClock
from compass_shared.errors import ModelLoadError
from compass_shared.model_cache import ModelCache
from support.bundles import write_tiny_bundle

if TYPE_CHECKING:
    from compass_shared.values import Array

OPENING, RUNNING = 5_000_000, 300_000


class Process:
    """Its memory grows with every model that is opened and at the first run of each."""

    name = "growing"

    def __init__(self, refuse: frozenset[int] = frozenset()) -> None:
        self.resident = 10_000_000
        self._refuse = refuse
        self._opened = 0

    def version(self) -> str:
        """There is one."""
        return "1"

    def load(self, source: Path | str, *, threads: int = 1) -> LoadedModel:
        """Open a model in the runtime of the bundle, or refuse."""
        self._opened += 1
        if self._opened in self._refuse:
            raise ModelLoadError("short of memory")
        self.resident += OPENING
        return _Grows(open_runtime("onnx").load(source, threads=threads), self)


class _Grows:
    def __init__(self, inner: LoadedModel, process: Process) -> None:
        self.input_names = inner.input_names
        self._inner, self._process, self._ran = inner, process, False

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        self._process.resident += 0 if self._ran else RUNNING
        self._ran = True
        return self._inner.run(feed)


def _measured(folder: Path, process: Process, monkeypatch: pytest.MonkeyPatch) -> SpeedReport:
    for module in (operators, passes):
        monkeypatch.setattr(module, "resident_bytes", lambda: process.resident)
    bundle = load_bundle(write_tiny_bundle(folder))
    store = ModelStore(ModelCache(folder / "cache"))
    return measure_speed(
        OperatorHost([bundle], store, open_runtime=lambda name: process),
        bundle.pipeline,
        load_examples(bundle, "profiling", store),
        site="here",
        pace=Pace(),
        clock=MonotonicClock(),
        rng=random.Random(0),
        budget_s=0.0,
    )


def test_a_variant_needs_what_its_model_and_its_first_run_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _measured(tmp_path, Process(), monkeypatch).profile.operators
    assert {key: one.memory_bytes for key, one in found.items()} == {
        "scale[factor=1.0]": 0.0,
        "scale[factor=2.0]": 0.0,
        "classify[model=plain]": OPENING + RUNNING,
        "classify[model=steep]": OPENING + RUNNING,
        "label": 0.0,
    }


def test_a_model_takes_its_file_at_least(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process()
    monkeypatch.setattr(f"{__name__}.OPENING", 0)
    monkeypatch.setattr(f"{__name__}.RUNNING", 0)
    found = _measured(tmp_path, process, monkeypatch).profile.operators
    assert found["classify[model=plain]"].memory_bytes == (tmp_path / "tiny" / "plain.onnx").stat().st_size


def test_what_was_seen_once_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later measurement finds everything open."""
    first = _measured(tmp_path, Process(), monkeypatch).profile
    later = {key: replace(one, memory_bytes=7.0) for key, one in first.operators.items()}
    both = merged(first, replace(first, operators=later)).operators
    assert both["classify[model=plain]"].memory_bytes == OPENING + RUNNING
    assert both["label"].memory_bytes == 7.0


def test_a_model_that_cannot_be_opened_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = _measured(tmp_path, Process(refuse=frozenset([2])), monkeypatch)
    assert report.profile.operators.keys() >= {"classify[model=plain]", "label"}
    assert list(report.failed) == ["classify[model=steep]"]
    assert "short of memory" in report.failed["classify[model=steep]"]


def test_without_any_model_of_an_operator_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelLoadError, match="short of memory"):
        _measured(tmp_path, Process(refuse=frozenset([1, 2])), monkeypatch)
