"""What an agent adds to the operators that it runs.

Two ways to the same result take turns on the same inputs, pair by pair, so that whatever else the machine
does meets both:

    local    agent.request on a plan that runs here      the same operators called in a loop
    remote   agent.request on a plan that runs at a      a bare aiohttp POST of the same input to a bare
             worker on loopback                          handler, with the same operators in its thread pool

Each on the read-text pipeline and on a tiny one whose operators do nothing, which leaves the overhead itself.
The worker and the bare server are one process beside this one. Memory and import time are those of fresh
processes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import aiohttp
from aiohttp import web

from common import BENCH, READ_TEXT, RESULTS, machine, median_interval, write_result
from compass_agent import events as ev
from compass_agent.bundles import load_bundle
from compass_agent.config import AgentConfig
from compass_agent.models import ModelStore
from compass_agent.operators import BoundOperator
from compass_agent.probing import Measure
from compass_agent.shell import AgentShell
from compass_shared.framing import MAX_FRAME_BYTES
from compass_shared.messages import ShareMessage
from compass_shared.model_cache import ModelCache, default_cache_dir
from compass_shared.pipeline import REQUEST, Config, Pipeline, variant_key
from compass_shared.plan import Assignment, Epoch, Plan, WorkerAccess
from compass_shared.site import Tier
from compass_shared.values import OperatorFunction, Value

TINY = BENCH / "tiny"
LOCAL_AIM, REMOTE_AIM, MEMORY_AIM_MB = 1.05, 1.15, 80.0
TOKEN = "bench"
EPOCH = Epoch(coordinator=1, sequence=1)
KNOBS: Mapping[str, Mapping[str, Any]] = {
    "detect": {"model": "det-tiny", "side": 480},
    "recognise": {"model": "rec-tiny"},
}
"""What differs from every knob's first value: a config in the middle of the grid."""
IMPORTS = ("numpy", "onnxruntime", "aiohttp", "compass_agent.sdk")
BARE = "/bare"

