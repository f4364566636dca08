"""Where bytes come from: a peer, a file, a web server or a package. Nothing here is verified yet."""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.parse import urlsplit

from compass_agent.models.download import download
from compass_agent.models.packages import WAY_OUT, take_package
from compass_agent.models.progress import BytesCallback, Limits, Reporter
from compass_shared.errors import ModelLoadError
from compass_shared.model_ref import ModelRef, Scheme, is_loopback


def take_from_peer(ref: ModelRef, peer: str, target: Path, *, limits: Limits, report: Reporter) -> None:
    """Ask one worker or coordinator for the model's final bytes.

    Raises:
        ModelLoadError: If it does not have them or cannot be asked.
    """
    if not peer.startswith(("http://", "https://")):
        raise ModelLoadError("a peer's address must start with http:// or https://")
    download(
        f"{peer.rstrip('/')}/models/{ref.sha256}",
        target,
        limit_bytes=min(ref.size_bytes or limits.max_member_bytes, limits.max_member_bytes),
        idle_timeout_s=limits.peer_timeout_s,
        total_timeout_s=limits.total_timeout_s,
        use_proxy=False,
        on_bytes=report.downloading(peer, ref.size_bytes),
    )


def take_from_origin(
    ref: ModelRef, folder: Path, *, base: Path | None, limits: Limits, report: Reporter
) -> Path:
    """Bring what the URI names, archive or model, into an empty folder.

    Args:
        ref: What to bring.
        folder: Where to; the file's name in it is of no meaning.
        base: Folder that relative ``file:`` URIs start from.
        limits: Bounds on sizes and times.
        report: Told about the progress.

    Raises:
        ModelLoadError: If it cannot be had or is too large.
        OSError: If the disk fails.
    """
    stated_bytes = ref.archive_bytes if ref.has_archive else ref.size_bytes
    most_bytes = limits.max_archive_bytes if ref.has_archive else limits.max_member_bytes
    limit_bytes = min(stated_bytes or most_bytes, most_bytes)
    on_bytes = report.downloading(ref.uri, stated_bytes)
    origin, target = ref.origin, folder / "taken"
    if origin.scheme is Scheme.FILE:
        _copy(origin.location, base, target, limit_bytes)
        return target
    if origin.scheme is Scheme.HTTPS:
        _download(origin.location, target, limit_bytes, limits, on_bytes)
        return target
    return take_package(
        ref,
        folder,
        limit_bytes=limit_bytes,
        total_timeout_s=limits.total_timeout_s,
        on_bytes=on_bytes,
    )


def _download(url: str, target: Path, limit_bytes: int, limits: Limits, on_bytes: BytesCallback) -> None:
    try:
        download(
            url,
            target,
            limit_bytes=limit_bytes,
            idle_timeout_s=limits.idle_timeout_s,
            total_timeout_s=limits.total_timeout_s,
            use_proxy=not is_loopback(urlsplit(url).hostname or ""),
            on_bytes=on_bytes,
        )
    except ModelLoadError as error:
        raise ModelLoadError(f"{url}: {error}; {WAY_OUT}") from error


def _copy(location: str, base: Path | None, target: Path, limit_bytes: int) -> None:
    path = Path(location)
    if not path.is_absolute():
        if base is None:
            raise ModelLoadError(f"file:{location} is relative, and no bundle is given that it starts from")
        path = base / path
    if not path.is_file():
        raise ModelLoadError(f"{path} is missing or no plain file")
    size_bytes = path.stat().st_size
    if size_bytes > limit_bytes:
        raise ModelLoadError(f"{path} has {size_bytes} bytes, more than the {limit_bytes} allowed")
    shutil.copyfile(path, target)
