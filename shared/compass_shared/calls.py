"""Segment calls on the data plane: ``POST /segments`` from an agent to a worker, and its answer.

A call says in its HTTP headers which query it is for and shows the token of that query's share, so that a
worker reads no body from strangers; both stand in the frame as well, and have to agree. The answer echoes
request id and attempt, so that it can never be taken for another's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import msgspec

from compass_shared.errors import MessageError
from compass_shared.framing import decode_value, encode_value
from compass_shared.plan import Epoch
from compass_shared.values import KnobValue, Value

SCHEMA = 1
MEDIA_TYPE = "application/vnd.compass.segment+msgpack"
PATH = "/segments"
QUERY_HEADER = "Compass-Query"
TOKEN_HEADER = "Authorization"  # noqa: S105  # where a token stands, not one
_BEARER = "Bearer "


@dataclass(frozen=True, slots=True, kw_only=True)
class CallHeader:
    """Everything of a segment call but its values."""

    request: str
    attempt: int
    query: str
    pipeline: str
    digest: str
    epoch: Epoch
    token: str
    deadline_s: float
    """Time that remains, measured from when the call was sent."""
    operators: tuple[str, ...]
    """In topological order."""
    knobs: Mapping[str, Mapping[str, KnobValue]]
    exports: tuple[str, ...]
    """Operators whose values the caller wants back."""
    stream: int = 0
    """Which of the query's streams the request is part of; a higher one replaces a lower one."""
    position: int = 0
    """Which request of the stream it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTiming:
    """How long one operator took at the worker."""

    operator: str
    wall_s: float
    cpu_s: float
    device_s: float
    """Time that the machine needs for it: ``wall_s``, without the overruns of an emulated one."""
    items: int | None = None
    """Items that it worked through, of a fan-out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerHeader:
    """Everything of an answer but its values."""

    request: str
    attempt: int
    site: str
    wait_s: float
    """Time between the arrival of the call and the start of its first operator."""
    timings: tuple[OperatorTiming, ...]
    overruns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorBody:
    """Body of any answer that is not 200."""

    error: str
    """Name of the error's class in ``compass_shared.errors``."""
    problem: str
    retry_after_s: float | None = None
    operator: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A segment call."""

    header: CallHeader
    values: Mapping[str, Value] = field(default_factory=dict)
    """What the segment needs: operator name (or ``request``) -> value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A segment's result."""

    header: AnswerHeader
    values: Mapping[str, Value]


Header = TypeVar("Header", CallHeader, AnswerHeader, ErrorBody)


def encode_call(call: Call) -> bytes:
    """Frame a call."""
    return _encode(msgspec.to_builtins(call.header), call.values)


def decode_call(body: bytes) -> Call:
    """Parse a call.

    Raises:
        MessageError: If it is not one.
    """
    header, values = _decode(body, CallHeader)
    return Call(header=header, values=values)


def credentials_of(call: Call) -> dict[str, str]:
    """HTTP headers by which a worker knows the caller before it reads the call."""
    return {QUERY_HEADER: call.header.query, TOKEN_HEADER: _BEARER + call.header.token}


def shown_credentials(headers: Mapping[str, str]) -> tuple[str, str]:
    """Query and token that a call shows in its HTTP headers, empty where they are missing."""
    token = headers.get(TOKEN_HEADER, "")
    return headers.get(QUERY_HEADER, ""), token.removeprefix(_BEARER) if token.startswith(_BEARER) else ""


def encode_answer(answer: Answer) -> bytes:
    """Frame an answer."""
    return _encode(msgspec.to_builtins(answer.header), answer.values)


def decode_answer(body: bytes) -> Answer:
    """Parse an answer.

    Raises:
        MessageError: If it is not one.
    """
    header, values = _decode(body, AnswerHeader)
    return Answer(header=header, values=values)


def encode_error(error: ErrorBody) -> bytes:
    """Frame the body of a refusal or failure."""
    return _encode(msgspec.to_builtins(error), {})


def decode_error(body: bytes) -> ErrorBody:
    """Parse the body of a refusal or failure.

    Raises:
        MessageError: If it is not one.
    """
    return _decode(body, ErrorBody)[0]


def _encode(header: Value, values: Mapping[str, Value]) -> bytes:
    return encode_value({"schema": SCHEMA, "header": header, "values": values})


def _decode(body: bytes, header_type: type[Header]) -> tuple[Header, Mapping[str, Value]]:
    match decode_value(body):
        case {"schema": int(schema), "header": dict(header), "values": dict(values)} if schema == SCHEMA:
            if not all(isinstance(name, str) for name in values):
                raise MessageError("names of values are text")
            try:
                return msgspec.convert(header, header_type), values
            except (msgspec.ValidationError, RecursionError) as error:
                raise MessageError(f"{header_type.__name__}: {error}") from error
    raise MessageError(f"not a {header_type.__name__} of schema {SCHEMA}")
