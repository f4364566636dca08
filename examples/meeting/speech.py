"""Speech from phonemes, to build the input set with: a Piper voice, at several pitches."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from compass_agent.runtimes import LoadedModel, open_runtime

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Sound: TypeAlias = NDArray[np.float32]

Line: TypeAlias = tuple[str, str]
"""Who speaks, and what."""

RATE_HZ = 16_000
SPEAKERS = {"anna": 1.14, "ben": 1.0, "carl": 0.92, "dora": 1.2}
"""How much higher than the voice's own somebody speaks: the one voice there is, at another pitch."""
PHONEMES = Path(__file__).with_name("phonemes.txt")


def spoken(lines: Iterable[Line], assets: Mapping[str, Path]) -> dict[Line, Sound]:
    """Speak lines of text; the same ones sound the same every time.

    Args:
        lines: Names in ``SPEAKERS``, and sentences of phonemes.txt.
        assets: ``voice`` and ``voice-config``.

    Returns:
        ``(samples,) float32`` in [-1, 1] at 16 kHz for every line.

    Raises:
        ValueError: Naming the sentence that phonemes.txt lacks.
    """
    voice = open_runtime("onnx").load(assets["voice"])
    config = json.loads(assets["voice-config"].read_text("utf-8"))
    said = {}
    for who, text in lines:
        pitch = SPEAKERS[who]
        sound = _voiced(phonemes_of(text), pitch, voice, config["phoneme_id_map"])
        # Played faster it is higher; the voice spoke slower by as much.
        said[who, text] = resampled(sound, round(config["audio"]["sample_rate"] * pitch))
    return said


def phonemes_of(text: str) -> str:
    """A sentence in the phonetic alphabet, with its punctuation.

    Raises:
        ValueError: If phonemes.txt lacks it.
    """
    try:
        return _pronounced()[text]
    except KeyError:
        raise ValueError(f"{PHONEMES.name} has no {text!r}") from None


def resampled(sound: NDArray[Any], rate_hz: int) -> Sound:
    """Bring sound to 16 kHz, by its spectrum."""
    size = round(len(sound) * RATE_HZ / rate_hz)
    spectrum = np.fft.rfft(sound)[: size // 2 + 1]
    return (np.fft.irfft(spectrum, size) * (size / len(sound))).astype(np.float32)


@lru_cache(maxsize=1)
def _pronounced() -> dict[str, str]:
    lines = PHONEMES.read_text("utf-8").splitlines()
    pairs = (line.partition("\t") for line in lines if not line.startswith("#"))
    return {text: phonemes for text, _, phonemes in pairs}


def _voiced(
    phonemes: str, pitch: float, voice: LoadedModel, numbers: Mapping[str, list[int]]
) -> NDArray[Any]:
    """A Piper voice: every phoneme is followed by a pad; without noise, so that it is always the same."""
    ids = [*numbers["^"], *numbers["_"]]
    for phoneme in phonemes:
        ids += [*numbers.get(phoneme, []), *numbers["_"]]
    ids += numbers["$"]
    scales = np.array([0, pitch, 0], np.float32)
    feed = {"input": np.array([ids]), "input_lengths": np.array([len(ids)]), "scales": scales}
    (sound,) = voice.run(feed).values()
    return sound.ravel()
