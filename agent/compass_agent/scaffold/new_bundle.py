"""Writing the files of a new bundle."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compass_agent.bundle_code import code_sha256_of, function_of, import_folder
from compass_agent.scaffold.model_shape import ModelShape
from compass_agent.scaffold.texts import FLEET, PIPELINE, README, SETTINGS
from compass_agent.scaffold.trial import try_bundle
from compass_shared.errors import ConfigError
from compass_shared.names import is_name
from compass_shared.resources import data_folder

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
ARRAYS = (".npy",)
MAX_INPUTS = 2_000
MAX_INPUT_BYTES = 1 << 30
LEAST_INPUTS = 4
"""Fewer say nothing, and may leave no held-out one."""
NORMALISATIONS = {
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "signed": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""How pixels in [0, 1] become what a model takes: mean and deviation of each channel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBundle:
    """What a new bundle is made of."""

    name: str
    """Of the pipeline, ``[a-z0-9-]``."""
    model: Path
    inputs: Path
    """Folder of pictures or .npy files; its sub-folders, if it has any, are their labels."""
    shape: ModelShape
    labels: tuple[str, ...] = ()
    """In the order of the model's output; empty: the sub-folders in alphabetical order."""
    size: tuple[int, int] | None = None
    """Width and height, in place of what the model declares."""
    normalise: str = "unit"
    blue_first: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """The inputs that are there."""

    files: tuple[Path, ...]
    """Relative to their folder."""
    pictures: bool
    labels: tuple[str, ...]
    """Sub-folders that hold them; empty if they lie in the folder itself."""


