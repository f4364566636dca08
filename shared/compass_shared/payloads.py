"""Codecs of payloads: how an operator's output is written down before it may cross a link.

A codec is a knob like any other (``codec_knob`` in pipeline.toml). What it loses, it loses wherever the next
operator runs, or accuracy would depend on the placement. It works on every array inside a value, however
deep in lists and maps, that it is made for; other values pass unchanged.

========== ============================== =====================================================
codec      arrays                         what it does
========== ============================== =====================================================
``raw``    all                            nothing
``f16``    float                          half precision
``u8``     float                          256 levels between the least and the greatest number
``png``    uint8 images                   lossless
``jpeg-Q`` uint8 images                   quality Q, 1 to 95
``webp-Q`` uint8 images                   quality Q, 1 to 100
``pcm16``  float sound in [-1, 1]         16 bits a sample
``flac``   float sound in [-1, 1]         16 bits a sample, packed without further loss
``opus``   float sound in [-1, 1], 16 kHz lossy, by libsndfile's default rate
========== ============================== =====================================================

Images are ``(height, width, 3)`` RGB or ``(height, width)`` grey, sound is one-dimensional. Images need
Pillow and packed sound needs soundfile: the extra ``media``.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from compass_shared.errors import ConfigError
from compass_shared.values import KnobValue, Value

if TYPE_CHECKING:
    from compass_shared.values import Array

RAW = "raw"
SOUND_RATE_HZ = 16_000
"""Rate at which packed sound is written down; the array itself has none."""
MAX_SAMPLES = 100_000_000
"""Most pixels or samples that a packed array may unfold to."""

_MARK = "compass-codec"
_PLAIN = (RAW, "f16", "u8", "png", "pcm16", "flac", "opus")
_GRADED = re.compile(r"(jpeg|webp)-([1-9][0-9]?|100)")
_IMAGE_DIMENSIONS = (2, 3)
_MAX_JPEG = 95
"""Above this JPEG grows without looking better."""


def check_codec(name: KnobValue, *, field: str) -> None:
    """Refuse what names no codec.

    Raises:
        ConfigError: Naming the field.
    """
    graded = _GRADED.fullmatch(name) if isinstance(name, str) else None
    if name in _PLAIN or (graded and not (graded[1] == "jpeg" and int(graded[2]) > _MAX_JPEG)):
        return
    known = ", ".join((*_PLAIN, f"jpeg-1 to jpeg-{_MAX_JPEG}", "webp-1 to webp-100"))
    raise ConfigError(f"{name!r} is no codec; there are {known}", field=field)


def encode_payload(value: Value, codec: str) -> Value:
    """Write a value down with a codec.

    Args:
        value: What an operator made.
        codec: One that ``check_codec`` accepts.

    Raises:
        ValueError: If an array is not what the codec is made for in range or shape.
        ModuleNotFoundError: If its library is not installed.
    """
    if codec == RAW:
        return value
    kind, _, grade = codec.partition("-")
    encode = _ENCODERS[kind]

    def encoded(array: Array) -> Value:
        data = encode(array, int(grade or 0))
        return array if data is None else {_MARK: codec, **data}

    return _mapped(value, encoded)


def decode_payload(value: Value) -> Value:
    """The value that was written down; what was not is passed through.

    Raises:
        ValueError: If it is damaged.
        ModuleNotFoundError: If its library is not installed.
    """
    if isinstance(value, Mapping):
        if isinstance(codec := value.get(_MARK), str):
            decode = _DECODERS.get(codec.partition("-")[0])
            if decode is None:
                raise ValueError(f"{codec!r} is no codec")
            return decode(value)
        return {name: decode_payload(item) for name, item in value.items()}
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value):
        return [decode_payload(item) for item in value]
    return value


def _mapped(value: Value, change: Callable[[Array], Value]) -> Value:
    if isinstance(value, np.ndarray):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _mapped(item, change) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(item, change) for item in value]
    return value


# --- numbers ------------------------------------------------------------------------------------------------


def _to_f16(array: Array, _: int) -> dict[str, Value] | None:
    if array.dtype.kind != "f":
        return None
    with np.errstate(over="ignore"):
        halves = np.asarray(array, np.float16)
    if np.isinf(halves).any() and not np.isinf(array).any():
        raise ValueError(f"f16 takes numbers up to {np.finfo(np.float16).max:g}")
    return {"data": halves, "dtype": array.dtype.str}


def _from_f16(value: Mapping[str, Value]) -> Value:
    return _array(value).astype(_float(value))


def _to_u8(array: Array, _: int) -> dict[str, Value] | None:
    if array.dtype.kind != "f":
        return None
    numbers = np.asarray(array, np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError("u8 takes finite numbers")
    least = float(numbers.min()) if numbers.size else 0.0
    step = (float(numbers.max()) - least) / 255 if numbers.size else 0.0
    levels = np.asarray(np.round((numbers - least) / (step or 1.0)), np.uint8)
    return {"data": levels, "least": least, "step": step, "dtype": array.dtype.str}


def _from_u8(value: Mapping[str, Value]) -> Value:
    numbers = _array(value).astype(np.float64) * _number(value, "step") + _number(value, "least")
    return cast("Value", numbers.astype(_float(value)))


# --- images -------------------------------------------------------------------------------------------------


def _to_image(form: str) -> Callable[[Array, int], dict[str, Value] | None]:
    def encode(array: Array, quality: int) -> dict[str, Value] | None:
        if array.dtype != np.uint8 or array.ndim not in _IMAGE_DIMENSIONS or 0 in array.shape:
            return None
        if array.ndim == _IMAGE_DIMENSIONS[-1] and array.shape[2] != 3:
            return None
        from PIL import Image  # noqa: PLC0415  # an extra

        buffer = io.BytesIO()
        options: dict[str, Any] = {"quality": quality} if quality else {}
        Image.fromarray(array).save(buffer, form, **options)
        return {"data": buffer.getvalue(), "grey": array.ndim == _IMAGE_DIMENSIONS[0]}

    return encode


def _from_image(value: Mapping[str, Value]) -> Value:
    from PIL import Image  # noqa: PLC0415

    try:
        with Image.open(io.BytesIO(_bytes(value)), formats=("PNG", "JPEG", "WEBP")) as image:
            if image.width * image.height > MAX_SAMPLES:
                raise ValueError(f"an image of {image.width} x {image.height} is too large")
            # WebP has no grey; that the image had none of the others is in the file.
            return np.asarray(image.convert("L") if value.get("grey") else image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"a damaged image: {error}") from error


# --- sound --------------------------------------------------------------------------------------------------


def _samples(array: Array) -> Array | None:
    """16-bit samples, None if the array is no sound."""
    if array.dtype.kind != "f" or array.ndim != 1:
        return None
    if not np.isfinite(array).all():
        raise ValueError("sound is made of finite numbers")
    return np.round(np.clip(np.asarray(array, np.float64), -1, 1) * 32767).astype(np.int16)


def _to_pcm16(array: Array, _: int) -> dict[str, Value] | None:
    samples = _samples(array)
    return None if samples is None else {"data": samples, "dtype": array.dtype.str}


def _from_pcm16(value: Mapping[str, Value]) -> Value:
    return cast("Value", (_array(value) / np.float64(32767)).astype(_float(value)))


def _to_sound(form: str, subtype: str) -> Callable[[Array, int], dict[str, Value] | None]:
    def encode(array: Array, _: int) -> dict[str, Value] | None:
        samples = _samples(array)
        if samples is None or not samples.size:
            return None
        import soundfile  # noqa: PLC0415  # an extra

        buffer = io.BytesIO()
        soundfile.write(buffer, samples, SOUND_RATE_HZ, format=form, subtype=subtype)
        return {"data": buffer.getvalue(), "dtype": array.dtype.str, "samples": int(samples.size)}

    return encode


def _from_sound(value: Mapping[str, Value]) -> Value:
    import soundfile  # noqa: PLC0415

    stated = int(_number(value, "samples"))
    if not 0 <= stated <= MAX_SAMPLES:
        raise ValueError(f"a sound of {stated} samples is too long")
    try:
        # A lossy codec may pad its end: what was put in says how much of it is wanted.
        samples, _ = soundfile.read(io.BytesIO(_bytes(value)), frames=stated, dtype="int16")
    except soundfile.LibsndfileError as error:
        raise ValueError(f"a damaged sound: {error}") from error
    if samples.shape != (stated,):
        raise ValueError(f"a sound of {samples.shape} samples where {stated} were written")
    return cast("Value", (samples / np.float64(32767)).astype(_float(value)))


def _array(value: Mapping[str, Value]) -> Array:
    data = value.get("data")
    if not isinstance(data, np.ndarray):
        raise ValueError("an encoded array has no data")  # noqa: TRY004
    return data


def _bytes(value: Mapping[str, Value]) -> bytes:
    data = value.get("data")
    if not isinstance(data, bytes):
        raise ValueError("an encoded array has no data")  # noqa: TRY004
    return data


def _number(value: Mapping[str, Value], name: str) -> float:
    number = value.get(name)
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise ValueError(f"an encoded array has no {name}")  # noqa: TRY004
    return number


def _float(value: Mapping[str, Value]) -> np.dtype[Any]:
    name = value.get("dtype")
    if name not in {"<f2", "<f4", "<f8"}:
        raise ValueError(f"an encoded array is of {name!r}")
    return np.dtype(str(name))


_ENCODERS: Mapping[str, Callable[[Array, int], dict[str, Value] | None]] = {
    "f16": _to_f16,
    "u8": _to_u8,
    "png": _to_image("PNG"),
    "jpeg": _to_image("JPEG"),
    "webp": _to_image("WEBP"),
    "pcm16": _to_pcm16,
    "flac": _to_sound("FLAC", "PCM_16"),
    "opus": _to_sound("OGG", "OPUS"),
}
_DECODERS: Mapping[str, Callable[[Mapping[str, Value]], Value]] = {
    "f16": _from_f16,
    "u8": _from_u8,
    "png": _from_image,
    "jpeg": _from_image,
    "webp": _from_image,
    "pcm16": _from_pcm16,
    "flac": _from_sound,
    "opus": _from_sound,
}
