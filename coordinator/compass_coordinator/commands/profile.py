"""``compass profile``: measure a pipeline, or compare and merge what was measured."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from collections.abc import Sequence

from compass_coordinator.commands import profile_files
from compass_shared.errors import ConfigError

_RUN = "compass_coordinator.commands.profile_run"


def add_options(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the options of what the words mean: ``diff`` and ``merge`` are actions, anything else is a bundle.

    Args:
        parser: Of ``compass profile``.
        words: What follows on the command line.
    """
    if words and words[0] in profile_files.ACTIONS:
        profile_files.add_options(parser)
        return
    parser.usage = (
        "%(prog)s PIPELINE [options]\n       %(prog)s diff A B\n       %(prog)s merge A B --out FILE"
    )
    if importlib.util.find_spec(_RUN) is not None:
        run = importlib.import_module(_RUN)
        run.add_run_options(parser)
        parser.set_defaults(run=run.run)
    else:
        parser.add_argument("pipeline", metavar="PIPELINE")
        parser.set_defaults(run=_refuse)


def _refuse(_: argparse.Namespace) -> int:
    raise ConfigError("only diff and merge are there yet", field="PIPELINE")
