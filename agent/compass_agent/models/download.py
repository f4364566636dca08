"""Downloads over HTTP(S): bounded in size and time, and only from where models may come from."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO

from compass_agent.models.progress import BytesCallback
from compass_shared.errors import ModelLoadError
from compass_shared.model_ref import url_problem

_CHUNK_BYTES = 1 << 18


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect only to where a model might be fetched from in the first place."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if problem := url_problem(newurl):
            fp.close()
            raise ModelLoadError(f"redirected to where models may not come from: {problem}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(
    url: str,
    target: Path,
    *,
    limit_bytes: int,
    idle_timeout_s: float,
    total_timeout_s: float,
    use_proxy: bool,
    on_bytes: BytesCallback,
) -> None:
    """Write what ``url`` answers to ``target``.

    Args:
        url: An ``http:`` or ``https:`` address that the caller has checked.
        target: File to create.
        limit_bytes: Most bytes to accept.
        idle_timeout_s: Longest silence.
        total_timeout_s: Longest download as a whole.
        use_proxy: Whether the environment's proxy settings apply; peers are asked directly.
        on_bytes: Called after every chunk.

    Raises:
        ModelLoadError: If the answer is no, too large, too slow or cut short, or the disk fails.
    """
    proxies = urllib.request.ProxyHandler(None if use_proxy else {})
    opener = urllib.request.build_opener(proxies, _CheckedRedirects)
    request = urllib.request.Request(  # noqa: S310 - checked by the caller
        url, headers={"User-Agent": "compass-agent", "Accept-Encoding": "identity"}
    )
    deadline_s = time.monotonic() + total_timeout_s
    try:
        with target.open("wb") as file, opener.open(request, timeout=idle_timeout_s) as response:
            total = int(response.headers.get("Content-Length") or 0)
            done = 0
            _check_size(total, limit_bytes)
            while chunk := response.read1(_CHUNK_BYTES):
                file.write(chunk)
                done += len(chunk)
                _check_size(done, limit_bytes)
                if time.monotonic() > deadline_s:
                    raise ModelLoadError(f"not done after {total_timeout_s:.0f} s ({done} bytes came)")
                on_bytes(done, total)
    except urllib.error.HTTPError as error:
        error.close()
        raise ModelLoadError(f"HTTP {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise ModelLoadError(f"cannot be reached: {error.reason}") from error
    except (http.client.HTTPException, OSError, ValueError) as error:
        raise ModelLoadError(f"the download failed: {str(error) or type(error).__name__}") from error
    if total and done != total:
        raise ModelLoadError(f"the connection ended after {done} of {total} bytes")


def _check_size(size_bytes: int, limit_bytes: int) -> None:
    if size_bytes > limit_bytes:
        raise ModelLoadError(f"larger than the {limit_bytes} bytes allowed")
