"""Who and what the clips show: people in photographs, and hands from photographs or drawn.

Truth is of three kinds. Landmarks of a drawn hand and the gesture of every hand are known. Landmarks of a
photographed hand or body are a proxy: what the heaviest networks say of the sharp, whole photograph, each
started over from its own answer until the cut is a good one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from compass_shared.values import State

from . import operators
from .drawn_hands import SHOWN, HandPicture, draw

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from compass_shared.values import Model

Floats: TypeAlias = NDArray[np.float64]

ROUNDS = 3
"""Times that the heaviest networks look at a photograph."""
SKIN_CHROMA = 0.115
"""Share of red over blue in the sum of the colours that tells the photographed hands from their pale wall."""
PALM_PX = 150
SKINS = {"light": (226, 176, 146), "tan": (196, 140, 104), "dark": (128, 84, 62)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """A photograph of somebody."""

    image: Image.Image
    pose: Floats
    """``(33, 3)``: pixels, and how likely each can be seen."""
    hands: tuple[Floats, ...]
    """``(21, 2)`` each: hands that the networks see; finding them is neither asked for nor wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Networks:
    """The heaviest variants."""

    palm: Model
    hand: Model
    pose_detect: Model
    pose: Model


def photographed_person(path: Path, box: tuple[int, int, int, int] | None, networks: Networks) -> Person:
    """A person whose pose the networks say.

    Args:
        path: The photograph.
        box: Left, top, right and bottom of the part that is used.
        networks: What marks the landmarks.

    Raises:
        ValueError: If they find nobody.
    """
    image = Image.open(path).convert("RGB")
    image = image.crop(box) if box else image
    frame = np.asarray(image)
    detecting, following = State(), State()
    pose = None
    for _ in range(ROUNDS):
        detected = operators.pose_detect({"prepare": frame}, {"stride": 1}, networks.pose_detect, detecting)
        pose = operators.pose({"prepare": frame, "pose-detect": detected}, {}, networks.pose, following)
    if pose is None:
        raise ValueError(f"nobody is found in {path.name}")
    scale = [max(image.size), max(image.size), 1.0]
    return Person(image=image, pose=pose * np.array(scale), hands=tuple(_hands(frame, networks)))


def photographed_hand(path: Path, gesture: str, networks: Networks) -> HandPicture:
    """A hand before a pale wall, cut out.

    Raises:
        ValueError: If the networks do not find exactly one.
    """
    image = Image.open(path).convert("RGB")
    colours = np.asarray(image, np.float32)
    chroma = (colours[:, :, 0] - colours[:, :, 2]) / (colours.sum(axis=2) + 1)
    mask = Image.fromarray(np.uint8(255) * (chroma > SKIN_CHROMA)).filter(ImageFilter.MedianFilter(9))
    # What the wall encloses is hand, pale creases too; a corner belongs to the wall.
    ImageDraw.floodfill(mask, (0, 0), 128)
    mask = mask.point([0 if level == 128 else 255 for level in range(256)])
    mask = mask.filter(ImageFilter.MinFilter(3)).filter(ImageFilter.GaussianBlur(1.2))
    found = _hands(np.asarray(image), networks)
    if len(found) != 1:
        raise ValueError(f"{len(found)} hands are found in {path.name}, there is one")
    pixels = np.dstack([np.asarray(image), np.asarray(mask)])
    return HandPicture(pixels=pixels, landmarks=found[0], gesture=gesture)


def drawn_hands(skins: Mapping[str, tuple[int, int, int]]) -> list[HandPicture]:
    """Every gesture in every colour."""
    return [
        draw(gesture, palm_px=PALM_PX, skin=skin, seed=index)
        for index, skin in enumerate(skins.values())
        for gesture in SHOWN
    ]


def mirrored(picture: HandPicture) -> HandPicture:
    """The same hand as a mirror shows it."""
    width = picture.pixels.shape[1]
    return HandPicture(
        pixels=np.ascontiguousarray(picture.pixels[:, ::-1]),
        landmarks=picture.landmarks * [-1, 1] + [width, 0],
        gesture=picture.gesture,
    )


def _hands(frame: NDArray[np.uint8], networks: Networks) -> list[Floats]:
    detecting, following = State(), State()
    hands: list[NDArray[np.float32]] = []
    for _ in range(ROUNDS):
        detected = operators.palm({"prepare": frame}, {"stride": 1}, networks.palm, detecting)
        hands = operators.hand({"prepare": frame, "palm": detected}, {}, networks.hand, following)
    return [landmarks[:, :2].astype(np.float64) * max(frame.shape) for landmarks in hands]
