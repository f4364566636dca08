"""State in serving, for real: a device and a worker on loopback, a pipeline that counts, and moves."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from compass_agent import events as ev
from compass_agent.config import AgentConfig
from compass_agent.probing import Measure
from compass_agent.sdk import Agent, BlockingAgent
from compass_agent.shell import AgentShell
from compass_shared.calls import (
    PATH,
    Call,
    CallHeader,
    credentials_of,
    decode_answer,
    decode_error,
    encode_call,
)
from compass_shared.errors import InferenceError
from compass_shared.framing import decode_value, encode_value
from compass_shared.messages import ShareMessage
from compass_shared.pipeline import variant_key
from compass_shared.plan import Assignment, Epoch, Plan, WorkerAccess
from compass_shared.site import Tier
from support.clips import write_counter_bundle
from support.fleets import until

TOKEN = "secret"


@dataclass(slots=True, kw_only=True)
class Pair:
    """A device and a worker, and the coordinator's part of what they do, played by the test."""

    device: AgentShell
    worker: AgentShell
    sequence: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def epoch(self) -> Epoch:
        return Epoch(coordinator=1, sequence=next(self.sequence))

    def plan(self, site: str, step: int = 1) -> Plan:
        return Plan(
            config={"double": {}, "count": {"step": step}}, placement={"double": "phone", "count": site}
        )

    async def move(self, site: str, *, step: int = 1, keep_share: bool = False) -> None:
        """Assign ``count`` to a site; shares first, and cleared at last if no longer used."""
        epoch = self.epoch
        if site == "edge" or keep_share:
            variants = (variant_key("count", {"step": step}),) if site == "edge" else ("double",)
            share = ShareMessage(
                query="q1",
                origin="phone",
                pipeline="counter",
                digest=self.device.bundles["counter"].pipeline.digest,
                epoch=epoch,
                variants=variants,
                rate_hz=100.0,
                cores=1.0,
                token=TOKEN,
            )
            self.worker.handle(ev.ShareArrived(query="q1", share=share))
            await until(lambda: self.worker.shares.current("q1") == share, "the share to be held")
        assert self.worker.data_address is not None
        access = WorkerAccess(address=self.worker.data_address, token=TOKEN)
        assignment = Assignment(
            query="q1",
            pipeline="counter",
            digest=self.device.bundles["counter"].pipeline.digest,
            epoch=epoch,
            plan=self.plan(site, step),
            fallback=self.plan("phone", step),
            workers={"edge": access},
        )
        self.device.handle(ev.AssignmentArrived(query="q1", assignment=assignment))
        assert self.device.core.assignments["q1"] == assignment
        if site == "phone" and not keep_share:
            self.withdraw()

    def withdraw(self) -> None:
        """The worker's share is cleared."""
        self.worker.handle(ev.ShareArrived(query="q1", share=None))

    async def ask(self, value: float = 1.0, **options: Any) -> tuple[str, int, int]:
        """Where a request's count ran, what it counted, and its gap."""
        outcome = await self.device.request("counter", value, **options)
        if outcome.error is not None:
            raise outcome.error
        made: Any = outcome.value
        return outcome.segments[-1].site, made["seen"], made["gap"]


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    bundle = write_counter_bundle(tmp_path)
    common: dict[str, Any] = {
        "bundles": (bundle,),
        "cache_root": tmp_path / "cache",
        "measure": Measure.NOTHING,
        "cores": 2,
    }
    device = AgentShell(AgentConfig(name="phone", **common))
    worker = AgentShell(AgentConfig(name="edge", tier=Tier.EDGE, listen=("127.0.0.1", 0), **common))
    await device.start()
    await worker.start()
    yield Pair(device=device, worker=worker)
    await device.close()
    await worker.close()


async def test_a_worker_counts_the_requests_of_a_stream(pair: Pair) -> None:
    await pair.move("edge")
    assert [await pair.ask() for _ in range(3)] == [("edge", 1, 0), ("edge", 2, 0), ("edge", 3, 0)]
    assert await pair.ask(new_stream=True) == ("edge", 1, 0)
    assert await pair.ask() == ("edge", 2, 0)


@pytest.mark.parametrize("keep_share", [False, True], ids=["withdrawn", "kept for something else"])
async def test_what_moves_begins_anew_there_and_back(pair: Pair, keep_share: bool) -> None:
    await pair.move("edge")
    assert [await pair.ask() for _ in range(2)] == [("edge", 1, 0), ("edge", 2, 0)]
    await pair.move("phone", keep_share=keep_share)
    assert [await pair.ask() for _ in range(2)] == [("phone", 1, 0), ("phone", 2, 0)]
    await pair.move("edge")
    assert [await pair.ask() for _ in range(2)] == [("edge", 1, 0), ("edge", 2, 0)]
    await pair.move("phone", keep_share=keep_share)
    assert await pair.ask() == ("phone", 1, 0)


