"""``compass new``: start a bundle; ``compass-agent new`` in a process of its own does it.

Bundles are code and models, and those are the agent's business: neither side imports the other.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

from compass_shared.new_options import add_new_options, words_of

AGENT = "compass_agent"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add_new_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Have the agent do it; its exit code is this one's."""
    return subprocess.run([sys.executable, "-m", AGENT, "new", *words_of(args)], check=False).returncode
