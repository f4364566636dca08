"""``compass profile``: measure a pipeline, or compare and merge what was measured."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence

ACTIONS = ("diff", "merge")
"""First words that mean files of profiles; any other word is a pipeline to measure."""

_HERE = "compass_coordinator.commands"
_USAGE = """%(prog)s PIPELINE [options]
       %(prog)s diff A B [options]
       %(prog)s merge A B ... --out FILE"""


def add_options(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the options of what is meant, and import no more than that takes.

    Args:
        parser: Of ``compass profile``.
        words: What follows on the command line.
    """
    if words and words[0] in ACTIONS:
        importlib.import_module(f"{_HERE}.profile_files").add_options(parser)
        return
    measuring = importlib.import_module(f"{_HERE}.profile_run")
    parser.usage = _USAGE
    measuring.add_run_options(parser)
    parser.set_defaults(run=measuring.run)
