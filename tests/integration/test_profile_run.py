"""``compass profile`` on a bundle whose operators fail and crash: interrupted, resumed, limited, finished."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from compass_coordinator import cli
from compass_coordinator.measurements import load_measurements
from compass_coordinator.measuring.log import MeasurementLog, only_run
from compass_shared.measured import Done
from compass_shared.pipeline_file import load_pipeline
from compass_shared.profile_file import load_accuracy
from support.measuring import key_of, write_words_bundle

MODES = ("all", "half", "fails", "crashes")


class Desk:
    """Where somebody profiles a bundle."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.bundle = write_words_bundle(folder, modes=MODES)
        self._fix_a_knob()
        self.table = self.bundle / "profile" / "accuracy.json"
        self.log = self.table.with_suffix(".measured.jsonl")
        self._places = ["--cache", str(folder / "models"), "--results", str(folder / "results")]
        self._capsys = capsys
        self.said = ""

    def _fix_a_knob(self) -> None:
        """Half as many configs that crash take half as many processes."""
        file = self.bundle / "pipeline.toml"
        file.write_text(file.read_text().replace("[true, false]", "[true]"))

    def profile(self, *options: str) -> tuple[int, str]:
        """Exit code and output; what was said on stderr is kept."""
        code = cli.main(["profile", str(self.bundle), *self._places, "--workers", "1", *options])
        out, self.said = self._capsys.readouterr()
        return code, out

    def summary(self, *options: str) -> dict[str, Any]:
        code, out = self.profile("--json", *options)
        assert code == 0, self.said
        found: dict[str, Any] = json.loads(out)
        return found

    def answers(self) -> list[dict[str, Any]]:
        """What is in the log."""
        return [json.loads(line) for line in self.log.read_bytes().splitlines()[1:]]


@pytest.fixture
def desk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Desk:
    return Desk(tmp_path, capsys)


def _ctrl_c_after_the_first_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal itself, in the middle of the run; only once."""
    add = MeasurementLog.add

    def added(log: MeasurementLog, done: Done) -> None:
        add(log, done)
        monkeypatch.undo()
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(MeasurementLog, "add", added)


def test_a_run_that_is_interrupted_resumed_and_limited(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    _ctrl_c_after_the_first_answer(monkeypatch)
    code, _ = desk.profile()
    assert code == 130
    assert "--resume goes on from there" in desk.said
    assert len(desk.log.read_bytes().splitlines()) == 2, "the header and one answer"
    assert not desk.table.exists()

    with only_run(desk.log):
        assert desk.profile("--resume")[0] == 1
    assert "another run is measuring into it" in desk.said

    assert desk.profile()[0] == 2, "whoever forgets --resume does not lose it"
    assert "an earlier run measured this far" in desk.said

    (first,) = desk.answers()
    limited = desk.summary("--resume", "--budget", "1e-9")
    kept = desk.log.read_bytes()
    (again,) = desk.answers()
    assert first["scores"].pop(key_of("crashes")) is None, "its process was ended: to be tried again"
    assert again["scores"] == first["scores"], "the budget was spent before"
    assert limited["finished"] is False
    assert load_accuracy(desk.table, load_pipeline(desk.bundle)).configs[key_of("all")].count == 1

    speeds = desk.bundle.parent / "speeds.json"
    summary = desk.summary("--resume", "--speeds", str(speeds))
    assert desk.log.read_bytes().startswith(kept)
    assert summary["finished"] is True
    assert (summary["configs"], summary["measured"], summary["on_all_inputs"]) == (4, 4, 4)
    assert (summary["decided"], summary["expected_wrong"]) == (4, 0.0)
    assert summary["most_accurate"]["accuracy"] == 1.0
    failures = summary["failures"]
    assert (failures["configs"], failures["inputs_without_score"]) == (2, 4), "one always, one once"
    table = load_accuracy(desk.table, load_pipeline(desk.bundle))
    means = {mode: round(table.configs[key_of(mode)].mean, 4) for mode in MODES}
    assert means == {"all": 1.0, "half": 0.5, "fails": 0.0, "crashes": 0.6667}
    assert all(found.count == 3 and not found.predicted for found in table.configs.values())
    (site,) = load_measurements(speeds).sites
    assert set(site.operators) >= {"split[lower=true]", "pick[mode=all]", "pick[mode=half]"}
    assert "pick[mode=fails]" not in site.operators

    before = desk.answers()
    code, told = desk.profile("--resume")
    assert code == 0
    after = desk.answers()[len(before) :]
    assert [list(done["scores"]) for done in after] == [[key_of("crashes")]], "all else was measured"
    assert "4 configs, 4 measured, 4 of them on all inputs" in told
    assert "without a score, counted as 0: 4 measurements of 2 configs" in told

    assert desk.profile()[0] == 2
    assert "is there already" in desk.said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--slo", "accuracy"], "'accuracy' is not NAME=NUMBER"),
        (["--slo", "latency=1"], "accuracy within [0, 1] is needed"),
        (["--slo", "accuracy=1.2"], "accuracy within [0, 1] is needed"),
        (["--slo", "accuracy=nan"], "accuracy within [0, 1] is needed"),
        (["--slo", "accuracy=0.5,latency=0"], "latency above 0 may be"),
        (["--slo", "accuracy=0.5,cost=1"], "'cost': an SLO on this machine has accuracy and latency"),
        (["--split", "other"], "there is no split 'other'; there are profiling, one"),
        (["--fleet", "fleet.toml"], "give both, or neither"),
        (["--fleet", "f.toml", "--profiles", "p.json", "--slo", "accuracy=1"], "leave --slo out"),
    ],
)
def test_wrong_usage_is_refused_before_anything_is_measured(
    desk: Desk, options: list[str], message: str
) -> None:
    assert desk.profile(*options)[0] == 2
    assert message in desk.said
    assert not desk.log.exists()


@pytest.mark.parametrize(
    "options", [["--budget", "0"], ["--workers", "-1"], ["--delta", "1"], ["--results-gb", "nan"]]
)
def test_numbers_out_of_range_are_refused(desk: Desk, options: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        desk.profile(*options)
    assert stopped.value.code == 2
