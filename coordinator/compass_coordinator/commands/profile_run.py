"""``compass profile PIPELINE``: measure as much of a pipeline's configs as planning needs, and no more."""

from __future__ import annotations

import argparse
import datetime
import json
import os
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from compass_coordinator.commands.files import ACCURACY_IN_BUNDLE, add_accuracy_z, cache_root
from compass_coordinator.commands.profile_screen import ProfileScreen
from compass_coordinator.commands.profile_summary import summary_of, told
from compass_coordinator.measurements import load_measurements, save_document
from compass_coordinator.measuring.log import MeasurementLog, header_of, only_run, read_log
from compass_coordinator.measuring.pool import MeasuringPool
from compass_coordinator.profiler.files.profiled import accuracy_table, speeds_here
from compass_coordinator.profiler.selective import (
    Decide,
    Options,
    Profiler,
    Space,
    Target,
    of_any,
    of_fleet,
    of_targets,
    space_of,
)
from compass_coordinator.what_if import problem_from
from compass_shared.arguments import at_least_1, inside_unit, natural, positive
from compass_shared.errors import ConfigError
from compass_shared.fleet_file import load_fleet
from compass_shared.measured import Done
from compass_shared.pipeline import Pipeline
from compass_shared.pipeline_file import load_pipeline
from compass_shared.profile_file import save_accuracy

