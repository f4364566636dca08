"""Background tasks are kept, reported when they fail, and ended together."""

from __future__ import annotations

import asyncio
import logging

import pytest

from compass_shared.background import Background

LOGGER = logging.getLogger("background-test")


async def test_a_task_that_fails_is_reported_by_name(caplog: pytest.LogCaptureFixture) -> None:
    failed: list[tuple[str, BaseException]] = []
    background = Background(LOGGER, on_failure=lambda name, error: failed.append((name, error)))

    async def work() -> None:
        raise OSError("disk full")

    task = background.spawn(work(), "saving")
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert "saving failed: disk full" in caplog.text
    ((name, error),) = failed
    assert (name, str(error)) == ("saving", "disk full")


async def test_what_is_under_way_is_cancelled_and_waited_for_and_that_is_no_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    background = Background(LOGGER)
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cleaned up")

    task = background.spawn(work(), "waiting")
    await asyncio.sleep(0)
    await background.end()
    assert task.cancelled()
    assert ended == ["cleaned up"]
    assert caplog.text == ""
