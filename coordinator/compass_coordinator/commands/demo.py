"""``compass demo``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live

from compass_coordinator.commands.files import ACCURACY_IN_BUNDLE
from compass_coordinator.demo import screen
from compass_coordinator.demo.options import DemoOptions
from compass_coordinator.demo.run import DemoResult, OnState, run_demo, write_document
from compass_coordinator.demo.stage import StageState
from compass_coordinator.planner.policy import POLICIES
from compass_shared.errors import ConfigError
from compass_shared.query import Query
from compass_shared.resources import data_folder

PIPE_WIDTH = 170


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="pipeline (default: read-text)")
    parser.add_argument("--accuracy", type=Path, metavar="FILE", help="in place of the bundle's own table")
    parser.add_argument("--fleet", type=Path, metavar="FILE", help="fleet.toml (default: the bundle's)")
    parser.add_argument(
        "--seconds", type=float, default=15.0, help="serve so long under each policy (%(default)s)"
    )
    parser.add_argument(
        "--policies",
        default="compass,device,cloud",
        help="which to compare, of " + ", ".join(POLICIES) + " (default: all)",
    )
    parser.add_argument("--broker", metavar="URL", help="mqtt:// or mqtts:// (default: an embedded one)")
    parser.add_argument(
        "--rate-factor", type=float, default=1.0, metavar="X", help="scale every query's rate"
    )
    parser.add_argument("--seed", type=int, default=1, help="draws arrivals and inputs (%(default)s)")
    parser.add_argument(
        "--check", type=int, default=4, metavar="N", help="re-measure N configs (%(default)s)"
    )
    parser.add_argument(
        "--profile-now", type=int, default=0, metavar="N", help="plan with N configs measured afresh instead"
    )
    parser.add_argument(
        "--measure-seconds", type=float, default=20.0, help="time for a device to measure itself"
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="model cache")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write everything, with the fleet file in it"
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep logs and measurements here")
    parser.add_argument("--plain", action="store_true", help="print steps instead of a live table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demo and print what it found out."""
    # What goes to a file or a pipe is read on wide screens; a terminal knows its own width.
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)
    with _work_folder(args.work) as work:
        options = _options(args, work)
        with _display(console, plain=args.plain or not console.is_terminal) as show:
            result = asyncio.run(_interruptible(options, show))
        if args.json is not None:
            write_document(args.json, result)
    _summary(console, result)
    return 1 if any(phase.problems for phase in result.phases) else 0


async def _interruptible(options: DemoOptions, show: OnState) -> DemoResult:
    """Ctrl-C and SIGTERM end the demo alike: its processes are stopped first."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):  # Python 3.10 does not cancel on SIGINT by itself
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        return await run_demo(options, show)
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def _options(args: argparse.Namespace, work: Path) -> DemoOptions:
    bundle = args.bundle or data_folder("examples") / "read_text"
    phases = tuple(args.policies.split(","))
    if unknown := [phase for phase in phases if phase not in POLICIES]:
        raise ConfigError(f"{unknown[0]!r} is not one of {', '.join(POLICIES)}", field="--policies")
    for option in ("seconds", "rate_factor", "measure_seconds"):
        if not 0 < (value := getattr(args, option)) < math.inf:
            raise ConfigError(f"{value} must be a positive number", field=f"--{option.replace('_', '-')}")
    for option in ("check", "profile_now"):
        if (count := getattr(args, option)) < 0:
            raise ConfigError(f"{count} must not be negative", field=f"--{option.replace('_', '-')}")
    return DemoOptions(
        bundle=bundle,
        fleet_file=args.fleet or bundle / "fleet.toml",
        accuracy=args.accuracy or bundle / ACCURACY_IN_BUNDLE,
        work=work,
        cache_root=args.cache,
        broker=args.broker,
        seconds=args.seconds,
        phases=phases,
        seed=args.seed,
        rate_factor=args.rate_factor,
        check_configs=args.check,
        profile_now=args.profile_now,
        measure_s=args.measure_seconds,
    )


@contextlib.contextmanager
def _work_folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="compass-demo-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def _display(console: Console, *, plain: bool) -> Iterator[OnState]:
    if plain:
        yield _Steps()
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:

        def show(state: StageState, phase: str, queries: Sequence[Query]) -> None:
            live.update(screen.live(state, phase, queries, width=console.width))

        live.update("Checking the accuracy profile on a few configs")
        yield show


class _Steps:
    """Prints each step once."""

    def __init__(self) -> None:
        self._last = ""
        self._notes = 0

    def __call__(self, state: StageState, _phase: str, _queries: Sequence[Query]) -> None:
        if state.stage != self._last:
            self._last = state.stage
            print(state.stage, file=sys.stderr, flush=True)
        for note in state.notes[self._notes :]:
            print(f"note: {note}", file=sys.stderr, flush=True)
        self._notes = len(state.notes)


def _summary(console: Console, result: DemoResult) -> None:
    if result.accuracy_checks:
        console.print(screen.accuracy_table(result.accuracy_checks))
    for phase in result.phases:
        console.print(
            screen.query_table(phase.phase, result.queries, phase.planned, phase.rows, width=console.width)
        )
        for problem in phase.problems:
            console.print(f"[red]does not add up: {problem}[/red]")
        if phase.overruns:
            console.print(f"{phase.overruns} emulated calls took longer than they should have (overruns)")
    weight = sum(query.weight for query in result.queries)
    console.print(screen.total_table([phase.total for phase in result.phases], weight, len(result.queries)))
    sent = [row.sent for phase in result.phases for row in phase.rows.values() if row.answered]
    if sent:
        console.print(
            f"Verdicts rest on {min(sent)} to {max(sent)} requests a query: a p95 of so few is nearly the "
            "slowest one, and an accuracy can miss its SLO by chance. --seconds takes more."
        )
    steps = ", ".join(f"{step} {seconds:.0f} s" for step, seconds in result.timings_s.items())
    console.print(f"[dim]{steps}[/dim]")
    if not any(phase.problems for phase in result.phases):
        console.print("Accounting: every request ended once, and ran where its plan said.")
