"""Jobs of a measuring session: what is reused, and what goes wrong with one config and no other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from compass_agent.bundles import load_bundle
from compass_agent.inputs import data_sha256, load_examples
from compass_agent.measure.results_cache import ResultsCache
from compass_agent.measure.session import MeasuringSession, fetch_models
from compass_agent.models import ModelStore
from compass_agent.operators import OperatorHost
from compass_agent.runtimes import installed_runtimes
from compass_shared.errors import ConfigError, ModelLoadError
from compass_shared.measured import Done, Job, Score
from compass_shared.model_cache import ModelCache
from support.bundles import write_tiny_bundle
from support.measuring import key_of, write_words_bundle

Start = Callable[..., MeasuringSession]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Starts a session on a bundle; what is kept on disk is found by the next one."""

    def start(bundle: Path, *, split: str = "profiling", **cache: Any) -> MeasuringSession:
        loaded = load_bundle(bundle)
        store = ModelStore(ModelCache(tmp_path / "models"))
        return MeasuringSession(
            loaded,
            load_examples(loaded, split, store),
            split=split,
            host=OperatorHost([loaded], store),
            cache=ResultsCache(**cache),
        )

    return start


@pytest.fixture
def words(tmp_path: Path) -> Path:
    return write_words_bundle(tmp_path)


def job(*configs: str, index: int = 0) -> Job:
    return Job(id=7, input=index, configs=configs)


def variants(done: Done) -> list[str]:
    return [run.variant for run in done.runs]


def mean(numerator: float) -> Score:
    return Score(numerator=numerator)


def test_it_says_what_it_measures(start: Start, words: Path, tmp_path: Path) -> None:
    ready = start(words).ready()
    assert [one.name for one in ready.inputs] == ["profiling-0", "profiling-1", "profiling-2"]
    assert (ready.pipeline, ready.split, ready.metric, ready.kind) == ("words", "profiling", "words", "mean")
    assert all(one.size_bytes > 5 for one in ready.inputs)
    assert ready.digest == load_bundle(words).pipeline.digest
    assert (ready.data_sha256, ready.runtimes) == (
        data_sha256(words),
        {"python": installed_runtimes()["python"]},
    )
    own = start(write_words_bundle(tmp_path / "own", own_features=True)).ready()
    assert [one.features for one in own.inputs] == [(18, 3), (8, 1), (10, 1)]


def test_other_labels_are_another_measurement(start: Start, words: Path) -> None:
    first = start(words).ready()
    (words / "labels").mkdir()
    (words / "labels" / "truth.json").write_text("another")
    other = start(words).ready()
    assert other.data_sha256 != first.data_sha256
    assert msgspec.structs.replace(other, data_sha256=first.data_sha256) == first


def test_a_prefix_runs_once(start: Start, words: Path) -> None:
    session = start(words)
    done = session.measure(job(key_of("all"), key_of("half")))
    assert variants(done) == ["split[lower=true]", "pick[mode=all]", "pick[mode=half]"]
    assert done.scores == {key_of("all"): mean(1), key_of("half"): mean(0.5)}
    assert (done.id, done.input, done.problems) == (7, 0, {})
    assert all(run.cpu_s >= 0 and run.wall_s >= 0 and run.output_bytes > 0 for run in done.runs)
    again = session.measure(job(key_of("half"), key_of("nothing")))
    assert variants(again) == ["pick[mode=nothing]"], "what an earlier job ran is known"
    assert again.reused == 3


def test_inputs_share_nothing(start: Start, words: Path) -> None:
    session = start(words)
    session.measure(job(key_of("all")))
    assert variants(session.measure(job(key_of("all"), index=1))) == ["split[lower=true]", "pick[mode=all]"]


def test_results_that_are_alike_share_what_follows(start: Start, words: Path) -> None:
    """The texts are in lower case already."""
    done = start(words).measure(job(key_of("all", lower=True), key_of("all", lower=False)))
    assert variants(done) == ["split[lower=true]", "pick[mode=all]", "split[lower=false]"]


def test_results_on_disk_are_found_by_the_next_session(start: Start, words: Path, tmp_path: Path) -> None:
    kept = {"folder": tmp_path / "results", "disk_bytes": 1 << 20}
    first = start(words, **kept).measure(job(key_of("all"), key_of("fails")))
    again = start(words, **kept).measure(job(key_of("all"), key_of("fails")))
    assert variants(again) == ["pick[mode=fails]"], "who knows what it was that failed"
    assert again.scores == first.scores
    ran = {run.variant: run for run in first.runs if not run.failed}
    assert again.recalled == (ran["split[lower=true]"], ran["pick[mode=all]"]), "with the times of then"


def test_results_on_disk_are_told_once_in_a_session(start: Start, words: Path, tmp_path: Path) -> None:
    kept = {"folder": tmp_path / "results", "disk_bytes": 1 << 20}
    first = start(words, **kept)
    assert first.measure(job(key_of("all"))).recalled == ()
    assert first.measure(job(key_of("all"))).recalled == (), "its own"
    second = start(words, **kept)
    assert len(second.measure(job(key_of("all"))).recalled) == 2
    assert second.measure(job(key_of("all"))).recalled == ()


