"""Material for a first pipeline: a small ONNX model and pictures of lines of text, upright and turned.

    python examples/first_steps/material.py FOLDER

The model tells whether a line of text stands on its head. It is read-text's, fetched through the model store;
the pictures are drawn here, the same ones every time.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter, ImageFont

from compass_agent.models import ModelStore
from compass_shared.model_cache import ModelCache, default_cache_dir
from compass_shared.pipeline_file import load_pipeline
from compass_shared.resources import data_folder

LINES = 30
"""Of each class."""
WORDS = "harbour window letter market bridge yellow paper garden winter number silver kitchen doctor island"


def main() -> None:
    """Write model and pictures into the folder that the command line names."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python examples/first_steps/material.py FOLDER")
    folder = Path(sys.argv[1])
    read_text = data_folder("examples") / "read_text"
    store = ModelStore(ModelCache(default_cache_dir(os.environ)))
    model = store.fetch(load_pipeline(read_text).models["cls"], name="cls", base=read_text)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(model, folder / "model.onnx")
    rng = random.Random(7)  # noqa: S311  # pictures, not secrets
    for index in range(LINES):
        upright = _line(rng)
        _save(upright, folder / "pictures" / "upright" / f"{index:02d}.png")
        _save(_line(rng).rotate(180), folder / "pictures" / "turned" / f"{index:02d}.png")
    print(f"{folder}/model.onnx and {2 * LINES} pictures in {folder}/pictures")


def _line(rng: random.Random) -> Image.Image:
    """Two short words on paper, cut out closely, more or less out of focus."""
    font = ImageFont.load_default(size=48)
    text = " ".join(rng.sample(WORDS.split(), 2))
    left, top, right, bottom = font.getbbox(text)
    size = (round(right - left) + 12, round(bottom - top) + 12)
    picture = Image.new("RGB", size, (rng.randint(200, 255),) * 3)
    ImageDraw.Draw(picture).text((6 - left, 6 - top), text, fill=(rng.randint(0, 90),) * 3, font=font)
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 4)))


def _save(picture: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


if __name__ == "__main__":
    main()
