"""Results in memory and on disk: limits, what was used last, and disks that are full or lie."""

from __future__ import annotations

import errno
import math
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from compass_agent.measure.results_cache import Result, ResultsCache, failure, result_of

KB = b"x" * 1000


def keys(count: int) -> list[str]:
    return [f"{index:064x}"[::-1] for index in range(count)]


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def on_disk(folder: Path, *, disk_bytes: int = 1 << 20) -> ResultsCache:
    """One that finds nothing in memory."""
    return ResultsCache(memory_bytes=0, folder=folder, disk_bytes=disk_bytes)


def test_memory_lets_go_of_what_was_not_used_for_longest() -> None:
    cache = ResultsCache(memory_bytes=3 * 1500 + 400)
    first, second, third, fourth = keys(4)
    for key in (first, second, third):
        cache.put(key, result_of(KB))
    assert cache.get(first) is not None
    cache.put(fourth, result_of(KB))
    assert [key for key in keys(4) if cache.get(key) is None] == [second]


def test_results_outlive_the_process_on_disk(tmp_path: Path) -> None:
    key, result = keys(1)[0], result_of({"labels": ["a", "b"]})
    on_disk(tmp_path).put(key, result)
    assert on_disk(tmp_path).get(key) == result
    assert on_disk(tmp_path / "other").get(key) is None


def test_failures_are_tried_again_by_the_next_process(tmp_path: Path) -> None:
    key = keys(1)[0]
    cache = ResultsCache(folder=tmp_path, disk_bytes=1 << 20)
    cache.put(key, failure("out of memory"))
    assert cache.get(key) == failure("out of memory")
    assert on_disk(tmp_path).get(key) is None
    assert not files(tmp_path)


def test_the_folder_stays_below_its_limit_and_keeps_what_was_used(tmp_path: Path) -> None:
    limit = 40_000
    cache = on_disk(tmp_path, disk_bytes=limit)
    names = keys(100)
    for age, key in enumerate(names):
        cache.put(key, result_of(KB))
        if cache.get(names[0]) is None:
            pytest.fail("what is used all the time was deleted")
        for path in files(tmp_path):  # file times are too coarse for a test
            old = path.name not in (key, names[0])
            os.utime(path, ns=(0, (names.index(path.name) if old else 1000 + age) * 10**9))
        assert sum(path.stat().st_size for path in files(tmp_path)) <= limit
    assert on_disk(tmp_path, disk_bytes=limit).get(names[-1]) is not None
    assert on_disk(tmp_path, disk_bytes=limit).get(names[1]) is None
    assert cache.take_notices() == ()


def test_what_would_take_much_of_the_folder_is_not_kept_there(tmp_path: Path) -> None:
    on_disk(tmp_path, disk_bytes=10_000).put(keys(1)[0], result_of(KB))
    assert not files(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda old: b"",
        lambda old: old[:40],
        lambda old: old[:-1],
        lambda old: b"?" + old[1:],
        lambda old: old[:16] + struct.pack("<dd", math.nan, 1.0) + old[32:],
        lambda old: old[:16] + struct.pack("<dd", 1.0, 2.0) + old[32:],
    ],
)
def test_a_damaged_entry_is_no_entry(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    key = keys(1)[0]
    on_disk(tmp_path).put(key, result_of(KB))
    (path,) = files(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    assert on_disk(tmp_path).get(key) is None
    assert not files(tmp_path), "and makes room for a good one"
    on_disk(tmp_path).put(key, result_of(KB))
    assert on_disk(tmp_path).get(key) == result_of(KB)


def test_times_that_are_none_are_not_recalled(tmp_path: Path) -> None:
    key = keys(1)[0]
    on_disk(tmp_path).put(key, replace(result_of(KB), wall_s=math.inf))
    assert on_disk(tmp_path).get(key) is None


def test_a_full_disk_is_said_once_and_memory_goes_on(tmp_path: Path) -> None:
    tried: list[Path] = []

    def write(path: Path, content: bytes) -> None:
        tried.append(path)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cache = ResultsCache(folder=tmp_path, disk_bytes=1 << 20, write=write)
    results: dict[str, Result] = {}
    for key in keys(3):
        results[key] = result_of(key)
        cache.put(key, results[key])
    assert {key: cache.get(key) for key in results} == results
    assert len(tried) == 1
    (notice,) = cache.take_notices()
    assert "No space left on device" in notice
    assert cache.take_notices() == ()


def test_a_folder_that_cannot_be_made_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = ResultsCache(folder=tmp_path / "file" / "results", disk_bytes=1 << 20)
    cache.put(keys(1)[0], result_of(KB))
    assert cache.get(keys(1)[0]) == result_of(KB)
    assert cache.get(keys(2)[1]) is None
    assert len(cache.take_notices()) == 1
