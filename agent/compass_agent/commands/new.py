"""``compass-agent new``: start a bundle from an ONNX model and a folder of inputs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from compass_agent.commands.shared import Command
from compass_agent.scaffold import NewBundle, shape_of, write_bundle
from compass_shared.errors import ConfigError, ModelLoadError
from compass_shared.new_options import add_new_options


def add_parser(command: Command) -> None:
    """Add ``new``."""
    parser = command("new", "start a bundle from an ONNX model and a folder of inputs")
    add_new_options(parser)
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