EXIT_INTERRUPTED = 130
_SAVINGS = {
    "strata": "draw inputs at random, not from strata of alike ones",
    "reuse": "run every operator anew for every config",
    "early_stopping": "measure a config on all inputs or on none",
    "transfer": "learn nothing about a config from others",
}


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("pipeline", type=Path, metavar="PIPELINE", help="bundle: a folder with pipeline.toml")
    parser.add_argument("--split", help="which inputs (default: the bundle's first split)")
    what = parser.add_argument_group(
        "what it is for (default: any accuracy, at several latencies, on this machine)"
    )
    what.add_argument(
        "--slo",
        action="append",
        default=[],
        metavar="accuracy=A[,latency=S]",
        help="on this machine, latency as p95 in seconds; repeatable",
    )
    what.add_argument("--fleet", type=Path, metavar="FILE", help="the queries and sites of a fleet.toml ...")
    what.add_argument(
        "--profiles",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="... with their operator times",
    )
    what.add_argument(
        "--delta",
        type=inside_unit,
        default=0.01,
        help="share of queries that may be decided wrongly (default: %(default)s)",
    )
    add_accuracy_z(parser)
    much = parser.add_argument_group("how much")
    much.add_argument(
        "--budget",
        type=positive,
        metavar="SECONDS",
        help="operator-seconds in all; what is under way then is finished",
    )
    much.add_argument("--resume", action="store_true", help="go on with what an earlier run measured")
    much.add_argument("--workers", type=at_least_1, metavar="N", help="processes (default: one a core)")
    much.add_argument("--seed", type=natural, default=0, help="of all draws (default: %(default)s)")
    for name, meaning in _SAVINGS.items():
        much.add_argument(f"--no-{name.replace('_', '-')}", dest=name, action="store_false", help=meaning)
    files = parser.add_argument_group("files")
    files.add_argument("--out", type=Path, metavar="FILE", help="accuracy table (default: the bundle's own)")
    files.add_argument("--overwrite", action="store_true", help="start afresh: replace table and log")
    files.add_argument(
        "--speeds", type=Path, metavar="FILE", help="also write operator times of this machine"
    )
    files.add_argument(
        "--log", type=Path, metavar="FILE", help="measurements, to resume from (default: beside --out)"
    )
    files.add_argument("--cache", type=Path, metavar="DIR", help="model cache")
    files.add_argument(
        "--results", type=Path, metavar="DIR", help="operator results (default: beside the models)"
    )
    files.add_argument(
        "--results-gb",
        type=positive,
        default=4.0,
        metavar="GB",
        help="limit of --results (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.epilog = _EXAMPLES


_EXAMPLES = """\
examples:
  compass profile examples/read_text --out accuracy.json
  compass profile examples/read_text --slo accuracy=0.9,latency=0.3 --budget 120 --out accuracy.json
  compass profile examples/read_text --out accuracy.json --resume
  compass profile diff old.json accuracy.json

exit codes: 0 done or out of budget, 1 it failed, 2 wrong usage, 130 interrupted (what was measured is kept)
"""


def run(args: argparse.Namespace) -> int:
    """Measure, and write what follows."""
    pipeline = load_pipeline(args.pipeline)
    split = _split(pipeline, args)
    out, log = _files(args)
    decide = _decide(args, pipeline, space_of(pipeline))
    options = Options(
        delta=args.delta, accuracy_z=args.accuracy_z, **{name: getattr(args, name) for name in _SAVINGS}
    )
    cache = cache_root(args.cache)
    results = args.results or cache.parent / "results"
    with ExitStack() as stack:
        stack.enter_context(only_run(log))
        screen = stack.enter_context(ProfileScreen(quiet=args.json))
        screen.say(f"starting: {pipeline.name}, split {split}")
        pool = stack.enter_context(
            MeasuringPool(
                args.pipeline if args.pipeline.is_dir() else args.pipeline.parent,
                cache,
                split,
                workers=args.workers or os.cpu_count() or 1,
                cache_bytes=int(args.results_gb * 1e9),
                cache_folder=results if args.reuse else None,
                memory_bytes=256 << 20 if args.reuse else 0,
            )
        )
        ready = pool.start()
        header = header_of(ready, args.seed)
        kept = read_log(log, header) if args.resume and log.exists() else []
        profiler = Profiler(
            pipeline,
            ready.inputs,
            decide,
            np.random.default_rng(args.seed),
            kind=ready.kind,
            extra_metrics=ready.extra_metrics,
            options=options,
        )
        for done in kept:
            profiler.tell(done)
        written = stack.enter_context(MeasurementLog(log, header, kept))
        try:
            _measure(profiler, pool, written, screen, args.budget)
        except KeyboardInterrupt:
            screen.say(f"stopped; what was measured is in {log}, --resume goes on from there")
            return EXIT_INTERRUPTED
    if not profiler.finished:
        screen.say("the budget is spent: looking at what is known")
        profiler.assess()
    known = profiler.known()
    today = datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat()
    save_accuracy(out, accuracy_table(ready, profiler, known, today=today, seed=args.seed))
    if args.speeds is not None:
        save_document(args.speeds, speeds_here(pipeline, ready, profiler, site="here", today=today))
    summary = summary_of(ready, profiler, known, out, log)
    print(json.dumps(summary, indent=2) if args.json else told(summary))
    return 0


def _measure(
    profiler: Profiler,
    pool: MeasuringPool,
    log: MeasurementLog,
    screen: ProfileScreen,
    budget_s: float | None,
) -> None:
    """Until the profiler is done or the budget is spent; jobs that are out are waited for."""

    def within() -> bool:
        return budget_s is None or profiler.runs.spent_s < budget_s

    while within() and (jobs := profiler.ask()):
        waiting = list(reversed(jobs))
        for _ in range(min(len(waiting), 2 * (os.cpu_count() or 1))):
            pool.submit(waiting.pop())
        while (done := _next(pool, screen, profiler)) is not None:
            log.add(done)
            profiler.tell(done)
            for notice in done.notices:
                screen.say(notice)
            if waiting and within():
                pool.submit(waiting.pop())


def _next(pool: MeasuringPool, screen: ProfileScreen, profiler: Profiler) -> Done | None:
    """The next answer; the screen is kept alive meanwhile."""
    while pool.outstanding:
        screen.show(profiler.status)
        if (done := pool.next_done(timeout_s=0.5)) is not None:
            return done
    return None


def _split(pipeline: Pipeline, args: argparse.Namespace) -> str:
    if pipeline.inputs is None or pipeline.metric is None:
        raise ConfigError("profiling needs [inputs] and [metric]", file=args.pipeline, field="inputs")
    splits = pipeline.inputs.splits
    if args.split is not None and args.split not in splits:
        raise ConfigError(f"there is no split {args.split!r}; there are {', '.join(splits)}", field="--split")
    return str(args.split or next(iter(splits)))


def _files(args: argparse.Namespace) -> tuple[Path, Path]:
    folder = args.pipeline if args.pipeline.is_dir() else args.pipeline.parent
    out: Path = args.out or folder / ACCURACY_IN_BUNDLE
    log: Path = args.log or out.with_suffix(".measured.jsonl")
    if out.exists() and not (args.overwrite or args.resume):
        raise ConfigError("is there already: name another --out, or give --overwrite or --resume", file=out)
    if out.exists() and not log.exists() and not args.overwrite:
        raise ConfigError(
            f"is there already, and no {log} to resume from; --overwrite replaces it",
            file=out,
        )
    if args.speeds is not None and args.speeds.exists() and not (args.overwrite or args.resume):
        raise ConfigError("is there already: name another --speeds, or give --overwrite", file=args.speeds)
    if log.exists() and not (args.resume or args.overwrite):
        raise ConfigError(
            "an earlier run measured this far: go on with --resume, or start afresh with --overwrite",
            file=log,
        )
    for file in (out, log, args.speeds):
        if file is not None and file.parent.exists() and not os.access(file.parent, os.W_OK):
            raise ConfigError("its folder cannot be written", file=file)
    return out, log


def _decide(args: argparse.Namespace, pipeline: Pipeline, space: Space) -> Decide:
    if args.fleet is not None or args.profiles:
        if args.fleet is None or not args.profiles:
            raise ConfigError(
                "--fleet has the queries and --profiles the times at its sites: give both, or neither"
            )
        if args.slo:
            raise ConfigError(
                "the queries of --fleet bring SLOs of their own: leave --slo out", field="--slo"
            )
        measured = [load_measurements(file) for file in args.profiles]
        problem = problem_from(load_fleet(args.fleet), {pipeline.name: pipeline}, measured, {})
        return of_fleet(problem, pipeline.name)
    return of_targets(space, [_target(text) for text in args.slo]) if args.slo else of_any(space)


def _target(text: str) -> Target:
    """``accuracy=0.9,latency=0.3``."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name.strip() in found:
            raise ConfigError(f"{text!r} names {name.strip()!r} twice", field="--slo")
        try:
            found[name.strip()] = float(value)
        except ValueError:
            raise ConfigError(f"{part!r} is not NAME=NUMBER", field="--slo") from None
    if unknown := set(found) - {"accuracy", "latency"}:
        raise ConfigError(
            f"{sorted(unknown)[0]!r}: an SLO on this machine has accuracy and latency; costs need --fleet",
            field="--slo",
        )
    if not 0 <= found.get("accuracy", -1.0) <= 1 or not found.get("latency", 1.0) > 0:
        raise ConfigError(
            f"{text!r}: accuracy within [0, 1] is needed, latency above 0 may be", field="--slo"
        )
    return Target(accuracy=found["accuracy"], latency_p95_s=found.get("latency", np.inf))