@pytest.mark.parametrize("what", ["code", "data"])
def test_results_of_other_code_are_not_found(start: Start, words: Path, tmp_path: Path, what: str) -> None:
    kept = {"folder": tmp_path / "results", "disk_bytes": 1 << 20}
    start(words, **kept).measure(job(key_of("all")))
    if what == "code":
        (words / "operators.py").write_text((words / "operators.py").read_text() + "\n# another\n")
    else:
        (words / "lexicon.txt").write_text("another")
    assert len(start(words, **kept).measure(job(key_of("all"))).runs) == 2


def test_results_of_another_model_under_the_same_name_are_not_found(start: Start, tmp_path: Path) -> None:
    kept = {"folder": tmp_path / "results", "disk_bytes": 1 << 20}
    bundle = write_tiny_bundle(tmp_path)
    key = "scale[factor=1.0];classify[model=plain];label"
    assert len(start(bundle, **kept).measure(job(key)).runs) == 3
    assert start(bundle, **kept).measure(job(key)).runs == ()
    file = bundle / "pipeline.toml"
    parts = file.read_text().split("[models.")
    plain = next(part for part in parts if part.startswith("plain]")).replace("plain]", "")
    steep = next(part for part in parts if part.startswith("steep]")).replace("steep]", "")
    other = steep.rstrip() + '\nassets = { labels = "labels" }\n\n'
    file.write_text(file.read_text().replace(plain, other, 1))
    assert variants(start(bundle, **kept).measure(job(key)))[0] == "classify[model=plain]"


def test_what_goes_wrong_with_a_config_costs_no_other(start: Start, words: Path) -> None:
    modes = ("all", "fails", "nan", "high", "nothing", "crashes")
    done = start(words).measure(job(*map(key_of, modes), "split[lower=true];pick", "pick;split"))
    assert {key for key, score in done.scores.items() if score is not None} == {
        key_of("all"),
        key_of("nothing"),
        key_of("crashes"),
    }
    assert done.scores[key_of("nothing")] == mean(0), "an empty output is an output"
    problems = [done.problems[key] for key in done.scores if key in done.problems]
    assert problems == [
        "input 'profiling-0': operator 'pick': ValueError: cannot pick",
        "the metric gave nan on input 'profiling-0': not a score in [0, 1]",
        "the metric gave 1.5 on input 'profiling-0': not a score in [0, 1]",
        "'words' has no such config",
        "'words' has no such config",
    ]
    assert [run.variant for run in done.runs if run.failed] == ["pick[mode=fails]"]


def test_a_ratio_metric_counts(start: Start, tmp_path: Path) -> None:
    bundle = write_words_bundle(tmp_path, kind="ratio")
    done = start(bundle).measure(job(key_of("half"), key_of("high"), key_of("fails")))
    assert done.scores[key_of("half")] == Score(numerator=2, denominator=4)
    assert "'profiling-0': not a denominator" in done.problems[key_of("high")]
    assert done.scores[key_of("high")] is None


def test_an_input_set_of_one(start: Start, words: Path) -> None:
    session = start(words, split="one")
    assert len(session.ready().inputs) == 1
    assert session.measure(job(key_of("all"))).scores == {key_of("all"): mean(1)}
    with pytest.raises(ConfigError, match="no input 1; there are 1"):
        session.measure(job(key_of("all"), index=1))


def test_a_variant_is_called_once_before_it_is_timed(
    start: Start, words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []
    session = start(words)
    run = OperatorHost.run

    def counting(host: OperatorHost, pipeline: str, operator: str, inputs: Any, knobs: Any) -> Any:
        called.append(operator)
        return run(host, pipeline, operator, inputs, knobs)

    monkeypatch.setattr(OperatorHost, "run", counting)
    first = session.measure(job(key_of("all")))
    assert (called, len(first.runs)) == (["split", "split", "pick", "pick"], 2)
    assert first.warm_up_cpu_s > 0
    second = session.measure(job(key_of("all"), index=1))
    assert (called[4:], len(second.runs)) == (["split", "pick"], 2)
    assert second.warm_up_cpu_s == 0


def test_a_full_disk_is_told_with_the_scores(start: Start, words: Path, tmp_path: Path) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    session = start(words, folder=tmp_path / "results", disk_bytes=1 << 20, write=full)
    done = session.measure(job(key_of("all")))
    assert done.scores == {key_of("all"): mean(1)}
    assert "No space left on device" in done.notices[0]
    assert session.measure(job(key_of("half"))).notices == ()


def test_models_are_there_before_the_first_job(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path)
    store = ModelStore(ModelCache(tmp_path / "models"))
    fetch_models(load_bundle(bundle), store)
    (bundle / "steep.onnx").unlink()
    with pytest.raises(ModelLoadError, match="steep"):
        fetch_models(load_bundle(bundle), ModelStore(ModelCache(tmp_path / "other")))


def test_a_model_that_cannot_be_opened_costs_its_configs_alone(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = start(write_tiny_bundle(tmp_path))
    bind = OperatorHost.bind

    def refuses(host: OperatorHost, pipeline: str, operator: str, knobs: Any) -> Any:
        if knobs.get("model") == "steep":
            raise ModelLoadError("not an ONNX file", model="steep")
        return bind(host, pipeline, operator, knobs)

    monkeypatch.setattr(OperatorHost, "bind", refuses)
    keys = [f"scale[factor=1.0];classify[model={model}];label" for model in ("plain", "steep")]
    done = session.measure(job(*keys))
    assert done.scores[keys[0]] == mean(1)
    assert "steep: not an ONNX file" in done.problems[keys[1]]