def write_bundle(new: NewBundle, folder: Path) -> None:
    """Write a bundle that can be profiled at once.

    Args:
        new: What of.
        folder: Where to; it must not exist.

    Raises:
        ConfigError: If something does not fit, or the folder is there; nothing is left of it then.
    """
    if not is_name(new.name):
        raise ConfigError(f"{new.name!r} must match [a-z0-9-]{{1,64}}", field="NAME")
    if folder.exists():
        raise ConfigError(f"{folder} is there already; remove it or choose another name", field="NAME")
    found = _found(new)
    try:
        folder.mkdir(parents=True)
        _write(new, found, folder)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise ConfigError(f"cannot be written: {error.strerror}", file=folder) from error
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write(new: NewBundle, found: _Found, folder: Path) -> None:
    templates = data_folder("examples") / "new"
    operators = "operators.py" if found.pictures else "array_operators.py"
    shutil.copyfile(templates / operators, folder / "operators.py")
    shutil.copyfile(templates / "data.py", folder / "data.py")
    (folder / "__init__.py").write_text(f'"""The pipeline {new.name}."""\n', encoding="utf-8")
    shutil.copyfile(new.model, folder / "model.onnx")
    for file in found.files:
        (folder / "inputs" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(new.inputs / file, folder / "inputs" / file)
    width, height = new.size or (new.shape.width, new.shape.height)
    mean, std = NORMALISATIONS[new.normalise]
    settings = SETTINGS.format(
        width=width,
        height=height,
        channels=new.shape.channels,
        channels_first=new.shape.channels_first,
        whole_numbers=new.shape.whole_numbers,
        mean=mean[: new.shape.channels],
        std=std[: new.shape.channels],
        blue_first=new.blue_first,
        batched=new.shape.batched,
        rank=new.shape.rank,
        dtype=new.shape.dtype,
        output=json.dumps(new.shape.output, ensure_ascii=False),
        labels=_python(new.labels or found.labels),
        labelled=bool(found.labels),
    )
    (folder / "settings.py").write_text(settings, encoding="utf-8")
    held_out = _held_out(folder, found)
    scores = "accuracy" if found.labels else "agreement"
    pipeline = PIPELINE.format(
        name=new.name,
        metric=scores,
        profiling=len(found.files) - held_out,
        heldout=held_out,
        knobs=_IMAGE_KNOBS if found.pictures else _ARRAY_KNOBS,
        sha256=_sha256(new.model),
        size_bytes=new.model.stat().st_size,
    )
    (folder / "pipeline.toml").write_text(pipeline, encoding="utf-8")
    (folder / "fleet.toml").write_text(FLEET.format(name=new.name), encoding="utf-8")
    (folder / "README.md").write_text(README.format(name=new.name, metric=scores), encoding="utf-8")
    try_bundle(folder)


_IMAGE_KNOBS = """\
scale = [1.0, 0.5]
codec = ["raw", "jpeg-90", "jpeg-50"]"""
_ARRAY_KNOBS = 'codec = ["raw", "f16", "u8"]'


def _found(new: NewBundle) -> _Found:
    """The inputs, checked.

    Raises:
        ConfigError: If there are none, too many, of several kinds, or labels that do not fit.
    """
    if not new.inputs.is_dir():
        raise ConfigError(f"{new.inputs} is no folder", field="--inputs")
    files = sorted(path for path in new.inputs.rglob("*") if path.suffix.lower() in (*PICTURES, *ARRAYS))
    kinds = {path.suffix.lower() in PICTURES for path in files}
    if len(files) < LEAST_INPUTS:
        raise ConfigError(
            f"has {len(files)} inputs ({', '.join((*PICTURES, *ARRAYS))}); {LEAST_INPUTS} are the least",
            field="--inputs",
        )
    if len(kinds) > 1:
        raise ConfigError("has pictures and arrays; give it inputs of one kind", field="--inputs")
    total_bytes = sum(path.stat().st_size for path in files)
    if len(files) > MAX_INPUTS or total_bytes > MAX_INPUT_BYTES:
        raise ConfigError(
            f"has {len(files)} inputs of {total_bytes / 1e6:.0f} MB; {MAX_INPUTS} and "
            f"{MAX_INPUT_BYTES / 1e6:.0f} MB are the most: a sample is enough to profile with",
            field="--inputs",
        )
    pictures = kinds == {True}
    if pictures and not new.shape.picture:
        raise ConfigError(
            "has pictures, but the model's input is not (batch, channels, height, width) or (batch, height, "
            "width, channels); give it .npy files of what the model takes",
            field="--inputs",
        )
    relative = tuple(path.relative_to(new.inputs) for path in files)
    folders = sorted({path.parent.as_posix() for path in relative})
    labels = () if folders == ["."] else tuple(folders)
    _check_labels(new, labels)
    return _Found(files=relative, pictures=pictures, labels=labels)


def _check_labels(new: NewBundle, folders: Sequence[str]) -> None:
    if "." in folders:
        raise ConfigError("has inputs both in sub-folders and beside them", field="--inputs")
    if folders and new.labels and (unknown := sorted(set(folders) - set(new.labels))):
        raise ConfigError(f"does not name {unknown[0]!r}, a folder of inputs", field="--labels")
    labels, classes = new.labels or tuple(folders), new.shape.classes
    if labels and classes is not None and len(labels) != classes:
        raise ConfigError(
            f"there are {len(labels)} labels and the model tells {classes} classes apart; name all of them "
            "in its order with --labels",
            field="--labels",
        )


def _held_out(folder: Path, found: _Found) -> int:
    """How many inputs the bundle's own code holds out."""
    package = import_folder(folder, "new", code_sha256_of(folder))
    held_out = function_of(package, ".data:held_out", folder, "inputs")
    count = sum(bool(held_out(file.as_posix())) for file in found.files)
    if not 0 < count < len(found.files):
        raise ConfigError(
            f"{len(found.files)} inputs are too few: {count} of them would be held out", field="--inputs"
        )
    return count


def _python(labels: Sequence[str]) -> str:
    inner = ", ".join(json.dumps(label, ensure_ascii=False) for label in labels)
    return f"({inner},)" if labels else "()"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
