"""``compass-agent probe``."""

from __future__ import annotations

import argparse
import itertools
import os
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from compass_agent.bundles import Bundle, load_bundle
from compass_agent.commands.shared import Command, show_status
from compass_agent.commands.suggest import show_suggestion
from compass_agent.inputs import load_examples, split_for_probes
from compass_agent.measure.findings import (
    Findings,
    Variation,
    brief_findings,
    save_findings,
    sustained_findings,
    with_provenance,
)
from compass_agent.measure.speed import SpeedReport, measure_speed
from compass_agent.measure.sustained import SustainedReport, measure_sustained
from compass_agent.models import ModelStore
from compass_agent.operators import OperatorHost
from compass_agent.pace import Pace
from compass_agent.probe import ProbeReport, probe
from compass_agent.probing import first_probes
from compass_agent.runtimes import open_runtime
from compass_agent.runtimes.threaded import threaded
from compass_shared.arguments import at_least_1, positive
from compass_shared.clock import MonotonicClock
from compass_shared.device_profile import find_device_profile
from compass_shared.errors import ConfigError
from compass_shared.items import items_text
from compass_shared.model_cache import ModelCache, default_cache_dir
from compass_shared.names import checked_name
from compass_shared.profile import OperatorProfile
from compass_shared.values import Example

WARM_UP_RUNS = 4
"""Most unmeasured runs of a variant, where only a few are measured."""

_EXAMPLES = """\
examples:
  compass-agent probe
  compass-agent probe --bundle examples/read_text --out phone.json --name phone
  compass-agent probe --bundle examples/read_text --count 5 --rate 0.5
  compass-agent probe --bundle examples/read_text --variant 'detect[model=det-v5,side=640]' --minutes 10
  compass-agent probe --bundle examples/read_text --threads 1,2 --batch 1,4 --count 5 --json
"""


def add_parser(command: Command) -> None:
    """Add ``probe``."""
    parser = command("probe", "show what this machine offers, and measure pipelines on it")
    parser.epilog = _EXAMPLES
    parser.add_argument("--bundle", action="append", type=Path, default=[], metavar="DIR", help="measure it")
    parser.add_argument(
        "--variant", action="append", default=[], metavar="KEY", help="only this one; may be repeated"
    )
    parser.add_argument("--count", type=at_least_1, metavar="N", help="only N variants far apart in work")
    parser.add_argument("--emulate", metavar="PROFILE", help="measure as if this were that device")
    parser.add_argument("--seconds", type=positive, default=20.0, help="time for each pipeline")
    parser.add_argument(
        "--minutes",
        type=positive,
        help="work for so long instead and say whether the machine slows down (heat); "
        "if so, figures are of the last third",
    )
    parser.add_argument(
        "--rate",
        type=positive,
        metavar="HZ",
        help="requests per second to serve: calls are measured back to back and after its idle gaps",
    )
    parser.add_argument(
        "--threads", type=_numbers, default=(1,), metavar="N,...", help="threads a call (default: 1)"
    )
    parser.add_argument(
        "--batch", type=_numbers, default=(1,), metavar="N,...", help="requests in one go (default: 1)"
    )
    parser.add_argument("--name", default="here", help="name of the site in --out (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a measurements file")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="model cache")
    parser.add_argument("--suggest", action="store_true", help="name the nearest device profiles, make one")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=lambda args: show_suggestion(args) if args.suggest else _probe(args))


