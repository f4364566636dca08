"""Results of operator runs, named by everything that they follow from: in memory and, if wanted, on disk.

A key says what was run on what (``walk`` makes them), so an entry is never out of date, only unused. Memory
and disk each have a limit in bytes and let go of what was not used for longest. The disk is a help, never a
need: an entry that cannot be read is not there, and after a write that failed (a full disk) results are kept
in memory alone, which is said once. Results that are failures stay in memory: the next process tries again.

An entry on disk is the digest of its payload, the time that it took (of a clip, of each request), a digest of
these two, then the payload. Several processes may share the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from compass_shared.files import write_atomically
from compass_shared.framing import encode_value
from compass_shared.measured import RequestRun
from compass_shared.values import Value

_DIGEST_BYTES = 16
_TIMES = struct.Struct("<ddqI")
"""CPU and wall seconds, items, and how many requests follow."""
_REQUEST = struct.Struct("<dqq")
"""CPU seconds, output size and items of one request of a clip."""
_NONE = -1
"""A number of items where there are none to count; a size where the request was lost."""
_ENTRY_BYTES = 500
"""What keeping a result in memory takes beside its payload."""
_LOOKS = 32
"""The folder is looked through again after writing this part of its limit: others may have written too."""
_KEPT_SHARE = 0.875
"""What is kept of the limit when it was reached, so that not every write has to delete."""


def _write(path: Path, content: bytes) -> None:
    """What is lost in a power cut is measured again."""
    write_atomically(path, content, durable=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one operator made of its inputs."""

    payload: bytes
    """The encoded value; empty where the operator failed."""
    digest: bytes
    """Content address of the payload: results that are alike share what follows from them."""
    problem: str | None = None
    """Why the operator, or one before it, failed."""
    cpu_s: float = field(default=0.0, compare=False)
    """What it took to compute."""
    wall_s: float = field(default=0.0, compare=False)
    items: int | None = field(default=None, compare=False)
    """Items that it worked through, of a fan-out."""
    each: tuple[RequestRun | None, ...] = field(default=(), compare=False)
    """Of a clip: every request; None where there is no output."""
    recalled: bool = field(default=False, compare=False)
    """Whether it came from disk just now: it took that time in some process before this one, or beside it."""


def digest_of(payload: bytes) -> bytes:
    """Content address of an encoded value."""
    return hashlib.blake2b(payload, digest_size=_DIGEST_BYTES).digest()


def result_of(value: Value) -> Result:
    """The result that is this value.

    Raises:
        MessageError: If it cannot be framed.
    """
    return result_from(encode_value(value))


def result_from(payload: bytes) -> Result:
    """The result that is this encoded value."""
    return Result(payload=payload, digest=digest_of(payload))


def failure(problem: str) -> Result:
    """The result of an operator that failed."""
    return Result(payload=b"", digest=b"failed", problem=problem)


class ResultsCache:
    """Keeps results in memory, and in a folder.

    Args:
        memory_bytes: Limit in memory; None for none.
        folder: Where to keep results on disk, if at all.
        disk_bytes: Limit in the folder, also with what other processes keep there.
        write: Writes a file, all of it or nothing.
    """

    def __init__(
        self,
        *,
        memory_bytes: int | None = None,
        folder: Path | None = None,
        disk_bytes: int = 0,
        write: Callable[[Path, bytes], None] = _write,
    ) -> None:
        self._memory = _Memory(memory_bytes)
        self._disk = None if folder is None or disk_bytes <= 0 else _Disk(folder, disk_bytes, write)

    def get(self, key: str) -> Result | None:
        """The result of that key, if it is still there."""
        found = self._memory.get(key)
        if found is None and self._disk is not None:
            found = self._disk.get(key)
            if found is not None:
                self._memory.put(key, replace(found, recalled=False))
        return found

    def put(self, key: str, result: Result) -> None:
        """Keep a result."""
        self._memory.put(key, result)
        if self._disk is not None and result.problem is None:
            self._disk.put(key, result)

    def take_notices(self) -> tuple[str, ...]:
        """What happened since the last call that people should know."""
        notices = [] if self._disk is None else self._disk.notices
        taken = tuple(notices)
        notices.clear()
        return taken


