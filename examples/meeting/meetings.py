"""Short meetings as streams of sound: people talk, pause, and ask; some of it in a noisy room.

A clip is a list of hops of one second. Its speech is synthetic but for a few recordings of people; noise is
babble, mixed from what others say elsewhere. Everything follows from scripts.txt, the split and a seed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import soundfile

from compass_shared.values import Example, Value

from .speech import Line, resampled, spoken

if TYPE_CHECKING:
    from numpy.random import Generator

    from .speech import Sound

RATE_HZ = 16_000
HOP_S = 1.0
PAUSE_S = (0.8, 1.3)
"""Least and greatest silence between two utterances."""
LEAD_S, TAIL_S = 0.5, 1.2
"""Silence at the start, and at the end, where the last utterance has to be seen to be over."""
LEVEL = 0.06
"""Effective value of speech, of 1."""
FLOOR = 0.0005
"""Of the room's noise that is always there."""
FRAME = 512
"""Samples whose power is one."""
BABBLERS = 8
GATE, FADE_S = 0.02, 0.2
"""What is left of the babble in pauses, as conference microphones do it, and how fast it fades."""
SNR_DB: Mapping[str, float | None] = {"clean": None, "babble-10": 10.0, "babble-5": 5.0}
"""Group -> power of the speech over that of the babble."""
SEEDS = {"profiling": 5_150, "heldout": 8_086}
SCRIPTS = Path(__file__).with_name("scripts.txt")

_HEADING = re.compile(r"\[(?P<split>\w+) (?P<name>[\w-]+)\]")
_LINE = re.compile(
    r"(?P<who>[\w.]+)(?: \[(?P<start>[\d.]+) - (?P<end>[\d.]+)\])?: (?P<text>.+?)(?: -> (?P<answer>.+))?"
)


class Utterance(NamedTuple):
    """One line of a script."""

    who: str
    text: str
    answer: str | None
    """The passage that answers it, if it is a question."""
    part_s: tuple[float, float] | None
    """Which part of a recording it is."""


class Script(NamedTuple):
    """What is said in one meeting."""

    name: str
    split: str
    utterances: tuple[Utterance, ...]

    @property
    def recorded(self) -> bool:
        """Whether a person speaks in it."""
        return any(utterance.part_s is not None for utterance in self.utterances)


def load(split: str, assets: Mapping[str, Path]) -> list[Example]:
    """Make all clips of a split.

    A script of synthetic voices is one clip, at the three levels of noise in turn; those with recordings are
    a clip at every level.

    Args:
        split: A name in ``SEEDS``.
        assets: What ``speech.spoken`` needs, and recordings by their names without ``.wav``.

    Returns:
        Lists of ``(16000,) int16``, with what ends in each hop as truth; the group is the level of noise.
    """
    scripts = [script for script in read_scripts(SCRIPTS.read_text("utf-8")) if script.split == split]
    if not scripts:
        raise ValueError(f"no split {split!r}; there are {', '.join(SEEDS)}")
    voices = _voices(scripts, assets)
    groups = list(SNR_DB)
    examples, turn = [], 0
    for number, script in enumerate(scripts):
        if not script.recorded:
            turn += 1
        others = [voices[u] for other in scripts if other is not script for u in other.utterances]
        for group in groups if script.recorded else [groups[(turn - 1) % len(groups)]]:
            rng = np.random.default_rng([SEEDS[split], number, groups.index(group)])
            examples.append(_clip(script, voices, others, group, rng))
    return examples


def read_scripts(text: str) -> list[Script]:
    """Read scripts.txt.

    Raises:
        ValueError: Naming the line that is no heading and no utterance.
    """
    scripts: list[tuple[str, str, list[Utterance]]] = []
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        heading, found = _HEADING.fullmatch(line), _LINE.fullmatch(line)
        if heading:
            scripts.append((heading["name"], heading["split"], []))
        elif found and scripts:
            part_s = (float(found["start"]), float(found["end"])) if found["start"] else None
            scripts[-1][2].append(Utterance(found["who"], found["text"], found["answer"], part_s))
        else:
            raise ValueError(f"{line!r} is neither '[split name]' nor 'voice: text -> answer'")
    return [Script(name, split, tuple(utterances)) for name, split, utterances in scripts]


