"""``compass-agent new``: start a bundle from an ONNX model and a folder of inputs."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from compass_agent.commands.shared import Command
from compass_agent.scaffold import NewBundle, shape_of, write_bundle
from compass_agent.scaffold.new_bundle import NORMALISATIONS
from compass_shared.errors import ConfigError, ModelLoadError

_SIZE = re.compile(r"([1-9]\d{0,3})x([1-9]\d{0,3})")


def add_parser(command: Command) -> None:
    """Add ``new``."""
    add_options(command("new", "start a bundle from an ONNX model and a folder of inputs"))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("name", metavar="NAME", help="of the pipeline and of the folder that is made")
    parser.add_argument(
        "--model", type=Path, required=True, metavar="FILE", help="an ONNX model of one input"
    )
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
        choices=sorted(NORMALISATIONS),
        default="unit",
        help="pixels in [0, 1], in [-1, 1], or by ImageNet's mean and deviation (default: %(default)s)",
    )
    parser.add_argument("--bgr", action="store_true", help="the model takes blue first")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the bundle and say what comes next.

    Raises:
        ConfigError: If the model, the inputs or the name are of no use.
    """
    from compass_agent.runtimes.onnx import signature  # noqa: PLC0415  # half a second, for this command alone

    if not args.model.is_file():
        raise ConfigError(f"{args.model} is no file", field="--model")
    try:
        shape = shape_of(*signature(args.model))
    except ModelLoadError as error:
        raise ConfigError(str(error), field="--model") from error
    folder = (args.to or Path()) / args.name
    new = NewBundle(
        name=args.name,
        model=args.model,
        inputs=args.inputs,
        shape=shape,
        labels=tuple(args.labels.split(",")) if args.labels else (),
        size=args.size,
        normalise=args.normalise,
        blue_first=args.bgr,
    )
    write_bundle(new, folder)
    print(f"{folder} is a bundle. Next:")
    speeds = folder / "profile" / "speeds.json"
    print(f"  compass profile {folder} --speeds {speeds}")
    print(f"  compass plan --pipeline {folder} --fleet {folder / 'fleet.toml'} --profiles {speeds}")
    if shape.picture and args.size is None:
        print(f"pictures are resized to {shape.width}x{shape.height}; settings.py says how", file=sys.stderr)
    return 0


def _size(text: str) -> tuple[int, int]:
    match = _SIZE.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, as in 224x224")
    return int(match[1]), int(match[2])
