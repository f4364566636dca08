from __future__ import annotations

import errno
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from compass_agent.models import Limits, ModelStore, State
from compass_shared.errors import ModelLoadError
from compass_shared.model_cache import ModelCache
from compass_shared.model_ref import ModelRef
from support.models_kit import (
    MODEL,
    OTHER,
    Stall,
    Steps,
    Web,
    files_below,
    make_zip,
    member_ref,
    send,
    sha,
    web,
)


@pytest.fixture
def site() -> Iterator[Web]:
    with web() as running:
        yield running


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "cache")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return make_zip(tmp_path / "a.zip", {"one": MODEL, "two": OTHER})


def url_ref(site: Web, path: str = "/m", content: bytes = MODEL, size_bytes: int = 0) -> ModelRef:
    return ModelRef(uri=f"{site.address}{path}", sha256=sha(content), size_bytes=size_bytes)


def test_fetches_a_plain_file_and_tells_each_step(cache: ModelCache, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(MODEL)
    ref = ModelRef(uri="file:m.onnx", sha256=sha(MODEL), size_bytes=len(MODEL))
    steps = Steps()
    path = ModelStore(cache, progress=steps).fetch(ref, name="m", base=tmp_path)
    assert path == cache.path_of(sha(MODEL))
    assert path.read_bytes() == MODEL
    assert steps.states() == [State.DOWNLOADING, State.VERIFYING, State.DONE]
    assert {step.name for step in steps} == {"m"}
    assert steps[-1].done_bytes == steps[-1].total_bytes == len(MODEL)


def test_a_second_fetch_asks_nobody(cache: ModelCache, tmp_path: Path, site: Web) -> None:
    (tmp_path / "m").write_bytes(MODEL)
    ref = ModelRef(uri=(tmp_path / "m").as_uri(), sha256=sha(MODEL))
    ModelStore(cache).fetch(ref)
    (tmp_path / "m").unlink()
    steps = Steps()
    ModelStore(cache, peers=[site.address], progress=steps).fetch(ref)
    assert site.asked == []
    assert [(step.state, step.source) for step in steps] == [(State.DONE, "cache")]


def test_members_of_one_archive_take_it_once(cache: ModelCache, archive: Path) -> None:
    refs = {"one": member_ref(archive, "one", MODEL), "two": member_ref(archive, "two", OTHER)}
    store = ModelStore(cache)
    first = store.fetch(refs["one"])
    archive.unlink()
    paths = store.fetch_all(refs)
    assert paths["one"] == first
    assert paths["two"].read_bytes() == OTHER


def test_wrong_archive_hash(cache: ModelCache, archive: Path) -> None:
    ref = member_ref(archive, "one", MODEL, archive_sha256=sha(b"x"))
    with pytest.raises(ModelLoadError) as caught:
        ModelStore(cache).fetch(ref, name="m")
    assert caught.value.model == "m"
    assert caught.value.expected_sha256 == sha(b"x")
    assert caught.value.actual_sha256 == sha(archive.read_bytes())
    assert files_below(cache.root) == []


def test_wrong_member_hash(cache: ModelCache, archive: Path) -> None:
    with pytest.raises(ModelLoadError) as caught:
        ModelStore(cache).fetch(member_ref(archive, "two", MODEL), name="m")
    assert (caught.value.expected_sha256, caught.value.actual_sha256) == (sha(MODEL), sha(OTHER))
    assert not cache.has(sha(MODEL))
    assert not cache.has(sha(OTHER))
    assert cache.hashes() == [sha(archive.read_bytes())]


@pytest.mark.parametrize("field", ["size_bytes", "archive_bytes"])
@pytest.mark.parametrize("error_bytes", [-1, 1])
def test_wrong_stated_size(cache: ModelCache, archive: Path, field: str, error_bytes: int) -> None:
    right = {"size_bytes": len(MODEL), "archive_bytes": archive.stat().st_size}
    ModelStore(ModelCache(cache.root / "right")).fetch(member_ref(archive, "one", MODEL, **right))
    wrong = member_ref(archive, "one", MODEL, **{**right, field: right[field] + error_bytes})
    with pytest.raises(ModelLoadError, match=f"{field} says|more than"):
        ModelStore(cache).fetch(wrong)


def test_a_damaged_cache_is_fetched_again(cache: ModelCache, archive: Path) -> None:
    ref = member_ref(archive, "one", MODEL)
    store = ModelStore(cache)
    store.fetch(ref).write_bytes(b"damaged")
    cache.path_of(ref.archive_sha256).write_bytes(b"damaged too")
    assert store.fetch(ref).read_bytes() == MODEL


def test_a_damaged_file_goes_even_if_there_is_no_other(cache: ModelCache, archive: Path) -> None:
    ref = member_ref(archive, "one", MODEL)
    store = ModelStore(cache)
    store.fetch(ref).write_bytes(b"damaged")
    cache.discard(ref.archive_sha256)
    archive.unlink()
    with pytest.raises(ModelLoadError, match="missing"):
        store.fetch(ref)
    assert files_below(cache.root) == []


def test_relative_file_needs_a_bundle(cache: ModelCache) -> None:
    with pytest.raises(ModelLoadError, match="relative"):
        ModelStore(cache).fetch(ModelRef(uri="file:m", sha256=sha(MODEL)))


@pytest.mark.parametrize("limits", [Limits(max_archive_bytes=10), Limits(max_member_bytes=10)])
def test_limits_of_archive_and_member(cache: ModelCache, archive: Path, limits: Limits) -> None:
    with pytest.raises(ModelLoadError, match="more than the 10"):
        ModelStore(cache, limits=limits).fetch(member_ref(archive, "one", MODEL))
    assert not cache.has(sha(MODEL))


def test_peer_first(cache: ModelCache, site: Web) -> None:
    site.answers[f"/models/{sha(MODEL)}"] = MODEL
    ref = ModelRef(uri="file:/nowhere", sha256=sha(MODEL), size_bytes=len(MODEL))
    steps = Steps()
    path = ModelStore(cache, peers=[f"{site.address}/"], progress=steps).fetch(ref)
    assert path.read_bytes() == MODEL
    assert steps.states() == [State.DOWNLOADING, State.VERIFYING, State.DONE]
    assert steps[-1].source == f"{site.address}/"


def cut_short(handler: BaseHTTPRequestHandler) -> None:
    send(handler, MODEL[:100], len(MODEL))


def too_much(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()  # no length: only counting helps
    handler.wfile.write(MODEL + b"more")


def bad_length(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "many")
    handler.end_headers()


def elsewhere(handler: BaseHTTPRequestHandler, location: str = "http://models.invalid/m") -> None:
    handler.send_response(302)
    handler.send_header("Location", location)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


BAD_ANSWERS = {
    "wrong bytes": (OTHER, "wrong SHA-256|larger"),
    "wrong bytes of the right length": (b"x" * len(MODEL), "wrong SHA-256"),
    "cut short": (cut_short, "ended after 100 of"),
    "too much": (too_much, "larger than"),
    "bad length": (bad_length, "failed"),
    "redirect": (elsewhere, "redirected"),
    "hang up": (hang_up, "failed|reached"),
    "not there": (None, "HTTP 404"),
}


@pytest.mark.parametrize(("answer", "reason"), BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_a_bad_peer_is_noted_and_passed_over(
    cache: ModelCache, site: Web, archive: Path, answer: object, reason: str
) -> None:
    if answer is not None:
        site.answers[f"/models/{sha(MODEL)}"] = answer  # type: ignore[assignment]
    steps = Steps()
    store = ModelStore(cache, peers=[site.address], progress=steps)
    path = store.fetch(member_ref(archive, "one", MODEL, size_bytes=len(MODEL)), name="m")
    assert path.read_bytes() == MODEL
    (refusal,) = [step for step in steps if step.state is State.REFUSED]
    assert refusal.source == site.address
    assert re.search(reason, refusal.detail)
    assert steps[-1].source == archive.as_uri()
    assert not cache.has(sha(OTHER))


def test_the_second_peer_helps(cache: ModelCache, site: Web, free_port: int) -> None:
    site.answers[f"/models/{sha(MODEL)}"] = MODEL
    peers = ["ftp://worker", f"http://127.0.0.1:{free_port}", site.address]
    steps = Steps()
    ModelStore(cache, peers=peers, progress=steps).fetch(ModelRef(uri="file:/no", sha256=sha(MODEL)))
    assert [step.source for step in steps if step.state is State.REFUSED] == peers[:2]
    assert steps[-1].source == site.address


def test_a_failure_tells_what_peers_said(cache: ModelCache, site: Web) -> None:
    ref = ModelRef(uri="file:/nowhere", sha256=sha(MODEL))
    with pytest.raises(ModelLoadError, match=r"^m: /nowhere is missing.*peers were asked.*HTTP 404"):
        ModelStore(cache, peers=[site.address]).fetch(ref, name="m")


def test_web_origin(cache: ModelCache, site: Web) -> None:
    site.answers["/m"] = MODEL
    site.answers["/moved"] = partial(elsewhere, location="/m")
    steps = Steps()
    ref = url_ref(site, "/moved", size_bytes=len(MODEL))
    assert ModelStore(cache, progress=steps).fetch(ref).read_bytes() == MODEL
    assert site.asked == ["/moved", "/m"]
    downloads = [step for step in steps if step.state is State.DOWNLOADING]
    assert downloads[-1].done_bytes == downloads[-1].total_bytes == len(MODEL)


@pytest.mark.parametrize(("answer", "reason"), BAD_ANSWERS.values(), ids=BAD_ANSWERS)
def test_a_bad_web_origin(cache: ModelCache, site: Web, answer: object, reason: str) -> None:
    if answer is not None:
        site.answers["/m"] = answer  # type: ignore[assignment]
    with pytest.raises(ModelLoadError, match=reason):
        ModelStore(cache).fetch(url_ref(site, size_bytes=len(MODEL)))
    assert files_below(cache.root) == []


def test_web_failure_names_the_way_out(cache: ModelCache, free_port: int) -> None:
    ref = ModelRef(uri=f"http://127.0.0.1:{free_port}/m", sha256=sha(MODEL))
    with pytest.raises(ModelLoadError, match=r"cannot be reached.*compass-agent models import"):
        ModelStore(cache).fetch(ref)


def test_a_download_may_not_take_too_long(cache: ModelCache, site: Web) -> None:
    site.answers["/m"] = MODEL
    with pytest.raises(ModelLoadError, match="not done after 0 s"):
        ModelStore(cache, limits=Limits(total_timeout_s=0.0)).fetch(url_ref(site))


def test_a_silent_server_is_given_up(cache: ModelCache, site: Web) -> None:
    site.answers["/m"] = Stall(MODEL)
    with pytest.raises(ModelLoadError, match="timed out"):
        ModelStore(cache, limits=Limits(idle_timeout_s=0.05)).fetch(url_ref(site))
    assert files_below(cache.root) == []


def test_threads_share_one_download(cache: ModelCache, site: Web) -> None:
    stall = Stall(MODEL)
    site.answers["/m"] = stall
    waiting = threading.Semaphore(0)
    store = ModelStore(
        cache, progress=lambda step: waiting.release() if step.state is State.WAITING else None
    )
    with ThreadPoolExecutor(3) as pool:
        fetches = [pool.submit(store.fetch, url_ref(site)) for _ in range(3)]
        for _ in range(2):
            waiting.acquire()
        stall.released.set()
        assert {fetch.result() for fetch in fetches} == {cache.path_of(sha(MODEL))}
    assert site.asked == ["/m"]


def test_a_full_disk_is_a_model_error(
    cache: ModelCache, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(ModelLoadError, match=r"m: .*No space left"):
        ModelStore(cache).fetch(member_ref(archive, "one", MODEL), name="m")
    assert files_below(cache.root) == []


def test_interrupted_midway_keeps_nothing(cache: ModelCache, site: Web) -> None:
    site.answers["/m"] = MODEL

    def interrupt(step: object) -> None:
        if getattr(step, "done_bytes", 0):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ModelStore(cache, progress=interrupt).fetch(url_ref(site))
    assert files_below(cache.root) == []
    assert ModelStore(cache).fetch(url_ref(site)).read_bytes() == MODEL
