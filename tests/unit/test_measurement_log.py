"""The log of a profiling run: what ends a run costs nothing that was measured before."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import BinaryIO

import msgspec
import pytest

from compass_coordinator.measuring.log import Header, MeasurementLog, header_of, only_run, read_log
from compass_shared.errors import ProfileError
from compass_shared.measured import PROCESS_ENDED, Done, InputInfo, OperatorRun, Ready, Score

READY = Ready(
    pipeline="words",
    digest="d1",
    code_sha256="c1",
    data_sha256="l1",
    split="profiling",
    metric="words",
    kind="mean",
    inputs=tuple(InputInfo(name=f"text-{at}", group="", features=(1.0,), size_bytes=9) for at in range(3)),
    models={"small": "aa", "large": "bb"},
    runtimes={"python": "python 3.11"},
)
HEADER = header_of(READY, 5)
DONE = [
    Done(
        id=at,
        input=at,
        scores={"half": Score(numerator=0.5), "broken\u2028": None},
        problems={"broken\u2028": "it said:\nno \u2028 way"},
        runs=(OperatorRun(variant="half", cpu_s=0.1, wall_s=0.2, output_bytes=3),),
    )
    for at in range(3)
]


def _write(path: Path, count: int = 3) -> None:
    with MeasurementLog(path, HEADER, []) as log:
        for done in DONE[:count]:
            log.add(done)


def test_what_is_added_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "log.jsonl"
    _write(path)
    assert read_log(path, HEADER) == DONE
    with MeasurementLog(path, HEADER, DONE[:2]) as log:
        assert read_log(path, HEADER) == DONE[:2], "at once, before anything new"
        log.add(DONE[2])
        assert read_log(path, HEADER) == DONE, "on disk when add returns"


@pytest.mark.parametrize("missing", [1, 2, 40])
def test_a_line_that_was_cut_short_is_done_again(tmp_path: Path, missing: int) -> None:
    path = tmp_path / "log.jsonl"
    _write(path)
    path.write_bytes(path.read_bytes()[:-missing])
    kept = read_log(path, HEADER)
    assert kept == DONE[: 3 if missing == 1 else 2], "without its end of line it is whole all the same"
    with MeasurementLog(path, HEADER, kept) as log:
        log.add(DONE[2])
    assert read_log(path, HEADER) == [*kept, DONE[2]]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"pipeline": "pages"}, "another pipeline \\(words then, pages now\\)"),
        ({"digest": "d2"}, "another digest \\(d1 then, d2 now\\)"),
        ({"code_sha256": "c2"}, "another code sha256 \\(c1 then, c2 now\\)"),
        ({"data_sha256": "l2"}, "another data sha256 \\(l1 then, l2 now\\)"),
        (
            {"runtimes": {"python": "python 3.12"}},
            "another runtimes \\(python: python 3.11 then, python 3.12 now\\)",
        ),
        ({"split": "heldout"}, "another split \\(profiling then, heldout now\\)"),
        ({"models": {"small": "aa", "large": "cc"}}, "another models \\(large: bb then, cc now\\)"),
        ({"models": {"small": "aa"}}, "another models \\(large: bb then, None now\\)"),
        ({"inputs": ("text-0",)}, "another inputs; remove it"),
        ({"seed": 6}, "another seed \\(5 then, 6 now\\)"),
    ],
)
def test_a_log_of_another_measurement_is_refused(
    tmp_path: Path, other: dict[str, object], named: str
) -> None:
    path = tmp_path / "log.jsonl"
    _write(path)
    with pytest.raises(ProfileError, match=f"log.jsonl: it is of {named}"):
        read_log(path, msgspec.structs.replace(HEADER, **other))


@pytest.mark.parametrize("content", [b"", b"\n", b"{}\n", b"accuracy\n", b'\xff"\n'])
def test_what_is_no_log_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(content)
    with pytest.raises(ProfileError, match=r"log.jsonl: not a log of measurements.*remove it"):
        read_log(path, HEADER)


def test_an_empty_log_is_said_to_be_empty(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"")
    with pytest.raises(ProfileError, match="it is empty; remove it"):
        read_log(path, HEADER)


def test_a_log_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="cannot be read: No such file"):
        read_log(tmp_path / "log.jsonl", HEADER)
    with pytest.raises(ProfileError, match="cannot be read: Is a directory"):
        read_log(tmp_path, HEADER)


def _until_the_disk_is_full(path: Path) -> None:
    with MeasurementLog(path, HEADER, DONE[:1]) as log:
        log.add(DONE[1])
        log._file.close()
        log._file = Path("/dev/full").open("ab")  # noqa: SIM115  # the log closes it
        log.add(DONE[2])


def test_a_config_whose_process_ended_is_measured_again(tmp_path: Path) -> None:
    """Its process may have been killed for want of memory; that an operator failed is an answer."""
    path = tmp_path / "log.jsonl"
    scores = DONE[0].scores
    problems = DONE[0].problems
    both = msgspec.structs.replace(
        DONE[0],
        scores=scores | {"large": None},
        problems=problems | {"large": f"{PROCESS_ENDED} with exit code -9"},
    )
    alone = Done(
        id=1, input=1, scores={"large": None}, problems={"large": f"{PROCESS_ENDED} with exit code 1"}
    )
    with MeasurementLog(path, HEADER, []) as log:
        log.add(both)
        log.add(alone)
    assert read_log(path, HEADER) == [DONE[0], Done(id=1, input=1, scores={})]


def test_a_log_is_of_one_run_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "new" / "log.jsonl"
    with only_run(path):
        for _ in range(2):  # also once the log was replaced
            with (
                pytest.raises(ProfileError, match=r"log.jsonl: another run .* name another --log"),
                only_run(path),
            ):
                pytest.fail("two runs have it")
            _write(path)
        with only_run(path.with_name("other.jsonl")):
            pass
    with only_run(path):
        pass
    assert list(path.parent.iterdir()) == [path], "nothing is left lying about"


def test_a_lock_that_was_let_go_meanwhile_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file was opened, then the run that had it took it away: who comes next makes another file."""
    path = tmp_path / "log.jsonl"
    flock = fcntl.flock

    def late(file: BinaryIO, how: int) -> None:
        monkeypatch.undo()
        (tmp_path / "log.jsonl.lock").unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with only_run(path), pytest.raises(ProfileError, match="another run"), only_run(path):
        pytest.fail("two runs have it")


def test_a_log_where_nothing_can_be_locked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ProfileError, match=r"log.jsonl.lock: cannot be written"),
        only_run(tmp_path / "file" / "log.jsonl"),
    ):
        pytest.fail("there is no such folder")


def test_a_full_disk_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with pytest.raises(ProfileError, match=r"cannot be written: No space left on device; .* --resume"):
        _until_the_disk_is_full(path)
    assert read_log(path, HEADER) == DONE[:2]


def test_a_log_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ProfileError, match="cannot be written"):
        MeasurementLog(tmp_path / "file" / "log.jsonl", HEADER, [])


def test_the_header_says_all_that_scores_depend_on() -> None:
    assert (
        Header(
            pipeline="words",
            digest="d1",
            code_sha256="c1",
            data_sha256="l1",
            split="profiling",
            models={"small": "aa", "large": "bb"},
            runtimes={"python": "python 3.11"},
            inputs=("text-0", "text-1", "text-2"),
            seed=5,
        )
        == HEADER
    )
