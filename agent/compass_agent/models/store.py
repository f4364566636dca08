"""The model store: a reference in, the path of verified bytes out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from compass_agent.models.made import make_model
from compass_agent.models.progress import Limits, ProgressCallback, Reporter, State
from compass_agent.models.sources import take_from_origin, take_from_peer
from compass_agent.models.unpack import unpack
from compass_shared.errors import ModelLoadError
from compass_shared.model_cache import ModelCache
from compass_shared.model_ref import ModelRef, Scheme

_log = logging.getLogger(__name__)


class ModelStore:
    """Fetches models: from the cache, else from a peer by hash, else from where the URI says.

    Every byte is verified against the hashes of the reference before anybody sees it. Methods block
    and may be called from several threads and processes at once: one fetches, the others wait.

    Args:
        cache: Where verified files are kept.
        peers: Base addresses of workers and coordinators that serve ``GET /models/{sha256}``.
        progress: Called with every step, in the thread that fetches.
        limits: Bounds on sizes and times.
    """

    def __init__(
        self,
        cache: ModelCache,
        *,
        peers: Sequence[str] = (),
        progress: ProgressCallback | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.cache = cache
        self.peers = tuple(peers)
        self.limits = limits or Limits()
        self._progress = progress

    def fetch(
        self,
        ref: ModelRef,
        *,
        name: str = "",
        base: Path | None = None,
        others: Mapping[str, ModelRef] | None = None,
    ) -> Path:
        """Path of the model's verified file in the cache, fetched if need be.

        Args:
            ref: What to fetch.
            name: The model's name, for progress and errors; its URI if empty.
            base: Folder that relative ``file:`` URIs start from, and that has the code of ``made:``: the
                bundle's.
            others: The bundle's other models; what is made may be made of them.

        Raises:
            ModelLoadError: If no source has it, or a hash or size is not the one that ``ref`` states.
        """
        report = Reporter(name or ref.uri, self._progress)
        with _naming(report.name):
            path, source = self.cache.verified(ref.sha256), "cache"
            if path is None:
                parts = self._parts(ref, base, others or {})
                path, source = self._obtain(ref, base, parts, report)
            size_bytes = path.stat().st_size
            _check_stated("size_bytes", ref.size_bytes, size_bytes)
        report.tell(State.DONE, source, done_bytes=size_bytes, total_bytes=size_bytes)
        return path

    def fetch_all(self, refs: Mapping[str, ModelRef], *, base: Path | None = None) -> dict[str, Path]:
        """Fetch every model of a pipeline, one after the other.

        Raises:
            ModelLoadError: At the first that fails.
        """
        return {name: self.fetch(ref, name=name, base=base, others=refs) for name, ref in refs.items()}

    def _parts(self, ref: ModelRef, base: Path | None, others: Mapping[str, ModelRef]) -> dict[str, Path]:
        """What a model is made of, fetched before its own lock is taken."""
        if missing := sorted(set(ref.parts.values()) - set(others)):
            raise ModelLoadError(f"is made of {missing[0]!r}, which is no model of its pipeline")
        if nested := [n for n in ref.parts.values() if others[n].origin.scheme is Scheme.MADE]:
            raise ModelLoadError(f"is made of {nested[0]!r}, which is itself made; make it in one go")
        return {part: self.fetch(others[name], name=name, base=base) for part, name in ref.parts.items()}

    def _obtain(
        self, ref: ModelRef, base: Path | None, parts: Mapping[str, Path], report: Reporter
    ) -> tuple[Path, str]:
        """The file and its source, with the model's lock held."""
        with self._staging(f"model-{ref.sha256}", report) as folder:
            if held := self.cache.verified(ref.sha256):
                return held, "cache"  # whoever held the lock before has fetched it
            self.cache.discard(ref.sha256)  # present, but damaged
            refusals: list[str] = []
            for peer in self.peers:
                if found := self._from_peer(ref, peer, folder / "peer", report, refusals):
                    return found, peer
            try:
                return self._from_origin(ref, base, parts, folder, report), ref.uri
            except ModelLoadError as error:
                raise _with_refusals(error, refusals) from error

    def _from_peer(
        self, ref: ModelRef, peer: str, target: Path, report: Reporter, refusals: list[str]
    ) -> Path | None:
        """The file, or None with the reason added to ``refusals``."""
        try:
            take_from_peer(ref, peer, target, limits=self.limits, report=report)
            return self._adopt(target, ref.sha256, peer, report)
        except ModelLoadError as error:
            refusals.append(f"{peer}: {error}")
            report.tell(State.REFUSED, peer, detail=str(error))
            _log.info("model %s: peer %s: %s", report.name, peer, error)
            return None

    def _from_origin(
        self, ref: ModelRef, base: Path | None, parts: Mapping[str, Path], folder: Path, report: Reporter
    ) -> Path:
        if ref.origin.scheme is Scheme.MADE:
            report.tell(State.MAKING, ref.uri)
            file = make_model(ref, folder / "made", base=base, parts=parts, limits=self.limits)
        elif ref.has_archive:
            archive = self._archive(ref, base, report)
            file = folder / "member"
            unpack(archive, ref, file, limit_bytes=self.limits.max_member_bytes)
        else:
            file = take_from_origin(ref, folder, base=base, limits=self.limits, report=report)
        return self._adopt(file, ref.sha256, ref.uri, report)

    def _archive(self, ref: ModelRef, base: Path | None, report: Reporter) -> Path:
        """The verified archive, in the cache: the members of one archive download it once.

        Its lock is only ever taken while a model's is held, never the other way round.
        """
        with self._staging(f"archive-{ref.archive_sha256}", report) as folder:
            path = self.cache.verified(ref.archive_sha256)
            if path is None:
                self.cache.discard(ref.archive_sha256)
                file = take_from_origin(ref, folder, base=base, limits=self.limits, report=report)
                path = self._adopt(file, ref.archive_sha256, ref.uri, report)
            _check_stated("archive_bytes", ref.archive_bytes, path.stat().st_size)
            return path

    def _adopt(self, file: Path, sha256: str, source: str, report: Reporter) -> Path:
        report.tell(State.VERIFYING, source, done_bytes=file.stat().st_size)
        return self.cache.adopt(file, sha256)

    @contextmanager
    def _staging(self, key: str, report: Reporter) -> Iterator[Path]:
        with self.cache.staging(key, waiting=lambda: report.tell(State.WAITING, "cache")) as folder:
            yield folder


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Name the model in every error, and translate what the disk says."""
    try:
        yield
    except ModelLoadError as error:
        raise ModelLoadError(
            str(error),
            model=name,
            expected_sha256=error.expected_sha256,
            actual_sha256=error.actual_sha256,
        ) from error
    except OSError as error:
        raise ModelLoadError(str(error), model=name) from error


def _with_refusals(error: ModelLoadError, refusals: Sequence[str]) -> ModelLoadError:
    if not refusals:
        return error
    return ModelLoadError(
        f"{error} (peers were asked before: {'; '.join(refusals)})",
        expected_sha256=error.expected_sha256,
        actual_sha256=error.actual_sha256,
    )


def _check_stated(field: str, stated_bytes: int, actual_bytes: int) -> None:
    if stated_bytes and stated_bytes != actual_bytes:
        raise ModelLoadError(f"{field} says {stated_bytes}, but what has that hash has {actual_bytes} bytes")
