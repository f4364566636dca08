"""Codecs of payloads: what goes in comes out, as far as the codec promises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from compass_shared.errors import ConfigError
from compass_shared.framing import decode_value, encode_value, framed_size
from compass_shared.payloads import check_codec, decode_payload, encode_payload

CODECS = ["raw", "f16", "u8", "png", "jpeg-80", "webp-70", "pcm16", "flac", "opus"]
SMOOTH = np.linspace(0, 255, 64 * 48).reshape(48, 64).astype(np.uint8)
PHOTO = np.stack([SMOOTH, SMOOTH[::-1], 255 - SMOOTH // 2], axis=2)
SOUND = (0.5 * np.sin(np.arange(16_000) * 2 * np.pi * 440 / 16_000)).astype(np.float32)


def there_and_back(value: Any, codec: str) -> Any:
    """Encoded, framed as onto a link, and decoded again."""
    return decode_payload(decode_value(encode_value(encode_payload(value, codec))))


@pytest.mark.parametrize("codec", CODECS)
def test_other_values_pass_unchanged(codec: str) -> None:
    value = {"text": "a", "list": [1, 2.5, None, True], "bytes": b"x", "ids": np.arange(3)}
    back = there_and_back(value, codec)
    assert {name: back[name] for name in ("text", "list", "bytes")} == {
        "text": "a",
        "list": [1, 2.5, None, True],
        "bytes": b"x",
    }
    np.testing.assert_array_equal(back["ids"], np.arange(3))


def test_png_loses_nothing_and_jpeg_little() -> None:
    np.testing.assert_array_equal(there_and_back(PHOTO, "png"), PHOTO)
    np.testing.assert_array_equal(there_and_back(SMOOTH, "png"), SMOOTH)
    lossy = there_and_back(PHOTO, "jpeg-90")
    assert lossy.shape == PHOTO.shape
    assert np.abs(lossy.astype(int) - PHOTO).mean() < 8
    assert framed_size(encode_payload(PHOTO, "jpeg-60")) < framed_size(encode_payload(PHOTO, "jpeg-90"))
    assert framed_size(encode_payload(PHOTO, "jpeg-90")) < PHOTO.nbytes


@pytest.mark.parametrize(("codec", "most"), [("pcm16", 1 / 32767), ("flac", 1 / 32767), ("f16", 1e-3)])
def test_sound_comes_back(codec: str, most: float) -> None:
    back = there_and_back(SOUND, codec)
    assert back.dtype == SOUND.dtype
    np.testing.assert_allclose(back, SOUND, atol=most)


def test_opus_is_small_and_as_long_as_before() -> None:
    back = there_and_back(SOUND, "opus")
    assert back.shape == SOUND.shape
    assert np.corrcoef(back, SOUND)[0, 1] > 0.95
    assert framed_size(encode_payload(SOUND, "opus")) < framed_size(encode_payload(SOUND, "pcm16")) / 4


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=6), elements=st.floats(-1e6, 1e6, width=32))
)
def test_levels_are_off_by_half_a_step_at_most(array: np.ndarray[Any, Any]) -> None:
    step = float(array.max() - array.min()) / 255
    back = there_and_back(array, "u8")
    assert back.dtype == array.dtype
    assert np.abs(back.astype(np.float64) - array).max() <= step / 2 * 1.01 + 1e-6 * np.abs(array).max()


@pytest.mark.parametrize("codec", CODECS)
def test_arrays_lie_anywhere_in_a_value(codec: str) -> None:
    back = there_and_back({"crops": [PHOTO, PHOTO], "sounds": [SOUND]}, codec)
    assert [crop.shape for crop in back["crops"]] == [PHOTO.shape] * 2
    assert back["sounds"][0].shape == SOUND.shape


@pytest.mark.parametrize("codec", ["png", "jpeg-80", "flac", "opus", "u8", "f16", "pcm16"])
def test_empty_arrays_survive(codec: str) -> None:
    for empty in (np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros((0, 0, 3), np.uint8)):
        assert there_and_back(empty, codec).shape == empty.shape


@pytest.mark.parametrize(
    "damaged",
    [
        {"compass-codec": "zip", "data": b""},
        {"compass-codec": "jpeg-80", "data": b"no image"},
        {"compass-codec": "jpeg-80"},
        {"compass-codec": "flac", "data": b"no sound", "samples": 3, "dtype": "<f4"},
        {"compass-codec": "flac", "data": b"", "samples": -1, "dtype": "<f4"},
        {"compass-codec": "f16", "data": np.zeros(2, np.float16), "dtype": "<i4"},
        {"compass-codec": "u8", "data": np.zeros(2, np.uint8), "dtype": "<f4"},
        {"compass-codec": "u8", "data": b"", "least": 0.0, "step": 1.0, "dtype": "<f4"},
    ],
)
def test_what_is_damaged_is_refused(damaged: Mapping[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"codec|damaged|data|encoded|sound|no "):
        decode_payload(damaged)


@pytest.mark.parametrize("codec", ["png", "jpeg-90", "webp-90"])
def test_grey_stays_grey(codec: str) -> None:
    assert there_and_back(SMOOTH, codec).shape == SMOOTH.shape


@pytest.mark.parametrize("codec", ["f16", "u8"])
def test_a_single_number_is_an_array_too(codec: str) -> None:
    assert there_and_back(np.array(0.5, np.float32), codec) == 0.5


def test_what_cannot_be_encoded_is_refused() -> None:
    with pytest.raises(ValueError, match="up to 65504"):
        encode_payload(np.array([1e9], np.float32), "f16")
    loud = np.array([np.nan, 1], np.float32)
    for codec in ("u8", "pcm16", "flac"):
        with pytest.raises(ValueError, match="finite"):
            encode_payload(loud, codec)


@pytest.mark.parametrize("name", ["zip", "jpeg", "jpeg-0", "jpeg-96", "webp-101", 3, True, ""])
def test_only_codecs_are_codecs(name: Any) -> None:
    with pytest.raises(ConfigError, match="is no codec"):
        check_codec(name, field="knobs.codec")


@pytest.mark.parametrize("name", [*CODECS, "jpeg-1", "jpeg-95", "webp-100"])
def test_codecs_are_known(name: str) -> None:
    check_codec(name, field="knobs.codec")