def _probe(args: argparse.Namespace) -> int:
    _check(args)
    report = probe()
    findings = [_measured(args, load_bundle(folder), report) for folder in args.bundle]
    show_status("")
    report = replace(
        report,
        profiles=tuple(found.profile for found in findings),
        notes={found.profile.pipeline: found.notes for found in findings if found.notes},
        trends={found.profile.pipeline: found.trends for found in findings if found.trends},
        variations=tuple(each for found in findings for each in found.variations),
    )
    if args.out is not None:
        save_findings(args.out, findings)
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        _show(report)
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what does not go together, before anything is measured."""
    if args.emulate:
        find_device_profile(args.emulate)  # a wrong name is wrong without a bundle as well
    checked_name(args.name, "--name")
    measuring = {
        "--out": args.out,
        "--variant": args.variant,
        "--count": args.count,
        "--minutes": args.minutes,
    }
    if not args.bundle and (named := [name for name, value in measuring.items() if value]):
        raise ConfigError(f"{named[0]} is about what --bundle measures, and none was given")
    if args.variant and (args.count or len(args.bundle) > 1):
        raise ConfigError("--variant names what is measured of one --bundle; leave --count away")
    if args.minutes and args.rate:
        raise ConfigError("--minutes works without gaps, --rate measures them: one at a time")
    if args.emulate and max(args.threads) > 1:
        raise ConfigError("an emulated device goes by the CPU time of one thread: --threads 1")


def _measured(args: argparse.Namespace, bundle: Bundle, report: ProbeReport) -> Findings:
    pipeline = bundle.pipeline
    if pipeline.inputs is None:
        raise ConfigError("the pipeline brings no inputs to measure with", file=bundle.folder, field="inputs")
    variants = tuple(args.variant) or (None if args.count is None else first_probes(pipeline, args.count))
    store = ModelStore(ModelCache(args.cache or default_cache_dir(os.environ)))
    slowdown = find_device_profile(args.emulate).slowdowns() if args.emulate else {}
    bench = _Bench(
        bundle=bundle,
        store=store,
        examples=load_examples(bundle, split_for_probes(pipeline.inputs), store),
        variants=variants,
        site=args.name,
        pace=Pace(slowdown),
        emulated=args.emulate,
    )
    if args.minutes:
        found = sustained_findings(bench.sustained(60 * args.minutes))
    else:
        found = brief_findings(bench.brief(args.seconds, rate_hz=args.rate))
    ways = itertools.product(args.threads, args.batch)
    return replace(
        found,
        profile=with_provenance(found.profile, pipeline, report.hardware, report.runtimes),
        variations=tuple(bench.variation(args.seconds, *way) for way in ways if way != (1, 1)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bench:
    """What all measurements of one bundle share."""

    bundle: Bundle
    store: ModelStore
    examples: Sequence[Example]
    variants: tuple[str, ...] | None
    site: str
    pace: Pace
    emulated: str | None

    def brief(
        self, seconds: float, *, rate_hz: float | None = None, threads: int = 1, batch: int = 1
    ) -> SpeedReport:
        """A measurement of some seconds."""
        status = _Status()
        opener = open_runtime if threads == 1 else threaded(open_runtime, threads)
        return measure_speed(
            OperatorHost([self.bundle], self.store, open_runtime=opener),
            self.bundle.pipeline,
            self.examples,
            site=self.site,
            pace=self.pace,
            clock=MonotonicClock(),
            rng=random.Random(0),  # noqa: S311  # a repeatable draw
            variants=self.variants,
            budget_s=seconds,
            warm_up_runs=1 if self.variants is None else WARM_UP_RUNS,
            batch=batch,
            rate_hz=rate_hz,
            emulated=self.emulated,
            on_progress=lambda now: status.show(f"measuring: {now.settled} of {now.variants} settled"),
        )

    def sustained(self, seconds: float) -> SustainedReport:
        """Minutes of work."""
        status = _Status()
        return measure_sustained(
            OperatorHost([self.bundle], self.store),
            self.bundle.pipeline,
            self.examples,
            site=self.site,
            pace=self.pace,
            clock=MonotonicClock(),
            duration_s=seconds,
            variants=self.variants,
            emulated=self.emulated,
            on_progress=lambda share: status.show(f"working: {min(1.0, share):.0%} of the time"),
        )

    def variation(self, seconds: float, threads: int, batch: int) -> Variation:
        """The same with other threads or batches, apart from what plans are made with."""
        report = self.brief(seconds, threads=threads, batch=batch)
        return Variation(
            pipeline=report.profile.pipeline,
            threads=threads,
            batch=batch,
            operators=report.profile.operators,
        )


class _Status:
    """Shows a line when it says something new."""

    def __init__(self) -> None:
        self._shown = ""

    def show(self, text: str) -> None:
        """Show it, unless it stands there already."""
        if text != self._shown:
            self._shown = text
            show_status(text)


def _show(report: ProbeReport) -> None:
    print(f"Compass {report.compass} on {report.hardware.system} ({report.hardware.machine})")
    memory_gib = report.hardware.memory_bytes / 2**30
    print(f"cores {report.hardware.cores}, memory {memory_gib:.1f} GiB")
    for name, version in sorted(report.runtimes.items()):
        print(f"runtime {name:8} {version}")
    for profile in report.profiles:
        played = f", emulated {profile.emulated}" if profile.emulated else ""
        _show_operators(f"{profile.pipeline}{played}", profile.operators)
        for note in report.notes.get(profile.pipeline, ()):
            print(f"  {note}")
    for each in report.variations:
        _show_operators(f"{each.pipeline}, threads {each.threads}, batch {each.batch}", each.operators)


def _show_operators(title: str, operators: Mapping[str, OperatorProfile]) -> None:
    print(f"\n{title}: mean, standard deviation and p95 in ms, output in bytes")
    for variant, found in operators.items():
        print(
            f"  {variant:50} {1e3 * found.mean_s:9.2f} {1e3 * found.var_s2**0.5:9.2f} "
            f"{1e3 * found.p95_s:9.2f} {found.output_mean_bytes:9.0f}  n={found.count}{_items(found)}"
        )


def _items(found: OperatorProfile) -> str:
    """What a fan-out worked through, after a comma."""
    if found.items_mean is None:
        return ""
    return ", " + items_text(found.items_mean, found.items_var**0.5, found.item_s)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(dict.fromkeys(at_least_1(part) for part in text.split(",")))
