"""What measuring processes say: lines there and back, scores that are filled in, metrics that are checked."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from compass_agent.measure.scoring import score_of, share
from compass_shared import measured
from compass_shared.errors import MessageError, ProfileError
from compass_shared.measured import Done, Job, OperatorRun, Score, decode_line, encode_line, filled, total
from compass_shared.values import Example

EXAMPLE = Example("page-1", "text", "truth", "clean")


def ratio(numerator: float, denominator: float) -> Score:
    return Score(numerator=numerator, denominator=denominator)


def test_a_message_comes_back_as_it_went() -> None:
    run = OperatorRun(variant="read", cpu_s=0.5, wall_s=0.6, output_bytes=7)
    done = Done(id=3, input=1, scores={"a": ratio(1, 2), "b": None}, problems={"b": "no"}, runs=(run,))
    line = encode_line(done)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert decode_line(line, Done) == done


@pytest.mark.parametrize(
    "line",
    [b"", b"Loading...\n", b"{}\n", b'{"message":"job"}\n', b'{"message":"done","id":1}\n', b"\xff\n"],
)
def test_what_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(MessageError, match="not a Job"):
        decode_line(line, Job)


def test_lines_have_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "MAX_LINE_BYTES", 100)
    job = Job(id=0, input=0, configs=("a" * 100,))
    with pytest.raises(MessageError, match="more than 100"):
        encode_line(job)
    with pytest.raises(MessageError, match="more than 100"):
        decode_line(b" " * 101, Job)


def test_no_score_counts_as_nothing_of_the_most_that_was_counted() -> None:
    found = filled({"a": ratio(3, 4), "b": ratio(1, 6), "c": None})
    assert found == {"a": ratio(3, 4), "b": ratio(1, 6), "c": ratio(0, 6)}
    assert filled({"c": None}) == {"c": ratio(0, 1)}
    assert total(found.values()) == ratio(4, 16)


@pytest.mark.parametrize("found", [0, 1, 0.25, True, np.float32(0.5), np.int64(1)])
def test_scores_of_a_mean(found: Any) -> None:
    assert score_of(lambda output, truth: found, "mean", None, EXAMPLE) == ratio(float(found), 1.0)


@pytest.mark.parametrize("found", [(3, 4), [0, 0], (-2, 5), (np.int64(1), 2.5)])
def test_scores_of_a_ratio(found: Any) -> None:
    score = score_of(lambda output, truth: found, "ratio", None, EXAMPLE)
    assert (score.numerator, score.denominator) == tuple(found)


@pytest.mark.parametrize(
    ("kind", "found", "problem"),
    [
        ("mean", math.nan, r"gave nan on input 'page-1': not a score in \[0, 1\]"),
        ("mean", 1.01, "1.01"),
        ("mean", -0.01, "-0.01"),
        ("mean", "0.5", "'0.5'"),
        ("mean", None, "None"),
        ("mean", (1, 2), r"\(1, 2\)"),
        ("ratio", 0.5, "not two counts"),
        ("ratio", "12", "not two counts"),
        ("ratio", (1, 2, 3), "not two counts"),
        ("ratio", (1, math.inf), "not finite"),
        ("ratio", (math.nan, 1), "not finite"),
        ("ratio", ("1", 2), "not finite"),
        ("ratio", (0, -1), "denominator"),
        ("ratio", (3, 2), "denominator"),
    ],
)
def test_what_is_no_score_is_a_problem_that_names_the_input(kind: str, found: Any, problem: str) -> None:
    with pytest.raises(ProfileError, match=problem):
        score_of(lambda output, truth: found, kind, None, EXAMPLE)


def test_one_score_is_a_share() -> None:
    assert [share(ratio(*counts)) for counts in [(1, 4), (-1, 4), (0, 0), (-1, 0)]] == [0.25, 0, 1, 0]
