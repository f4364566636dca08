"""Features of inputs: by type, from image headers, and a bundle's own."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
from PIL import Image

from compass_agent.measure.features import default_features, features_of, image_header
from compass_shared.errors import ConfigError
from compass_shared.values import Example, Value


def examples(*values: Value) -> list[Example]:
    return [Example(f"input-{index}", value, None, "only") for index, value in enumerate(values)]


def encoded(kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20), (200, 100, 50)).save(buffer, kind, **options)
    return buffer.getvalue()


def test_sizes_of_images_come_from_their_headers() -> None:
    for content in (encoded("PNG"), encoded("JPEG"), encoded("JPEG", progressive=True)):
        assert image_header(content)[:2] == (math.log1p(30), math.log1p(20))


def test_worse_jpegs_have_coarser_tables() -> None:
    coarseness = [image_header(encoded("JPEG", quality=quality))[2] for quality in (95, 60, 20)]
    assert coarseness == sorted(coarseness)
    assert len(set(coarseness)) == 3


def test_a_header_cut_anywhere_is_read_without_fuss() -> None:
    content = encoded("JPEG")
    assert all(len(image_header(content[:end])) in (0, 3) for end in range(len(content)))
    assert image_header(b"RIFF....WAVE") == ()


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\0" * 100,
        "",
        "some words",
        np.zeros((2, 3), np.uint8),
        np.array([np.inf, np.nan]),
        np.array([1e308, -1e308, 1e308]),
        np.zeros(0),
        np.array([True, False]),
        {"b": b"x", "a": [1, 2]},
        None,
        math.inf,
        7,
    ],
)
def test_every_value_has_finite_features(value: Value) -> None:
    assert all(map(math.isfinite, default_features(value)))


def test_noise_and_silence_are_told_apart() -> None:
    noise = np.random.default_rng(1).bytes(5000)
    assert default_features(noise) != default_features(b"\0" * 5000)


def test_every_input_has_as_many() -> None:
    found = features_of(examples(b"raw", encoded("PNG"), "text"))
    assert len({len(numbers) for numbers in found}) == 1
    assert features_of([]) == []


def test_a_bundle_may_bring_its_own() -> None:
    found = features_of(examples("a b", "c"), lambda value: np.array([len(str(value)), 1]))
    assert found == [(3.0, 1.0), (1.0, 1.0)]


@pytest.mark.parametrize(
    ("own", "problem"),
    [
        (lambda value: [math.nan], "'input-0': up to 64 finite numbers"),
        (lambda value: range(100), "'input-0': up to 64"),
        (list, "'input-0': ValueError"),
        (lambda value: 1, "'input-0': TypeError"),
        (lambda value: [0] * len(value), "'input-1': 1 numbers, 3 of 'input-0'"),
    ],
)
def test_wrong_features_are_refused(own: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        features_of(examples("a b", "c"), own)
