"""``compass profile diff`` and ``compass profile merge``: profiles as files that a team keeps."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from compass_coordinator.measurements import MeasurementsDocument, load_measurements, save_document
from compass_coordinator.profiler.files.differing import (
    Change,
    Differences,
    accuracy_differences,
    measurement_differences,
)
from compass_coordinator.profiler.files.merging import merge_accuracy, merge_measurements
from compass_shared.errors import ConfigError, ProfileError
from compass_shared.profile import AccuracyTable
from compass_shared.profile_file import load_accuracy, save_accuracy

EXIT_SAME, EXIT_DIFFERS = 0, 1

_SHOWN = 20
"""Lines of a kind that are printed; --json has them all."""

_Profile = AccuracyTable | MeasurementsDocument


class _Kind(msgspec.Struct):
    """What every profile says of itself."""

    kind: str = ""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add both actions."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    diff = actions.add_parser(
        "diff",
        help="what changed by more than its uncertainty",
        description="Compare two accuracy tables, or two files of measurements.",
        epilog="exit codes: 0 the same within their uncertainty, 1 they differ, 2 they cannot be compared",
    )
    diff.add_argument("before", type=Path, metavar="A", help="the earlier profile")
    diff.add_argument("after", type=Path, metavar="B", help="the later one")
    diff.add_argument(
        "--tolerance",
        type=_share,
        default=0.0,
        metavar="SHARE",
        help="ignore changes up to this share of a figure as well (default: 0)",
    )
    diff.add_argument("--json", action="store_true", help="print JSON")
    diff.set_defaults(run=run_diff)
    merge = actions.add_parser(
        "merge",
        help="one profile of several",
        description="Merge accuracy tables of one pipeline, or files of measurements.",
        epilog="of two accuracies the better known one is kept; times of one variant at one site are pooled",
    )
    merge.add_argument("files", nargs="+", type=Path, metavar="FILE")
    merge.add_argument("--out", type=Path, required=True, metavar="FILE", help="write the profile here")
    merge.add_argument(
        "--force", action="store_true", help="pool what different devices or runtimes measured as one site"
    )
    merge.set_defaults(run=run_merge)


def run_diff(args: argparse.Namespace) -> int:
    """Print what differs; the exit code says whether anything does."""
    before, after = _load(args.before), _load(args.after)
    try:
        found = _compared(before, after, args.tolerance)
    except ProfileError as error:
        raise ConfigError(str(error), file=f"{args.before} and {args.after}") from error
    if args.json:
        document = {"same": found.same, **msgspec.to_builtins(found)}
        print(msgspec.json.format(msgspec.json.encode(document), indent=1).decode())
    else:
        print("\n".join(_text(found)))
    return EXIT_SAME if found.same else EXIT_DIFFERS


def _compared(before: _Profile, after: _Profile, tolerance: float) -> Differences:
    match before, after:
        case AccuracyTable(), AccuracyTable():
            return accuracy_differences(before, after, tolerance=tolerance)
        case MeasurementsDocument(), MeasurementsDocument():
            return measurement_differences(before, after, tolerance=tolerance)
    raise ProfileError("an accuracy table and measurements cannot be compared")


def run_merge(args: argparse.Namespace) -> int:
    """Merge, write, and say what did not agree."""
    loaded = [(_label(path), _load(path)) for path in args.files]
    tables = [(label, found) for label, found in loaded if isinstance(found, AccuracyTable)]
    documents = [(label, found) for label, found in loaded if isinstance(found, MeasurementsDocument)]
    if tables and documents:
        raise ConfigError("accuracy tables and measurements cannot be merged into one file", field="FILE")
    disagreements: Sequence[str]
    try:
        if tables:
            accuracy = merge_accuracy(tables)
            save_accuracy(args.out, accuracy.table)
            disagreements, what = accuracy.disagreements, f"{len(accuracy.table.configs)} configs"
        else:
            merged = merge_measurements(documents, force=args.force)
            save_document(args.out, merged.document)
            disagreements = merged.disagreements
            what = f"{len(merged.document.sites)} sites, {len(merged.document.kinds)} kinds"
    except OSError as error:
        raise ConfigError(f"cannot be written: {error.strerror}", file=args.out) from error
    for line in disagreements:
        print(f"disagreement: {line}", file=sys.stderr)
    print(f"{args.out}: {what} of {len(loaded)} files, {len(disagreements)} disagreements")
    return 0


def _load(path: Path) -> _Profile:
    """A profile of either kind.

    Raises:
        ConfigError: If it is neither; here files are what a person named.
    """
    try:
        kind = msgspec.json.decode(path.read_bytes(), type=_Kind).kind
        return load_accuracy(path) if kind == "accuracy" else load_measurements(path)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=path) from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"no profile: {error}", file=path) from error
    except ProfileError as error:
        raise ConfigError(str(error)) from error


def _label(path: Path) -> str:
    """How a merge names a file among its sources: by content, for names repeat."""
    try:
        return f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=path) from error


def _text(found: Differences) -> Iterator[str]:
    yield from _listed(
        "changed by more than their uncertainty", [_change(change) for change in found.changed]
    )
    yield from _listed("only in the first", found.removed)
    yield from _listed("only in the second", found.added)
    yield from _listed(
        "measured otherwise",
        [
            f"{said.what}: {said.before or 'not said'} -> {said.after or 'not said'}"
            for said in sorted(found.provenance, key=lambda said: not said.decisive)
        ],
    )
    verdict = "the same within their uncertainty" if found.same else "they differ"
    yield (
        f"{verdict}: {len(found.changed)} of {found.compared} figures changed, "
        f"{len(found.removed)} removed, {len(found.added)} added"
    )


def _change(change: Change) -> str:
    by = change.after - change.before
    return (
        f"{change.where}: {change.figure} {change.before:.4g} -> {change.after:.4g} "
        f"({by:+.3g}, chance explains {change.allowed:.2g})"
    )


def _listed(title: str, lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield f"{title}:"
        yield from (f"  {line}" for line in lines[:_SHOWN])
        if len(lines) > _SHOWN:
            yield f"  and {len(lines) - _SHOWN} more (--json lists all)"


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value
