"""The log of a profiling run: a header, then every answer of a measuring process, one JSON line each.

A line is on disk before the next job is asked for, so whatever ends a run, what it measured is kept. A line
that was cut short is dropped when the log is opened again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import msgspec

from compass_shared.errors import MessageError, ProfileError
from compass_shared.files import write_atomically
from compass_shared.measured import PROCESS_ENDED, Done, Ready, decode_line, encode_line


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What is being measured, and the seed that decides in which order."""

    pipeline: str
    digest: str
    code_sha256: str
    data_sha256: str
    split: str
    models: dict[str, str]
    runtimes: dict[str, str]
    inputs: tuple[str, ...]
    seed: int


def header_of(ready: Ready, seed: int) -> Header:
    """The header of a run."""
    return Header(
        pipeline=ready.pipeline,
        digest=ready.digest,
        code_sha256=ready.code_sha256,
        data_sha256=ready.data_sha256,
        split=ready.split,
        models=ready.models,
        runtimes=ready.runtimes,
        inputs=tuple(info.name for info in ready.inputs),
        seed=seed,
    )


def read_log(path: Path, header: Header) -> list[Done]:
    """What an earlier run of the same measurement left.

    Where a process ended over a config there is no score, so that it is measured again: that may have been
    the machine's fault.

    Raises:
        ProfileError: If it cannot be read, or is of another measurement; says of what.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
        if not lines:
            raise _none(path, "it is empty")
        found = msgspec.json.decode(lines[0], type=Header)
    except OSError as error:
        raise ProfileError(f"{path}: cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise _none(path, str(error)) from error
    for name in Header.__struct_fields__:
        before, now = getattr(found, name), getattr(header, name)
        if before != now:
            raise ProfileError(
                f"{path}: it is of another {name.replace('_', ' ')}{_difference(before, now)}; "
                "remove it, or name another --log, to start afresh"
            )
    return [_without_ended(done) for line in lines[1:] if (done := _whole(line)) is not None]


@contextlib.contextmanager
def only_run(path: Path) -> Iterator[None]:
    """Keep other runs from a log, which would overwrite what this one adds.

    Args:
        path: The log; it need not be there yet. Held is a file beside it, as the log itself is replaced.

    Raises:
        ProfileError: If another run has it, or nothing can be written there.
    """
    lock = path.with_name(f"{path.name}.lock")
    try:
        file = _locked(lock)
    except BlockingIOError as error:
        raise ProfileError(
            f"{path}: another run is measuring into it: wait until it ended, or name another --log"
        ) from error
    except OSError as error:
        raise ProfileError(f"{lock}: cannot be written: {error.strerror}") from error
    with file:
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


class MeasurementLog:
    """Appends to a log.

    Args:
        path: Where.
        header: Its first line.
        kept: What an earlier run left.

    Raises:
        ProfileError: If it cannot be written.
    """

    def __init__(self, path: Path, header: Header, kept: list[Done]) -> None:
        self._path = path
        try:
            # Anew, without what was cut short; a run that is stopped right here has lost nothing.
            write_atomically(path, msgspec.json.encode(header) + b"\n" + b"".join(map(encode_line, kept)))
            self._file = path.open("ab")
        except OSError as error:
            raise self._failed(error) from error

    def __enter__(self) -> MeasurementLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # What could not be written, ``add`` has said already.
        with contextlib.suppress(OSError):
            self._file.close()

    def add(self, done: Done) -> None:
        """Append one answer, on disk when this returns.

        Raises:
            ProfileError: If it cannot be written; everything before it is kept.
        """
        try:
            self._file.write(encode_line(done))
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> ProfileError:
        return ProfileError(
            f"{self._path}: cannot be written: {error.strerror}; what was measured before is kept, "
            "--resume goes on from there"
        )


def _locked(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = path.open("wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_nlink:
                return file
        except OSError:
            file.close()
            raise
        file.close()  # whoever had it took the file away just now


def _none(path: Path, reason: str) -> ProfileError:
    return ProfileError(f"{path}: not a log of measurements: {reason}; remove it to start afresh")


def _whole(line: bytes) -> Done | None:
    """An answer; None where it was cut short by what ended that run: the job is done again."""
    try:
        return decode_line(line, Done)
    except MessageError:
        return None


def _without_ended(done: Done) -> Done:
    """What is known of its configs; what it ran was run all the same."""
    ended = {key for key, problem in done.problems.items() if problem.startswith(PROCESS_ENDED)}
    return msgspec.structs.replace(
        done,
        scores={key: score for key, score in done.scores.items() if key not in ended},
        problems={key: problem for key, problem in done.problems.items() if key not in ended},
    )


def _difference(before: object, now: object) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        name = next((key for key in (*now, *before) if before.get(key) != now.get(key)), "")
        return f" ({name}: {before.get(name)} then, {now.get(name)} now)"
    if isinstance(before, tuple):
        return ""
    return f" ({before} then, {now} now)"
