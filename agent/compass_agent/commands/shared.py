"""What the subcommands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

Command = Callable[[str, str], argparse.ArgumentParser]
"""Adds a subcommand: (name, summary) -> its parser."""


def show_status(text: str) -> None:
    """Show one line of progress, on a terminal in place."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)
