"""The data plane of a worker: ``POST /segments`` runs operators for others, within their shares.

Whatever goes wrong is answered with an ``ErrorBody`` frame; the process lives on. The body is read only from
callers whose HTTP headers show the token of a share that is held here.

    400 MessageError     not a segment call, one that lacks values, or one whose headers say otherwise
    403 RefusedError     not assigned here, or an operator that must not run here
    413 MessageError     larger than MAX_FRAME_BYTES
    422 InferenceError   an operator failed on this input
    429 RefusedError     over its share for the moment
    500 BackendError     a model could not be opened, or a fault of the worker
    503 RefusedError     the queue is full, or too slow for the deadline
    504 DeadlineError    the time was over before the last operator started

A call that arrives twice with one request id and attempt runs once: both get the same answer. What stateful
operators keep of a query lasts as long as its share names their variants.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable

import aiohttp
import msgspec
from aiohttp import web

from compass_agent.counters import QueryCounter, WorkerCounters
from compass_agent.deadline import Deadline
from compass_agent.execution import LocalPool, SegmentResult, run_segment
from compass_agent.operators import OperatorHost
from compass_agent.pace import Pace
from compass_agent.places import Places
from compass_agent.repeats import Repeats, Reply
from compass_agent.served import Served
from compass_agent.shares import ShareTable
from compass_agent.states import RequestStates, StateBook
from compass_shared.calls import (
    MEDIA_TYPE,
    PATH,
    Answer,
    AnswerHeader,
    Call,
    CallHeader,
    ErrorBody,
    decode_call,
    encode_answer,
    encode_error,
    shown_credentials,
)
from compass_shared.clock import Clock, MonotonicClock
from compass_shared.errors import (
    BackendError,
    CompassError,
    ConfigError,
    DeadlineError,
    InferenceError,
    MessageError,
    RefusedError,
)
from compass_shared.framing import MAX_FRAME_BYTES
from compass_shared.messages import ShareMessage
from compass_shared.site import Tier

_log = logging.getLogger(__name__)

BODY_TIMEOUT_S = 60.0
"""Time that a caller has for sending a call."""

_STATUS: tuple[tuple[type[CompassError], int], ...] = (
    (MessageError, 400),
    (ConfigError, 400),
    (InferenceError, 422),
    (DeadlineError, 504),
    (BackendError, 500),
)
_REFUSED = frozenset({403, 429, 503})
_FINAL = frozenset({200, 422})
"""What a call that comes again would end with again."""


class Worker:
    """Runs segment calls; everything but the HTTP.

    Args:
        site: The worker's own name.
        tier: Where it stands: some operators must not run there, whoever asks.
        host: Its operators.
        shares: What it was told to serve.
        pool: Its threads.
        pace: Speed to run at.
        clock: The time.
        served: Told what operators took.
    """

    def __init__(
        self,
        *,
        site: str,
        tier: Tier,
        host: OperatorHost,
        shares: ShareTable,
        pool: LocalPool,
        pace: Pace | None = None,
        clock: Clock | None = None,
        served: Served | None = None,
    ) -> None:
        self.site = site
        self.pool = pool
        self.shares = shares
        self.counters = WorkerCounters()
        self.states = StateBook()
        self._places = Places(site, tier)
        self._host = host
        self._pace = pace or Pace()
        self.clock = clock or MonotonicClock()
        self._served = served
        self._repeats = Repeats(lambda reply: reply.status in _FINAL)

    def hold(self, share: ShareMessage) -> str | None:
        """Serve a query up to this share from now on.

        Returns:
            None, or why it was refused.
        """
        before = self.shares.current(share.query)
        problem = self.shares.take(share, self.clock.now_s())
        if problem is None and before is not None:
            same = (before.origin, before.pipeline, before.digest)
            if same == (share.origin, share.pipeline, share.digest):
                self.states.keep(share.query, share.variants)
            else:
                self.states.drop(share.query)
        return problem

    def withdraw(self, query: str) -> None:
        """Stop serving a query, but for what is under way."""
        self.shares.withdraw(query, self.clock.now_s())
        self.states.drop(query)

    def turned_away(self, query: str, token: str) -> Reply | None:
        """The reply to a stranger, None for a caller whose call is to be read.

        Args:
            query: What the call says it is for.
            token: What it shows for that.
        """
        if self.shares.knows(query, token, self.clock.now_s()):
            return None
        self.counters.strangers += 1
        return failure(RefusedError(f"query {query[:64]!r} was not assigned here with this token"))

    async def answer(self, body: bytes, *, shown: tuple[str, str], arrived_s: float) -> Reply:
        """Serve one call.

        Args:
            body: What was received; anything at all.
            shown: Query and token that were shown for it.
            arrived_s: When it began to arrive, by the worker's clock: deadlines count from there.
        """
        try:
            call = _agreeing(decode_call(body), shown)
        except MessageError as error:
            self.counters.garbage += 1
            return failure(error)
        header = call.header
        # The token is part of the key: only who may have the answer can ask for it again.
        key = (header.query, header.token, header.request, header.attempt, header.operators)
        if key in self._repeats and (counter := self._counter(header.query)) is not None:
            counter.repeated += 1
        return await self._repeats.once(key, lambda: self._serve(call, arrived_s, self.clock.now_s()))

    async def close(self) -> None:
        """Give up what is under way."""
        await self._repeats.close()

    async def _serve(self, call: Call, arrived_s: float, received_s: float) -> Reply:
        header = call.header
        counter = self._counter(header.query)
        try:
            reply = await self._run(call, arrived_s, received_s)
        except Exception as error:
            reply = failure(error)
        if counter is None:
            self.counters.strangers += 1
        elif reply.status in _REFUSED:
            counter.refused += 1
        elif reply.status != 200:
            counter.failed += 1
        return reply

    async def _run(self, call: Call, arrived_s: float, received_s: float) -> Reply:
        header = call.header
        self._check_places(header)
        ticket = self.shares.admit(header, received_s)
        states = self._states_for(header)
        deadline = Deadline(
            f"request {header.request}",
            header.deadline_s - (self.clock.now_s() - arrived_s),
            clock=self.clock,
        )
        started = False
        sized = self._served is not None and self._served.wants_sizes(header.pipeline)

        def compute() -> tuple[SegmentResult, bytes]:
            nonlocal started
            deadline.check()
            started = True
            wait_s = self.clock.now_s() - received_s
            return self._compute(call, deadline, states, wait_s=wait_s, sized=sized)

        try:
            deadline.check()
            done = await self.pool.run(compute, within_s=deadline.remaining_s())
        except RefusedError as error:
            self.shares.refund(ticket, header.request)
            return failure(error, status=503)
        except BaseException:
            if started:
                self.shares.settle(ticket, None)
            else:
                self.shares.refund(ticket, header.request)
            raise
        result, body = done.value
        self.shares.settle(ticket, result.busy_s)
        self.counters.add(header.query, result)
        if self._served is not None:
            self._served.add(header.pipeline, header.knobs, result)
        return Reply(200, body)

    def _compute(
        self, call: Call, deadline: Deadline, states: RequestStates | None, *, wait_s: float, sized: bool
    ) -> tuple[SegmentResult, bytes]:
        """Run and encode, in a thread of the pool."""
        header = call.header
        pipeline = self._host.pipeline(header.pipeline)
        result = run_segment(
            self._host,
            pipeline,
            header.operators,
            header.knobs,
            call.values,
            header.exports,
            self._pace,
            deadline=deadline,
            sized=sized,
            states=states,
        )
        return result, self._encoded(header, result, wait_s)

    def _check_places(self, header: CallHeader) -> None:
        """Refuse what must not run here: privacy does not hang on what the coordinator planned."""
        bundle = self._host.bundles.get(header.pipeline)
        if bundle is None:
            return
        if (problem := self._places.serving_problem(bundle.pipeline, header.operators)) is not None:
            raise RefusedError(problem)

    def _states_for(self, header: CallHeader) -> RequestStates | None:
        """What stateful operators kept of the query; nothing for what is under way after it was withdrawn."""
        bundle = self._host.bundles.get(header.pipeline)
        if bundle is None or not bundle.pipeline.stateful:
            return None
        book = self.states if self.shares.current(header.query) is not None else StateBook()
        return book.of(query=header.query, stream=header.stream, position=header.position)

    def _encoded(self, header: CallHeader, result: SegmentResult, wait_s: float) -> bytes:
        answer = AnswerHeader(
            request=header.request,
            attempt=header.attempt,
            site=self.site,
            wait_s=wait_s,
            timings=result.timings,
            overruns=result.overruns,
        )
        try:
            return encode_answer(Answer(header=answer, values=result.values))
        except MessageError as error:  # the fault of the operators' output, not of the call
            raise InferenceError(", ".join(header.exports), str(error)) from error

    def _counter(self, query: str) -> QueryCounter | None:
        """Counter of a query that is or was assigned here: others must not fill the memory."""
        if query in self.shares.queries:
            return self.counters.queries.setdefault(query, QueryCounter())
        return self.counters.queries.get(query)


def _agreeing(call: Call, shown: tuple[str, str]) -> Call:
    """The call, if it is by whom its HTTP headers say."""
    if (call.header.query, call.header.token) != shown:
        raise MessageError("the HTTP headers of a call name another query or token than the call")
    return call


def failure(error: Exception, *, status: int | None = None) -> Reply:
    """The reply to a call that ended with this error."""
    if not isinstance(error, CompassError):
        _log.error("a segment call failed by a fault of the worker", exc_info=error)
        error = BackendError(f"a fault of the worker: {type(error).__name__}")
    retry_after_s = error.retry_after_s if isinstance(error, RefusedError) else None
    if status is None and isinstance(error, RefusedError):
        status = 403 if retry_after_s is None else 429
    if status is None:
        status = next((known for kind, known in _STATUS if isinstance(error, kind)), 500)
    body = ErrorBody(
        error=type(error).__name__,
        problem=error.problem if isinstance(error, InferenceError) else str(error),
        retry_after_s=retry_after_s,
        operator=error.operator if isinstance(error, InferenceError) else None,
    )
    return Reply(status, encode_error(body), retry_after_s)


def create_app(
    worker: Worker,
    *,
    routes: Iterable[web.RouteDef] = (),
    max_bytes: int = MAX_FRAME_BYTES,
) -> web.Application:
    """The HTTP side of a worker.

    Args:
        worker: What answers calls.
        routes: What else the worker serves: its models, and what links are measured by.
        max_bytes: Largest body.
    """

    async def segments(request: web.Request) -> web.Response:
        arrived_s = worker.clock.now_s()
        shown = shown_credentials(request.headers)
        if (refusal := worker.turned_away(*shown)) is not None:
            return _response(refusal)
        body = await _body(request, max_bytes)
        if isinstance(body, Reply):
            worker.counters.garbage += 1
            return _response(body)
        return _response(await worker.answer(body, shown=shown, arrived_s=arrived_s))

    async def health(_request: web.Request) -> web.Response:
        pool = worker.pool
        state = {"site": worker.site, "cores": pool.cores, "running": pool.running, "waiting": pool.waiting}
        return web.json_response({**state, "queries": len(worker.shares.queries)})

    async def counters(_request: web.Request) -> web.Response:
        return web.json_response({"site": worker.site, **msgspec.to_builtins(worker.counters)})

    async def close(_app: web.Application) -> None:
        await worker.close()

    app = web.Application(client_max_size=max_bytes)
    app.add_routes([web.post(PATH, segments), web.get("/health", health), web.get("/counters", counters)])
    app.add_routes(routes)
    app.on_cleanup.append(close)
    return app


async def _body(request: web.Request, max_bytes: int) -> bytes | Reply:
    """All of a request's body, or the reply to one that is too large, too slow or ends early."""
    too_large = MessageError(f"a call is larger than {max_bytes} bytes")
    if request.content_length is not None and request.content_length > max_bytes:
        return failure(too_large, status=413)
    try:
        return await asyncio.wait_for(request.read(), BODY_TIMEOUT_S)
    except web.HTTPRequestEntityTooLarge:
        return failure(too_large, status=413)
    except asyncio.TimeoutError:
        return failure(MessageError(f"a call did not arrive within {BODY_TIMEOUT_S} s"))
    except (aiohttp.ClientError, OSError) as error:
        return failure(MessageError(f"a call ended early: {type(error).__name__}"))


def _response(reply: Reply) -> web.Response:
    headers = {}
    if reply.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(reply.retry_after_s))
    return web.Response(status=reply.status, body=reply.body, content_type=MEDIA_TYPE, headers=headers)
