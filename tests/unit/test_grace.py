"""Constants of two sides that have to fit each other."""

from __future__ import annotations

from compass_agent.shares import GRACE_S
from compass_coordinator.core import RETRY_S, SHARE_TIMEOUT_S


def test_a_superseded_share_is_honoured_until_its_successor_must_have_been_published() -> None:
    # An assignment waits for all its workers up to SHARE_TIMEOUT_S; until then calls show the old token.
    assert GRACE_S > SHARE_TIMEOUT_S


def test_a_retry_comes_after_the_last_worker_could_answer() -> None:
    assert RETRY_S > SHARE_TIMEOUT_S
