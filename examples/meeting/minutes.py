"""What was said and written before, and how it is searched: passages with their directions of meaning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MINUTES = Path(__file__).with_name("minutes.txt")
MEETING = "meeting"
"""Source of what was said in this meeting; ``minutes`` of what earlier ones wrote down."""

_ASKING = frozenset(("who", "whom", "whose", "what", "when", "where", "why", "which", "how"))


class Passage(NamedTuple):
    """One sentence that may answer a question."""

    source: str
    text: str
    direction: NDArray[np.float32]
    """``(width,)`` of length one: sentences of like meaning point alike."""


def read_minutes() -> list[str]:
    """The sentences of earlier meetings."""
    return MINUTES.read_text("utf-8").split("\n")[:-1]


def is_question(text: str) -> bool:
    """Whether somebody asks; some models leave out the mark."""
    words = text.lower().split()
    return text.endswith("?") or (bool(words) and words[0] in _ASKING)


def closest(direction: NDArray[Any], passages: Sequence[Passage], count: int) -> list[Passage]:
    """The passages of nearest meaning, the nearest first."""
    if not passages:
        return []
    likeness = np.stack([passage.direction for passage in passages]) @ direction
    return [passages[index] for index in np.argsort(-likeness, kind="stable")[:count]]


def key_sentences(passages: Sequence[Passage], count: int) -> list[str]:
    """Those that are most like all others, in the order in which they were said."""
    if not passages:
        return []
    directions = np.stack([passage.direction for passage in passages])
    central = np.argsort(-(directions @ directions.sum(axis=0)), kind="stable")[:count]
    return [passages[index].text for index in sorted(central)]
