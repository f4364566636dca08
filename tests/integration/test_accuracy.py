"""Accuracy of a real bundle, measured by processes: complete, resumable, and never mixed with another's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from compass_agent.bundles import load_bundle
from compass_agent.measure.accuracy import Progress, measure_accuracy, save_inputs
from compass_agent.measure.grid import InputResult
from compass_agent.models import ModelStore
from compass_agent.operators import OperatorHost
from compass_shared.errors import ConfigError, ProfileError
from compass_shared.model_cache import ModelCache
from compass_shared.pipeline_file import load_pipeline
from compass_shared.profile import AccuracyTable
from compass_shared.profile_file import load_accuracy, save_accuracy
from support.bundles import write_tiny_bundle

METRIC = '''

def score(output, truth):
    """How high the rows are labelled, and a bit of the total, so that every knob matters."""
    labels = [{"low": 0.0, "middle": 0.3, "high": 1.0}[label] for label in output["labels"]]
    return 0.5 * sum(labels) / len(labels) + 0.5 * (abs(output["total"]) % 1.0)
'''
COUNT = 4

Measured = tuple[AccuracyTable, list[InputResult]]


class Bench:
    """A bundle to measure, with a progress file beside it."""

    def __init__(self, folder: Path) -> None:
        self.bundle = write_tiny_bundle(folder)
        data = self.bundle / "data.py"
        data.write_text(data.read_text(encoding="utf-8") + METRIC, encoding="utf-8")
        self.cache = folder / "cache"
        self.progress = folder / "new" / "folder" / "accuracy.progress"

    def measure(self, **options: Any) -> Measured:
        options.setdefault("workers", 1)
        options.setdefault("split", "profiling")
        return measure_accuracy(self.bundle, self.cache, progress_file=self.progress, **options)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.progress.read_bytes().splitlines()]

    def copy(self, folder: Path) -> Bench:
        shutil.copytree(self.bundle.parent, folder, dirs_exist_ok=True)
        other = object.__new__(Bench)
        other.bundle, other.cache = folder / "tiny", folder / "cache"
        other.progress = folder / "new" / "folder" / "accuracy.progress"
        return other


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bench, Measured, list[Progress]]:
    """A measurement that two processes made."""
    bench = Bench(tmp_path_factory.mktemp("finished"))
    progress: list[Progress] = []
    return bench, bench.measure(workers=2, on_progress=progress.append), progress


@pytest.fixture
def bench(tmp_path: Path, finished: tuple[Bench, Measured, list[Progress]]) -> Bench:
    """The finished measurement again, to be damaged."""
    return finished[0].copy(tmp_path)


def naive_scores(bench: Bench) -> list[list[float]]:
    """Input by input, config by config, nothing shared."""
    bundle = load_bundle(bench.bundle)
    store = ModelStore(ModelCache(bench.cache))
    host, score = OperatorHost([bundle], store), bundle.metric()
    found = []
    for example in bundle.examples("profiling", store):
        scores = []
        for config in bundle.pipeline.configs():
            values = {"request": example.value}
            for operator in bundle.pipeline.operators:
                inputs = {name: values[name] for name in operator.inputs}
                values[operator.name] = host.run("tiny", operator.name, inputs, config[operator.name])
            scores.append(score(values["label"], example.truth))
        found.append(scores)
    return found


def test_every_config_is_scored_on_every_input(finished: tuple[Bench, Measured, list[Progress]]) -> None:
    bench, (table, results), progress = finished
    expected = naive_scores(bench)
    assert [result.name for result in results] == [f"profiling-{index}" for index in range(COUNT)]
    assert [list(result.scores) for result in results] == expected
    pipeline = load_pipeline(bench.bundle)
    for index, config in enumerate(pipeline.configs()):
        accuracy = table.configs[pipeline.config_key(config)]
        column = [scores[index] for scores in expected]
        mean = sum(column) / COUNT
        variance = sum((value - mean) ** 2 for value in column) / (COUNT - 1)
        assert accuracy.mean == pytest.approx(mean, abs=1e-6)
        assert accuracy.standard_error == pytest.approx((variance / COUNT) ** 0.5, abs=1e-6)
        assert accuracy.count == COUNT
    assert len({accuracy.mean for accuracy in table.configs.values()}) > 2, "knobs matter here"
    assert [step.done for step in progress] == [1, 2, 3, 4]
    assert {step.total for step in progress} == {COUNT}
    assert progress[-1].remaining_s == 0.0


def test_the_table_says_where_it_comes_from(finished: tuple[Bench, Measured, list[Progress]]) -> None:
    bench, (table, _), _ = finished
    bundle = load_bundle(bench.bundle)
    said = table.provenance
    assert (table.pipeline, table.metric, table.split) == ("tiny", "known_labels", "profiling")
    assert (said["pipeline_digest"], said["code_sha256"]) == (bundle.pipeline.digest, bundle.code_sha256)
    assert said["models"] == {name: bundle.pipeline.models[name].sha256 for name in ("plain", "steep")}
    assert (said["inputs"], said["groups"], said["failures"]) == (COUNT, {"only": COUNT}, 0)
    # Two factors, then two models, then a label for each: shared results counted once.
    assert said["runs"] == {
        "scale[factor=1.0]": COUNT,
        "scale[factor=2.0]": COUNT,
        "classify[model=plain]": 2 * COUNT,
        "classify[model=steep]": 2 * COUNT,
        "label": 4 * COUNT,
    }


def test_the_table_can_be_committed_and_belongs_to_its_pipeline(
    finished: tuple[Bench, Measured, list[Progress]], tmp_path: Path
) -> None:
    bench, (table, results), _ = finished
    save_accuracy(tmp_path / "accuracy.json", table)
    assert load_accuracy(tmp_path / "accuracy.json", load_pipeline(bench.bundle)).configs == table.configs
    save_inputs(tmp_path / "inputs.json", list(table.configs), results)
    inputs = json.loads((tmp_path / "inputs.json").read_text(encoding="utf-8"))
    assert inputs["configs"] == list(table.configs)
    assert [entry["name"] for entry in inputs["inputs"]] == [result.name for result in results]


class StoppedError(Exception):
    """Somebody pressed the keys."""


def test_a_measurement_that_was_stopped_goes_on_where_it_was(
    tmp_path: Path, finished: tuple[Bench, Measured, list[Progress]]
) -> None:
    bench = Bench(tmp_path)

    def stop(step: Progress) -> None:
        if step.done == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        bench.measure(on_progress=stop)
    kept = bench.lines()
    assert len(kept) == 1 + 2
    steps: list[Progress] = []
    table, _ = bench.measure(on_progress=steps.append)
    assert [step.done for step in steps] == [3, 4]
    assert bench.lines()[:3] == kept
    assert table.configs == finished[1][0].configs


def test_a_line_that_was_cut_short_is_measured_again(
    bench: Bench, finished: tuple[Bench, Measured, list[Progress]]
) -> None:
    content = bench.progress.read_bytes()
    bench.progress.write_bytes(content[:-40])
    steps: list[Progress] = []
    table, _ = bench.measure(on_progress=steps.append)
    assert [step.done for step in steps] == [4]
    assert table.configs == finished[1][0].configs
    assert len(bench.lines()) == 1 + COUNT, "and the piece is gone"


def test_what_is_finished_is_taken_as_it_is(bench: Bench) -> None:
    """No process starts; what was measured is believed."""
    lines = bench.lines()
    lines[1]["scores"] = [0.125] * 4
    bench.progress.write_text("".join(json.dumps(line) + "\n" for line in lines))
    _, results = bench.measure()
    changed = next(result for result in results if result.name == lines[1]["name"])
    assert changed.scores == (0.125,) * 4


def test_a_limit_takes_the_first_inputs(bench: Bench) -> None:
    table, results = bench.measure(limit=2)
    assert [result.name for result in results] == ["profiling-0", "profiling-1"]
    assert {accuracy.count for accuracy in table.configs.values()} == {2}


def test_one_input_has_no_standard_error(bench: Bench) -> None:
    table, _ = bench.measure(limit=1)
    assert {accuracy.standard_error for accuracy in table.configs.values()} == {0.0}


def change_code(bench: Bench) -> dict[str, Any]:
    with (bench.bundle / "operators.py").open("a", encoding="utf-8") as file:
        file.write("\n# faster now\n")
    return {}


def change_declaration(bench: Bench) -> dict[str, Any]:
    file = bench.bundle / "pipeline.toml"
    file.write_text(file.read_text(encoding="utf-8").replace('"1.0.0"', '"1.0.1"'), encoding="utf-8")
    return {}


def change_split(bench: Bench) -> dict[str, Any]:
    return {"split": "heldout"}


def change_configs(bench: Bench) -> dict[str, Any]:
    return {"configs": list(load_pipeline(bench.bundle).configs())[:2]}


@pytest.mark.parametrize("change", [change_code, change_declaration, change_split, change_configs])
def test_progress_of_another_measurement_is_refused(
    bench: Bench, change: Callable[[Bench], dict[str, Any]]
) -> None:
    options = change(bench)
    before = bench.progress.read_bytes()
    with pytest.raises(ProfileError, match=r"another version of 'tiny' \(profiling\); remove it"):
        bench.measure(**options)
    assert bench.progress.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"not json\n", b'{"pipeline": "tiny"}\n'])
def test_what_is_no_progress_file_is_refused_and_kept(bench: Bench, content: bytes) -> None:
    bench.progress.write_bytes(content)
    with pytest.raises(ProfileError, match="not a progress file"):
        bench.measure()
    assert bench.progress.read_bytes() == content


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"split": "other"}, "no split 'other'; there are profiling, heldout"),
        ({"limit": 0}, "nothing to measure"),
        ({"configs": []}, "nothing to measure"),
    ],
)
def test_nothing_to_measure_is_an_error(bench: Bench, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        bench.measure(**options)


def test_a_bundle_without_a_metric_cannot_be_measured(bench: Bench) -> None:
    file = bench.bundle / "pipeline.toml"
    text = file.read_text(encoding="utf-8")
    start = text.index("[metric]")
    file.write_text(text[:start] + text[text.index("[[operators]]") :], encoding="utf-8")
    with pytest.raises(ConfigError, match=r"needs \[inputs\] and \[metric\]"):
        bench.measure()


def test_inputs_need_names_of_their_own(bench: Bench) -> None:
    file = bench.bundle / "data.py"
    file.write_text(
        file.read_text(encoding="utf-8").replace('f"{split}-{index}"', '"same"'), encoding="utf-8"
    )
    with pytest.raises(ConfigError, match="two inputs are called 'same'"):
        bench.measure()


def test_a_metric_that_fails_in_a_process_is_reported_here(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with (bench.bundle / "data.py").open("a", encoding="utf-8") as file:
        file.write("\ndef score(output, truth):\n    raise KeyError('labels')\n")
    with pytest.raises(ProfileError, match="the metric failed on input 'profiling-0': KeyError"):
        bench.measure(limit=1)


def test_processes_end_when_the_measurement_is_killed(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    data = bench.bundle / "data.py"
    slow = data.read_text(encoding="utf-8").replace(
        "def score(output, truth):", "def score(output, truth):\n    import time; time.sleep(600)"
    )
    data.write_text(slow, encoding="utf-8")
    command = [sys.executable, "-m", "compass_agent", "accuracy", str(bench.bundle)]
    options = ["--out", str(tmp_path / "out.json"), "--cache", str(bench.cache), "--workers", "2"]
    with subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL) as parent:
        watched = psutil.Process(parent.pid)
        workers: list[psutil.Process] = []
        while len(workers) < 3:  # two, and the resource tracker
            workers = watched.children()
        parent.kill()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive
