"""Speech to text: Whisper and Moonshine, greedily decoded, over any pair of encoder and decoder models."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Sound: TypeAlias = NDArray[np.float32]
    Arrays: TypeAlias = Mapping[str, NDArray[Any]]
    Run: TypeAlias = Callable[[Arrays], dict[str, NDArray[Any]]]
    """A model: arrays by name in, arrays by name out."""

RATE_HZ = 16_000
FRAME = 400
"""Samples that a spectrum looks at."""
HOP = 160
MELS = 80
WINDOW_S = 30.0
"""What Whisper was trained to look at."""
MARGIN_S = 6.0
"""Silence behind the speech, where less than the whole window is looked at."""
TOKENS_PER_S = 8.0
SPARE_TOKENS = 8
HEAD_SIZE = 64
MOONSHINE_START, MOONSHINE_END = 1, 2
MOONSHINE_LAYERS, MOONSHINE_HEADS, MOONSHINE_HEAD_SIZE = 6, 8, 36
LEAST_S = 0.25
"""Shorter sounds hold no word; the encoders need some length."""
_ENGLISH_AND_OTHERS = 51_865
"""Tokens from which a Whisper is one of many languages and has to be told which."""


class Vocabulary(NamedTuple):
    """What a Whisper's tokens mean and how it is asked."""

    tokens: tuple[str, ...]
    prompt: tuple[int, ...]
    end: int
    never: NDArray[np.intp]
    """Tokens that are no speech."""
    not_first: NDArray[np.intp]


def whisper_text(sound: Sound, *, encode: Run, decode: Run, vocabulary: Vocabulary) -> str:
    """What Whisper hears.

    Args:
        sound: ``(samples,) float32`` in [-1, 1] at ``RATE_HZ``, at most ``WINDOW_S`` long.
        encode: The encoder: mel spectrum to keys and values.
        decode: The decoder: one token after the other.
        vocabulary: Of that model.
    """
    seconds = min(WINDOW_S, len(sound) / RATE_HZ + MARGIN_S)
    seen = encode({"mel": log_mel(sound, seconds)[None]})
    heads = seen["seen_key_0"].shape[1]
    layers = sum(name.startswith("seen_key_") for name in seen)
    empty = np.zeros((1, heads, 0, HEAD_SIZE), np.float32)
    past = {f"{kind}_{layer}": empty for kind in ("key", "value") for layer in range(layers)}
    ids, said = list(vocabulary.prompt), list[int]()
    for _ in range(most_tokens(len(sound))):
        out = decode({"ids": np.array([ids]), **past, **seen})
        scores = out.pop("scores")[0]
        scores[vocabulary.never] = -np.inf
        if not said:
            scores[vocabulary.not_first] = -np.inf
        best = int(scores.argmax())
        if best == vocabulary.end:
            break
        said.append(best)
        ids = [best]
        past = {name.removeprefix("next_"): array for name, array in out.items()}
    return byte_text([vocabulary.tokens[token] for token in said])


def moonshine_text(sound: Sound, *, encode: Run, decode: Run, tokens: Sequence[str]) -> str:
    """What Moonshine hears; arguments as of ``whisper_text``."""
    everything = np.ones((1, len(sound)), np.int64)
    states = encode({"input_values": sound[None], "attention_mask": everything})["last_hidden_state"]
    # The decoder thins the mask of the samples out itself.
    feed = {"encoder_hidden_states": states, "encoder_attention_mask": everything}
    empty = np.zeros((1, MOONSHINE_HEADS, 0, MOONSHINE_HEAD_SIZE), np.float32)
    kinds = [f"{side}.{kind}" for side in ("decoder", "encoder") for kind in ("key", "value")]
    past = {f"past_key_values.{layer}.{kind}": empty for layer in range(MOONSHINE_LAYERS) for kind in kinds}
    last, said = MOONSHINE_START, list[int]()
    for _ in range(most_tokens(len(sound))):
        cached = np.array([bool(said)])
        out = decode({**feed, **past, "input_ids": np.array([[last]]), "use_cache_branch": cached})
        last = int(out["logits"][0, -1].argmax())
        if last == MOONSHINE_END:
            break
        for name in past:
            # What it attends to in the sound is made by the first call alone.
            if not said or ".decoder." in name:
                past[name] = out[name.replace("past_key_values", "present")]
        said.append(last)
    return piece_text([tokens[token] for token in said])


def most_tokens(samples: int) -> int:
    """Where decoding ends at the latest: nobody speaks faster."""
    return SPARE_TOKENS + round(TOKENS_PER_S * samples / RATE_HZ)


