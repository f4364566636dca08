"""How well a meeting was followed: words written down, and passages found."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

WORDS_SHARE = 0.7
"""Weight of the words in the score; the rest is the passages'."""
LIKE = 0.5
"""Share of a heard sentence's words that have to be, in order, in the sentence that it is taken for."""

_NOT_LETTERS = re.compile(r"[^a-z0-9 ]+")


def score(outputs: object, truths: object) -> float:
    """Both in one number: ``0.7 * word accuracy + 0.3 * hit rate``.

    Args:
        outputs: What ``notes`` returned of every hop of a clip; None where a request was lost.
        truths: For every hop the list of utterances that ended in it: ``text`` and ``answer``.
    """
    return WORDS_SHARE * word_accuracy(outputs, truths) + (1 - WORDS_SHARE) * hit_rate(outputs, truths)


def word_accuracy(outputs: object, truths: object) -> float:
    """One minus the word error rate of the whole clip, at least 0; case and punctuation do not count."""
    said = [word for output in _outputs(outputs) for text in output.get("said", ()) for word in words(text)]
    wanted = [word for line in _lines(truths) for word in words(line["text"])]
    if not wanted:
        return 0.0 if said else 1.0
    return max(0.0, 1.0 - edits(said, wanted) / len(wanted))


def hit_rate(outputs: object, truths: object) -> float:
    """Share of the clip's questions that were noticed and got the passage that answers them."""
    lines = _lines(truths)
    asked = [line for line in lines if line["answer"] is not None]
    spoken = [str(line["text"]) for line in lines]
    answers = [answer for output in _outputs(outputs) for answer in output.get("answers", ())]
    hits = sum(any(_is_hit(line, answer, spoken) for answer in answers) for line in asked)
    return hits / len(asked) if asked else 1.0


def words(text: str) -> list[str]:
    """Words as they are compared."""
    return _NOT_LETTERS.sub("", text.lower().replace("-", " ")).split()


def edits(a: Sequence[str], b: Sequence[str]) -> int:
    """Least number of words to insert, drop or replace to turn ``a`` into ``b`` (Levenshtein)."""
    number = {word: index for index, word in enumerate({*a, *b})}
    target = np.array([number[word] for word in b], np.int64)
    columns = np.arange(len(b) + 1)
    row = columns
    for count, word in enumerate(a, start=1):
        step = np.minimum(row[1:] + 1, row[:-1] + (target != number[word]))
        # An insertion costs one a column: a running minimum of (cost - column) applies them all at once.
        row = np.minimum.accumulate(np.concatenate(([count], step)) - columns) + columns
    return int(row[-1])


def common(a: Sequence[str], b: Sequence[str]) -> int:
    """Most words that both have in the same order."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = 0
        for column, other in enumerate(b, start=1):
            before, row[column] = (
                row[column],
                before + 1 if word == other else max(row[column], row[column - 1]),
            )
    return row[-1]


def _is_hit(line: Mapping[str, Any], answer: Mapping[str, Any], spoken: Sequence[str]) -> bool:
    if _meant(str(answer["question"]), spoken) != line["text"]:
        return False
    if answer["source"] == "minutes":
        return str(answer["passage"]) == str(line["answer"])
    return _meant(str(answer["passage"]), spoken) == str(line["answer"])


def _meant(heard: str, spoken: Sequence[str]) -> str | None:
    """The sentence that something heard is (a part of), None if it is like none."""
    said = words(heard)
    if not said:
        return None
    shares = [common(said, words(text)) / len(said) for text in spoken]
    best = int(np.argmax(shares))
    return spoken[best] if shares[best] >= LIKE else None


def _outputs(outputs: object) -> list[Mapping[str, Any]]:
    listed = outputs if isinstance(outputs, list | tuple) else []
    return [output for output in listed if isinstance(output, Mapping)]


def _lines(truths: object) -> list[Mapping[str, Any]]:
    listed = truths if isinstance(truths, list | tuple) else []
    return [line for lines in listed for line in lines]
