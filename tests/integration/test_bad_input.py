"""Bad input from end to end: a typed error for who sent it, and everybody else is served as before.

What files may hold is tested with their loaders, what may arrive by MQTT in ``test_fleet``, what a worker may
be sent in ``test_worker``, and models that are missing or wrong with the model store.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from compass_agent.events import Source
from compass_agent.measure import network
from compass_agent.sdk import Agent
from compass_coordinator import core as coordinator_core
from compass_shared.errors import CompassError, ConfigError, InferenceError, ModelLoadError
from support.bundles import write_tiny_bundle
from support.fleets import (
    ROWS,
    BrokerInMemory,
    FleetRig,
    Traffic,
    counters,
    declare,
    planned_at,
    query_of,
    until,
)

READ_TEXT = Path(__file__).parents[2] / "examples" / "read_text"


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png_of(width: int, height: int) -> bytes:
    """A PNG that says it is this large and holds next to nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(b"\0")), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _cut_short() -> bytes:
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(whole, "PNG")
    return whole.getvalue()[:-200]


NO_IMAGES: dict[str, Any] = {
    "nothing": b"",
    "text": b"not an image",
    "cut short": _cut_short(),
    "too large to open": _png_of(60_000, 60_000),
    "empty": _png_of(0, 0),
    "a string": "page.png",
    "none": None,
    "an array": np.zeros((4, 4, 3), np.uint8),
    "not even a value": object(),
}


@pytest.mark.parametrize("value", NO_IMAGES.values(), ids=NO_IMAGES)
async def test_an_image_that_is_none_fails_its_own_request(tmp_path: Path, value: Any) -> None:
    bundles = [READ_TEXT, write_tiny_bundle(tmp_path)]
    async with Agent(name="phone", bundles=bundles, cache_root=tmp_path / "cache") as agent:
        with pytest.raises(InferenceError) as caught:
            await agent.request("read-text", value)
        assert caught.value.operator == "prepare"
        assert "image" in str(caught.value)
        outcome = await agent.outcome("tiny", ROWS)
        assert outcome.error is None
        assert list((tmp_path / "cache").rglob("*.onnx")) == [], "no model was fetched for it"


async def test_input_that_a_worker_fails_on_fails_its_own_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "_TRANSFER_S", 0.002)
    monkeypatch.setattr(coordinator_core, "SETTLE_S", 0.1)
    fleet = FleetRig(tmp_path, BrokerInMemory(), "bad-input")
    try:
        await fleet.coordinator()
        worker, device = await fleet.worker(), await fleet.device()
        declare(device, query_of(device))
        await until(planned_at(device, "edge"), "an assignment to the worker")
        for value in (b"no rows", None, np.zeros(3, np.float32)):
            outcome = await device.request("tiny", value, query="q1")
            assert isinstance(outcome.error, InferenceError)
            assert (outcome.error.operator, outcome.attempts) == ("scale", 1), "elsewhere it would fail too"
            assert "not an array of rows" in str(outcome.error)
        outcome = await device.request("tiny", object(), query="q1")  # type: ignore[arg-type]
        assert isinstance(outcome.error, CompassError)
        with pytest.raises(ConfigError, match="'tinny' is not installed here; installed: tiny"):
            await device.request("tinny", ROWS, query="q1")
        traffic = Traffic(device, "q1")
        assert (await traffic.one()).source is Source.ASSIGNED
        traffic.check()
        counted = (await counters(worker))["queries"]["q1"]
        assert (counted["failed"], counted["answered"]) == (3, 1)
        assert device.core.in_flight == 0
    finally:
        await fleet.close()


async def test_a_model_that_is_missing_fails_requests_until_it_is_there(tmp_path: Path) -> None:
    bundle = write_tiny_bundle(tmp_path)
    model = bundle / "plain.onnx"
    moved = model.rename(tmp_path / "elsewhere")
    async with Agent(name="phone", bundles=[bundle], cache_root=tmp_path / "cache") as agent:
        with pytest.raises(ModelLoadError, match="plain"):
            await agent.request("tiny", ROWS)
        model.write_bytes(b"not the model")
        with pytest.raises(ModelLoadError, match="SHA-256"):
            await agent.request("tiny", ROWS)
        moved.rename(model)
        assert (await agent.outcome("tiny", ROWS)).error is None


BROKEN = {
    "no TOML": ("schema = 1", "schema ="),
    "an unknown operator": ('inputs = ["scale"]', 'inputs = ["blur"]'),
    "a cycle": ('inputs = ["request"]', 'inputs = ["label"]'),
    "an unknown runtime": ('runtime = "onnx"', 'runtime = "magic"'),
    "an unknown model": ('model = ["plain", "steep"]', 'model = ["plain", "curved"]'),
    "a hash that is none": ('sha256 = "', 'sha256 = "x'),
}


@pytest.mark.parametrize(("before", "after"), BROKEN.values(), ids=BROKEN)
def test_a_broken_pipeline_is_refused_at_the_start_with_file_and_line(
    tmp_path: Path, before: str, after: str
) -> None:
    file = write_tiny_bundle(tmp_path) / "pipeline.toml"
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after, 1))
    with pytest.raises(ConfigError) as caught:
        Agent(name="phone", bundles=[file.parent], cache_root=tmp_path / "cache")
    assert caught.value.file == str(file)
    assert caught.value.line is not None
