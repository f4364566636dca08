"""Pages as a phone meets them: a few lines of a sign, a receipt or a label, photographed badly.

Every page follows from its split and index alone. The two splits share neither lines of text nor random
streams, so that the held-out pages say something about text that profiling has not seen.
"""

from __future__ import annotations

import io
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from PIL.Image import Resampling, Transpose

from compass_shared.values import Example

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.random import Generator
    from numpy.typing import NDArray

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

CORPUS = Path(__file__).with_name("corpus.txt")
HELD_OUT_EVERY = 3
"""Every third line of a section is kept for the held-out pages."""
UPSIDE_DOWN_SHARE = 0.15
LINES = (3, 3, 4, 4, 5, 6)
"""How many lines a page may have, each entry as likely as the others."""


class Split(NamedTuple):
    """One part of the input set."""

    seed: int
    pages: int
    held_out: bool


SPLITS = {
    "profiling": Split(seed=20_240, pages=200, held_out=False),
    "heldout": Split(seed=71_113, pages=100, held_out=True),
}


class Level(NamedTuple):
    """How badly a page is photographed; ranges are (low, high) of a uniform draw."""

    text_px: tuple[float, float]
    """Font size in pixels of the photograph."""
    blur_px: tuple[float, float]
    """Standard deviation of the blur."""
    noise: tuple[float, float]
    """Standard deviation of the sensor's noise, of 255."""
    tilt_deg: float
    shade: float
    """Loss of light from one side to the other."""
    contrast: tuple[float, float]
    """Distance of ink and paper, of 1."""
    jpeg_quality: int


LEVELS = {
    "clean": Level((7.5, 17), (0.2, 0.4), (1, 3), 1.0, 0.1, (0.6, 0.85), 95),
    "light": Level((8, 17), (0.3, 0.6), (2, 5), 2.5, 0.25, (0.5, 0.75), 92),
    "medium": Level((10, 19), (0.6, 1.2), (3, 7), 4.0, 0.35, (0.45, 0.7), 88),
    "heavy": Level((13, 22), (1.0, 1.6), (4, 8), 6.0, 0.45, (0.4, 0.65), 80),
}


def load(split: str, assets: Mapping[str, Path]) -> list[Example]:
    """Draw all pages of a split.

    Args:
        split: A name in ``SPLITS``.
        assets: Font files by name; without any, Pillow's own font is used.

    Returns:
        Encoded photographs with the text on them; the group is the level of degradation.
    """
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; there are {', '.join(SPLITS)}")
    fonts = [assets[name] for name in sorted(assets)]
    return [page(split, index, fonts) for index in range(SPLITS[split].pages)]


def page(split: str, index: int, fonts: Sequence[Path]) -> Example:
    """Draw one page.

    Args:
        split: A name in ``SPLITS``.
        index: From 0; levels take turns.
        fonts: Font files to draw from; may be empty.
    """
    rng = np.random.default_rng([SPLITS[split].seed, index])
    name = list(LEVELS)[index % len(LEVELS)]
    level = LEVELS[name]
    sections = _sections(held_out=SPLITS[split].held_out)
    section = sections[int(rng.integers(len(sections)))]
    lines = [section[i] for i in rng.choice(len(section), size=int(rng.choice(LINES)), replace=False)]
    font = fonts[int(rng.integers(len(fonts)))] if fonts else None
    image = _photographed(_drawn(lines, font, level, rng), level, rng)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=level.jpeg_quality)
    truth = "\n".join(line.replace("\t", " ") for line in lines)
    return Example(name=f"{split}-{index:03d}", value=encoded.getvalue(), truth=truth, group=name)


@lru_cache(maxsize=2)
def _sections(*, held_out: bool) -> tuple[tuple[str, ...], ...]:
    """Lines of each section of the corpus that belong to a split."""
    sections: list[list[str]] = []
    for line in CORPUS.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            sections.append([])
        elif line and not line.startswith("#"):
            sections[-1].append(line)
    return tuple(
        tuple(line for i, line in enumerate(lines) if (i % HELD_OUT_EVERY == 0) is held_out)
        for lines in sections
    )


