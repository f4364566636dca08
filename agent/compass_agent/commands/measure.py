"""``compass-agent measure``: what a profiler starts, and talks to over stdin and stdout."""

from __future__ import annotations

import argparse
import os
import threading
import time
from pathlib import Path
from typing import BinaryIO

from compass_agent.bundles import load_bundle
from compass_agent.commands.shared import Command
from compass_agent.inputs import check_names, load_examples
from compass_agent.measure.results_cache import ResultsCache
from compass_agent.measure.session import MeasuringSession, fetch_models
from compass_agent.models import ModelStore
from compass_agent.operators import OperatorHost
from compass_shared.measured import MAX_LINE_BYTES, Done, Job, Ready, decode_line, encode_line
from compass_shared.model_cache import ModelCache, default_cache_dir

_LOOK_S = 1.0
"""How often the process sees whether its parent is still there."""


def add_parser(command: Command) -> None:
    """Add ``measure``."""
    parser = command("measure", "score configs as jobs on stdin ask for: JSON lines, for `compass profile`")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--split", default="profiling", help="which inputs (default: %(default)s)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="model cache")
    parser.add_argument("--results", type=Path, metavar="DIR", help="keep operator results here too")
    parser.add_argument("--results-bytes", type=int, default=2 << 30, metavar="N", help="at most this much")
    parser.add_argument(
        "--memory-bytes", type=int, default=512 << 20, metavar="N", help="operator results kept in memory"
    )
    parser.set_defaults(run=_measure)


def _measure(args: argparse.Namespace) -> int:
    jobs, answers = _own_streams()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    session = _session(args)
    try:
        _say(answers, session.ready())
        while line := jobs.readline(MAX_LINE_BYTES + 1):
            _say(answers, session.measure(decode_line(line, Job)))
    except BrokenPipeError:
        return 1  # nobody is left to take the answer
    return 0


def _session(args: argparse.Namespace) -> MeasuringSession:
    bundle = load_bundle(args.bundle)
    store = ModelStore(ModelCache(args.cache or default_cache_dir(os.environ)))
    bundle.metric()  # what is missing is said before inputs are made and models are fetched
    examples = load_examples(bundle, args.split, store)
    check_names(bundle, examples)
    fetch_models(bundle, store)
    cache = ResultsCache(memory_bytes=args.memory_bytes, folder=args.results, disk_bytes=args.results_bytes)
    return MeasuringSession(
        bundle, examples, split=args.split, host=OperatorHost([bundle], store), cache=cache
    )


def _own_streams() -> tuple[BinaryIO, BinaryIO]:
    """Stdin and stdout for jobs and answers alone.

    From now on code of operators and libraries, in Python or not, finds stdin empty and prints to stderr.
    """
    jobs, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return jobs, answers


def _say(answers: BinaryIO, message: Ready | Done) -> None:
    answers.write(encode_line(message))
    answers.flush()


def _end_with(parent: int) -> None:
    """End when the parent did, also in the middle of an operator that takes long."""
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)
