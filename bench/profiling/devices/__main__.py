"""From at most five probed operator variants, what do the others take on another device?

The devices are real differences on one machine: two threads, a CPU quota, a busy neighbour on the same core,
LiteRT instead of ONNX Runtime, int8 instead of fp32, each against one thread of the idle machine. What was
measured is kept beside the results, so that judging needs no measuring: `--measure` measures anew.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from profiling.devices import RESULT, judge, measure, print_rows, read_measured
from profiling.devices.settings import SETTINGS


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", action="store_true", help="about eight minutes on an idle machine")
    parser.add_argument("--pages", type=int, default=12, help="inputs of read-text (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=4, help="over all pages (default: %(default)s)")
    parser.add_argument("--only", nargs="*", choices=[s.name for s in SETTINGS[1:]], help="these targets")
    parser.add_argument("--file", type=Path, default=RESULT)
    args = parser.parse_args()
    if args.measure:
        measure(args.file, pages=args.pages, rounds=args.rounds, only=args.only)
    print_rows(judge(read_measured(args.file)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