class _Memory:
    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._results: OrderedDict[str, Result] = OrderedDict()
        self._bytes = 0

    def get(self, key: str) -> Result | None:
        found = self._results.get(key)
        if found is not None:
            self._results.move_to_end(key)
        return found

    def put(self, key: str, result: Result) -> None:
        if key in self._results:
            return
        self._results[key] = result
        self._bytes += _ENTRY_BYTES + len(result.payload)
        while self._limit is not None and self._bytes > self._limit and self._results:
            _, oldest = self._results.popitem(last=False)
            self._bytes -= _ENTRY_BYTES + len(oldest.payload)


class _Disk:
    def __init__(self, folder: Path, limit: int, write: Callable[[Path, bytes], None]) -> None:
        self._folder = folder
        self._limit = limit
        self._write = write
        self._writing = True
        self._unseen_bytes = limit
        """Written since the folder was last looked through; as if full, so that the first write looks."""
        self._seen_bytes = 0
        self.notices: list[str] = []

    def get(self, key: str) -> Result | None:
        path = self._path(key)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        found = _decoded(content)
        with contextlib.suppress(OSError):
            if found is None:
                path.unlink()
            else:
                os.utime(path)  # used just now, so that it is not the next to go
        return found

    def put(self, key: str, result: Result) -> None:
        if not self._writing or len(result.payload) > self._limit / _LOOKS:
            return
        entry = _encoded(result)
        try:
            self._make_room(len(entry))
            self._write(self._path(key), entry)
        except OSError as error:
            self._writing = False
            self.notices.append(f"{self._folder}: results are kept in memory alone from now on: {error}")

    def _make_room(self, size: int) -> None:
        self._unseen_bytes += size
        full = self._seen_bytes + self._unseen_bytes > self._limit
        if full or self._unseen_bytes > self._limit / _LOOKS:
            self._seen_bytes = _trimmed(self._folder, self._limit, size)
            self._unseen_bytes = size

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / key


def _encoded(result: Result) -> bytes:
    sealed = result.digest + _TIMES.pack(result.cpu_s, result.wall_s, _count(result.items), len(result.each))
    for one in result.each:
        sealed += _REQUEST.pack(0.0, _NONE, _NONE) if one is None else _packed(one)
    return sealed + digest_of(sealed) + result.payload


def _packed(one: RequestRun) -> bytes:
    return _REQUEST.pack(one.cpu_s, one.output_bytes, _count(one.items))


def _count(items: int | None) -> int:
    return _NONE if items is None else items


def _decoded(content: bytes) -> Result | None:
    """The result of an entry; None where any of it is damaged, or the times are none."""
    start = _DIGEST_BYTES + _TIMES.size
    if len(content) < start:
        return None
    cpu_s, wall_s, items, requests = _TIMES.unpack_from(content, _DIGEST_BYTES)
    end = start + requests * _REQUEST.size
    sealed, payload = content[:end], content[end + _DIGEST_BYTES :]
    if content[end : end + _DIGEST_BYTES] != digest_of(sealed):
        return None
    digest = digest_of(payload)
    if sealed[:_DIGEST_BYTES] != digest or not (math.isfinite(cpu_s) and math.isfinite(wall_s)):
        return None
    each = tuple(
        None if size == _NONE else RequestRun(request_s, size, None if count == _NONE else count)
        for request_s, size, count in _REQUEST.iter_unpack(sealed[start:])
    )
    return Result(
        payload=payload,
        digest=digest,
        cpu_s=cpu_s,
        wall_s=wall_s,
        items=None if items == _NONE else items,
        each=each,
        recalled=True,
    )


def _trimmed(folder: Path, limit: int, coming: int) -> int:
    """Delete what was not used for longest until one more file fits; returns the bytes left."""
    files = []
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # another process trims as well
            status = path.stat()
            if path.is_file():
                files.append((status.st_mtime_ns, status.st_size, path))
    left = sum(size for _, size, _ in files)
    goal = limit if left + coming <= limit else _KEPT_SHARE * limit
    for _, size, path in sorted(files):
        if left + coming <= goal:
            break
        path.unlink(missing_ok=True)
        left -= size
    return left
