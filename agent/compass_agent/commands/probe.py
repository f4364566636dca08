"""``compass-agent probe``."""

from __future__ import annotations

import argparse
import os
import random
import sys
from dataclasses import replace
from pathlib import Path

import msgspec

from compass_agent.bundles import load_bundle
from compass_agent.commands.shared import Command, show_status
from compass_agent.inputs import load_examples
from compass_agent.measure.speed import measure_speed
from compass_agent.models import ModelStore
from compass_agent.operators import OperatorHost
from compass_agent.pace import Pace
from compass_agent.probe import probe
from compass_shared.clock import MonotonicClock
from compass_shared.device_profile import find_device_profile
from compass_shared.errors import ConfigError
from compass_shared.model_cache import ModelCache, default_cache_dir
from compass_shared.profile import SiteProfile


def add_parser(command: Command) -> None:
    """Add ``probe``."""
    parser = command("probe", "show what this machine offers, and measure pipelines on it")
    parser.add_argument("--bundle", action="append", type=Path, default=[], metavar="DIR", help="measure it")
    parser.add_argument("--emulate", metavar="PROFILE", help="measure as if this were that device")
    parser.add_argument("--seconds", type=float, default=20.0, help="time for each pipeline")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="model cache")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_probe)


def _probe(args: argparse.Namespace) -> int:

    if args.emulate:
        find_device_profile(args.emulate)  # a wrong name is wrong without a bundle as well
    report = probe()
    if args.bundle:
        report = replace(report, profiles=tuple(_measured(args)))
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
        return 0
    print(f"Compass {report.compass} on {report.hardware.system} ({report.hardware.machine})")
    memory_gib = report.hardware.memory_bytes / 2**30
    print(f"cores {report.hardware.cores}, memory {memory_gib:.1f} GiB")
    for name, version in sorted(report.runtimes.items()):
        print(f"runtime {name:8} {version}")
    for profile in report.profiles:
        played = f", emulated {profile.emulated}" if profile.emulated else ""
        print(f"\n{profile.pipeline}{played}: mean and p95 in ms, output in bytes")
        for variant, found in profile.operators.items():
            print(
                f"  {variant:50} {1e3 * found.mean_s:9.2f} {1e3 * found.p95_s:9.2f} "
                f"{found.output_mean_bytes:9.0f}  n={found.count}"
            )
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return 0


def _measured(args: argparse.Namespace) -> list[SiteProfile]:

    slowdown = find_device_profile(args.emulate).slowdowns() if args.emulate else {}
    store = ModelStore(ModelCache(args.cache or default_cache_dir(os.environ)))
    profiles = []
    for folder in args.bundle:
        bundle = load_bundle(folder)
        if bundle.pipeline.inputs is None:
            raise ConfigError("the pipeline brings no inputs to measure with", file=folder, field="inputs")
        split = next(iter(bundle.pipeline.inputs.splits))
        profiles.append(
            measure_speed(
                OperatorHost([bundle], store),
                bundle.pipeline,
                load_examples(bundle, split, store),
                site="here",
                pace=Pace(slowdown),
                clock=MonotonicClock(),
                rng=random.Random(0),  # noqa: S311  # a repeatable draw
                budget_s=args.seconds,
                emulated=args.emulate,
                on_progress=lambda now: show_status(f"measuring: {now.settled} of {now.variants} settled"),
            ).profile
        )
        show_status("")
    return profiles
