"""``compass-agent accuracy``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from compass_agent.bundles import load_bundle
from compass_agent.commands.shared import Command, show_status
from compass_agent.measure.accuracy import Progress, measure_accuracy, save_inputs
from compass_shared.errors import ConfigError
from compass_shared.model_cache import default_cache_dir
from compass_shared.profile_file import save_accuracy


def add_parser(command: Command) -> None:
    """Add ``accuracy``."""
    parser = command("accuracy", "measure the accuracy of a pipeline's configs on its labelled inputs")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--split", default="profiling", help="which inputs (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="table to write, JSON")
    parser.add_argument("--inputs-out", type=Path, metavar="FILE", help="also write every input's scores")
    parser.add_argument("--config", action="append", default=[], metavar="KEY", help="only these configs")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N inputs")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    parser.add_argument("--progress", type=Path, metavar="FILE", help="resume file (default: OUT.progress)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="model cache")
    parser.set_defaults(run=_accuracy)


MAX_LISTED = 10_000_000


def _accuracy(args: argparse.Namespace) -> int:

    pipeline = load_bundle(args.bundle).pipeline
    if pipeline.config_count() > MAX_LISTED:
        problem = f"{pipeline.config_count()} configs are too many to measure (at most {MAX_LISTED})"
        raise ConfigError(problem, field="operators")
    configs = list(pipeline.configs())
    if args.config:
        by_key = {pipeline.config_key(config): config for config in configs}
        if unknown := [key for key in args.config if key not in by_key]:
            raise ConfigError(f"{pipeline.name!r} has no config {unknown[0]!r}", field="--config")
        configs = [by_key[key] for key in args.config]

    def show(now: Progress) -> None:
        left = "" if now.remaining_s is None else f", about {now.remaining_s / 60:.1f} min left"
        show_status(f"{now.done} of {now.total} inputs x {len(configs)} configs{left}")

    table, results = measure_accuracy(
        args.bundle,
        args.cache or default_cache_dir(os.environ),
        split=args.split,
        progress_file=args.progress or args.out.with_suffix(".progress"),
        configs=configs,
        limit=args.limit,
        workers=args.workers,
        on_progress=show,
    )
    show_status("")
    save_accuracy(args.out, table)
    if args.inputs_out is not None:
        save_inputs(args.inputs_out, [pipeline.config_key(config) for config in configs], results)
    print(f"{args.out}: {len(configs)} configs on {len(results)} inputs", file=sys.stderr)
    return 0