def babble(voices: Sequence[Sound], samples: int, rng: Generator) -> Sound:
    """Several people at once, of the effective value 1.

    Args:
        voices: What they say; each babbler says a random one after the other.
        samples: Length.
        rng: Source of chance.
    """
    crowd = np.zeros(samples, np.float32)
    for _ in range(BABBLERS):
        said: list[Sound] = []
        while sum(map(len, said)) < 2 * samples:
            said.append(voices[int(rng.integers(len(voices)))])
        start = int(rng.integers(samples))
        crowd += np.concatenate(said)[start : start + samples]
    return np.asarray(crowd / np.sqrt(np.mean(crowd**2)), np.float32)


def gate(samples: int, starts: Sequence[int], ends: Sequence[int]) -> Sound:
    """What the microphone's noise gate lets through: all while somebody speaks into it, else ``GATE``."""
    fade = round(FADE_S * RATE_HZ)
    places = [
        place
        for start, end in zip(starts, ends, strict=True)
        for place in (start - fade, start, end, end + fade)
    ]
    return np.interp(np.arange(samples), places, [GATE, 1, 1, GATE] * len(starts)).astype(np.float32)


def active_level(sound: Sound) -> float:
    """Effective value of what is not silence: of the frames within 30 dB of the loudest."""
    frames = sound[: len(sound) // FRAME * FRAME].reshape(-1, FRAME)
    power = np.mean(frames**2, axis=1)
    return float(np.sqrt(power[power > power.max() / 1000].mean()))


def _voices(scripts: Sequence[Script], assets: Mapping[str, Path]) -> dict[Utterance, Sound]:
    """What every utterance sounds like, all equally loud."""
    synthetic: list[Line] = [(u.who, u.text) for s in scripts for u in s.utterances if u.part_s is None]
    said = spoken(synthetic, assets)
    voices = {}
    for script in scripts:
        for utterance in script.utterances:
            sound = (
                said[utterance.who, utterance.text] if utterance.part_s is None else _part(utterance, assets)
            )
            voices[utterance] = sound * np.float32(LEVEL / active_level(sound))
    return voices


def _part(utterance: Utterance, assets: Mapping[str, Path]) -> Sound:
    assert utterance.part_s is not None
    sound, rate_hz = soundfile.read(assets[utterance.who.removesuffix(".wav")], dtype="float32")
    start, end = (round(second * rate_hz) for second in utterance.part_s)
    return resampled(sound[start:end], rate_hz)


def _clip(
    script: Script, voices: Mapping[Utterance, Sound], others: Sequence[Sound], group: str, rng: Generator
) -> Example:
    pieces, at = [_silence(LEAD_S)], round(LEAD_S * RATE_HZ)
    starts, ends = list[int](), list[int]()
    for utterance in script.utterances:
        pause = _silence(float(rng.uniform(*PAUSE_S)))
        pieces += [voices[utterance], pause]
        starts.append(at)
        at += len(voices[utterance])
        ends.append(at)
        at += len(pause)
    hop = round(HOP_S * RATE_HZ)
    spoken_so_far = np.concatenate([*pieces, _silence(TAIL_S)])
    hops = -(-len(spoken_so_far) // hop)
    sound = np.zeros(hops * hop, np.float32)
    sound[: len(spoken_so_far)] = spoken_so_far
    sound += FLOOR * rng.standard_normal(len(sound)).astype(np.float32)
    snr_db = SNR_DB[group]
    if snr_db is not None:
        room = LEVEL * np.float32(10 ** (-snr_db / 20)) * babble(others, len(sound), rng)
        sound += room * gate(len(sound), starts, ends)
    samples = np.round(np.clip(sound, -1, 1) * 32767).astype(np.int16)
    truth: list[Value] = [
        [_truth(u) for u, end in zip(script.utterances, ends, strict=True) if end // hop == index]
        for index in range(hops)
    ]
    values: list[Value] = list(samples.reshape(hops, hop))
    return Example(f"{script.name}-{group}", values, truth, group)


def _truth(utterance: Utterance) -> dict[str, Value]:
    return {"text": utterance.text, "answer": utterance.answer}


def _silence(seconds: float) -> Sound:
    return np.zeros(round(seconds * RATE_HZ), np.float32)
