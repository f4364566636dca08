"""``compass demo``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.markup import escape

from compass_coordinator.commands.files import ACCURACY_IN_BUNDLE, load_planned
from compass_coordinator.demo import screen
from compass_coordinator.demo.apps import APPS, DEFAULT_APP, App, app_of, bundles_for, listing
from compass_coordinator.demo.document import write_document
from compass_coordinator.demo.options import DemoOptions
from compass_coordinator.demo.run import DemoResult, OnState, run_demo
from compass_coordinator.demo.state import StageState
from compass_coordinator.planner.policy import POLICIES
from compass_shared.errors import ConfigError
from compass_shared.fleet_file import load_fleet
from compass_shared.profile_file import load_accuracy
from compass_shared.query import Query

PIPE_WIDTH = 170

_EXAMPLES = f"""\
applications:
{listing()}

examples:
  compass demo
  compass demo --app driving
  compass demo --app mixed --seconds 30 --json mixed.json
  compass demo --app gaming --policies compass,fixed
  compass demo --bundle my_pipeline --fleet my_fleet.toml --check 0

exit codes: 0 all well, 1 it failed or does not add up, 2 wrong usage or a wrong file, 130 interrupted
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.epilog = _EXAMPLES
    parser.add_argument("--app", metavar="NAME", default=DEFAULT_APP, help="of " + ", ".join(APPS))
    parser.add_argument("--list", action="store_true", help="list the applications and end")
    parser.add_argument(
        "--bundle", action="append", type=Path, default=[], metavar="DIR", help="own pipelines (repeatable)"
    )
    parser.add_argument(
        "--accuracy",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="in place of a bundle's own table (repeatable)",
    )
    parser.add_argument(
        "--fleet", type=Path, metavar="FILE", help="fleet.toml (default: that of the first bundle or the app)"
    )
    parser.add_argument(
        "--seconds", type=float, default=15.0, help="serve so long under each policy (%(default)s)"
    )
    parser.add_argument(
        "--policies", help="which to compare, of " + ", ".join(POLICIES) + " (default: the application's)"
    )
    parser.add_argument("--broker", metavar="URL", help="mqtt:// or mqtts:// (default: an embedded one)")
    parser.add_argument(
        "--rate-factor", type=float, default=1.0, metavar="X", help="scale every query's rate"
    )
    parser.add_argument("--seed", type=int, default=1, help="draws arrivals and inputs (%(default)s)")
    parser.add_argument(
        "--check", type=int, metavar="N", help="re-measure N configs of every pipeline (default: 2 to 4)"
    )
    parser.add_argument(
        "--profile-now", type=int, default=0, metavar="N", help="plan with N configs measured afresh instead"
    )
    parser.add_argument(
        "--measure-seconds", type=float, help="time for a site to measure one pipeline (default: 10 to 20)"
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
    if args.list:
        print(listing())
        return 0
    # What goes to a file or a pipe is read on wide screens; a terminal knows its own width.
    console = Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)
    with _work_folder(args.work) as work:
        options = options_from(args, work)
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


def options_from(args: argparse.Namespace, work: Path) -> DemoOptions:
    """Settings from parsed options.

    Args:
        args: What ``add_options`` made the parser understand.
        work: Folder for state, logs and measurements.

    Raises:
        ConfigError: If an option, the fleet file or a bundle is wrong.
        ProfileError: If an accuracy table is.
    """
    app = app_of(args.app)
    phases = app.policies if args.policies is None else tuple(args.policies.split(","))
    if unknown := [phase for phase in phases if phase not in POLICIES]:
        raise ConfigError(f"{unknown[0]!r} is not one of {', '.join(POLICIES)}", field="--policies")
    for option in ("seconds", "rate_factor", "measure_seconds"):
        value = getattr(args, option)
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"{value} must be a positive number", field=f"--{option.replace('_', '-')}")
    for option in ("check", "profile_now"):
        if (getattr(args, option) or 0) < 0:
            raise ConfigError(
                f"{getattr(args, option)} must not be negative", field=f"--{option.replace('_', '-')}"
            )
    fleet_file, bundles = _files(args, app)
    return DemoOptions(
        bundles=bundles,
        fleet_file=fleet_file,
        accuracy=_tables(args.accuracy, bundles),
        work=work,
        cache_root=args.cache,
        broker=args.broker,
        seconds=args.seconds,
        phases=phases,
        seed=args.seed,
        rate_factor=args.rate_factor,
        check_configs=app.check_configs if args.check is None else args.check,
        profile_now=args.profile_now,
        measure_s=app.measure_s if args.measure_seconds is None else args.measure_seconds,
    )


def _files(args: argparse.Namespace, app: App) -> tuple[Path, dict[str, Path]]:
    """The fleet file, and the bundle of every pipeline."""
    fleet_file = args.fleet or (args.bundle[0] if args.bundle else app.folder) / "fleet.toml"
    return fleet_file, bundles_for({query.pipeline for query in load_fleet(fleet_file).queries}, args.bundle)


def _tables(given: Sequence[Path], bundles: Mapping[str, Path]) -> dict[str, Path]:
    """The accuracy table of every pipeline: one of those given, or its bundle's own."""
    load_planned(list(bundles.values()), given)  # what is wrong is better known before anything starts
    named = {load_accuracy(file).pipeline: file for file in given}
    return {name: folder / ACCURACY_IN_BUNDLE for name, folder in bundles.items()} | named


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
    for reason in result.unchecked:
        console.print(f"[dim]{escape(reason)}[/dim]")
    for phase in result.phases:
        console.print(
            screen.query_table(phase.phase, result.queries, phase.planned, phase.rows, width=console.width)
        )
        for problem in phase.problems:
            console.print(f"[red]does not add up: {escape(problem)}[/red]")
        if phase.replanned:
            console.print(f"planned again while it served, with another result: {', '.join(phase.replanned)}")
        if phase.overruns:
            console.print(f"{phase.overruns} emulated calls took longer than they should have (overruns)")
    _totals(console, result)
    if hint := screen.hint([phase.rows for phase in result.phases]):
        console.print(hint)
    steps = ", ".join(f"{step} {seconds:.0f} s" for step, seconds in result.timings_s.items())
    console.print(f"[dim]{steps}[/dim]")
    if not any(phase.problems for phase in result.phases):
        console.print("Accounting: every request ended once, and ran where its plan said.")


def _totals(console: Console, result: DemoResult) -> None:
    phases = result.phases
    by_pipeline = {name: [phase.by_pipeline[name] for phase in phases] for name in phases[0].by_pipeline}
    console.print(screen.total_table([phase.total for phase in phases], result.queries, by_pipeline))
    if any(phase.phase == "fixed" for phase in phases):
        for line in screen.fixed_split_lines(result.pipelines.values()):
            console.print(escape(line))