@lru_cache(maxsize=256)
def _font(path: Path | None, size: int) -> Font:
    return (
        ImageFont.load_default(size)
        if path is None
        else ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
    )


def _drawn(lines: Sequence[str], path: Path | None, level: Level, rng: Generator) -> Image.Image:
    """The page itself, upright and sharp."""
    size = rng.uniform(*level.text_px)
    fonts = [_font(path, round(size * rng.choice([1.0, 1.0, 1.3]))) for _ in lines]
    widths = [_width(font, line) for font, line in zip(fonts, lines, strict=True)]
    pitch = size * rng.uniform(1.7, 2.4)
    column = max(widths)
    long_side = int(rng.choice([640, 720, 800, 960]))
    margin = 1.5 * size
    width = round(max(column + 2 * margin, long_side * rng.uniform(0.62, 0.85)))
    height = round(max(pitch * len(lines) + 2 * margin, long_side))
    paper, ink = _colours(level, rng)
    image = Image.new("RGB", (width, height), paper)
    draw = ImageDraw.Draw(image)
    left = margin + rng.random() * max(0.0, width - 2 * margin - column)
    top = margin + rng.random() * max(0.0, height - 2 * margin - pitch * len(lines))
    centred = rng.random() < 0.4 and not any("\t" in line for line in lines)
    for row, (line, font, line_width) in enumerate(zip(lines, fonts, widths, strict=True)):
        start, _, end = line.partition("\t")
        x = left + (column - line_width) / 2 if centred else left
        draw.text((x, top + row * pitch), start, fill=ink, font=font)
        if end:
            draw.text((left + column - font.getlength(end), top + row * pitch), end, fill=ink, font=font)
    return image


def _width(font: Font, line: str) -> float:
    start, _, end = line.partition("\t")
    return font.getlength(start) + (font.getlength("    " + end) if end else 0)


def _colours(level: Level, rng: Generator) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Colours of paper and ink; one page in four is light on dark."""
    contrast = rng.uniform(*level.contrast)
    dark = rng.uniform(0.02, 0.98 - contrast)
    tones = np.clip(np.array([dark + contrast, dark])[:, None] + rng.uniform(-0.04, 0.04, (2, 3)), 0, 1)
    if rng.random() < 0.25:
        tones = tones[::-1]
    paper, ink = ((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in tones)
    return paper, ink


def _photographed(image: Image.Image, level: Level, rng: Generator) -> Image.Image:
    """Tilt, blur, shade and noise, and sometimes the phone held upside down."""
    tilt = rng.uniform(-level.tilt_deg, level.tilt_deg)
    border = image.getpixel((0, 0))
    image = image.rotate(tilt, Resampling.BICUBIC, fillcolor=border)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(*level.blur_px)))
    pixels = np.asarray(image, np.float32)
    height, width = pixels.shape[:2]
    direction = rng.uniform(0, 2 * np.pi)
    slope = (
        np.cos(direction) * np.linspace(-1, 1, width)
        + np.sin(direction) * np.linspace(-1, 1, height)[:, None]
    )
    light = 1 - level.shade * (slope + np.sqrt(2)) / (2 * np.sqrt(2))
    noise = rng.uniform(*level.noise) * _grain(height, width, rng)
    exposed = pixels * light.astype(np.float32)[:, :, None] + noise[:, :, None]
    image = Image.fromarray(np.clip(exposed, 0, 255).astype(np.uint8))
    return image.transpose(Transpose.ROTATE_180) if rng.random() < UPSIDE_DOWN_SHARE else image


def _grain(height: int, width: int, rng: Generator) -> NDArray[np.float32]:
    """Noise of unit deviation whose neighbours are alike, as a camera's denoising leaves it."""
    white = rng.standard_normal((height + 1, width + 1), np.float32)
    smooth: NDArray[np.float32] = white[1:, 1:] + white[:-1, 1:] + white[1:, :-1] + white[:-1, :-1]
    smooth *= np.float32(0.5)
    return smooth