async def test_a_new_assignment_that_moves_nothing_keeps_the_count(pair: Pair) -> None:
    for site in ("edge", "phone"):
        await pair.move(site)
        await pair.ask()
        await pair.move(site)
        assert await pair.ask() == (site, 2, 0)
        await pair.move(site, step=10)
        assert await pair.ask() == (site, 10, 0), "other knobs begin anew"


async def test_a_fallback_counts_on_the_origins_own_state(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pair.move("edge")
    await pair.ask()
    with monkeypatch.context() as patched:
        patched.setattr(pair.worker.shares, "knows", lambda *_: False)  # the worker turns it away
        assert [await pair.ask() for _ in range(2)] == [("phone", 1, 0), ("phone", 2, 0)]
        outcome = await pair.device.request("counter", 1.0)
        assert (outcome.source, outcome.attempts) == (ev.Source.FALLBACK, 2)
    assert await pair.ask() == ("edge", 2, 3), "the worker missed three"
    with monkeypatch.context() as patched:
        patched.setattr(pair.worker.shares, "knows", lambda *_: False)
        assert await pair.ask() == ("phone", 4, 1), "and the device one"


async def test_an_operator_that_fails_loses_its_state_there_as_here(pair: Pair) -> None:
    for site in ("edge", "phone"):
        await pair.move(site)
        await pair.ask()
        with pytest.raises(InferenceError, match="unlucky"):
            await pair.ask(13)
        assert await pair.ask() == (site, 1, 0)


async def test_a_withdrawn_share_leaves_no_state_even_by_what_is_under_way(pair: Pair) -> None:
    await pair.move("edge")
    await pair.ask()
    assert "q1" in pair.worker._worker.states
    pair.withdraw()
    assert len(pair.worker._worker.states) == 0
    assert await pair.ask() == ("edge", 1, 0), "served for a while, on a state that is thrown away"
    assert len(pair.worker._worker.states) == 0


async def test_a_query_of_another_origin_begins_anew(pair: Pair) -> None:
    await pair.move("edge")
    await pair.ask()
    held = pair.worker.shares.current("q1")
    assert held is not None
    assert pair.worker._worker.hold(dataclasses.replace(held, epoch=pair.epoch, origin="tablet")) is None
    assert len(pair.worker._worker.states) == 0


async def test_an_older_peer_is_served_without_numbers(pair: Pair) -> None:
    await pair.move("edge")
    share = pair.worker.shares.current("q1")
    assert share is not None
    header = CallHeader(
        request="r",
        attempt=1,
        query="q1",
        pipeline="counter",
        digest=share.digest,
        epoch=share.epoch,
        token=TOKEN,
        deadline_s=30.0,
        operators=("count",),
        knobs={"count": {"step": 1}},
        exports=("count",),
    )
    counted = []
    async with aiohttp.ClientSession() as http:
        for request in ("r1", "r2"):
            call = Call(header=dataclasses.replace(header, request=request), values={"double": 2.0})
            frame: Any = decode_value(encode_call(call))
            frame["header"] = {k: v for k, v in frame["header"].items() if k not in {"stream", "position"}}
            url = f"{pair.worker.data_address}{PATH}"
            async with http.post(url, data=encode_value(frame), headers=credentials_of(call)) as response:
                body = await response.read()
                assert response.status == 200, decode_error(body)
            counted.append(decode_answer(body).values["count"])
    assert [made["seen"] for made in counted] == [1, 2]  # type: ignore[index,call-overload]


async def test_an_operator_that_must_not_run_at_a_worker_is_refused_there(pair: Pair) -> None:
    """Even with a share: the worker looks again at every call."""
    bundle = pair.worker.bundles["counter"]
    count = dataclasses.replace(bundle.pipeline.operators[1], must_run_on=("device",))
    operators = (bundle.pipeline.operators[0], count)
    bound = dataclasses.replace(bundle, pipeline=dataclasses.replace(bundle.pipeline, operators=operators))
    await pair.move("edge")
    pair.worker.host._bundles["counter"] = bound
    outcome = await pair.device.request("counter", 1.0)
    assert (outcome.source, outcome.segments[-1].site) == (ev.Source.FALLBACK, "phone")
    assert pair.worker._worker.counters.queries["q1"].refused == 1


def test_a_program_without_asyncio_begins_streams_too(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "name": "phone",
        "bundles": [write_counter_bundle(tmp_path)],
        "cache_root": tmp_path / "cache",
    }
    with BlockingAgent(**settings) as agent:
        made: list[Any] = [
            agent.request("counter", 1.0, new_stream=new) for new in (False, False, True, False)
        ]
    assert [one["seen"] for one in made] == [1, 2, 1, 2]


async def test_an_agent_that_is_alone_keeps_state_by_query(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "name": "phone",
        "bundles": [write_counter_bundle(tmp_path)],
        "cache_root": tmp_path / "cache",
    }
    async with Agent(**settings) as agent:
        made: list[Any] = [await agent.request("counter", 1.0, query=query) for query in ("a", "b", "a")]
    assert [one["seen"] for one in made] == [1, 1, 2]
