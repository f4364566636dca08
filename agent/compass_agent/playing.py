"""Playing one query's inputs in one phase: its requests at their times, scored and reported.

Inputs that have nothing to do with each other are scored one by one. The requests of a clip are one stream,
sent in order; the clip is scored as a whole when the last of them has ended, and all are reported then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard, cast

import msgspec

from compass_agent.arrivals import Arrival, arrivals, clip_arrivals
from compass_agent.events import Outcome
from compass_agent.measure.scoring import score_of, share
from compass_agent.shell import AgentShell
from compass_shared.errors import CompassError
from compass_shared.query import Query
from compass_shared.values import Example

if TYPE_CHECKING:
    from compass_shared.values import Value

Emit = Callable[[Mapping[str, Any]], None]
End: TypeAlias = Outcome | CompassError
"""How a request ended, or why it could not be sent."""


class Player:
    """Sends the requests of one query.

    Args:
        shell: The agent.
        emit: Takes an event for every request.
        query: Whose requests; its rate counts.
        phase: Named in the events.
        examples: Its inputs.
        started_s: Monotonic time of the phase's start.
    """

    def __init__(
        self,
        shell: AgentShell,
        emit: Emit,
        *,
        query: Query,
        phase: str,
        examples: Sequence[Example],
        started_s: float,
    ) -> None:
        self._shell = shell
        self._emit = emit
        self._query = query
        self._phase = phase
        self._examples = examples
        self._started_s = started_s
        self._bundle = shell.bundles[query.pipeline]

    async def play(self, *, seconds: float, seed: int) -> None:
        """Send requests for some seconds and wait until all have ended."""
        inputs = self._bundle.pipeline.inputs
        groups = [example.group for example in self._examples]
        if inputs is not None and inputs.sequences:
            lengths = [len(_listed(example.value)) for example in self._examples]
            plan = clip_arrivals(self._query, seconds=seconds, seed=seed, groups=groups, lengths=lengths)
            await self._play_clips(plan)
        else:
            await self._play_inputs(arrivals(self._query, seconds=seconds, seed=seed, groups=groups))

    async def _play_inputs(self, plan: Sequence[Arrival]) -> None:
        running = []
        for arrival in plan:
            await self._until(arrival)
            running.append(asyncio.ensure_future(self._input(arrival, self._examples[arrival.example])))
        await asyncio.gather(*running)

    async def _input(self, arrival: Arrival, example: Example) -> None:
        end = await self._request(example.value)
        score = await self._score(end.value, example) if _answered(end) else None
        self._report(arrival, end, score)

    async def _play_clips(self, plan: Sequence[Arrival]) -> None:
        ending = []
        for clip in _clips(plan):
            values = _listed(self._examples[clip[0].example].value)
            running: list[asyncio.Future[End]] = []
            for arrival in clip:
                await self._until(arrival)
                # Tasks start in the order in which they are made, so that requests are submitted in order.
                asked = self._request(values[arrival.step], new_stream=arrival.step == 0)
                running.append(asyncio.ensure_future(asked))
            ending.append(asyncio.ensure_future(self._end_clip(clip, running)))
        await asyncio.gather(*ending)

    async def _end_clip(self, clip: Sequence[Arrival], running: Sequence[asyncio.Future[End]]) -> None:
        """Score what was sent of a clip; what was lost has no output."""
        ends = await asyncio.gather(*running)
        score = None
        if any(map(_answered, ends)):
            example = self._examples[clip[0].example]
            sent = example._replace(
                value=_listed(example.value)[: len(clip)], truth=_listed(example.truth)[: len(clip)]
            )
            outputs = [end.value if _answered(end) else None for end in ends]
            score = await self._score(outputs, sent)
        for arrival, end in zip(clip, ends, strict=True):
            self._report(arrival, end, score if _answered(end) else None)

    async def _until(self, arrival: Arrival) -> None:
        await asyncio.sleep(self._started_s + arrival.at_s - time.monotonic())

    async def _request(self, value: Value, *, new_stream: bool = False) -> End:
        query = self._query
        try:
            return await self._shell.request(query.pipeline, value, query=query.name, new_stream=new_stream)
        except CompassError as error:
            return error

    async def _score(self, output: Value, example: Example) -> float:
        metric = self._bundle.pipeline.metric
        try:
            kind = metric.kind if metric is not None else "mean"
            return share(await asyncio.to_thread(score_of, self._bundle.metric(), kind, output, example))
        except CompassError as error:
            self._emit({"event": "error", "problem": str(error)})
            return 0.0

    def _report(self, arrival: Arrival, end: End, score: float | None) -> None:
        said: dict[str, Any] = (
            {**describe(end), "score": score}
            if isinstance(end, Outcome)
            else {"error": type(end).__name__, "problem": str(end)}
        )
        self._emit(
            {
                "event": "request",
                "phase": self._phase,
                "query": self._query.name,
                "index": arrival.index,
                "input": self._examples[arrival.example].name,
                **said,
            }
        )


def describe(outcome: Outcome) -> dict[str, Any]:
    """An outcome as JSON, without what was sent or answered."""
    error = outcome.error
    return {
        "request": outcome.request,
        "error": None if error is None else type(error).__name__,
        "problem": None if error is None else str(error),
        "latency_s": outcome.latency_s,
        "source": outcome.source.value,
        "attempts": outcome.attempts,
        "epoch": msgspec.to_builtins(outcome.epoch),
        "segments": msgspec.to_builtins(outcome.segments),
    }


def _answered(end: End) -> TypeGuard[Outcome]:
    return isinstance(end, Outcome) and end.error is None


def _listed(value: Value) -> Sequence[Value]:
    """Requests or truths of a clip."""
    return cast("Sequence[Value]", value)


def _clips(plan: Sequence[Arrival]) -> Iterator[Sequence[Arrival]]:
    """The arrivals of one clip after the other."""
    starts = [place for place, arrival in enumerate(plan) if arrival.step == 0]
    for start, end in zip(starts, [*starts[1:], len(plan)], strict=True):
        yield plan[start:end]
