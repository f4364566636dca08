"""Clips for an input set: somebody before a moving camera, and a hand that plays in front of them.

A clip is eight frames of 640 x 480 pixels, made of one photograph and one hand (see ``subjects``). The
camera pans, zooms and rolls, the light changes, and the hand goes its own way; all of that is known, so
landmarks are carried along. In calm clips little moves from frame to frame, in brisk ones a lot, and in
entering ones the hand comes in after some frames. The splits share no photograph, and no colour of drawn
hands.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from compass_agent.operators import HostedModel
from compass_agent.runtimes import open_runtime
from compass_shared.values import Example

from .drawn_hands import HandPicture
from .subjects import (
    SKINS,
    Networks,
    Person,
    drawn_hands,
    mirrored,
    photographed_hand,
    photographed_person,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.random import Generator

    from compass_shared.values import Value

Floats: TypeAlias = NDArray[np.float64]
Affine: TypeAlias = NDArray[np.float64]
"""``(2, 3)``: from pixels of a photograph to those of a frame."""

WIDTH, HEIGHT = 640, 480
FRAMES = 8
JPEG_QUALITY = 90
NOISE = 1.5
"""Standard deviation of the sensor's noise, of 255."""
SEEN = 0.5
"""Likelihood from which a landmark of a body counts as one that can be seen."""
SHOULDERS, HIPS = (11, 12), (23, 24)


class Level(NamedTuple):
    """How much moves in a clip."""

    pan: float
    """Of the camera, to either side, in widths of the frame."""
    zoom: float
    roll_deg: float
    hand: float
    """Way of the hand from the first frame to the last, in widths of the frame."""
    enters: tuple[int, int]
    """First frame that has the hand in it: the least, and one more than the greatest."""


LEVELS = {
    "calm": Level(pan=0.02, zoom=0.03, roll_deg=2.0, hand=0.08, enters=(0, 1)),
    "brisk": Level(pan=0.06, zoom=0.06, roll_deg=5.0, hand=0.35, enters=(0, 1)),
    "entering": Level(pan=0.03, zoom=0.03, roll_deg=2.0, hand=0.15, enters=(1, 5)),
}


class Split(NamedTuple):
    """One part of the input set."""

    seed: int
    clips: int
    people: Mapping[str, tuple[int, int, int, int] | None]
    """Asset -> the part of the photograph that is used."""
    hands: Mapping[str, str]
    """Asset -> gesture of a photographed hand."""
    skins: tuple[str, ...]


