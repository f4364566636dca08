"""``compass schema``."""

from __future__ import annotations

import argparse

from compass_coordinator.schemas import DOCUMENTS, schema_text


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    kinds = "; ".join(f"{name}: {title}" for name, (_, title) in DOCUMENTS.items())
    parser.add_argument("kind", choices=DOCUMENTS, metavar="KIND", help=kinds)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the schema."""
    print(schema_text(args.kind), end="")
    return 0
