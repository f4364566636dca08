"""What a running agent tells the program that it runs in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """Something that the embedding program may show."""

    kind: str
    """One of connected, measuring, measured, links, assignment, share, refused-message."""
    data: Mapping[str, Any]


OnNotice: TypeAlias = Callable[[Notice], None]
"""Told of every notice, on the event loop."""
