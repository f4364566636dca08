from __future__ import annotations

from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from compass_shared.errors import ModelLoadError
from compass_shared.model_cache import ModelCache, default_cache_dir
from compass_shared.model_routes import model_routes
from support.models_kit import MODEL, OTHER, files_below, sha


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "cache")


def put(cache: ModelCache, content: bytes) -> Path:
    with cache.staging("test") as folder:
        (folder / "x").write_bytes(content)
        return cache.adopt(folder / "x", sha(content))


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HOME": "/h"}, "/h/.cache/compass/models"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/x/compass/models"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "relative"}, "/h/.cache/compass/models"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "/x", "COMPASS_CACHE": "/c"}, "/c/models"),
    ],
)
def test_default_folder(environ: dict[str, str], expected: str) -> None:
    assert default_cache_dir(environ) == Path(expected)


def test_keeps_files_by_their_hash(cache: ModelCache) -> None:
    path = put(cache, MODEL)
    assert path == cache.root / "sha256" / sha(MODEL)[:2] / sha(MODEL)
    assert path.read_bytes() == MODEL
    assert cache.has(sha(MODEL))
    assert cache.verified(sha(MODEL)) == path
    assert cache.hashes() == [sha(MODEL)]
    cache.discard(sha(MODEL))
    cache.discard(sha(MODEL))
    assert not cache.has(sha(MODEL))
    assert cache.verified(sha(MODEL)) is None


def test_refuses_a_wrong_hash_and_keeps_nothing(cache: ModelCache, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(OTHER)
    with pytest.raises(ModelLoadError) as caught:
        cache.put(tmp_path / "x", sha(MODEL), model="m")
    assert caught.value.expected_sha256 == sha(MODEL)
    assert caught.value.actual_sha256 == sha(OTHER)
    assert sha(MODEL) in str(caught.value)
    assert sha(OTHER) in str(caught.value)
    assert files_below(cache.root) == []
    assert (tmp_path / "x").exists()


def test_notices_a_file_that_was_changed(cache: ModelCache) -> None:
    put(cache, MODEL).write_bytes(OTHER)
    assert cache.verified(sha(MODEL)) is None


@pytest.mark.parametrize("text", ["", "../../x", "A" * 64, "a" * 63, "a" * 64 + "\n"])
def test_only_hashes_name_files(cache: ModelCache, text: str) -> None:
    with pytest.raises(ValueError, match="SHA-256"):
        cache.path_of(text)


def test_staging_is_cleared_before_and_after(cache: ModelCache) -> None:
    left = cache.root / "staging" / "k" / "dead" / "half"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    with cache.staging("k") as folder:
        assert not left.exists()
        (folder / "x").write_bytes(b"x")
    assert files_below(cache.root) == []


async def test_route_serves_what_is_held_and_nothing_else(cache: ModelCache) -> None:
    put(cache, MODEL)
    (cache.root / "secret").write_text("secret")
    app = web.Application()
    app.add_routes(model_routes(cache))
    async with TestClient(TestServer(app)) as client:
        response = await client.get(f"/models/{sha(MODEL)}")
        assert response.status == 200
        assert response.content_length == len(MODEL)
        assert response.content_type == "application/octet-stream"
        assert await response.read() == MODEL
        head = await client.head(f"/models/{sha(MODEL)}")
        assert (head.status, head.content_length) == (200, len(MODEL))
        assert (await client.get(f"/models/{sha(OTHER)}")).status == 404
        for name in ("secret", sha(MODEL).upper(), sha(MODEL)[:-1], "..%2f..%2fsecret", "%00"):
            assert (await client.get(f"/models/{name}")).status == 400
