"""What is known of everything on the road: its kind, its place, how fast it comes, and whether to warn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .camera import ground_of
from .risk import is_risk

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from compass_shared.values import Value

MEMORY = 6
"""Frames over which growth is taken."""
DOUBTFUL = 0.6
"""Under this score of the detector, the classifier is asked whether there is anything at all."""
MIN_SUPPORT = 0.05
"""Least probability of its group that something doubtful needs from the classifier."""


@dataclass(slots=True)
class Seen:
    """One track over time."""

    kind: str = ""
    support: float = -1.0
    """Best of all looks; negative before the first."""
    frames: list[int] = field(default_factory=list)
    heights: list[float] = field(default_factory=list)
    """Of its box, frame by frame."""

    def closing(self) -> float:
        """Share of the distance that it comes nearer in one frame.

        What comes nearer grows as its distance shrinks: the slope of the logarithm of its height.
        """
        if len(self.frames) < 3:
            return 0.0
        time = np.array(self.frames, np.float64)
        time -= time.mean()
        return float(time @ np.log(self.heights) / (time @ time))


@dataclass(slots=True)
class Watch:
    """All tracks of one stream."""

    frame: int = 0
    seen: dict[int, Seen] = field(default_factory=dict)

    def advance(
        self, tracks: Mapping[str, Any], looks: Iterable[Mapping[str, Any]], frames: int = 1
    ) -> dict[str, Value]:
        """Take in the next frame.

        Args:
            tracks: As ``track`` returns them.
            looks: As ``classify`` returns them.
            frames: How many frames later it is than the last one.

        Returns:
            ``boxes``, ``groups``, ``kinds``, ``risks`` and ``tracks`` of what is believed to be there.
        """
        self.frame += frames
        for look in looks:
            one = self.seen.setdefault(look["track"], Seen())
            if look["support"] > one.support:
                one.kind, one.support = look["kind"], look["support"]
        boxes = np.asarray(tracks["boxes"], np.float64).reshape(-1, 4)
        across, ahead = ground_of(boxes)
        kinds, risks, keep = [], [], []
        for index, (number, group) in enumerate(zip(tracks["tracks"], tracks["groups"], strict=True)):
            one = self.seen.setdefault(number, Seen())
            self._remember(one, float(boxes[index, 3] - boxes[index, 1]))
            z = float(ahead[index])
            kinds.append(one.kind or group)
            risks.append(is_risk(group, float(across[index]), z, one.closing() * z))
            if not (tracks["scores"][index] < DOUBTFUL and 0 <= one.support < MIN_SUPPORT):
                keep.append(index)
        return {
            "boxes": boxes[keep].astype(np.float32),
            "groups": [tracks["groups"][index] for index in keep],
            "kinds": [kinds[index] for index in keep],
            "risks": [risks[index] for index in keep],
            "tracks": [tracks["tracks"][index] for index in keep],
        }

    def _remember(self, one: Seen, height: float) -> None:
        one.frames.append(self.frame)
        one.heights.append(max(height, 1e-4))
        while one.frames[0] <= self.frame - MEMORY:
            one.frames.pop(0)
            one.heights.pop(0)
