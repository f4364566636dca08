"""Cheap numbers that say what inputs are like: what strata are made of.

A bundle may bring its own function; otherwise each type of value has a few, and nothing is decoded for them:
of a JPEG the size and the quality are read from its header.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from compass_shared.errors import ConfigError
from compass_shared.values import Example, Value

MAX_FEATURES = 64
_LOOKED_AT_BYTES = 1 << 18
"""How much of a value its compressibility is taken of."""

Features = tuple[float, ...]


def features_of(
    examples: Sequence[Example], own: Callable[[Value], Any] | None = None, *, sequences: bool = False
) -> list[Features]:
    """Features of every input, finite and as many for each.

    Args:
        examples: The inputs.
        own: The bundle's ``inputs.features``, from an input's value (of a clip a list) to numbers.
        sequences: Whether inputs are clips: without ``own`` they have the means of their requests' features.

    Raises:
        ConfigError: The bundle's function failed, or gave what is no such features; names the input.
    """
    if own is not None:
        found = [_own(own, example) for example in examples]
        for example, numbers in zip(examples, found, strict=True):
            if len(numbers) != len(found[0]):
                raise _wrong(example, f"{len(numbers)} numbers, {len(found[0])} of {examples[0].name!r}")
        return found
    look = _of_clip if sequences else default_features
    found = [look(example.value)[:MAX_FEATURES] for example in examples]
    longest = max(map(len, found), default=0)
    return [numbers + (0.0,) * (longest - len(numbers)) for numbers in found]


def _of_clip(value: Value) -> Features:
    """How long a clip is, and what its requests are like on average."""
    assert isinstance(value, Sequence)
    each = [default_features(one) for one in value]
    alike = [numbers for numbers in each if len(numbers) == len(each[0])]
    return (_log(len(each)), *(float(mean) for mean in np.mean(alike, axis=0)))


def default_features(value: Value) -> Features:
    """What is known of a value at a glance, by its type; finite."""
    if isinstance(value, np.ndarray):
        return _of_array(value)
    if isinstance(value, bytes):
        return (_log(len(value)), _compressibility(value), *image_header(value))
    if isinstance(value, str):
        words = value.split()
        return (_log(len(value)), _log(len(words)), _compressibility(value.encode(errors="replace")))
    if isinstance(value, Mapping):
        parts = [default_features(value[name]) for name in sorted(value)]
        return tuple(number for part in parts for number in part)
    if isinstance(value, Sequence):
        return (_log(len(value)),)
    number = float(value or 0.0)
    return (number if math.isfinite(number) else 0.0,)


def image_header(content: bytes) -> Features:
    """Width, height and quantisation of an encoded image, ``()`` if it is no PNG or JPEG.

    The quantisation is the mean of a JPEG's first table, large where the quality is low; 0 of a PNG.
    """
    if content[:8] == b"\x89PNG\r\n\x1a\n" and len(content) >= 24:
        sides = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
        return (*map(_log, sides), 0.0)
    return _jpeg_header(content) if content[:2] == b"\xff\xd8" else ()


def _jpeg_header(content: bytes) -> Features:
    """Walk over the segments that come before the image itself (ITU-T T.81, annex B)."""
    at, quantisation = 2, 0.0
    while at + 9 <= len(content) and content[at] == 0xFF:
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        if marker == 0xDB and not quantisation:
            kind, size = (">u2", 128) if content[at + 4] >> 4 else ("u1", 64)
            table = content[at + 5 : at + 5 + size]
            quantisation = float(np.frombuffer(table, kind).mean()) if len(table) == size else 0.0
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = (int.from_bytes(content[at + i : at + i + 2], "big") for i in (5, 7))
            return (_log(width), _log(height), quantisation)
        at += 2 + length
    return ()


def _of_array(array: np.ndarray[Any, Any]) -> Features:
    shape = tuple(map(_log, array.shape))
    numbers = array[np.isfinite(array)].astype(np.float64)
    if not numbers.size:
        return (*shape, 0.0, 0.0)
    with np.errstate(over="ignore", invalid="ignore"):  # of huge numbers, which say nothing then
        summary = (float(numbers.mean()), float(numbers.std()))
    return (*shape, *(number if math.isfinite(number) else 0.0 for number in summary))


def _compressibility(content: bytes) -> float:
    looked_at = content[:_LOOKED_AT_BYTES]
    return len(zlib.compress(looked_at, 1)) / len(looked_at) if looked_at else 0.0


def _log(count: int) -> float:
    """Sizes spread over magnitudes."""
    return math.log1p(count)


def _own(own: Callable[[Value], Any], example: Example) -> Features:
    try:
        numbers = tuple(float(number) for number in own(example.value))
    except Exception as error:  # code of a bundle, which may raise anything
        raise _wrong(example, f"{type(error).__name__}: {error}") from error
    if len(numbers) > MAX_FEATURES or not all(map(math.isfinite, numbers)):
        raise _wrong(example, f"up to {MAX_FEATURES} finite numbers are expected, got {numbers!r:.100}")
    return numbers


def _wrong(example: Example, problem: str) -> ConfigError:
    return ConfigError(f"features of input {example.name!r}: {problem}", field="inputs.features")
