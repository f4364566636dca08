"""Labelled inputs of bundles, made once on a machine and kept.

Rendering or decoding an input set can take longer than everything it is used for, and every agent of a demo
wants the same one. It is kept beside the models, under a name that follows from the bundle's code, its assets
and the split: whatever could change an input makes another name.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgpack
import msgspec

from compass_agent.bundles import Bundle
from compass_agent.measure.clips import is_sequence
from compass_agent.models import ModelStore
from compass_shared.errors import ConfigError, MessageError
from compass_shared.files import write_atomically
from compass_shared.framing import decode_value, encode_value
from compass_shared.pipeline import InputSet
from compass_shared.pipeline_file import FILE_NAME
from compass_shared.values import Example, Value

logger = logging.getLogger(__name__)

_FOLDER = "inputs"
_WRITTEN_FOLDER = "profile"
"""Folder of a bundle that measurements are written to."""
_LOG = ".measured.jsonl"
"""Of the names of a profiling run's log."""
_NO_DATA = (".py", ".pyc", ".md", _LOG, f"{_LOG}.lock", ".progress")
_PIECE_BYTES = 1 << 20
_KEPT_AS = 2
"""How sets are written down; another number makes other names."""
_MAX_KEPT_BYTES = 1 << 30


PROBE_SPLIT = "profiling"
"""Split of a bundle's inputs that its operators are measured with, if it has one of that name."""


def split_for_probes(inputs: InputSet) -> str:
    """The split that operators are measured with."""
    return PROBE_SPLIT if PROBE_SPLIT in inputs.splits else next(iter(inputs.splits))


def load_examples(bundle: Bundle, split: str, store: ModelStore) -> Sequence[Example]:
    """The labelled inputs of one split, from the cache where they are.

    Sets that cannot be kept (too large, or not of values) are made anew each time.

    Raises:
        ConfigError: If there is no such split, or what makes it fails, or gives clips that are none.
        ModelLoadError: If an asset cannot be had.
    """
    path = store.cache.root / _FOLDER / f"{_key(bundle, split)}.msgpack"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes that want the same set wait for the first to make it; the lock ends with the process.
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = _read(path)
        if kept is not None:
            return kept
        examples = bundle.examples(split, store)
        if is_sequence(bundle.pipeline):
            check_clips(bundle, examples)
        _keep(path, examples)
        # Read back, so that the first process sees what all later ones do: lists where there were tuples.
        return _read(path) or examples


def check_clips(bundle: Bundle, examples: Sequence[Example]) -> None:
    """Refuse inputs that are no clips: lists of requests with a truth for each.

    Raises:
        ConfigError: Naming one of them.
    """
    for name, value, truth, _ in examples:
        if not isinstance(value, list | tuple) or not isinstance(truth, list | tuple) or not value:
            problem = f"input {name!r}: of sequences, value and truth are lists of one request or more"
        elif len(value) != len(truth):
            problem = f"input {name!r}: {len(value)} requests with {len(truth)} truths"
        else:
            continue
        raise ConfigError(problem, file=bundle.folder, field="inputs.function")


def check_names(bundle: Bundle, examples: Sequence[Example]) -> None:
    """Refuse inputs that cannot be told apart by their names.

    Raises:
        ConfigError: Naming one of them.
    """
    seen: set[str] = set()
    for example in examples:
        if example.name in seen:
            problem = f"two inputs are called {example.name!r}"
            raise ConfigError(problem, file=bundle.folder, field="inputs.function")
        seen.add(example.name)


def _key(bundle: Bundle, split: str) -> str:
    inputs = bundle.pipeline.inputs
    assets = (
        {}
        if inputs is None
        else {name: bundle.pipeline.models[m].sha256 for name, m in inputs.assets.items()}
    )
    parts: list[Any] = [
        bundle.pipeline.digest,
        bundle.code_sha256,
        data_sha256(bundle.folder),
        assets,
        split,
        _KEPT_AS,
    ]
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()


def data_sha256(folder: Path) -> str:
    """Digest of the bundle's files that are neither code nor its declaration: a corpus, labels.

    What Compass itself writes there is not in it, nor is what is hidden.

    Raises:
        ConfigError: If one cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for path in _data_files(folder):
            name = path.relative_to(folder).as_posix()
            digest.update(f"{name}\0{_file_sha256(path)}\n".encode())
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", file=error.filename) from error
    return digest.hexdigest()


def _data_files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for parent, folders, names in os.walk(folder):
        # Pruned, so that a large .git or .venv costs nothing.
        folders[:] = [name for name in folders if name != "__pycache__" and not name.startswith(".")]
        if Path(parent) == folder and _WRITTEN_FOLDER in folders:
            folders.remove(_WRITTEN_FOLDER)
        # The table that a run writes has the name of its log.
        tables = {f"{name.removesuffix(_LOG)}.json" for name in names if name.endswith(_LOG)}
        left_out = tables | ({FILE_NAME} if Path(parent) == folder else set())
        found += [
            Path(parent, name)
            for name in names
            if name not in left_out and not name.startswith(".") and not name.endswith(_NO_DATA)
        ]
    return sorted(path for path in found if path.is_file())


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _read(path: Path) -> list[Example] | None:
    try:
        rows = msgpack.unpackb(path.read_bytes())
        return [Example(*map(_from_frames, row)) for row in rows]  # type: ignore[arg-type]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, MessageError, TypeError, msgpack.exceptions.UnpackException) as error:
        logger.warning("inputs kept in %s are made anew: %s", path, error)
        return None


def _keep(path: Path, examples: Sequence[Example]) -> None:
    try:
        content = msgpack.packb([[_frames(part) for part in example] for example in examples])
        if len(content) <= _MAX_KEPT_BYTES:
            write_atomically(path, content)
        else:
            logger.info("inputs of %d bytes are not kept", len(content))
    except (MessageError, OSError) as error:
        logger.info("inputs are not kept: %s", error)


def _frames(part: Value) -> bytes | list[bytes]:
    """A value as a frame, a list as one each: a clip is larger than a frame may be."""
    return [encode_value(item) for item in part] if isinstance(part, list | tuple) else encode_value(part)


def _from_frames(kept: bytes | list[bytes]) -> Value:
    return [decode_value(frame) for frame in kept] if isinstance(kept, list) else decode_value(kept)
