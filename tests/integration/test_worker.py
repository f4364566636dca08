"""A real worker on loopback: good calls, bad calls, and a good call after each of the bad ones."""

from __future__ import annotations

import asyncio
import dataclasses
import io
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from aiohttp import web

from compass_agent.bundles import load_bundle
from compass_agent.data import Reply, call_segment
from compass_agent.execution import LocalPool
from compass_agent.models import ModelStore
from compass_agent.operators import OperatorHost
from compass_agent.shares import BURST_REQUESTS, ShareTable
from compass_agent.worker import Worker, create_app
from compass_shared.calls import (
    PATH,
    Answer,
    AnswerHeader,
    Call,
    CallHeader,
    credentials_of,
    decode_error,
    encode_call,
)
from compass_shared.calls import encode_answer as framed_answer
from compass_shared.errors import (
    CompassError,
    DeadlineError,
    InferenceError,
    MessageError,
    RefusedError,
    TransportError,
)
from compass_shared.messages import ShareMessage
from compass_shared.model_cache import ModelCache
from compass_shared.model_routes import model_routes
from compass_shared.pipeline import variant_key
from compass_shared.plan import Epoch
from compass_shared.site import Tier
from support.bundles import write_tiny_bundle

ROWS = np.array([[1.0, 2.0], [3.0, -1.0]], np.float32)
MAX_BYTES = 2_000_000
EPOCH = Epoch(coordinator=1, sequence=1)
ODD = '''

import threading

GATE = threading.Event()
ENTERED = threading.Semaphore(0)


def odd(inputs, knobs, model):
    """Does what the request says, good and bad."""
    match inputs["request"]:
        case "exit":
            raise SystemExit(1)
        case "memory":
            raise MemoryError
        case "recursion":
            return odd(inputs, knobs, model)
        case "object":
            return object()
        case "huge":
            return bytes(33 * 1024 * 1024)
        case "wait":
            ENTERED.release()
            assert GATE.wait(30)
            return "waited"
    return inputs["request"]
'''


@dataclass(slots=True, kw_only=True)
class Rig:
    """A running worker, and how to call it."""

    session: aiohttp.ClientSession
    url: str
    worker: Worker
    host: OperatorHost
    header: CallHeader
    cache: ModelCache

    def call(self, *, values: dict[str, Any] | None = None, **changes: Any) -> Call:
        given = {"request": ROWS} if values is None else values
        return Call(header=dataclasses.replace(self.header, **changes), values=given)

    async def send(self, call: Call, *, timeout_s: float = 30.0) -> Reply:
        return await call_segment(self.session, self.url, call, timeout_s=timeout_s)

    def post(self, data: Any, *, shown: Call | None = None) -> Any:
        """Send any body, with the HTTP headers of a good call unless another is given."""
        headers = credentials_of(shown or self.call())
        return self.session.post(self.url + PATH, data=data, headers=headers)

    async def good(self, request: str) -> None:
        """The worker lives: it still answers."""
        reply = await self.send(self.call(request=request))
        assert reply.answer.values["label"] == {"labels": ["low", "high"], "total": 10.0}

    def odd(self, name: str) -> Any:
        """Something of the module of the odd pipeline's operator."""
        return self.host.bundles["odd"].functions["label"].__globals__[name]  # type: ignore[attr-defined]

    def odd_call(self, what: Any, **changes: Any) -> Call:
        digest = self.host.pipeline("odd").digest
        changes = {"query": "q-odd", "pipeline": "odd", "digest": digest, "operators": ("label",)} | changes
        return self.call(values={"request": what}, **changes)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    tiny, odd = (load_bundle(folder) for folder in (write_tiny_bundle(tmp_path), _odd_bundle(tmp_path)))
    cache = ModelCache(tmp_path / "cache")
    host = OperatorHost([tiny, odd], ModelStore(cache))
    pool = LocalPool(2, max_waiting=2)
    worker = Worker(site="cloud", tier=Tier.CLOUD, host=host, shares=ShareTable(), pool=pool)
    header = CallHeader(
        request="r1",
        attempt=1,
        query="q1",
        pipeline="tiny",
        digest=tiny.pipeline.digest,
        epoch=EPOCH,
        token="secret",
        deadline_s=30.0,
        operators=("scale", "classify", "label"),
        knobs={"scale": {"factor": 2.0}, "classify": {"model": "plain"}},
        exports=("label",),
    )
    now_s = worker.clock.now_s()
    assert worker.shares.take(_share(host, "q1", "tiny"), now_s) is None
    assert worker.shares.take(_share(host, "q-odd", "odd"), now_s) is None
    runner = web.AppRunner(create_app(worker, routes=model_routes(cache), max_bytes=MAX_BYTES))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with aiohttp.ClientSession() as session:
        yield Rig(session=session, url=url, worker=worker, host=host, header=header, cache=cache)
    await runner.cleanup()
    pool.close()


