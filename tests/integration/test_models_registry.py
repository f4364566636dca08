"""Real packages from the registries that pip and npm of this machine are set up for."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from compass_agent.models import ModelStore, Progress, State
from compass_shared.errors import ModelLoadError
from compass_shared.model_cache import ModelCache, sha256_of
from compass_shared.model_ref import ModelRef, model_ref_from

pytestmark = [pytest.mark.network, pytest.mark.timeout(600)]

MAGIKA = {
    "uri": "pypi:magika==1.0.3",
    "member": "magika/models/standard_v3_3/model.onnx",
    "sha256": "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
    "size_bytes": 3163737,
    "licence": "Apache-2.0",
}
WHEELS = {
    "manylinux_2_28_x86_64": "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529",
    "win_amd64": "8a817588c177e81efadf2efa3690bfd46000279fd32e5bfc814776b007ee5d89",
}
FACES = {
    "uri": "npm:@mediapipe/face_detection@0.4.1646425229",
    "archive_sha256": "0860724d3ad0de680dd5da59c0b1333f2330aa4ea969157d0aea5d7c0d6e2a95",
    "archive_bytes": 5229645,
    "member": "package/face_detection_short_range.tflite",
    "sha256": "3bc182eb9f33925d9e58b5c8d59308a760f4adea8f282370e428c51212c26633",
    "size_bytes": 229032,
    "licence": "Apache-2.0",
}


@functools.cache
def _answer(*command: str) -> str:
    """Why a registry cannot be asked, or nothing if it can."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return "no answer within 120 s"
    return "" if done.returncode == 0 else done.stderr.strip()[-200:] or "it failed"


def skip_unless_reachable(command: Sequence[str]) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    if why := _answer(*command):
        pytest.skip(f"the registry cannot be reached: {why}")


@pytest.fixture
def pypi() -> None:
    skip_unless_reachable([sys.executable, "-m", "pip", "index", "versions", "magika"])


@pytest.fixture
def npm() -> None:
    skip_unless_reachable(["npm", "view", "@mediapipe/face_detection@0.4.1646425229", "version"])


def magika(platform: str, **changes: object) -> ModelRef:
    file = f"magika-1.0.3-py3-none-{platform}.whl"
    table = {**MAGIKA, "file": file, "wheel_tags": ["cp311", platform], "archive_sha256": WHEELS[platform]}
    return model_ref_from({**table, **changes}, field="models.magika")


@pytest.mark.usefixtures("pypi")
@pytest.mark.parametrize("platform", WHEELS)
def test_a_wheel_of_any_platform_gives_the_same_model(tmp_path: Path, platform: str) -> None:
    steps: list[Progress] = []
    ref = magika(platform)
    store = ModelStore(ModelCache(tmp_path), progress=steps.append)
    path = store.fetch(ref, name="magika")
    assert sha256_of(path) == ref.sha256
    assert path.stat().st_size == ref.size_bytes
    assert steps[-1].state is State.DONE
    assert sorted(store.cache.hashes()) == sorted([ref.sha256, ref.archive_sha256])
    assert not any((tmp_path / "staging").iterdir())


@pytest.mark.usefixtures("pypi")
def test_a_version_that_does_not_exist(tmp_path: Path) -> None:
    ref = magika("win_amd64", uri="pypi:magika==0.0.0.1")
    with pytest.raises(ModelLoadError, match=r"pip failed: ERROR.*magika==0\.0\.0\.1.*models import"):
        ModelStore(ModelCache(tmp_path)).fetch(ref)


@pytest.mark.usefixtures("npm")
def test_an_npm_package(tmp_path: Path) -> None:
    ref = model_ref_from(FACES, field="models.faces")
    store = ModelStore(ModelCache(tmp_path))
    assert store.fetch(ref, name="faces").stat().st_size == ref.size_bytes
    assert not any((tmp_path / "staging").iterdir())
