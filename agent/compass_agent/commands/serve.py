"""``compass-agent run`` and ``compass-agent worker``."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from compass_agent.commands.once import serve_once
from compass_agent.commands.shared import Command
from compass_agent.config import AgentConfig, described_by
from compass_agent.drive import Driver, commands_from_stdin, emitter, notice_event
from compass_agent.emulate.link import Shape
from compass_agent.probing import Measure
from compass_agent.shell import AgentShell
from compass_shared.device_profile import find_device_profile
from compass_shared.errors import ConfigError
from compass_shared.model_cache import default_cache_dir
from compass_shared.names import check_reachable, host_port
from compass_shared.notices import Notice
from compass_shared.site import Tier


def add_parsers(command: Command) -> None:
    """Add ``run`` and ``worker``."""
    run = command("run", "run an agent on a device")
    _add_agent_options(run)
    run.add_argument(
        "--input",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="push this file through the pipeline, print the output as JSON, and end; repeatable",
    )
    run.set_defaults(run=_run, tier=Tier.DEVICE, listen=None)

    worker = command("worker", "run a worker on an edge server or in the cloud")
    _add_agent_options(worker)
    worker.add_argument(
        "--listen", type=host_port, default=("127.0.0.1", 8470), metavar="HOST:PORT", help="data plane"
    )
    worker.add_argument("--address", metavar="URL", help="base URL under which others reach the data plane")
    worker.add_argument(
        "--tier", type=Tier, choices=[Tier.EDGE, Tier.CLOUD], default=Tier.EDGE, metavar="{edge,cloud}"
    )
    worker.set_defaults(run=_run)


def _add_agent_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", required=True, help="the agent's name in its fleet, [a-z0-9-]")
    parser.add_argument("--bundle", action="append", type=Path, required=True, metavar="DIR")
    parser.add_argument("--broker", metavar="URL", help="mqtt://host:port or mqtts://user:password@host")
    parser.add_argument("--fleet", default="default", help="name of the fleet (default: %(default)s)")
    parser.add_argument("--profile", metavar="PROFILE", help="device profile: prices, power, cores")
    parser.add_argument("--emulate", metavar="PROFILE", help="device profile to emulate, its speed included")
    parser.add_argument("--cores", type=int, help="operators that run at once (default: the profile's, or 1)")
    parser.add_argument("--cap", type=float, metavar="SHARE", help="share of the cores that may be planned")
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        metavar="TIER=DELAY_S,UP,DOWN",
        help="emulate the link to workers of a tier: one-way delay, bytes per second up and down",
    )
    parser.add_argument("--state", type=Path, metavar="DIR", help="keep assignments here over restarts")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="model cache")
    parser.add_argument(
        "--measure",
        type=Measure,
        choices=list(Measure),
        default=Measure.FULL,
        metavar="{full,probes,nothing}",
        help="operators measured: all at the start, a few and what the coordinator asks for, or none "
        "(default: full)",
    )
    parser.add_argument(
        "--no-measure",
        action="store_const",
        dest="measure",
        const=Measure.NOTHING,
        help="the same as --measure nothing",
    )
    parser.add_argument("--measure-seconds", type=float, default=20.0, help="time for each pipeline")
    parser.add_argument(
        "--drive", action="store_true", help="take JSON commands on stdin, print JSON events (for benches)"
    )


def _run(args: argparse.Namespace) -> int:
    if files := getattr(args, "input", []):
        return asyncio.run(serve_once(config_from(args), files))
    return asyncio.run(_serve(config_from(args), drive=args.drive))


def config_from(args: argparse.Namespace) -> AgentConfig:
    """Settings from parsed options.

    Raises:
        ConfigError: If an option is wrong.
    """
    if args.profile and args.emulate:
        raise ConfigError("give --profile for what this machine is, or --emulate for what it plays, not both")
    if args.listen is not None and args.broker is not None:
        check_reachable(args.listen[0], args.address)
    described: dict[str, Any] = {}
    if args.profile or args.emulate:
        profile = find_device_profile(args.emulate or args.profile)
        described = described_by(profile, emulate=bool(args.emulate))
    config = AgentConfig(
        name=args.name,
        bundles=tuple(args.bundle),
        broker=args.broker,
        fleet=args.fleet,
        listen=args.listen,
        data_address=getattr(args, "address", None),
        cache_root=args.cache or default_cache_dir(os.environ),
        state_dir=args.state,
        shapes=dict(_shape(text) for text in args.shape),
        measure=args.measure,
        measure_budget_s=args.measure_seconds,
        **(described | {"tier": args.tier}),
    )
    if args.cores is not None:
        config = replace(config, cores=args.cores)
    return config if args.cap is None else replace(config, utilisation_cap=args.cap)


def _shape(text: str) -> tuple[Tier, Shape]:
    try:
        tier, _, numbers = text.partition("=")
        delay_s, up, down = (float(number) for number in numbers.split(","))
        shape = Shape(delay_s=delay_s, up_bytes_per_s=up or None, down_bytes_per_s=down or None)
        return Tier(tier), shape
    except ValueError as error:
        raise ConfigError(
            f"{text!r} is not TIER=DELAY_S,UP,DOWN, as in cloud=0.02,2e6,4e6", field="--shape"
        ) from error


async def _serve(config: AgentConfig, *, drive: bool) -> int:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    emit = emitter(sys.stdout)

    def notice(notice: Notice) -> None:
        if drive:
            emit(notice_event(notice))
        else:
            logging.getLogger(__name__).info("%s %s", notice.kind, notice.data)

    shell = AgentShell(config, on_notice=notice)
    await shell.start()
    where = f", data plane at {shell.data_address}" if shell.data_address else ""
    print(f"compass-agent {config.name} is up{where}; Ctrl-C stops it", file=sys.stderr, flush=True)
    if drive:
        emit({"event": "up", "address": shell.data_address, "emulated": config.emulated})
    commands = asyncio.create_task(_obey(shell, stopping)) if drive else None
    try:
        await stopping.wait()
    finally:
        if commands is not None:
            commands.cancel()
        await shell.close()
    return 0


async def _obey(shell: AgentShell, stopping: asyncio.Event) -> None:
    driver = Driver(shell, emitter(sys.stdout))
    commands = await commands_from_stdin()
    running: set[asyncio.Task[None]] = set()

    async def carry_out(line: bytes) -> None:
        if not await driver.run(line):
            stopping.set()

    while line := await commands.readline():
        # Commands overlap: a new declaration is heard while requests are served.
        task = asyncio.create_task(carry_out(line))
        running.add(task)
        task.add_done_callback(running.discard)
    stopping.set()
