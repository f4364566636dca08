"""examples/minutes with its real generator: a model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from compass_agent.sdk import Agent
from compass_shared.errors import CompassError
from compass_shared.site import Tier

MINUTES = Path(__file__).resolve().parents[2] / "examples" / "minutes"
SENTENCES = ["The report is due on Monday.", "Hana checks the figures.", "Legal reads it first."]

pytestmark = [pytest.mark.network, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def writer() -> Iterator[str]:
    """The generator in a process of its own; where it is."""
    pytest.importorskip("xllamacpp")
    process = subprocess.Popen(
        [sys.executable, MINUTES / "serve_writer.py", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    errors: list[str] = []
    reader = threading.Thread(target=errors.extend, args=(process.stderr,))
    reader.start()
    line = process.stdout.readline().strip()
    if line:
        yield line.partition("=")[2]
    process.terminate()
    process.wait(20)
    reader.join()
    process.stdout.close()
    process.stderr.close()
    if not line:
        last = errors[-1].strip() if errors else "no reason was given"
        assert "ModelLoadError" in last, last
        pytest.skip(f"the generator cannot be had here: {last}")


async def test_a_worker_writes_minutes(writer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPASS_ENDPOINT_WRITER", writer)
    async with Agent(name="edge", bundles=[MINUTES], tier=Tier.EDGE) as agent:
        output = await agent.request("minutes", SENTENCES, deadline_s=60)
    assert isinstance(output, dict)
    assert output["sources"] == SENTENCES
    assert "monday" in str(output["summary"]).lower()


async def test_without_an_endpoint_the_request_fails_with_the_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("COMPASS_ENDPOINT_WRITER", raising=False)
    async with Agent(name="edge", bundles=[MINUTES], tier=Tier.EDGE) as agent:
        with pytest.raises(CompassError, match="COMPASS_ENDPOINT_WRITER"):
            await agent.request("minutes", SENTENCES, deadline_s=10)
