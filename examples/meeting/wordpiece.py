"""BERT's tokens of English text, and batches of them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_TOKENS = 128
"""Longer texts are cut."""
LONGEST_WORD = 100

_WORDS = re.compile(r"\w+|[^\w\s]|_")


@lru_cache(maxsize=4)
def vocabulary(path: Path) -> Mapping[str, int]:
    """Token -> number, of a ``vocab.txt``."""
    return {token: number for number, token in enumerate(path.read_text("utf-8").split("\n")) if token}


def pieces(text: str, numbers: Mapping[str, int]) -> list[int]:
    """Tokens of a text: every word as the longest pieces that the vocabulary has, from its start on."""
    plain = unicodedata.normalize("NFD", text.lower())
    plain = "".join(letter for letter in plain if unicodedata.category(letter) != "Mn")
    return [number for word in _WORDS.findall(plain) for number in _word(word, numbers)]


def feed_of(texts: Sequence[tuple[str, ...]], numbers: Mapping[str, int]) -> dict[str, NDArray[np.int64]]:
    """What a BERT takes, padded to the longest.

    Args:
        texts: Of each row one text, or two that are to be compared.
        numbers: See ``vocabulary``.

    Returns:
        ``(rows, tokens) int64``: ``input_ids``, ``attention_mask`` and ``token_type_ids``.
    """
    start, end = numbers["[CLS]"], numbers["[SEP]"]
    rows = []
    for parts in texts:
        budget = (MAX_TOKENS - 1) // len(parts) - 1
        cut = [[*pieces(part, numbers)[:budget], end] for part in parts]
        cut[0].insert(0, start)
        rows.append([(number, kind) for kind, part in enumerate(cut) for number in part])
    length = max(map(len, rows))
    filled: NDArray[Any] = np.zeros((3, len(rows), length), np.int64)
    for index, row in enumerate(rows):
        for place, (number, kind) in enumerate(row):
            filled[:, index, place] = number, 1, kind
    return dict(zip(("input_ids", "attention_mask", "token_type_ids"), filled, strict=True))


def _word(word: str, numbers: Mapping[str, int]) -> list[int]:
    unknown = [numbers["[UNK]"]]
    if len(word) > LONGEST_WORD:
        return unknown
    found, start = [], 0
    while start < len(word):
        head = "##" if start else ""
        ends = range(len(word), start, -1)
        end = next((end for end in ends if head + word[start:end] in numbers), None)
        if end is None:
            return unknown
        found.append(numbers[head + word[start:end]])
        start = end
    return found
