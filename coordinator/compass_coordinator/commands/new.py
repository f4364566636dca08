"""``compass new``: start a bundle; ``compass-agent new`` in a process of its own does it.

Bundles are code and models, and those are the agent's business: neither side imports the other.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

AGENT = "compass_agent"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command; the agent checks what they say."""
    parser.add_argument("name", metavar="NAME", help="of the pipeline and of the folder that is made")
    parser.add_argument("--model", required=True, metavar="FILE", help="ONNX, of one input")
    parser.add_argument(
        "--inputs",
        required=True,
        metavar="DIR",
        help="pictures or .npy files; sub-folders, if there are any, are their labels",
    )
    parser.add_argument("--to", metavar="DIR", help="make the folder in here (default: .)")
    parser.add_argument(
        "--labels", metavar="A,B,...", help="classes in the model's order (default: the sub-folders, sorted)"
    )
    parser.add_argument("--size", metavar="WxH", help="of the model's pictures, if it takes any")
    parser.add_argument("--normalise", metavar="HOW", help="unit, signed or imagenet (default: unit)")
    parser.add_argument("--bgr", action="store_true", help="the model takes blue first")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Have the agent do it; its exit code is this one's."""
    options = [args.name, "--model", args.model, "--inputs", args.inputs]
    for name in ("to", "labels", "size", "normalise"):
        if (value := getattr(args, name)) is not None:
            options += [f"--{name}", value]
    options += ["--bgr"] if args.bgr else []
    return subprocess.run([sys.executable, "-m", AGENT, "new", *options], check=False).returncode
