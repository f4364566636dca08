"""TOML files that people write: read, validated strictly, errors with file, field and line."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from compass_shared.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_FILE_BYTES = 4 * 1024 * 1024

Document = TypeVar("Document")

_HEADER = re.compile(r"\s*(\[{1,2})\s*([^\[\]]+?)\s*\]{1,2}\s*(?:#.*)?$")
_KEY = re.compile(r"""\s*("[^"]*"|'[^']*'|[A-Za-z0-9_.-]+)\s*=""")
_AT = re.compile(r" - at `(?:key in )?\$?(.*)`$")
_NAMED = re.compile(r"(?:unknown|missing required) field `([^`]+)`")
_TOML_LINE = re.compile(r"\(at line (\d+)")


def read_toml(path: Path, *, limit_bytes: int | None = None) -> tuple[dict[str, Any], str]:
    """Read and parse one TOML file.

    Args:
        path: The file.
        limit_bytes: Larger ones are refused; ``MAX_FILE_BYTES`` if None.

    Returns:
        The parsed tables and the text, for ``line_of``.

    Raises:
        ConfigError: If it cannot be read, is too large, or is not TOML.
    """
    limit = MAX_FILE_BYTES if limit_bytes is None else limit_bytes
    try:
        if path.stat().st_size > limit:
            raise ConfigError(f"larger than {limit} bytes", file=path)
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"not UTF-8 text: {error.reason}", file=path) from error
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=path) from error
    try:
        return tomllib.loads(text), text
    # TOMLDecodeError is a ValueError; a number of thousands of digits raises another one.
    except (ValueError, RecursionError) as error:
        found = _TOML_LINE.search(str(error))
        line = int(found.group(1)) if found else None
        raise ConfigError(f"not valid TOML: {error}", file=path, line=line) from error


def convert(tables: object, into: type[Document], *, file: Path, text: str = "") -> Document:
    """Validate parsed tables into a document type.

    Raises:
        ConfigError: Naming file, field and (where it can be found) line.
    """
    try:
        return msgspec.convert(tables, into)
    except msgspec.ValidationError as error:
        problem, field = _split(str(error))
        if named := _NAMED.search(problem):
            field = f"{field}.{named.group(1)}".lstrip(".")
        raise ConfigError(problem, file=file, field=field or None, line=line_of(text, field)) from error


def line_of(text: str, field: str) -> int | None:
    """Line where a field of a TOML text stands, or the nearest table that holds it.

    Args:
        text: The whole file.
        field: Dotted path with array indices, ``operators[2].inputs``.

    Returns:
        One-based line (the first inside the field if it has none itself), or None if nothing was found.
    """
    want = re.sub(r"\[\.\.\.\]", "", field)
    best: tuple[int, int] | None = None
    inside: int | None = None  # where only [table.part] headers spell the table out
    for line, path in _paths(text):
        if inside is None and want and path.startswith((want + ".", want + "[")):
            inside = line
        if (want == path or want.startswith((path + ".", path + "["))) and (
            best is None or len(path) > best[0]
        ):
            best = (len(path), line)
    return best[1] if best else inside


def _paths(text: str) -> list[tuple[int, str]]:
    table, counts, found = "", dict[str, int](), list[tuple[int, str]]()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = _table_path(header.group(2), array=header.group(1) == "[[", counts=counts)
            found.append((number, table))
        elif key := _KEY.match(line):
            name = key.group(1).strip("\"'")
            found.append((number, f"{table}.{name}" if table else name))
    return found


def _table_path(name: str, *, array: bool, counts: dict[str, int]) -> str:
    path = ""
    parts = [part.strip().strip("\"'") for part in name.split(".")]
    for position, part in enumerate(parts):
        path = f"{path}.{part}" if path else part
        if array and position == len(parts) - 1:
            counts[path] = counts.get(path, -1) + 1
        if path in counts:
            path = f"{path}[{counts[path]}]"
    return path


def _split(message: str) -> tuple[str, str]:
    found = _AT.search(message)
    if found is None:
        return message, ""
    return message[: found.start()], found.group(1).lstrip(".")
