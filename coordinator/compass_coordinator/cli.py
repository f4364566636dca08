"""``compass``: run the demo or the coordinator, plan from files, submit and withdraw queries."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from compass_shared import __version__
from compass_shared.errors import CompassError, ConfigError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

_EXTRAS = {
    "scipy": "coordinator",
    "sklearn": "coordinator",
    "rich": "coordinator",
    "iotcore": "demo",
    "PIL": "demo",
}
"""Module -> extra that brings it."""

_COMMANDS = {
    "new": "start a pipeline's bundle from an ONNX model and a folder of inputs",
    "demo": "run a whole fleet on this machine and compare plans",
    "coordinator": "run the coordinator of a fleet",
    "plan": "plan a fleet from files, without running anything",
    "profile": "measure a pipeline's accuracies; compare and merge profiles",
    "query": "submit or withdraw a query in the name of a device",
    "schema": "print the JSON Schema of a file that Compass reads or writes",
}

_EXAMPLES = """\
examples:
  compass new tilt --model tilt.onnx --inputs pictures
  compass demo
  compass demo --app driving
  compass demo --seconds 30 --json demo.json
  compass coordinator --broker mqtt://192.0.2.1 --bundle examples/read_text
  compass plan --pipeline examples/read_text --fleet examples/read_text/fleet.toml --profiles measured.json
  cd examples/what_if/driving  # a fleet on paper, see the README.md there
  compass plan --pipeline pipeline.toml --fleet fleet.toml --profiles profiles.json \\
      --accuracy accuracy.json --explain inspect-2
  compass plan --pipeline pipeline.toml --fleet fleet.toml --profiles profiles.json \\
      --accuracy accuracy.json --objective cost
  cd examples/what_if/inspection
  compass plan --pipeline pipeline.toml --fleet fleet.toml --profiles profiles.json \\
      --accuracy accuracy.json --provision --goodput 0.99
  compass profile examples/read_text
  compass profile diff before.json after.json
  compass profile merge monday.json tuesday.json --out both.json
  compass schema fleet
  compass query submit kitchen --broker mqtt://192.0.2.1 --origin phone --pipeline read-text \\
      --rate 0.5 --latency 0.8 --accuracy 0.9 --cost 0.05
  compass query withdraw kitchen --broker mqtt://192.0.2.1 --origin phone

exit codes: 0 all well, 1 it failed, 2 wrong usage or a wrong file, 130 interrupted;
  plan --objective cost: 1 also if some query cannot be served; profile diff: 1 if they differ
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        args = _parser(arguments).parse_args(arguments)
        logging.basicConfig(
            level=logging.DEBUG if args.verbose else logging.WARNING,
            format="%(asctime)s %(name)s %(levelname)s %(message)s",
            stream=sys.stderr,
        )
        code: int = args.run(args)
        sys.stdout.flush()
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is not None and "demo" in arguments[:2]:
            extra = "demo"
        if extra is None:
            raise
        print(
            f"compass: this needs {error.name}, which a bare agent does not install: "
            f"pip install 'compass-agent[{extra}]'",
            file=sys.stderr,
        )
        return EXIT_USAGE
    except ConfigError as error:
        print(f"compass: {error}", file=sys.stderr)
        return EXIT_USAGE
    except CompassError as error:
        print(f"compass: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # whoever reads has seen enough: compass plan ... | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    return code


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="compass",
        description="Plans compound AI pipelines over devices, edge servers and the cloud.",
        epilog=_EXAMPLES,
        formatter_class=text,
    )
    parser.add_argument("--version", action="version", version=f"compass {__version__}")
    parser.add_argument("--verbose", action="store_true", help="log what happens")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    named = next((word for word in arguments if not word.startswith("-")), None)
    for name, summary in _COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, description=summary, epilog=_EXAMPLES, formatter_class=text
        )
        if name == named:
            # Only the command that is meant is imported: --help works without any extra.
            module = importlib.import_module(f"compass_coordinator.commands.{name}")
            if name == "profile":  # its first word is an action or a bundle
                module.add_options(command, arguments[arguments.index(name) + 1 :])
            else:
                module.add_options(command)
    return parser
