"""``compass-agent models``: list, fetch, export, import and verify the models of pipelines."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

import msgspec

from compass_agent.models.portable import export_models, import_models
from compass_agent.models.progress import Progress, State
from compass_agent.models.store import ModelStore
from compass_shared.errors import CompassError, ConfigError
from compass_shared.model_cache import ModelCache, default_cache_dir
from compass_shared.model_ref import ModelRef, model_refs_from

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

_EXAMPLES = """\
examples:
  compass-agent models list examples/read_text
  compass-agent models fetch examples/read_text --peer http://worker:8080
  compass-agent models export examples/read_text --to models-folder
  compass-agent models import models-folder
  compass-agent models verify

A BUNDLE is a folder with a pipeline.toml, or that file. Models are kept in $COMPASS_CACHE/models, else
$XDG_CACHE_HOME/compass/models, else ~/.cache/compass/models.
exit codes: 0 all well, 1 a model failed, 2 wrong usage or a wrong file, 130 interrupted
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """What is known here about one model; a line of the output."""

    name: str
    sha256: str
    state: str
    """``cached``, ``absent``, ``damaged``, ``fetched``, ``exported`` or ``imported``."""
    size_bytes: int = 0
    """0 when not known."""
    uri: str = ""
    licence: str = ""
    path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bundle:
    folder: Path
    refs: Mapping[str, ModelRef]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the ``models`` command to a command line; ``run`` handles what it parses."""
    text = argparse.RawDescriptionHelpFormatter
    parser = subparsers.add_parser(
        "models",
        help="list, fetch, export, import and verify models",
        description="Models of pipelines: fetched by URI, verified by SHA-256, kept in the user's cache.",
        epilog=_EXAMPLES,
        formatter_class=text,
    )
    actions = parser.add_subparsers(dest="models_action", metavar="ACTION", required=True)

    def action(name: str, summary: str, bundles: str | None) -> argparse.ArgumentParser:
        child = actions.add_parser(
            name, help=summary, description=summary, epilog=_EXAMPLES, formatter_class=text
        )
        if bundles is not None:
            child.add_argument("bundles", nargs=bundles, type=Path, metavar="BUNDLE")
        child.add_argument("--cache", type=Path, metavar="DIR", help="keep models here")
        child.add_argument("--json", action="store_true", help="print a JSON list instead of a table")
        return child

    action("list", "show the models of bundles, or all that is cached", "*")
    fetch = action("fetch", "fetch every model of bundles into the cache", "+")
    export = action("export", "copy the models of bundles to a portable folder", "+")
    for child in (fetch, export):
        child.add_argument(
            "--peer",
            action="append",
            default=[],
            metavar="URL",
            help="ask this worker or coordinator first (repeatable)",
        )
    export.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="where to write them")
    action("import", "verify a portable folder and put it into the cache", None).add_argument(
        "folder", type=Path, metavar="FOLDER"
    )
    action("verify", "read cached models again and compare their hashes", "*")


def run(args: argparse.Namespace) -> int:
    """Carry out what ``add_parser`` parsed.

    Returns:
        The exit code: 0, 1 when a model failed, 2 for a wrong file, 130 after Ctrl-C.
    """
    cache = ModelCache(args.cache or default_cache_dir(os.environ))
    line = _ProgressLine(sys.stderr)
    try:
        rows, code = _ACTIONS[args.models_action](args, cache, line)
    except KeyboardInterrupt:
        line.end()
        print("interrupted; nothing half-done is kept", file=sys.stderr)
        return EXIT_INTERRUPTED
    except (CompassError, OSError) as error:
        line.end()
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_FAILED
    line.end()
    print(_as_json(rows) if args.json else _as_table(rows))
    return code


_Outcome = tuple[list[ModelRow], int]


def _list(args: argparse.Namespace, cache: ModelCache, _line: _ProgressLine) -> _Outcome:
    if not args.bundles:
        return [_row(cache, "", sha256) for sha256 in cache.hashes()], 0
    return [_row(cache, name, ref.sha256, ref) for name, ref in _all_refs(args.bundles)], 0


def _fetch(args: argparse.Namespace, cache: ModelCache, line: _ProgressLine) -> _Outcome:
    store = ModelStore(cache, peers=args.peer, progress=line)
    rows = []
    for bundle in [_read_bundle(path) for path in args.bundles]:
        store.fetch_all(bundle.refs, base=bundle.folder)
        rows += [_row(cache, name, ref.sha256, ref, "fetched") for name, ref in bundle.refs.items()]
    return rows, 0


def _export(args: argparse.Namespace, cache: ModelCache, line: _ProgressLine) -> _Outcome:
    store = ModelStore(cache, peers=args.peer, progress=line)
    rows = []
    for bundle in [_read_bundle(path) for path in args.bundles]:
        export_models(store, bundle.refs, args.to, base=bundle.folder)
        rows += [_row(cache, name, ref.sha256, ref, "exported") for name, ref in bundle.refs.items()]
    return rows, 0


def _import(args: argparse.Namespace, cache: ModelCache, _line: _ProgressLine) -> _Outcome:
    models = import_models(args.folder, cache)
    return [
        ModelRow(
            name=",".join(model.names),
            sha256=model.sha256,
            state="imported",
            size_bytes=model.size_bytes,
            uri=model.uri,
            licence=model.licence,
            path=str(cache.path_of(model.sha256)),
        )
        for model in models
    ], 0


def _verify(args: argparse.Namespace, cache: ModelCache, _line: _ProgressLine) -> _Outcome:
    rows, _ = _list(args, cache, _line)
    checked = []
    for row in rows:
        damaged = row.state == "cached" and cache.verified(row.sha256) is None
        checked.append(replace(row, state="damaged") if damaged else row)
    return checked, 0 if all(row.state == "cached" for row in checked) else EXIT_FAILED


_ACTIONS: Mapping[str, Callable[[argparse.Namespace, ModelCache, _ProgressLine], _Outcome]] = {
    "list": _list,
    "fetch": _fetch,
    "export": _export,
    "import": _import,
    "verify": _verify,
}


def _all_refs(paths: list[Path]) -> list[tuple[str, ModelRef]]:
    return [item for path in paths for item in _read_bundle(path).refs.items()]


def _read_bundle(path: Path) -> _Bundle:
    """The models of a bundle; the rest of its pipeline.toml is not looked at."""
    file = path / "pipeline.toml" if path.is_dir() else path
    try:
        document = msgspec.toml.decode(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"no bundle: {error}", file=file) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not valid TOML: {error}", file=file) from error
    return _Bundle(folder=file.parent, refs=model_refs_from(document.get("models", {}), file=file))


def _row(
    cache: ModelCache, name: str, sha256: str, ref: ModelRef | None = None, state: str | None = None
) -> ModelRow:
    path = cache.path_of(sha256)
    held = path.is_file()
    return ModelRow(
        name=name,
        sha256=sha256,
        state=state or ("cached" if held else "absent"),
        size_bytes=path.stat().st_size if held else (ref.size_bytes if ref else 0),
        uri=ref.uri if ref else "",
        licence=ref.licence if ref else "",
        path=str(path) if held else "",
    )


def _as_json(rows: list[ModelRow]) -> str:
    return msgspec.json.format(msgspec.json.encode(rows), indent=2).decode()


def _as_table(rows: list[ModelRow]) -> str:
    lines = [("NAME", "STATE", "SIZE", "SHA-256", "LICENCE", "FROM")]
    for row in rows:
        size = _megabytes(row.size_bytes) if row.size_bytes else "?"
        lines.append((row.name or "-", row.state, size, row.sha256[:12], row.licence or "-", row.uri or "-"))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.2f} MB"


class _ProgressLine:
    """Shows progress on a terminal as one changing line, elsewhere as one line a change of state."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._last: tuple[str, State, str] | None = None

    def __call__(self, step: Progress) -> None:
        """Show one step."""
        key = (step.name, step.state, step.source)
        if not self._is_terminal and key == self._last:
            return
        self._last = key
        amount = _megabytes(step.done_bytes) if step.done_bytes else ""
        if step.total_bytes and step.state is State.DOWNLOADING:
            amount = f"{amount or '0'} of {_megabytes(step.total_bytes)}"
        words = (f"{step.name}:", step.state.value, amount, f"({step.source})", step.detail)
        text = " ".join(word for word in words if word)
        if self._is_terminal:
            self._stream.write(f"\r\x1b[K{text}" + ("\n" if step.state is State.DONE else ""))
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()

    def end(self) -> None:
        """Leave a terminal's cursor at the start of a line."""
        if self._is_terminal and self._last is not None and self._last[1] is not State.DONE:
            self._stream.write("\n")
