"""Character accuracy: one minus the character error rate."""

from __future__ import annotations

import numpy as np


def score(output: object, truth: object) -> float:
    """How much of the text was read.

    Args:
        output: The text that a pipeline returned; anything but text counts as empty.
        truth: The text on the page.

    Returns:
        ``1 - edits / characters of the truth``, cut at 0; runs of white space count as one space.
    """
    read, wanted = _normalised(output), _normalised(truth)
    if not wanted:
        return 0.0 if read else 1.0
    return max(0.0, 1.0 - edit_distance(read, wanted) / len(wanted))


def edit_distance(a: str, b: str) -> int:
    """Least number of characters to insert, delete or replace to turn ``a`` into ``b`` (Levenshtein)."""
    a, b = _without_common_ends(a, b)
    if not a or not b:
        return len(a) + len(b)
    target = np.array([ord(character) for character in b])
    columns = np.arange(len(b) + 1)
    row = columns
    for count, character in enumerate(a, start=1):
        step = np.minimum(row[1:] + 1, row[:-1] + (target != ord(character)))
        # An insertion costs one per column: a running minimum of (cost - column) applies them all at once.
        row = np.minimum.accumulate(np.concatenate(([count], step)) - columns) + columns
    return int(row[-1])


def _normalised(value: object) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""


def _without_common_ends(a: str, b: str) -> tuple[str, str]:
    shortest = min(len(a), len(b))
    start = next((i for i in range(shortest) if a[i] != b[i]), shortest)
    a, b = a[start:], b[start:]
    shortest = min(len(a), len(b))
    end = next((i for i in range(shortest) if a[-1 - i] != b[-1 - i]), shortest)
    return a[: len(a) - end], b[: len(b) - end]
