"""What a running agent or coordinator tells the program that it runs in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something that the embedding program may show."""

    kind: str
    """An agent's are connected, measuring, measured, links, assignment, share, refused-message; a
    coordinator's started, planning, planned, note.
    """
    data: Mapping[str, Any]


OnNotice: TypeAlias = Callable[[Notice], None]
"""Told of every notice, on the event loop."""


def safely(on_notice: OnNotice) -> OnNotice:
    """The same listener, but what it raises is logged: showing something must not stop what is shown."""

    def told(notice: Notice) -> None:
        try:
            on_notice(notice)
        except Exception:
            logger.exception("the notice %r could not be shown", notice.kind)

    return told