def _odd_bundle(tmp_path: Path) -> Path:
    """A bundle whose one operator misbehaves on demand."""
    folder = write_tiny_bundle(tmp_path, name="odd")
    text = (folder / "pipeline.toml").read_text()
    operator = '[[operators]]\nname = "label"\ninputs = ["request"]\nruntime = "python"\n'
    head, tail = text[: text.index("[[operators]]")], text[text.index("[models.labels]") :]
    (folder / "pipeline.toml").write_text(f'{head}{operator}function = ".odd:odd"\n\n{tail}')
    (folder / "odd.py").write_text(ODD)
    return folder


def _share(host: OperatorHost, query: str, name: str) -> ShareMessage:
    pipeline = host.pipeline(name)
    return ShareMessage(
        query=query,
        origin="phone",
        pipeline=name,
        digest=pipeline.digest,
        epoch=EPOCH,
        variants=tuple(variant_key(op.name, knobs) for op in pipeline.operators for knobs in op.variants()),
        rate_hz=5.0,
        cores=1.0,
        token="secret",
    )


async def test_a_segment_is_run_and_timed(rig: Rig) -> None:
    reply = await rig.send(rig.call())
    answer = reply.answer
    assert answer.values == {"label": {"labels": ["low", "high"], "total": 10.0}}
    assert (answer.header.request, answer.header.attempt, answer.header.site) == ("r1", 1, "cloud")
    assert [timing.operator for timing in answer.header.timings] == ["scale", "classify", "label"]
    assert all(timing.wall_s > 0 for timing in answer.header.timings)
    assert answer.header.wait_s >= 0
    assert reply.sent_bytes == len(encode_call(rig.call()))
    assert reply.received_bytes > 0


async def test_arrays_cross_both_ways(rig: Rig) -> None:
    rows = np.random.default_rng(1).normal(size=(30_000, 2)).astype(np.float32)
    reply = await rig.send(rig.call(values={"request": rows}, operators=("scale",), exports=("scale",)))
    np.testing.assert_array_equal(np.asarray(reply.answer.values["scale"]), rows * 2)


async def test_a_pipeline_may_be_run_piece_by_piece(rig: Rig) -> None:
    first = await rig.send(rig.call(operators=("scale",), exports=("scale",)))
    second = await rig.send(
        rig.call(values=dict(first.answer.values), operators=("classify", "label"), exports=("label",))
    )
    assert second.answer.values["label"] == {"labels": ["low", "high"], "total": 10.0}


BAD_BODIES = {
    "nothing": (b"", 400),
    "garbage": (b"\xc1" * 100, 400),
    "text": (b"GET / HTTP/1.1", 400),
    "nested": (b"\x91" * 5000, 400),
    "many lists": (b"\xdd\x00\x1e\x00\x00" + b"\x90" * 1_900_000, 400),
    "another shape": (b"\x81\xa6schema\x01", 400),
    "oversize": (bytes(MAX_BYTES + 1), 413),
}


@pytest.mark.parametrize("name", BAD_BODIES)
async def test_a_bad_body_is_refused_and_the_worker_lives_on(rig: Rig, name: str) -> None:
    body, status = BAD_BODIES[name]
    async with rig.post(io.BytesIO(body)) as response:
        assert response.status == status
        assert decode_error(await response.read()).error == "MessageError"
    await rig.good("after")
    assert rig.worker.counters.garbage == 1


