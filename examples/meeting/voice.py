"""Where in a stream of sound somebody speaks: the utterances that ended, out of hop after hop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Sound: TypeAlias = NDArray[np.float32]
    Run: TypeAlias = Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]

RATE_HZ = 16_000
FRAME = 512
"""Samples that get one probability of speech: 32 ms."""
CONTEXT = 64
"""Samples before a frame that the detector looks at too."""
MEMORY = 128
STARTS_AT, GOES_ON_AT = 0.5, 0.35
"""Probabilities of speech: a start needs more than what keeps it going."""
END_FRAMES = 16
"""Frames without speech that end an utterance: 0.5 s."""
LEAD_FRAMES, TRAIL_FRAMES = 6, 4
"""Frames kept before the first one and behind the last one with speech: soft sounds."""
LEAST_FRAMES = 8
"""Frames with speech that make an utterance; fewer are a click."""
MOST_FRAMES = 469
"""Where an utterance is cut although it goes on: 15 s."""


@dataclass(slots=True)
class Listener:
    """What is known of a stream so far."""

    short: NDArray[Any] = field(default_factory=lambda: np.zeros((1, 1, MEMORY), np.float32))
    long: NDArray[Any] = field(default_factory=lambda: np.zeros((1, 1, MEMORY), np.float32))
    context: Sound = field(default_factory=lambda: np.zeros(CONTEXT, np.float32))
    rest: Sound = field(default_factory=lambda: np.zeros(0, np.float32))
    """Samples that do not fill a frame yet."""
    frames: list[Sound] = field(default_factory=list)
    """Of the open utterance; before it begins, the latest ones."""
    heard: int = 0
    """Frames with speech in the open utterance; 0 if nobody speaks."""
    silent: int = 0
    """Frames without speech since the last one with it."""
    at: int = 0
    """Frames of the stream so far."""

    def listen(self, sound: Sound, run: Run) -> list[tuple[int, Sound]]:
        """Take in the next hop.

        Args:
            sound: Samples that follow those of the last hop.
            run: The detector.

        Returns:
            First frame and sound of every utterance that ended in it.
        """
        samples = np.concatenate([self.rest, sound])
        count = len(samples) // FRAME
        frames = samples[: count * FRAME].reshape(count, FRAME)
        self.rest = samples[count * FRAME :]
        if not count:
            return []
        ended = (
            self._take(frame, float(p)) for frame, p in zip(frames, self._detect(frames, run), strict=True)
        )
        return [utterance for utterance in ended if utterance is not None]

    def _detect(self, frames: NDArray[np.float32], run: Run) -> NDArray[Any]:
        """Probability of speech in every frame."""
        before = np.concatenate([self.context[None], frames[:-1, -CONTEXT:]])
        out = run({"input": np.concatenate([before, frames], axis=1), "h": self.short, "c": self.long})
        self.short, self.long, self.context = out["hn"], out["cn"], frames[-1, -CONTEXT:]
        return out["speech_probs"].reshape(-1)

    def _take(self, frame: Sound, probability: float) -> tuple[int, Sound] | None:
        self.at += 1
        self.frames.append(frame)
        if probability >= (GOES_ON_AT if self.heard else STARTS_AT):
            self.heard += 1
            self.silent = 0
        elif self.heard:
            self.silent += 1
        else:
            del self.frames[:-LEAD_FRAMES]
        over = self.silent >= END_FRAMES or len(self.frames) >= MOST_FRAMES
        return self._close() if self.heard and over else None

    def _close(self) -> tuple[int, Sound] | None:
        first = self.at - len(self.frames)
        kept = len(self.frames) - max(0, self.silent - TRAIL_FRAMES)
        sound = np.concatenate(self.frames[:kept])
        speech = self.heard >= LEAST_FRAMES
        # What follows a cut starts where it was cut; what follows silence may start softly.
        self.frames = self.frames[-LEAD_FRAMES:] if self.silent else []
        self.heard = self.silent = 0
        return (first, sound) if speech else None