Way = Callable[[Value], Awaitable[Value]]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=200, help="of read-text (default: %(default)s)")
    parser.add_argument("--tiny-pairs", type=int, default=1000, help="of the tiny pipeline")
    parser.add_argument("--starts", type=int, default=15, help="fresh processes for import time")
    parser.add_argument("--out", type=Path, default=RESULTS / "agent.json")
    parser.add_argument("--serve", type=Path, metavar="BUNDLE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve is not None:
        asyncio.run(_serve(args.serve))
        return 0
    document: dict[str, Any] = {"kind": "bench-agent", "machine": machine()}
    rows = [
        *asyncio.run(_compared(TINY, _tiny_inputs(), args.tiny_pairs)),
        *asyncio.run(_compared(READ_TEXT, _pages(), args.pairs)),
    ]
    document["requests"] = rows
    document["memory_mb"] = _memory_mb()
    document["import_s"] = {module: _import_s(module, args.starts) for module in IMPORTS}
    _print(document)
    write_result(args.out, document)
    return 0


# --- the two ways ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Direct:
    """The operators of one config, each a function to call."""

    steps: tuple[BoundOperator, ...]
    output: str

    def __call__(self, value: Value) -> Value:
        made: dict[str, Value] = {REQUEST: value}
        for step in self.steps:
            inputs = {name: made[name] for name in step.operator.inputs}
            function = cast("OperatorFunction", step.function)
            made[step.operator.name] = function(inputs, step.knobs, step.model)
        return made[self.output]


def _direct(shell: AgentShell, pipeline: Pipeline) -> Direct:
    config = _config(pipeline)
    steps = [shell.host.bind(pipeline.name, op.name, config[op.name]) for op in pipeline.operators]
    return Direct(steps=tuple(steps), output=pipeline.output)


def _config(pipeline: Pipeline) -> Config:
    return {
        op.name: {knob: KNOBS.get(op.name, {}).get(knob, values[0]) for knob, values in op.knobs.items()}
        for op in pipeline.operators
    }


def _assignment(pipeline: Pipeline, site: str, address: str = "") -> Assignment:
    placement = {operator.name: site for operator in pipeline.operators}
    return Assignment(
        query=f"at-{site}",
        pipeline=pipeline.name,
        digest=pipeline.digest,
        epoch=EPOCH,
        plan=Plan(config=_config(pipeline), placement=placement),
        fallback=None,
        workers={"edge": WorkerAccess(address=address, token=TOKEN)},
        deadline_s=60.0,
    )


@contextmanager
def _server(folder: Path) -> Iterator[Mapping[str, str]]:
    """The process that serves remote calls: addresses of its worker and its bare server."""
    command = [sys.executable, __file__, "--serve", str(folder)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdout is not None
    try:
        yield json.loads(server.stdout.readline())
    finally:
        server.communicate()


async def _compared(folder: Path, inputs: Sequence[Value], pairs: int) -> list[dict[str, Any]]:
    """Both comparisons on one bundle."""
    with _server(folder) as addresses:
        shell = AgentShell(_agent("phone", folder))
        await shell.start()
        try:
            return await _both(shell, addresses, inputs, pairs)
        finally:
            await shell.close()


async def _both(
    shell: AgentShell, addresses: Mapping[str, str], inputs: Sequence[Value], pairs: int
) -> list[dict[str, Any]]:
    (bundle,) = shell.bundles.values()
    pipeline = bundle.pipeline
    direct = _direct(shell, pipeline)
    for assignment in (
        _assignment(pipeline, "phone"),
        _assignment(pipeline, "edge", addresses["worker"]),
    ):
        shell.handle(ev.AssignmentArrived(query=assignment.query, assignment=assignment))

    def agent_at(site: str) -> Way:
        async def ask(value: Value) -> Value:
            outcome = await shell.request(pipeline.name, value, query=f"at-{site}")
            if outcome.error is not None:
                raise outcome.error
            assert [trace.site for trace in outcome.segments] == [site]
            return outcome.value

        return ask

    async def here(value: Value) -> Value:
        return direct(value)

    async with aiohttp.ClientSession() as session:

        async def bare(value: Value) -> Value:
            assert isinstance(value, bytes)
            async with session.post(addresses["bare"], data=value) as response:
                return (await response.read()).decode()

        local = await _pairs(agent_at("phone"), here, inputs, pairs)
        remote = await _pairs(agent_at("edge"), bare, inputs, pairs)
    return [
        {"pipeline": pipeline.name, "where": "local", "aim": LOCAL_AIM, **local},
        {"pipeline": pipeline.name, "where": "remote", "aim": REMOTE_AIM, **remote},
    ]


async def _pairs(agent: Way, plain: Way, inputs: Sequence[Value], pairs: int) -> dict[str, Any]:
    """Let two ways take turns; who goes first in a pair takes turns as well."""
    for value in inputs:
        assert _text(await agent(value)) == _text(await plain(value)), "both do the same"
    took: dict[Way, list[float]] = {agent: [], plain: []}
    for index in range(pairs):
        value = inputs[index // 2 % len(inputs)]
        for way in (agent, plain) if index % 2 else (plain, agent):
            start_s = time.perf_counter()
            await way(value)
            took[way].append(time.perf_counter() - start_s)
    ratios = [a / p for a, p in zip(took[agent], took[plain], strict=True)]
    extra_s = [a - p for a, p in zip(took[agent], took[plain], strict=True)]
    ratio, *ratio_interval = median_interval(ratios)
    added_s, *added_interval = median_interval(extra_s)
    return {
        "pairs": pairs,
        "agent_p50_s": statistics.median(took[agent]),
        "plain_p50_s": statistics.median(took[plain]),
        "p50_ratio": statistics.median(took[agent]) / statistics.median(took[plain]),
        "pair_ratio": ratio,
        "pair_ratio_95": ratio_interval,
        "added_s": added_s,
        "added_s_95": added_interval,
    }


def _text(value: Value) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


# --- the other process ----------------------------------------------------------------------------


async def _serve(folder: Path) -> None:
    """A worker with a share for everybody, and a bare server beside it, until stdin ends."""
    shell = AgentShell(_agent("edge", folder, listen=("127.0.0.1", 0)))
    await shell.start()
    (bundle,) = shell.bundles.values()
    pipeline = bundle.pipeline
    direct = await asyncio.to_thread(_direct, shell, pipeline)
    config = _config(pipeline)
    share = ShareMessage(
        query="at-edge",
        origin="phone",
        pipeline=pipeline.name,
        digest=pipeline.digest,
        epoch=EPOCH,
        variants=tuple(variant_key(op.name, config[op.name]) for op in pipeline.operators),
        rate_hz=1e6,
        cores=1e6,
        token=TOKEN,
    )
    assert shell.shares.take(share, time.monotonic()) is None
    threads = ThreadPoolExecutor(1)

    async def bare(request: web.Request) -> web.Response:
        body = await request.read()
        value = await asyncio.get_running_loop().run_in_executor(threads, direct, body)
        return web.Response(body=_text(value).encode())

    app = web.Application(client_max_size=MAX_FRAME_BYTES)
    app.router.add_post(BARE, bare)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    print(json.dumps({"worker": shell.data_address, "bare": f"http://127.0.0.1:{port}{BARE}"}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()
    await shell.close()


def _agent(name: str, folder: Path, **settings: Any) -> AgentConfig:
    tier = Tier.EDGE if "listen" in settings else Tier.DEVICE
    cache = default_cache_dir(os.environ)
    return AgentConfig(
        name=name, bundles=(folder,), cache_root=cache, tier=tier, measure=Measure.NOTHING, **settings
    )


# --- inputs, memory, imports ----------------------------------------------------------------------


def _tiny_inputs() -> list[Value]:
    return [bytes([65 + index]) * 1000 for index in range(4)]


def _pages() -> list[Value]:
    """Ten of the pipeline's own pages, of all levels."""
    examples = load_bundle(READ_TEXT).examples(
        "heldout", ModelStore(ModelCache(default_cache_dir(os.environ)))
    )
    return [example.value for example in examples[:30:3]]


_AGENT_ALONE = """
import sys, psutil
from compass_agent.sdk import BlockingAgent
with BlockingAgent(name="phone", bundles=sys.argv[2:], cache_root=sys.argv[1]) as agent:
    for bundle in sys.argv[2:]:
        agent.request("tiny", b"x")
    print(psutil.Process().memory_info().rss / 1e6)
"""


def _memory_mb() -> dict[str, float]:
    """Resident memory of fresh agents, without a model, after a first request where they have a bundle."""
    with tempfile.TemporaryDirectory() as cache:
        return {
            "python": float(_fresh("import psutil; print(psutil.Process().memory_info().rss / 1e6)")),
            "agent without bundles": float(_fresh(_AGENT_ALONE, cache)),
            "agent with the tiny bundle": float(_fresh(_AGENT_ALONE, cache, str(TINY))),
        }


def _import_s(module: str, starts: int) -> dict[str, float]:
    """Time of ``import module`` in fresh interpreters, the interpreter's own start left out."""
    code = f"import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
    took = [float(_fresh(code)) for _ in range(starts)]
    return {"min": min(took), "median": statistics.median(took)}


def _fresh(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout


# --- the table ------------------------------------------------------------------------------------


def _print(document: Mapping[str, Any]) -> None:
    head = ("pipeline", "where", "agent p50", "plain p50", "p50 ratio", "median pair ratio", "added", "aim")
    print("{:10} {:7} {:>11} {:>11} {:>10} {:>22} {:>26} {:>6}".format(*head))
    for row in document["requests"]:
        low, high = row["pair_ratio_95"]
        least, most = (1e6 * edge for edge in row["added_s_95"])
        print(
            f"{row['pipeline']:10} {row['where']:7} {1e3 * row['agent_p50_s']:8.3f} ms "
            f"{1e3 * row['plain_p50_s']:8.3f} ms {row['p50_ratio']:10.3f} "
            f"{row['pair_ratio']:8.3f} [{low:5.3f}, {high:5.3f}] "
            f"{1e6 * row['added_s']:7.0f} µs [{least:5.0f}, {most:5.0f}] "
            f"{'' if row['pipeline'] == 'tiny' else row['aim']:>6}"
        )
    print("\nresident memory, MB" + f" (aim: below {MEMORY_AIM_MB:.0f} without models)")
    for name, megabytes in document["memory_mb"].items():
        print(f"  {name:28} {megabytes:8.1f}")
    print("\nimport time, ms (minimum, median)")
    for module, took in document["import_s"].items():
        print(f"  {module:28} {1e3 * took['min']:8.0f} {1e3 * took['median']:8.0f}")


if __name__ == "__main__":
    sys.exit(main())