async def test_an_oversize_body_without_a_length_is_refused(rig: Rig) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield bytes(MAX_BYTES // 20)

    async with rig.post(chunks()) as response:
        assert response.status == 413
        assert decode_error(await response.read()).error == "MessageError"
    await rig.good("after")


async def test_a_caller_that_hangs_up_leaves_the_worker_whole(rig: Rig) -> None:
    port = int(rig.url.rsplit(":", 1)[1])
    for sent in (
        b"",
        b"POST /segments HTTP/1.1\r\n",
        b"POST /segments HTTP/1.1\r\nContent-Length: 99\r\n\r\nabc",
        b"POST /segments HTTP/1.1\r\nCompass-Query: q1\r\nAuthorization: Bearer secret\r\n"
        b"Content-Length: 99\r\n\r\nabc",
    ):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        await writer.drain()
        writer.close()
        await writer.wait_closed()
    await rig.good("after")


STRANGERS = {
    "nothing": {},
    "no token": {"Compass-Query": "q1"},
    "no query": {"Authorization": "Bearer secret"},
    "another query": {"Compass-Query": "q9", "Authorization": "Bearer secret"},
    "another token": {"Compass-Query": "q1", "Authorization": "Bearer Secret"},
    "another scheme": {"Compass-Query": "q1", "Authorization": "Basic secret"},
    "not text": {"Compass-Query": "q1", "Authorization": "Bearer s\u00e9cret"},
}


@pytest.mark.parametrize("name", STRANGERS)
async def test_the_body_of_a_stranger_is_not_read(rig: Rig, name: str) -> None:
    read = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b"a first piece"
        await read.wait()  # the answer comes although the rest never does

    async with rig.session.post(rig.url + PATH, data=body(), headers=STRANGERS[name]) as response:
        assert response.status == 403
        said = decode_error(await response.read())
    assert said.error == "RefusedError"
    assert "secret" not in said.problem
    read.set()
    assert (rig.worker.counters.strangers, rig.worker.counters.garbage) == (1, 0)
    await rig.good("after")


@pytest.mark.parametrize("change", [{"query": "q-odd"}, {"token": "other"}], ids=str)
async def test_the_frame_has_to_say_the_same_as_its_headers(rig: Rig, change: dict[str, Any]) -> None:
    async with rig.post(encode_call(rig.call(**change))) as response:
        assert response.status == 400
        assert "HTTP headers" in decode_error(await response.read()).problem
    await rig.good("after")


async def test_calls_under_the_share_before_are_still_read(rig: Rig) -> None:
    share = _share(rig.host, "q1", "tiny")
    fresh = dataclasses.replace(share, epoch=Epoch(coordinator=1, sequence=2), token="fresh")
    assert rig.worker.shares.take(fresh, rig.worker.clock.now_s()) is None
    await rig.good("under way")
    await rig.send(rig.call(request="new", token=fresh.token, epoch=fresh.epoch))


BAD_CALLS: dict[str, tuple[Callable[[Rig], Call], type[CompassError], str]] = {
    "wrong token": (lambda rig: rig.call(token="guess"), RefusedError, "was not assigned here"),
    "unknown query": (lambda rig: rig.call(query="q9"), RefusedError, "was not assigned here"),
    "unknown pipeline": (lambda rig: rig.call(pipeline="huge"), RefusedError, "'huge'"),
    "other digest": (lambda rig: rig.call(digest="0" * 64), RefusedError, "was assigned pipeline"),
    "old epoch": (
        lambda rig: rig.call(epoch=Epoch(coordinator=1, sequence=0)),
        RefusedError,
        "was not assigned here",
    ),
    "unknown operator": (lambda rig: rig.call(operators=("shrink",)), RefusedError, "shrink"),
    "unknown knob value": (
        lambda rig: rig.call(knobs={"scale": {"factor": 9.0}}),
        RefusedError,
        r"scale\[factor=9.0\]",
    ),
    "no values": (lambda rig: rig.call(values={}), MessageError, "needs the value of 'request'"),
    "no such export": (lambda rig: rig.call(exports=("total",)), MessageError, "'total' is wanted"),
    "not an image": (
        lambda rig: rig.call(values={"request": b"\xff\xd8nope"}),
        InferenceError,
        "not an array",
    ),
    "late": (lambda rig: rig.call(deadline_s=0.0), DeadlineError, "request r1"),
    "never": (lambda rig: rig.call(deadline_s=float("nan")), DeadlineError, "request r1"),
    "exit": (lambda rig: rig.odd_call("exit"), InferenceError, "SystemExit"),
    "memory": (lambda rig: rig.odd_call("memory"), InferenceError, "MemoryError"),
    "recursion": (lambda rig: rig.odd_call("recursion"), InferenceError, "RecursionError"),
    "not a value": (lambda rig: rig.odd_call("object"), InferenceError, "object is not a value"),
    "too large": (lambda rig: rig.odd_call("huge"), InferenceError, "larger than"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
async def test_a_bad_call_is_a_typed_error_and_the_worker_lives_on(rig: Rig, name: str) -> None:
    make, kind, said = BAD_CALLS[name]
    with pytest.raises(kind, match=said) as caught:
        await rig.send(make(rig))
    if isinstance(caught.value, InferenceError):
        assert caught.value.operator in {"scale", "label"}
    if isinstance(caught.value, RefusedError):
        assert caught.value.retry_after_s is None
    await rig.good("after")


async def test_a_query_over_its_share_is_told_when_to_come_again(rig: Rig) -> None:
    for index in range(200):
        call = rig.call(request=f"r{index}", operators=("scale",), exports=("scale",))
        async with rig.post(encode_call(call)) as response:
            body = await response.read()
        if response.status != 200:
            break
    assert response.status == 429
    said = decode_error(body)
    assert said.error == "RefusedError"
    assert said.retry_after_s is not None
    assert int(response.headers["Retry-After"]) >= 1
    assert index >= BURST_REQUESTS
    other = await rig.send(rig.odd_call("fine"))
    assert other.answer.values == {"label": "fine"}, "other queries do not feel it"
    assert rig.worker.counters.queries["q1"].refused == 1


async def test_a_full_queue_refuses_and_costs_the_query_nothing(rig: Rig) -> None:
    held = [asyncio.create_task(rig.send(rig.odd_call("wait", request=f"w{index}"))) for index in range(4)]
    for _ in range(2):
        assert await asyncio.to_thread(rig.odd("ENTERED").acquire, timeout=30)
    await _until(lambda: rig.worker.pool.waiting == 2)
    with pytest.raises(RefusedError, match="waiting already") as caught:
        await rig.send(rig.odd_call("fine", request="w9"))
    assert caught.value.retry_after_s is not None
    rig.odd("GATE").set()
    assert [reply.answer.values["label"] for reply in await asyncio.gather(*held)] == ["waited"] * 4
    again = await rig.send(rig.odd_call("fine", request="w9"))
    assert again.answer.values == {"label": "fine"}, "the same attempt may come again after a refusal"


async def test_what_waited_past_its_deadline_does_not_run(rig: Rig) -> None:
    held = [asyncio.create_task(rig.send(rig.odd_call("wait", request=f"w{index}"))) for index in range(2)]
    for _ in range(2):
        assert await asyncio.to_thread(rig.odd("ENTERED").acquire, timeout=30)
    late = asyncio.create_task(rig.send(rig.odd_call("fine", request="late", deadline_s=0.05)))
    await _until(lambda: rig.worker.pool.waiting == 1)
    await asyncio.sleep(0.1)  # its deadline, on the worker's real clock
    rig.odd("GATE").set()
    with pytest.raises(DeadlineError):
        await late
    await asyncio.gather(*held)
    assert rig.worker.counters.queries["q-odd"].operators["label"].calls == 2


async def test_the_same_attempt_runs_once(rig: Rig) -> None:
    call = rig.call()
    first, second = await asyncio.gather(rig.send(call), rig.send(call))
    third = await rig.send(call)
    assert first.answer == second.answer == third.answer
    counter = rig.worker.counters.queries["q1"]
    assert (counter.answered, counter.operators["label"].calls, counter.repeated) == (1, 1, 2)
    await rig.send(rig.call(attempt=2))
    assert counter.operators["label"].calls == 2


async def test_a_repeated_call_needs_the_token_again(rig: Rig) -> None:
    await rig.send(rig.call())
    with pytest.raises(RefusedError):
        await rig.send(rig.call(token="guess"))


async def test_two_segments_of_one_attempt_are_two_calls(rig: Rig) -> None:
    scaled = await rig.send(rig.call(operators=("scale",), exports=("scale",)))
    values = dict(scaled.answer.values)
    await rig.send(rig.call(values=values, exports=("classify",), operators=("classify",)))
    assert sorted(rig.worker.counters.queries["q1"].operators) == ["classify", "scale"]


async def test_counters_say_what_ran_for_whom(rig: Rig) -> None:
    await rig.good("r1")
    await rig.send(rig.call(request="r2", operators=("scale",), exports=("scale",)))
    with pytest.raises(RefusedError):
        await rig.send(rig.call(query="nobody"))
    with pytest.raises(InferenceError):
        await rig.send(rig.call(request="r3", values={"request": "text"}))
    async with rig.session.get(rig.url + "/counters") as response:
        said = await response.json()
    assert said["site"] == "cloud"
    assert list(said["queries"]) == ["q1"]
    assert said["strangers"] == 1
    counter = said["queries"]["q1"]
    assert (counter["answered"], counter["failed"], counter["refused"]) == (2, 1, 0)
    calls = {name: operator["calls"] for name, operator in counter["operators"].items()}
    assert calls == {"scale": 2, "classify": 1, "label": 1}
    assert counter["busy_s"] > 0


async def test_health_tells_the_load(rig: Rig) -> None:
    async with rig.session.get(rig.url + "/health") as response:
        assert await response.json() == {
            "site": "cloud",
            "cores": 2,
            "running": 0,
            "waiting": 0,
            "queries": 2,
        }


async def test_models_are_served_beside_segments(rig: Rig) -> None:
    await rig.good("r1")
    ref = rig.host.pipeline("tiny").models["plain"]
    async with rig.session.get(f"{rig.url}/models/{ref.sha256}") as response:
        assert await response.read() == rig.cache.path_of(ref.sha256).read_bytes()


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # pytest's timeout ends it
        await asyncio.sleep(0.001)


# --- the caller's side ----------------------------------------------------------------------------


@pytest.fixture
async def impostor() -> AsyncIterator[tuple[dict[str, Any], str]]:
    """A server that answers every call with what the test put there."""
    said: dict[str, Any] = {"status": 200, "body": b"", "delay": None}

    async def segments(request: web.Request) -> web.Response:
        await request.read()
        if said["delay"] is not None:
            await said["delay"].wait()
        return web.Response(status=said["status"], body=said["body"])

    app = web.Application()
    app.router.add_post(PATH, segments)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield said, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


HEADER = CallHeader(
    request="r1",
    attempt=1,
    query="q1",
    pipeline="tiny",
    digest="",
    epoch=EPOCH,
    token="secret",
    deadline_s=1.0,
    operators=("scale",),
    knobs={},
    exports=("scale",),
)


def _answer(*, request: str = "r1", attempt: int = 1, values: dict[str, Any] | None = None) -> bytes:
    header = AnswerHeader(request=request, attempt=attempt, site="cloud", wait_s=0.0, timings=())
    return framed_answer(Answer(header=header, values={"scale": 1} if values is None else values))


@pytest.mark.parametrize(
    ("status", "body", "kind", "said"),
    [
        (200, _answer(request="r2"), MessageError, "answered request r2"),
        (200, _answer(attempt=2), MessageError, "attempt 2"),
        (200, _answer(values={"other": 1}), MessageError, "lacks the value of 'scale'"),
        (200, b"<html>", MessageError, "not a"),
        (200, bytes(5000), MessageError, "larger than 4000"),
        (502, b"<html>bad gateway</html>", TransportError, "no worker"),
        (429, b"slow down", TransportError, "no worker"),
        (404, b"", TransportError, "HTTP 404"),
        (302, b"", TransportError, "HTTP 302"),
    ],
)
async def test_only_the_answer_to_this_call_is_taken(
    impostor: tuple[dict[str, Any], str], status: int, body: bytes, kind: type[CompassError], said: str
) -> None:
    answers, url = impostor
    answers |= {"status": status, "body": body}
    async with aiohttp.ClientSession() as session:
        with pytest.raises(kind, match=said):
            await call_segment(session, url, Call(header=HEADER, values={}), timeout_s=30.0, max_bytes=4000)


async def test_a_silent_worker_is_a_deadline(impostor: tuple[dict[str, Any], str]) -> None:
    answers, url = impostor
    answers["delay"] = asyncio.Event()
    async with aiohttp.ClientSession() as session:
        with pytest.raises(DeadlineError) as caught:
            await call_segment(session, url, Call(header=HEADER), timeout_s=0.05)
    assert caught.value.deadline_s == 0.05
    answers["delay"].set()


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}", "not a url", "http://[bad"])
async def test_an_unreachable_worker_is_a_transport_error(free_port: int, url: str) -> None:
    async with aiohttp.ClientSession() as session:
        with pytest.raises(TransportError):
            await call_segment(session, url.format(port=free_port), Call(header=HEADER), timeout_s=30.0)


async def test_what_cannot_be_framed_is_not_sent(rig: Rig) -> None:
    with pytest.raises(MessageError, match="cannot be framed"):
        await rig.send(rig.call(values={"request": object()}))


async def test_large_values_cross_without_a_warning(rig: Rig) -> None:
    big = bytes(MAX_BYTES - 10_000)
    assert len(big) > 1 << 20
    reply = await rig.send(rig.odd_call(big))
    assert reply.answer.values["label"] == big