SPLITS = {
    "profiling": Split(
        seed=40_961,
        clips=24,
        people={"astronaut": None, "diner": (340, 40, 500, 190)},
        hands={"hand-fist": "fist", "hand-point": "point"},
        skins=("light", "dark"),
    ),
    "heldout": Split(
        seed=86_743,
        clips=12,
        people={"officer": None},
        hands={"hand-hook": "other"},
        skins=("tan",),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """Everybody who may be in a split's clips."""

    people: tuple[Person, ...]
    hands: tuple[HandPicture, ...]
    """Photographed ones first."""
    photographed: int


def load(split: str, assets: Mapping[str, Path]) -> list[Example]:
    """Make all clips of a split.

    Args:
        split: A name in ``SPLITS``.
        assets: Photographs, and the heaviest networks ``palm``, ``hand``, ``pose-detect`` and ``pose``.

    Returns:
        Clips of encoded frames; of each frame the truth holds ``hands`` with their ``gestures``, ``optional``
        hands, and ``pose`` as ``(33, 3)``, its last column 1 for what can be seen, with ``torso``, its size;
        all as shares of the frame's longer side. The group is the level of motion.
    """
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; there are {', '.join(SPLITS)}")
    cast = cast_of(split, assets)
    return [clip(split, index, cast) for index in range(SPLITS[split].clips)]


def cast_of(split: str, assets: Mapping[str, Path]) -> Cast:
    """Who is in a split's clips, marked by the heaviest networks where nothing better is known."""
    part = SPLITS[split]
    runtime = open_runtime("tflite")
    models = {
        name: HostedModel(runtime.load(assets[name]), {}) for name in ("palm", "hand", "pose-detect", "pose")
    }
    networks = Networks(
        palm=models["palm"], hand=models["hand"], pose_detect=models["pose-detect"], pose=models["pose"]
    )
    photographed = [photographed_hand(assets[name], shown, networks) for name, shown in part.hands.items()]
    return Cast(
        people=tuple(photographed_person(assets[name], box, networks) for name, box in part.people.items()),
        hands=(*photographed, *drawn_hands({name: SKINS[name] for name in part.skins})),
        photographed=len(photographed),
    )


def clip(split: str, index: int, cast: Cast) -> Example:
    """Make one clip.

    Args:
        split: A name in ``SPLITS``.
        index: From 0; levels, people and photographed and drawn hands take turns.
        cast: Who may be in it.
    """
    rng = np.random.default_rng([SPLITS[split].seed, index])
    name = list(LEVELS)[index % len(LEVELS)]
    person = cast.people[index // len(LEVELS) % len(cast.people)]
    # Every other round of levels has a photographed hand.
    drawn = index // (len(LEVELS) * len(cast.people)) % 2
    hands = cast.hands[cast.photographed :] if drawn else cast.hands[: cast.photographed]
    hand = hands[int(rng.integers(len(hands)))]
    hand = mirrored(hand) if rng.random() < 0.5 else hand
    camera = _camera(person.image.size, LEVELS[name], rng)
    way = _way(hand, LEVELS[name], rng)
    light = 1 + rng.uniform(-0.15, 0.15) * np.sin(np.linspace(0, math.pi, FRAMES) + rng.uniform(0, math.tau))
    frames: list[Value] = []
    truths: list[Value] = []
    for seen, placed, bright in zip(camera, way, light, strict=True):
        frames.append(_frame(person, hand, seen, placed, bright, rng))
        truths.append(_truth(person, hand, seen, placed))
    return Example(name=f"{split}-{index:02d}", value=frames, truth=truths, group=name)


def similarity(scale: float, angle: float, point: Floats, to: Floats) -> Affine:
    """Map that scales, turns clockwise and takes ``point`` to ``to``."""
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    linear = np.array([[cos, -sin], [sin, cos]])
    return np.column_stack([linear, to - linear @ point])


def carried(points: Floats, by: Affine) -> Floats:
    """Points, ``(n, 2)``, taken through a map."""
    moved: Floats = points @ by[:, :2].T + by[:, 2]
    return moved


def _camera(size: tuple[int, int], level: Level, rng: Generator) -> list[Affine]:
    """How a photograph is seen in each frame; it fills them all."""
    photo = np.array(size, float)
    # Enough to spare for the pan, and for the corners when it rolls.
    fill = max(WIDTH / photo[0], HEIGHT / photo[1]) * (1 + 2 * level.pan + level.roll_deg / 40)
    time = np.linspace(0, 1, FRAMES)
    phases = rng.uniform(0, math.tau, 4)
    waves = [np.sin(math.pi * time + phase) for phase in phases]
    centre = photo * [0.5, 0.5]
    middle = np.array([WIDTH, HEIGHT]) / 2
    return [
        similarity(
            fill * (1 + level.zoom * waves[0][i]),
            math.radians(level.roll_deg) * waves[1][i],
            centre,
            middle + level.pan * WIDTH * np.array([waves[2][i], 0.5 * waves[3][i]]),
        )
        for i in range(FRAMES)
    ]


def _way(hand: HandPicture, level: Level, rng: Generator) -> list[Affine]:
    """Where a hand is in each frame; its arm comes from below."""
    palm = float(np.linalg.norm(hand.landmarks[9] - hand.landmarks[0]))
    scale = rng.uniform(0.24, 0.30) * HEIGHT / palm
    enters = int(rng.integers(*level.enters))
    side = rng.choice([-1.0, 1.0])
    start = np.array([(0.5 + side * rng.uniform(0.27, 0.33)) * WIDTH, rng.uniform(0.82, 0.9) * HEIGHT])
    lean = rng.uniform(-0.25, 0.25)
    turn = rng.uniform(-0.2, 0.2)
    way = []
    for frame in range(FRAMES):
        time = (frame - enters) / (FRAMES - 1)
        x = start[0] - side * level.hand * WIDTH * time
        # Before it enters it is out of sight below; then it is there within a frame.
        y = start[1] + (HEIGHT if frame < enters else 0.02 * HEIGHT * math.sin(6 * time))
        way.append(similarity(scale, lean + turn * time, hand.landmarks[0], np.array([x, y])))
    return way


def _frame(
    person: Person, hand: HandPicture, seen: Affine, placed: Affine, bright: float, rng: Generator
) -> bytes:
    image = _warped(person.image, seen)
    cut = Image.fromarray(hand.pixels, "RGBA")
    front = _warped(cut, placed)
    image.paste(front, mask=front.getchannel("A"))
    noise = NOISE * rng.standard_normal((HEIGHT, WIDTH, 1), np.float32)
    pixels = np.clip(np.asarray(image, np.float32) * np.float32(bright) + noise, 0, 255).astype(np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG", quality=JPEG_QUALITY)
    return encoded.getvalue()


def _warped(image: Image.Image, by: Affine) -> Image.Image:
    back = np.linalg.inv(np.vstack([by, [0, 0, 1]]))[:2]
    coefficients = tuple(float(number) for number in back.reshape(-1))
    return image.transform(
        (WIDTH, HEIGHT), Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BICUBIC
    )


def _truth(person: Person, hand: HandPicture, seen: Affine, placed: Affine) -> dict[str, Value]:
    own = [carried(landmarks, seen) for landmarks in person.hands]
    shown = carried(hand.landmarks, placed)
    wanted = bool(_inside(shown).all())
    optional = [landmarks for landmarks in own if _inside(landmarks).any()]
    if not wanted and _inside(shown).any():
        optional.append(shown)
    pose = carried(person.pose[:, :2], seen)
    counts = np.logical_and.reduce([person.pose[:, 2] >= SEEN, _inside(pose), ~_covered(pose, shown)])
    torso = np.linalg.norm(pose[list(SHOULDERS)].mean(axis=0) - pose[list(HIPS)].mean(axis=0))
    return {
        "hands": [_share(shown)] if wanted else [],
        "gestures": [hand.gesture] if wanted else [],
        "optional": [_share(landmarks) for landmarks in optional],
        "pose": np.hstack([_share(pose), counts[:, None].astype(np.float32)]),
        "torso": float(torso) / max(WIDTH, HEIGHT),
    }


def _inside(points: Floats) -> NDArray[np.bool_]:
    return _between(points, np.zeros(2), np.array([WIDTH, HEIGHT]))


def _covered(points: Floats, hand: Floats) -> NDArray[np.bool_]:
    """Which points are behind a hand, judged by the box around it."""
    return _between(points, hand.min(axis=0), hand.max(axis=0))


def _between(points: Floats, low: Floats, high: Floats) -> NDArray[np.bool_]:
    between: NDArray[np.bool_] = np.all([points >= low, points <= high], axis=(0, 2))
    return between


def _share(points: Floats) -> NDArray[np.float32]:
    return (points / max(WIDTH, HEIGHT)).astype(np.float32)
