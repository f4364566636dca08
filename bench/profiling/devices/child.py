"""The process that runs operators under one setting: a line with a page in, a line with times out.

    python -m profiling.devices.child '{"pages": 12, "threads": 1, "groups": ["read-text"], "replaced": {}}'

It says what it measures once everything is loaded and warm. The parent decides where it runs, and when.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from profiling.devices.subjects import Subject, landmarks, networks, read_text

REPEATS = ((0.002, 6), (0.01, 3), (0.05, 2))
"""Calls that take up to so long are made so often in a row; longer ones once."""


def main() -> int:
    options = json.loads(sys.argv[1])
    subjects = list(_subjects(options))
    repeats = {subject.variant: _repeats(_timed(subject.calls[0])) for subject in subjects}
    rng = random.Random(0)
    _say({subject.variant: subject.speed_class for subject in subjects})
    for line in sys.stdin:
        page = int(line)
        times: dict[str, list[float]] = {}
        for subject in rng.sample(subjects, len(subjects)):
            call = subject.calls[page % len(subject.calls)]
            times[subject.variant] = [_timed(call) for _ in range(repeats[subject.variant])]
        _say(times)
    return 0


def _subjects(options: dict[str, Any]) -> Iterator[Subject]:
    threads = options["threads"]
    replaced = {sha256: Path(file) for sha256, file in options["replaced"].items()}
    for group in options["groups"]:
        if group in {"read-text", "read-text models"}:
            only_models = group == "read-text models"
            yield from read_text(
                options["pages"], threads=threads, replaced=replaced, only_models=only_models
            )
        elif group == "landmarks":
            yield from landmarks(threads=threads)
        else:
            yield from networks(group, threads=threads)


def _timed(call: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    call()
    return time.perf_counter() - start_s


def _repeats(first_s: float) -> int:
    return next((count for most_s, count in REPEATS if first_s <= most_s), 1)


def _say(document: object) -> None:
    print(json.dumps(document), flush=True)


if __name__ == "__main__":
    sys.exit(main())
