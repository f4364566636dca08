"""The folder of verified models, named by their hash.

Layout below the root::

    sha256/ab/abcdef...      verified bytes: models, and the archives that they came from
    staging/KEY/RANDOM/      work in progress of whoever holds the lock of KEY
    locks/KEY                one lock file a key, never deleted

A file appears under ``sha256/`` complete and verified or not at all. Staging lies in the same file
system, so that the last step is one rename. A process that dies leaves only staging behind, and
the next holder of that lock clears it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from compass_shared.errors import ModelLoadError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 1 << 20


def default_cache_dir(environ: Mapping[str, str]) -> Path:
    """Root for a ModelCache, by the user's environment.

    ``$COMPASS_CACHE/models`` if set, else ``$XDG_CACHE_HOME/compass/models``, else
    ``~/.cache/compass/models``. Only the edge of a program passes ``os.environ`` here.
    """
    if own := environ.get("COMPASS_CACHE"):
        return Path(own).expanduser() / "models"
    xdg = environ.get("XDG_CACHE_HOME", "")
    # The XDG specification tells to ignore relative paths.
    base = Path(xdg) if xdg.startswith("/") else Path(environ.get("HOME") or Path.home()) / ".cache"
    return base / "compass" / "models"


def is_sha256(text: str) -> bool:
    """Whether ``text`` is a SHA-256 as Compass writes it: 64 lower-case hexadecimal digits."""
    return _SHA256.fullmatch(text) is not None


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content.

    Raises:
        OSError: If it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


class ModelCache:
    """Content-addressed files below one folder; safe for several threads and processes at once.

    Methods raise OSError where the disk fails.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path_of(self, sha256: str) -> Path:
        """Where the file with this hash is or would be.

        Raises:
            ValueError: If ``sha256`` is not 64 lower-case hexadecimal digits.
        """
        if not is_sha256(sha256):
            raise ValueError(f"{sha256!r} is not a SHA-256")
        return self.root / "sha256" / sha256[:2] / sha256

    def has(self, sha256: str) -> bool:
        """Whether the file is there. It was verified when it came in."""
        return self.path_of(sha256).is_file()

    def verified(self, sha256: str) -> Path | None:
        """The file, if it is there and its content still has its hash (reads all of it)."""
        path = self.path_of(sha256)
        try:
            return path if sha256_of(path) == sha256 else None
        except FileNotFoundError:
            return None

    def hashes(self) -> list[str]:
        """Hashes of all files in the cache, sorted."""
        return sorted(path.name for path in self.root.glob("sha256/??/*") if is_sha256(path.name))

    def discard(self, sha256: str) -> None:
        """Remove a file, if it is there."""
        self.path_of(sha256).unlink(missing_ok=True)

    @contextmanager
    def staging(self, key: str, *, waiting: Callable[[], None] | None = None) -> Iterator[Path]:
        """Hold the lock of ``key`` and work in an empty folder, which is removed at the end.

        Args:
            key: What is worked on; one holder at a time among all threads and processes.
            waiting: Called once if another holder has to finish first.
        """
        locks = self.root / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        with (locks / key).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting is not None:
                    waiting()
                fcntl.flock(lock, fcntl.LOCK_EX)
            area = self.root / "staging" / key
            shutil.rmtree(area, ignore_errors=True)  # what a killed holder left
            area.mkdir(parents=True, exist_ok=True)
            try:
                # A fresh name: a child that outlived a killed holder cannot write into it.
                yield Path(tempfile.mkdtemp(dir=area))
            finally:
                shutil.rmtree(area, ignore_errors=True)

    def adopt(self, file: Path, sha256: str, *, model: str | None = None) -> Path:
        """Verify a staged file and move it to its place.

        Args:
            file: A file in a staging folder of this cache.
            sha256: The hash that it must have.
            model: Name for the error.

        Raises:
            ModelLoadError: With both hashes if they differ; the file is deleted.
        """
        path = self.path_of(sha256)
        actual = sha256_of(file)
        if actual != sha256:
            file.unlink()
            raise ModelLoadError(
                f"wrong SHA-256: expected {sha256}, got {actual}",
                model=model,
                expected_sha256=sha256,
                actual_sha256=actual,
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        _sync(file)
        file.replace(path)
        _sync(path.parent)
        return path

    def put(self, source: Path, sha256: str, *, model: str | None = None) -> Path:
        """Copy a file from anywhere into the cache.

        Raises:
            ModelLoadError: With both hashes if they differ; nothing is kept.
        """
        with self.staging(f"model-{sha256}") as folder:
            return self.adopt(Path(shutil.copyfile(source, folder / "copy")), sha256, model=model)


def _sync(path: Path) -> None:
    """Make a file's content, or a folder's entries, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
