"""The caller's side of the data plane: one segment call to one worker."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import aiohttp

from compass_agent.events import RunSegment
from compass_shared.calls import (
    MEDIA_TYPE,
    PATH,
    Answer,
    Call,
    CallHeader,
    ErrorBody,
    credentials_of,
    decode_answer,
    decode_error,
    encode_call,
)
from compass_shared.errors import (
    CompassError,
    DeadlineError,
    InferenceError,
    MessageError,
    RefusedError,
    TransportError,
)
from compass_shared.framing import MAX_FRAME_BYTES

CONNECT_TIMEOUT_S = 2.0
CONNECT_SHARE = 1 / 3
"""A worker that is not reached within this share of a call's time, or ``CONNECT_TIMEOUT_S`` if that is less,
is given up: there is still time to do without it."""

_CHUNKED_FROM_BYTES = 1 << 20
"""aiohttp warns of larger bodies in one piece: they would hold the event loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A worker's answer and what crossed the link for it."""

    answer: Answer
    sent_bytes: int
    received_bytes: int


def call_of(run: RunSegment, token: str) -> Call:
    """The call by which a worker is asked to run a segment.

    Args:
        run: What to run.
        token: Shown for the query's share at that worker.
    """
    header = CallHeader(
        request=run.request,
        attempt=run.attempt,
        query=run.query,
        pipeline=run.pipeline.name,
        digest=run.pipeline.digest,
        epoch=run.epoch,
        token=token,
        deadline_s=run.deadline_s,
        operators=run.segment.operators,
        knobs={name: run.plan.config.get(name, {}) for name in run.segment.operators},
        exports=run.segment.exports,
        stream=run.stream,
        position=run.position,
    )
    return Call(header=header, values=run.values)


async def call_segment(
    session: aiohttp.ClientSession,
    base_url: str,
    call: Call,
    *,
    timeout_s: float,
    max_bytes: int = MAX_FRAME_BYTES,
) -> Reply:
    """Ask a worker to run a segment.

    Args:
        session: Kept open from call to call.
        base_url: The worker's data address.
        call: What to run.
        timeout_s: Time for all of it.
        max_bytes: Largest answer taken.

    Raises:
        TransportError: The worker cannot be reached, or has a fault of its own.
        RefusedError: It will not do it, or not now.
        InferenceError: An operator failed on these values.
        DeadlineError: The time was over, here or there.
        MessageError: The call cannot be framed or was not understood, or the answer is not one to this call.
    """
    body = encode_call(call)
    connect_s = min(CONNECT_TIMEOUT_S, CONNECT_SHARE * timeout_s)
    what = f"request {call.header.request} at {base_url}"
    try:
        async with session.post(
            base_url.rstrip("/") + PATH,
            data=body if len(body) < _CHUNKED_FROM_BYTES else io.BytesIO(body),
            headers={"Content-Type": MEDIA_TYPE, **credentials_of(call)},
            timeout=aiohttp.ClientTimeout(total=timeout_s, connect=connect_s),
            allow_redirects=False,
        ) as response:
            received = await _read(response, max_bytes)
    except aiohttp.ServerTimeoutError as error:  # only connecting has a time of its own
        raise TransportError(f"{what}: cannot be reached within {connect_s:.3f} s") from error
    except asyncio.TimeoutError as error:
        raise DeadlineError(what, timeout_s) from error
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise TransportError(f"{what}: {type(error).__name__}: {error}") from error
    if response.status != 200:
        raise _error(response.status, received, what, timeout_s)
    return Reply(
        answer=_checked(decode_answer(received), call, what),
        sent_bytes=len(body),
        received_bytes=len(received),
    )


async def _read(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    received = bytearray()
    async for chunk in response.content.iter_any():
        received += chunk
        if len(received) > max_bytes:
            response.close()
            raise MessageError(f"an answer is larger than {max_bytes} bytes")
    return bytes(received)


def _checked(answer: Answer, call: Call, what: str) -> Answer:
    """Make sure that the answer is the one to this call."""
    asked, got = call.header, answer.header
    if (got.request, got.attempt) != (asked.request, asked.attempt):
        raise MessageError(f"{what}: answered request {got.request}, attempt {got.attempt}")
    if missing := [name for name in asked.exports if name not in answer.values]:
        raise MessageError(f"{what}: the answer lacks the value of {missing[0]!r}")
    return answer


def _error(status: int, received: bytes, what: str, timeout_s: float) -> CompassError:
    """What a worker's refusal or failure means; only what it framed itself is believed."""
    try:
        said = decode_error(received)
    except MessageError:
        return TransportError(f"{what}: HTTP {status} from something that is no worker")
    table: Mapping[str, Callable[[ErrorBody], CompassError]] = {
        "RefusedError": lambda body: RefusedError(body.problem, retry_after_s=body.retry_after_s),
        "InferenceError": lambda body: InferenceError(body.operator or "", body.problem),
        "DeadlineError": lambda _: DeadlineError(what, timeout_s),
        "MessageError": lambda body: MessageError(f"{what}: {body.problem}"),
        "ConfigError": lambda body: MessageError(f"{what}: {body.problem}"),
    }
    other: Callable[[ErrorBody], CompassError] = lambda body: TransportError(  # noqa: E731
        f"{what}: HTTP {status}: {body.error}: {body.problem}"
    )
    return table.get(said.error, other)(said)
