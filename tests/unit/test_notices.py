"""What a listener does with a notice is its own affair."""

from __future__ import annotations

import pytest

from compass_shared.notices import Notice, safely


def test_a_listener_that_raises_is_logged_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Notice] = []

    def listen(notice: Notice) -> None:
        heard.append(notice)
        raise OSError("disk full")

    notice = Notice(kind="planned", data={})
    safely(listen)(notice)
    assert heard == [notice]
    assert "planned" in caplog.text
    assert "disk full" in caplog.text
