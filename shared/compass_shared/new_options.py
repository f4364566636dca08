"""Options of ``compass new`` and ``compass-agent new``: the former hands them to the latter."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

NORMALISE = ("imagenet", "signed", "unit")
"""How pixels in [0, 1] become what a model takes."""

_SIZE = re.compile(r"([1-9]\d{0,3})x([1-9]\d{0,3})")


def add_new_options(parser: argparse.ArgumentParser) -> None:
    """Add them to a parser."""
    parser.add_argument("name", metavar="NAME", help="of the pipeline and of the folder that is made")
    parser.add_argument("--model", type=Path, required=True, metavar="FILE", help="ONNX, of one input")
    parser.add_argument(
        "--inputs",
        type=Path,
        required=True,
        metavar="DIR",
        help="pictures or .npy files; sub-folders, if there are any, are their labels",
    )
    parser.add_argument("--to", type=Path, metavar="DIR", help="make the folder in here (default: .)")
    parser.add_argument(
        "--labels", metavar="A,B,...", help="classes in the model's order (default: the sub-folders, sorted)"
    )
    parser.add_argument("--size", type=_size, metavar="WxH", help="of the model's pictures, if it takes any")
    parser.add_argument(
        "--normalise",
        choices=NORMALISE,
        default="unit",
        help="pixels in [0, 1], in [-1, 1], or by ImageNet's mean and deviation (default: %(default)s)",
    )
    parser.add_argument("--bgr", action="store_true", help="the model takes blue first")


def words_of(args: argparse.Namespace) -> list[str]:
    """What was parsed, as words of a command line again."""
    words = [args.name, "--model", str(args.model), "--inputs", str(args.inputs)]
    if args.size is not None:
        words += ["--size", "{}x{}".format(*args.size)]
    for name in ("to", "labels", "normalise"):
        if (value := getattr(args, name)) is not None:
            words += [f"--{name}", str(value)]
    return words + (["--bgr"] if args.bgr else [])


def _size(text: str) -> tuple[int, int]:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, as in 224x224")
    return int(match[1]), int(match[2])
