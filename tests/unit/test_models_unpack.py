from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from compass_agent.models.unpack import unpack
from compass_shared.errors import ModelLoadError
from compass_shared.model_ref import ModelRef
from support.models_kit import MODEL, OTHER, make_tgz, make_zip, sha

Make = Callable[[Path, Mapping[str, bytes]], Path]
FILES = {"a/one.bin": MODEL, "a/two.bin": OTHER, "empty": b""}
LIMIT = 10_000_000


def cut(archive: Path, *members: str, byte_range: tuple[int, int] | None = None, limit: int = LIMIT) -> bytes:
    ref = ModelRef(
        uri="file:x", sha256=sha(b""), archive_sha256=sha(b""), members=members, byte_range=byte_range
    )
    target = archive.with_name("target")
    unpack(archive, ref, target, limit_bytes=limit)
    return target.read_bytes()


@pytest.fixture(params=[make_zip, make_tgz], ids=["zip", "tgz"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    make: Make = request.param
    return make(tmp_path / "archive", FILES)


def test_one_member(archive: Path) -> None:
    assert cut(archive, "a/one.bin") == MODEL
    assert cut(archive, "empty") == b""


def test_joins_parts_in_the_order_given(archive: Path) -> None:
    assert cut(archive, "a/two.bin", "a/one.bin") == OTHER + MODEL


@pytest.mark.parametrize("span", [(0, 1), (184, 5000), (len(MODEL) - 3, len(MODEL) + 3)])
def test_cuts_the_joined_members(archive: Path, span: tuple[int, int]) -> None:
    assert cut(archive, "a/one.bin", "a/two.bin", byte_range=span) == (MODEL + OTHER)[slice(*span)]


def test_cuts_across_chunks(tmp_path: Path) -> None:
    content = bytes(i % 251 for i in range(700_000))
    plain = tmp_path / "plain"
    plain.write_bytes(content)
    assert cut(plain, byte_range=(262_000, 530_000)) == content[262_000:530_000]


def test_range_beyond_the_end(archive: Path) -> None:
    with pytest.raises(ModelLoadError, match=f"only {len(MODEL)} bytes"):
        cut(archive, "a/one.bin", byte_range=(0, len(MODEL) + 1))


def test_missing_member_names_what_is_close(archive: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"no member a/on\.bin; there is a/one\.bin"):
        cut(archive, "a/on.bin")


def test_limit_counts_unpacked_bytes(archive: Path) -> None:
    assert cut(archive, "a/one.bin", limit=len(MODEL)) == MODEL
    with pytest.raises(ModelLoadError, match="more than"):
        cut(archive, "a/one.bin", limit=len(MODEL) - 1)


def test_a_bomb_is_stopped_early(tmp_path: Path) -> None:
    bomb = make_zip(tmp_path / "bomb", {"zeros": bytes(50_000_000)})
    with pytest.raises(ModelLoadError, match="more than"):
        cut(bomb, "zeros", limit=1_000_000)
    assert (tmp_path / "target").stat().st_size < 2_000_000


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, b"PK\x03\x04 not really a zip"])
def test_what_is_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "archive").write_bytes(content)
    with pytest.raises(ModelLoadError, match="cannot be read"):
        cut(tmp_path / "archive", "x")


@pytest.mark.parametrize("make", [make_zip, make_tgz])
def test_a_damaged_archive(tmp_path: Path, make: Make) -> None:
    path = make(tmp_path / "archive", FILES)
    content = bytearray(path.read_bytes())
    content[60:90] = bytes(30)
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match="cannot be read"):
        cut(path, "a/one.bin")


def test_an_encrypted_member(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "archive", FILES)
    content = bytearray(path.read_bytes())
    content[6] |= 1  # the flag in the local header
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(ModelLoadError, match="encrypted"):
        cut(path, "a/one.bin")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_only_plain_files_of_a_tar(tmp_path: Path, kind: Any) -> None:
    path = tmp_path / "archive"
    with tarfile.open(path, "w") as opened:
        info = tarfile.TarInfo("x")
        info.type = kind
        info.linkname = "/etc/passwd"
        opened.addfile(info, io.BytesIO())
    with pytest.raises(ModelLoadError, match="not a plain file"):
        cut(path, "x")


def test_writes_nowhere_but_the_target(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    with zipfile.ZipFile(inside / "archive", "w") as opened:
        opened.writestr("../escaped", b"x")
        opened.writestr("good", MODEL)
    assert cut(inside / "archive", "good") == MODEL
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["archive", "inside", "target"]
