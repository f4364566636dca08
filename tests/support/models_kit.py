"""Tiny archives, a loopback web server and a child process that fetches: what the model tests share."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from compass_agent.models import Progress, State
from compass_shared.model_ref import ModelRef

MODEL = bytes(range(256)) * 400
OTHER = b"another model" * 1000


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return path


def make_tgz(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def make_wheel(folder: Path, files: Mapping[str, bytes], *, tag: str = "py3-none-any") -> Path:
    """A valid wheel tinymodel 1.0."""
    folder.mkdir(exist_ok=True)
    about = "tinymodel-1.0.dist-info"
    everything = {
        **files,
        f"{about}/METADATA": b"Metadata-Version: 2.1\nName: tinymodel\nVersion: 1.0\n",
        f"{about}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
    }
    record = "".join(f"{name},,\n" for name in everything) + f"{about}/RECORD,,\n"
    return make_zip(folder / f"tinymodel-1.0-{tag}.whl", {**everything, f"{about}/RECORD": record.encode()})


def member_ref(archive: Path, member: str, content: bytes, **fields: Any) -> ModelRef:
    """A reference to one member of a local archive."""
    values = {
        "uri": archive.as_uri(),
        "archive_sha256": sha(archive.read_bytes()),
        "members": (member,),
        "sha256": sha(content),
        **fields,
    }
    return ModelRef(**values)


class Steps(list[Progress]):
    """A progress callback that remembers."""

    __call__ = list.append

    def states(self) -> list[State]:
        """The states in their order, repeats left out."""
        found: list[State] = []
        for step in self:
            if found[-1:] != [step.state]:
                found.append(step.state)
        return found


Answer = Callable[[BaseHTTPRequestHandler], None]


class Web:
    """A loopback server: paths to bytes or to functions that answer; unknown paths are 404."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes | Answer] = {}
        self.asked: list[str] = []
        self.address = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.asked.append(handler.path)
        found = self.answers.get(handler.path)
        if found is None:
            handler.send_error(404)
        elif isinstance(found, bytes):
            send(handler, found, len(found))
        else:
            found(handler)


def send(handler: BaseHTTPRequestHandler, content: bytes, stated_bytes: int) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(stated_bytes))
    handler.end_headers()
    handler.wfile.write(content)
    handler.wfile.flush()


class Stall:
    """Answers with half of the content and holds the rest back until released."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.released = threading.Event()

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        half = len(self.content) // 2
        send(handler, self.content[:half], len(self.content))
        self.released.wait()
        handler.wfile.write(self.content[half:])


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed on purpose are no news."""


@contextmanager
def web() -> Iterator[Web]:
    site = Web()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.answer(self)

        def log_message(self, *args: Any) -> None:
            pass

    with _Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        site.address = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield site
        finally:
            for found in site.answers.values():
                if isinstance(found, Stall):
                    found.released.set()
            server.shutdown()
            thread.join()


_FETCH = """
import json, sys
from pathlib import Path
from compass_agent.models import ModelStore
from compass_shared.model_cache import ModelCache
from compass_shared.model_ref import model_ref_from
tell = lambda step: print(step.state.value, step.done_bytes, flush=True)
store = ModelStore(ModelCache(Path(sys.argv[1])), progress=tell)
print(store.fetch(model_ref_from(json.loads(sys.argv[2]), field="model")), flush=True)
"""


def child(code: str, *args: str) -> subprocess.Popen[str]:
    """A real process of this interpreter, with this process's import path."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def fetching_child(root: Path, table: Mapping[str, object]) -> subprocess.Popen[str]:
    """A process that fetches one model and prints its progress."""
    return child(_FETCH, str(root), json.dumps(table))


def wait_for_line(stream: Any, wanted: Callable[[str], bool]) -> None:
    """Read a child's output up to the line that is wanted."""
    seen = []
    for line in stream:
        seen.append(line)
        if wanted(line):
            return
    raise AssertionError(f"the child ended after {seen}")


def files_below(root: Path) -> list[Path]:
    """Everything a cache holds, its lock files left out."""
    return [path for path in root.rglob("*") if path.is_file() and path.parent.name != "locks"]


def npm_registry(site: Web, name: str, version: str, tarball: bytes) -> None:
    """Let a loopback server act as an npm registry with one package."""
    path = f"/{name.replace('/', '%2f')}"
    file = f"/{name}/-/tarball.tgz"
    digest = base64.b64encode(hashlib.sha512(tarball).digest()).decode()
    dist = {"tarball": f"{site.address}{file}", "integrity": f"sha512-{digest}"}
    entry = {"name": name, "version": version, "dist": dist}
    document = {"name": name, "dist-tags": {"latest": version}, "versions": {version: entry}}
    site.answers[path] = site.answers[path.replace("%2f", "%2F")] = json.dumps(document).encode()
    site.answers[file] = tarball
