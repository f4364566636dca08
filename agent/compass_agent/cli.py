"""``compass-agent``: run an agent or a worker, probe this machine, manage models, measure accuracy."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from compass_agent.commands import accuracy, measure, new, probe, serve
from compass_agent.models import cli as models_cli
from compass_shared import __version__
from compass_shared.errors import CompassError, ConfigError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

_EXAMPLES = """\
examples:
  compass-agent probe
  compass-agent probe --bundle examples/read_text --emulate phone-midrange --json
  compass-agent run --name phone --broker mqtt://192.0.2.1 --bundle examples/read_text
  compass-agent worker --name edge --broker mqtt://192.0.2.1 --bundle examples/read_text --listen 0.0.0.0:8470
  compass-agent accuracy examples/read_text --split profiling --out accuracy.json
  compass-agent models fetch examples/read_text
  compass-agent new tilt --model tilt.onnx --inputs pictures

exit codes: 0 all well, 1 it failed, 2 wrong usage or a wrong file, 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = _parser().parse_args(argv)
    logging.basicConfig(
        level=logging.DEBUG if args.verbose else logging.WARNING,
        format="%(asctime)s %(name)s %(levelname)s %(message)s",
        stream=sys.stderr,
    )
    try:
        code: int = args.run(args)
    except ConfigError as error:
        print(f"compass-agent: {error}", file=sys.stderr)
        return EXIT_USAGE
    except CompassError as error:
        print(f"compass-agent: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return code


def _parser() -> argparse.ArgumentParser:
    text = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="compass-agent",
        description="Runs the operators of compound AI pipelines on this machine, as its coordinator plans.",
        epilog=_EXAMPLES,
        formatter_class=text,
    )
    parser.add_argument("--version", action="version", version=f"compass-agent {__version__}")
    parser.add_argument("--verbose", action="store_true", help="log what happens")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, summary: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=summary, description=summary, epilog=_EXAMPLES, formatter_class=text
        )

    serve.add_parsers(command)
    probe.add_parser(command)
    accuracy.add_parser(command)
    measure.add_parser(command)
    new.add_parser(command)
    models_cli.add_parser(commands)
    commands.choices["models"].set_defaults(run=models_cli.run)
    return parser