def log_mel(sound: Sound, seconds: float) -> NDArray[np.float32]:
    """Whisper's features: logarithms of a mel spectrum over four decades, about in [-1, 1].

    Args:
        sound: ``(samples,)`` at ``RATE_HZ``.
        seconds: Length that it is cut or padded with silence to.

    Returns:
        ``(MELS, frames) float32``, a hundred frames a second, an even number of them.
    """
    frames = 2 * round(seconds * RATE_HZ / HOP / 2)
    padded = np.zeros(frames * HOP, np.float32)
    padded[: len(sound)] = sound[: len(padded)]
    padded = np.pad(padded, FRAME // 2, mode="reflect")
    pieces = np.lib.stride_tricks.sliding_window_view(padded, FRAME)[::HOP][:frames]
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / FRAME)).astype(np.float32)
    power = np.abs(np.fft.rfft(pieces * window, axis=1)) ** 2
    logs = np.log10(np.maximum(mel_filters() @ power.T, 1e-10))
    return np.asarray((np.maximum(logs, logs.max() - 8) + 4) / 4, np.float32)


@lru_cache(maxsize=1)
def mel_filters() -> NDArray[np.float64]:
    """``(MELS, FRAME // 2 + 1)``: triangles on Slaney's mel scale, each of area one."""
    hertz = mel_to_hertz(np.linspace(0, hertz_to_mel(RATE_HZ / 2), MELS + 2))
    bins = np.arange(FRAME // 2 + 1) * RATE_HZ / FRAME
    rising = (bins - hertz[:-2, None]) / (hertz[1:-1] - hertz[:-2])[:, None]
    falling = (hertz[2:, None] - bins) / (hertz[2:] - hertz[1:-1])[:, None]
    filters = np.maximum(0, np.minimum(rising, falling))
    return np.asarray(filters * (2 / (hertz[2:] - hertz[:-2]))[:, None])


_MEL_HERTZ = 200 / 3
_BEND_HERTZ, _BEND_MEL = 1000.0, 15.0
_STEP = np.log(6.4) / 27


def hertz_to_mel(hertz: float) -> float:
    """Slaney's scale: straight up to 1 kHz, logarithmic above."""
    if hertz < _BEND_HERTZ:
        return hertz / _MEL_HERTZ
    return _BEND_MEL + float(np.log(hertz / _BEND_HERTZ)) / float(_STEP)


def mel_to_hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse of ``hertz_to_mel``."""
    return np.where(mel < _BEND_MEL, mel * _MEL_HERTZ, _BEND_HERTZ * np.exp(_STEP * (mel - _BEND_MEL)))


@lru_cache(maxsize=4)
def whisper_vocabulary(tokens: Path, config: Path) -> Vocabulary:
    """Read the files beside a Whisper in CTranslate2's format: tokens as a list or one a line."""
    text = tokens.read_text("utf-8")
    names = tuple(json.loads(text)) if text.startswith("[") else tuple(text.rstrip("\n").split("\n"))
    stated = json.loads(config.read_text("utf-8"))
    index = {name: position for position, name in enumerate(names)}
    asked = ["<|startoftranscript|>", "<|notimestamps|>"]
    if len(names) >= _ENGLISH_AND_OTHERS:
        asked[1:1] = ["<|en|>", "<|transcribe|>"]
    end = index["<|endoftext|>"]
    never = {*stated["suppress_ids"], *range(end + 1, len(names))}
    return Vocabulary(
        tokens=names,
        prompt=tuple(index[name] for name in asked),
        end=end,
        never=np.array(sorted(never)),
        not_first=np.array(stated["suppress_ids_begin"]),
    )


@lru_cache(maxsize=2)
def moonshine_tokens(path: Path) -> tuple[str, ...]:
    """Tokens by number, of a ``tokenizer.json``."""
    vocabulary: dict[str, int] = json.loads(path.read_text("utf-8"))["model"]["vocab"]
    named = {number: token for token, number in vocabulary.items()}
    return tuple(named.get(number, "") for number in range(max(named) + 1))


def byte_text(tokens: Sequence[str]) -> str:
    """Text of byte-level tokens, as GPT-2 writes them: every byte is a printable character."""
    letters = _byte_of_letter()
    return bytes(letters[letter] for letter in "".join(tokens)).decode("utf-8", "replace").strip()


def piece_text(tokens: Sequence[str]) -> str:
    """Text of pieces that mark a space with a low line, and bytes without a piece as ``<0x2A>``."""
    out = bytearray()
    for token in tokens:
        if token.startswith("<0x") and token.endswith(">"):
            out.append(int(token[3:-1], 16))
        elif not (token.startswith("<") and token.endswith(">")):
            out += token.replace("\u2581", " ").encode()
    return out.decode("utf-8", "replace").strip()


@lru_cache(maxsize=1)
def _byte_of_letter() -> dict[str, int]:
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
