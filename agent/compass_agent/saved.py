"""Assignments on disk: what an agent serves from when it starts without a broker."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec

from compass_shared.files import write_atomically
from compass_shared.plan import Assignment

logger = logging.getLogger(__name__)

_FILE = "assignments.msgpack"
"""Not JSON: the estimate of a fallback on an overloaded device is infinite, which JSON cannot say."""


def load(folder: Path | None) -> dict[str, Assignment]:
    """Read what was saved; a damaged file is reported and counts as none."""
    if folder is None or not (folder / _FILE).exists():
        return {}
    try:
        return msgspec.msgpack.decode((folder / _FILE).read_bytes(), type=dict[str, Assignment])
    except (OSError, msgspec.MsgspecError) as error:
        logger.warning("saved assignments in %s are left aside: %s", folder / _FILE, error)
        return {}


def save(folder: Path | None, assignments: Mapping[str, Assignment]) -> None:
    """Write all of it or nothing; a full disk is reported and not fatal."""
    if folder is None:
        return
    try:
        write_atomically(folder / _FILE, msgspec.msgpack.encode(assignments), private=True)
    except OSError as error:
        logger.warning("assignments were not saved in %s: %s", folder, error)
