"""``compass coordinator``."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from compass_coordinator.commands.files import add_accuracy_z, cache_root, load_planned
from compass_coordinator.measurements import load_measurements, save_measurements
from compass_coordinator.plan_document import plan_document
from compass_coordinator.planner.policy import POLICIES
from compass_coordinator.planning import FleetPlan
from compass_coordinator.profiler.latency.completion import reference_of
from compass_coordinator.shell import CoordinatorConfig, CoordinatorShell
from compass_coordinator.what_if import site_profiles
from compass_shared.errors import ProfileError
from compass_shared.names import check_reachable, host_port
from compass_shared.notices import Notice
from compass_shared.pipeline import Pipeline
from compass_shared.problem import Problem
from compass_shared.profile import SiteProfile


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--broker", required=True, metavar="URL", help="mqtt://host:port or mqtts://...")
    parser.add_argument("--bundle", action="append", type=Path, required=True, metavar="DIR")
    parser.add_argument("--accuracy", action="append", type=Path, default=[], metavar="FILE")
    add_accuracy_z(parser)
    parser.add_argument("--fleet", default="default", help="name of the fleet (default: %(default)s)")
    parser.add_argument(
        "--policy", choices=sorted(POLICIES), default="compass", help="placements to consider"
    )
    parser.add_argument("--state", type=Path, metavar="DIR", help="keep the coordinator epoch here")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="model cache to serve to agents")
    parser.add_argument(
        "--listen", type=host_port, default=("127.0.0.1", 0), metavar="HOST:PORT", help="serve models here"
    )
    parser.add_argument("--address", metavar="URL", help="base URL under which agents reach the model server")
    parser.add_argument(
        "--reference",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="predict what agents did not measure from these profiles (default: from one that measured all)",
    )
    parser.add_argument("--save-profiles", type=Path, metavar="FILE", help="write what agents measured")
    parser.add_argument(
        "--events", action="store_true", help="print JSON events, a line each; end when a pipe on stdin does"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the coordinator until it is told to stop."""
    pipelines, accuracy = load_planned(args.bundle, args.accuracy, z=args.accuracy_z)
    check_reachable(args.listen[0], args.address)
    config = CoordinatorConfig(
        broker=args.broker,
        pipelines=pipelines,
        accuracy=accuracy,
        fleet=args.fleet,
        policy=args.policy,
        state_dir=args.state,
        cache_root=cache_root(args.cache),
        listen=args.listen,
        model_address=args.address,
        references=references(args.reference, pipelines),
    )
    return asyncio.run(_serve(config, events=args.events, save_profiles=args.save_profiles))


def references(files: Sequence[Path], pipelines: Mapping[str, Pipeline]) -> dict[str, SiteProfile]:
    """Pipeline -> the most measured site of the files that has every variant.

    Raises:
        ProfileError: If a file cannot be read, is of another pipeline, or no pipeline has such a site.
    """
    measured = [load_measurements(file) for file in files]
    found = {
        name: reference_of(pipeline, list(site_profiles(pipeline, measured)))
        for name, pipeline in pipelines.items()
    }
    known = {name: profile for name, profile in found.items() if profile is not None}
    if files and not known:
        raise ProfileError(f"{files[0]}: has no site with every variant of {', '.join(sorted(pipelines))}")
    return known


async def _serve(config: CoordinatorConfig, *, events: bool, save_profiles: Path | None) -> int:
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[str] = loop.create_future()

    def ask_to_stop() -> None:
        if not stop.done():
            stop.set_result("asked to")

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ask_to_stop)

    def notice(notice: Notice) -> None:
        if notice.kind == "planned" and save_profiles is not None:
            save_measurements(save_profiles, notice.data["problem"])
        if events:
            print(json.dumps(event_of(notice), separators=(",", ":")), flush=True)
        elif notice.kind != "note":
            print(_sentence(notice), file=sys.stderr, flush=True)

    if events and sys.stdin is not None and stat.S_ISFIFO(os.fstat(sys.stdin.fileno()).st_mode):
        await _when_stdin_ends(ask_to_stop)
    shell = CoordinatorShell(config, on_notice=notice)
    await shell.start()
    taken_over = asyncio.ensure_future(shell.wait())
    try:
        await asyncio.wait({stop, taken_over}, return_when=asyncio.FIRST_COMPLETED)
        if taken_over.done():
            print(f"compass coordinator: {taken_over.result()}", file=sys.stderr)
            return 1
    finally:
        taken_over.cancel()
        await shell.close()
    return 0


async def _when_stdin_ends(then: Callable[[], None]) -> None:
    """Whoever reads the events holds the other end of stdin: without it nobody is left to report to."""

    class Watch(asyncio.Protocol):
        def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # gone is gone
            then()

    await asyncio.get_running_loop().connect_read_pipe(Watch, sys.stdin)


def event_of(notice: Notice) -> dict[str, object]:
    """A notice as JSON."""
    if notice.kind != "planned":
        return {"event": notice.kind, **notice.data}
    problem: Problem = notice.data["problem"]
    plan: FleetPlan = notice.data["plan"]
    return {
        "event": "planned",
        "epoch": notice.data["epoch"],
        "seconds": notice.data["seconds"],
        "left_out": notice.data["left_out"],
        **plan_document(problem, plan),
    }


def _sentence(notice: Notice) -> str:
    if notice.kind == "planned":
        plan: FleetPlan = notice.data["plan"]
        return (
            f"planned {len(plan.plans)} of {len(plan.plans) + len(plan.refusals)} queries "
            f"in {notice.data['seconds']:.2f} s, goodput {plan.goodput:g} of at most {plan.bound:g}"
        )
    return f"{notice.kind} " + ", ".join(f"{name} {value}" for name, value in notice.data.items())
