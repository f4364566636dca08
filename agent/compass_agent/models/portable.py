"""A portable folder of models, for machines that reach no registry.

The folder holds one file a model, named by its hash, and ``index.json``. It needs no trust: import
verifies every file against its name.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from compass_agent.models.store import ModelStore
from compass_shared.errors import ConfigError, ModelLoadError
from compass_shared.model_cache import ModelCache, is_sha256, sha256_of
from compass_shared.model_ref import ModelRef

INDEX = "index.json"
_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PortableModel:
    """One line of the index."""

    sha256: str
    size_bytes: int
    names: tuple[str, ...]
    uri: str
    licence: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Index:
    version: int
    models: tuple[PortableModel, ...]


def export_models(
    store: ModelStore, refs: Mapping[str, ModelRef], destination: Path, *, base: Path | None = None
) -> list[PortableModel]:
    """Fetch models and copy them to a portable folder, beside what is in it already.

    Args:
        store: Fetches what is not in its cache.
        refs: The models by name.
        destination: The folder; made if it does not exist.
        base: Folder that relative ``file:`` URIs start from.

    Returns:
        What was exported now, one entry a distinct hash.

    Raises:
        ModelLoadError: If a model cannot be fetched or the folder cannot be written.
        ConfigError: If the folder's index is there and unreadable.
    """
    held = {model.sha256: model for model in _read_index(destination)} if _has_index(destination) else {}
    exported: dict[str, PortableModel] = {}
    for name, ref in refs.items():
        path = store.fetch(ref, name=name, base=base, others=refs)
        known = exported.get(ref.sha256) or held.get(ref.sha256)
        names = tuple(sorted({name, *(known.names if known else ())}))
        exported[ref.sha256] = PortableModel(
            sha256=ref.sha256,
            size_bytes=path.stat().st_size,
            names=names,
            uri=ref.uri,
            licence=ref.licence,
        )
        _write(path, destination / ref.sha256)
    index = _Index(version=_VERSION, models=tuple({**held, **exported}.values()))
    _write(msgspec.json.format(msgspec.json.encode(index), indent=2) + b"\n", destination / INDEX)
    return list(exported.values())


def import_models(source: Path, cache: ModelCache) -> list[PortableModel]:
    """Verify every file of a portable folder and put it into the cache.

    Raises:
        ConfigError: If the folder has no readable index.
        ModelLoadError: At the first file that is missing or has another hash; of that nothing is kept.
    """
    models = _read_index(source)
    try:
        for model in models:
            cache.put(source / model.sha256, model.sha256, model=", ".join(model.names))
    except OSError as error:
        raise ModelLoadError(f"cannot import: {error}") from error
    return models


def _has_index(folder: Path) -> bool:
    return (folder / INDEX).exists()


def _read_index(folder: Path) -> list[PortableModel]:
    file = folder / INDEX
    try:
        index = msgspec.json.decode(file.read_bytes(), type=_Index)
    except OSError as error:
        raise ConfigError(f"no folder made by `compass-agent models export`: {error}", file=file) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"not a readable index: {error}", file=file) from error
    if index.version != _VERSION:
        raise ConfigError(
            f"index of version {index.version}, expected {_VERSION}", file=file, field="version"
        )
    for number, model in enumerate(index.models):
        # The hash is also a file name: nothing else may pass.
        if not is_sha256(model.sha256):
            raise ConfigError("not a SHA-256", file=file, field=f"models[{number}].sha256")
    return list(index.models)


def _write(content: Path | bytes, target: Path) -> None:
    """Write a file whole or not at all; leave one alone that is there with its own hash."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            part.write_bytes(content)
        elif target.is_file() and sha256_of(target) == target.name:
            return
        else:
            shutil.copyfile(content, part)
        part.replace(target)
    except OSError as error:
        raise ModelLoadError(f"cannot write {target}: {error}") from error
    finally:
        part.unlink(missing_ok=True)
