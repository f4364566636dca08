"""What a measuring process says about inputs and configs, and how: JSON, one message a line.

The profiler starts measuring processes as children. One says ``Ready`` once, then answers every ``Job`` on
its stdin with a ``Done`` on its stdout. The same types are what a profiler keeps in its log.

A *score* is a fraction, so that metrics of both kinds look alike: of a "mean" metric the denominator is 1 and
the numerator lies in [0, 1]; of a "ratio" metric both are counts, and the accuracy of a config is the sum of
its numerators over the sum of its denominators.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec

from compass_shared.errors import MessageError

MAX_LINE_BYTES = 16 * 1024 * 1024
"""Longest message."""
PROCESS_ENDED = "the measuring process ended"
"""How the problem of a config starts whose process ended twice, by itself or from outside (memory was short).
It says less of the config than of that run, so that a later run tries again."""


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """Score of one config on one input; both numbers are finite."""

    numerator: float
    """Of a ratio metric it may be negative (more word errors than words)."""
    denominator: float = 1.0
    """>= 0; 0 where the input has nothing to count."""


class RequestRun(msgspec.Struct, frozen=True, array_like=True):
    """What an operator took for one request."""

    cpu_s: float
    """Thread CPU seconds."""
    output_bytes: int
    """Size of the encoded output."""
    items: int | None = None
    """Items that it worked through, of a fan-out."""


class OperatorRun(msgspec.Struct, frozen=True, kw_only=True):
    """One operator run over an input that really ran; results found in memory are none.

    Of an input set of sequences it ran over a whole clip, request after request: its figures are of all of
    them together, and ``each`` has those of single requests.
    """

    variant: str
    """Key from ``pipeline.variant_key``."""
    cpu_s: float
    """Thread CPU seconds, of operators that ask an endpoint the wall time; loading the model is not in it."""
    wall_s: float
    output_bytes: int
    """Size of the encoded output; 0 where it failed."""
    failed: bool = False
    """Whether there is no output; of a clip, not of any request."""
    items: int | None = None
    """Items that it worked through, of a fan-out."""
    each: tuple[RequestRun | None, ...] = ()
    """Of a clip: every request in order, None where the operator failed or could not run; else empty."""

    @property
    def requests(self) -> dict[int, RequestRun]:
        """Place in the input -> what that request took, of those that it made something of."""
        if not self.each:
            whole = RequestRun(self.cpu_s, self.output_bytes, self.items)
            return {} if self.failed else {0: whole}
        return {place: one for place, one in enumerate(self.each) if one is not None}


class InputInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One labelled input of the measured split."""

    name: str
    group: str
    features: tuple[float, ...]
    """Cheap and finite numbers that say what the input is like; as many for every input of a split."""
    size_bytes: int
    """Encoded size."""
    request_bytes: tuple[int, ...] = ()
    """Of a clip: the size of every request in order; else empty."""

    @property
    def requests(self) -> tuple[int, ...]:
        """Size of every request of the input."""
        return self.request_bytes or (self.size_bytes,)


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag_field="message", tag="ready"):
    """A measuring process has loaded its bundle."""

    pipeline: str
    digest: str
    """Of the pipeline's declarative part."""
    code_sha256: str
    """Of the bundle's Python files."""
    data_sha256: str = ""
    """Of its files that are not code: labels, a corpus."""
    split: str
    metric: str
    kind: str
    """Of the metric: "mean" or "ratio"."""
    extra_metrics: dict[str, str] = {}
    """Further metrics -> kind; they are scored beside it."""
    inputs: tuple[InputInfo, ...]
    """In the input set's order; jobs name them by index."""
    models: dict[str, str] = {}
    """Model -> SHA-256, of every model that some config uses."""
    runtimes: dict[str, str] = {}
    """Runtime -> library and version, of every runtime that some config uses."""
    provenance: dict[str, Any] = {}
    """Versions of Compass, Python, numpy and the runtimes; the machine."""


class Job(msgspec.Struct, frozen=True, kw_only=True, tag_field="message", tag="job"):
    """Score these configs on one input."""

    id: int
    input: int
    """Index into ``Ready.inputs``."""
    configs: tuple[str, ...]
    """Config keys; neighbours that share a prefix of operators cost less."""


class Done(msgspec.Struct, frozen=True, kw_only=True, tag_field="message", tag="done"):
    """What came of a job."""

    id: int
    input: int
    scores: dict[str, Score | None]
    """Config key -> score; None where there is none, for the reason in ``problems``. See ``filled``."""
    others: dict[str, dict[str, Score | None]] = {}
    """Extra metric -> config key -> score, for the same configs; None where there is none."""
    problems: dict[str, str] = {}
    """Config key -> why it has no score: an operator failed, or the metric gave what is no score."""
    runs: tuple[OperatorRun, ...] = ()
    """What really ran, in order."""
    recalled: tuple[OperatorRun, ...] = ()
    """What other processes ran, whose results were found on disk, in order: told for its times, nothing was
    spent."""
    reused: int = 0
    """Operator results that were found in a cache instead."""
    warm_up_cpu_s: float = 0.0
    """Thread CPU seconds of loading models, and of first calls that are not in ``runs``."""
    notices: tuple[str, ...] = ()
    """What people should know and nothing depends on (the cache's disk is full)."""


Message = TypeVar("Message", Ready, Job, Done)


def encode_line(message: Ready | Job | Done) -> bytes:
    """One message as a line, its end included.

    Raises:
        MessageError: If it is longer than ``MAX_LINE_BYTES``.
    """
    line = msgspec.json.encode(message) + b"\n"
    if len(line) > MAX_LINE_BYTES:
        raise MessageError(f"{type(message).__name__} takes {len(line)} bytes, more than {MAX_LINE_BYTES}")
    return line


def decode_line(line: bytes, kind: type[Message]) -> Message:
    """Decode and validate one line.

    Raises:
        MessageError: If it is too long, or not a message of that kind.
    """
    if len(line) > MAX_LINE_BYTES:
        raise MessageError(f"{len(line)} bytes are more than {MAX_LINE_BYTES}")
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"not a {kind.__name__}: {error}") from error


def filled(scores: Mapping[str, Score | None]) -> dict[str, Score]:
    """Scores of configs on *one* input, with 0 for those that have none.

    What a config without an output would have been measured against is not known. It counts as 0 of the
    most that another config had on this input: of a word error rate that is the number of its words,
    whichever config is asked; of an F1 it is never kinder than what another config got.
    """
    known = [score.denominator for score in scores.values() if score is not None]
    nothing = Score(numerator=0.0, denominator=max(known, default=1.0))
    return {key: nothing if score is None else score for key, score in scores.items()}


def total(scores: Iterable[Score]) -> Score:
    """Sum of numerators and denominators: a config's accuracy is ``numerator / denominator``."""
    taken = list(scores)
    return Score(
        numerator=sum(score.numerator for score in taken),
        denominator=sum(score.denominator for score in taken),
    )
