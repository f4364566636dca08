"""``compass plan``: what a fleet that exists in files alone would do."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from compass_coordinator.commands.files import add_accuracy_z, load_planned
from compass_coordinator.commands.plan_text import (
    explanation_text,
    plan_text,
    provision_text,
    served_in_part,
    unserved_text,
)
from compass_coordinator.commands.progress import busy_with
from compass_coordinator.item_counts import ItemCount, with_items
from compass_coordinator.measurements import load_measurements
from compass_coordinator.plan_document import describe_plan
from compass_coordinator.planner.policy import POLICIES
from compass_coordinator.planning import FleetPlan, FleetProvision, plan_fleet, provision_fleet
from compass_coordinator.planning.explanation import Explanation, explain_choice
from compass_coordinator.planning.provision_fleet import sized
from compass_coordinator.what_if import problem_from
from compass_shared.errors import ConfigError
from compass_shared.fleet_file import Fleet, load_fleet
from compass_shared.problem import Problem

EXIT_UNSERVED = 1
"""``--objective cost`` was asked for, and not every query can be served."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument(
        "--pipeline",
        action="append",
        type=Path,
        required=True,
        metavar="DIR",
        help="bundle or pipeline.toml; repeat it for more (models and code are not needed)",
    )
    parser.add_argument("--fleet", type=Path, required=True, metavar="FILE", help="fleet.toml")
    parser.add_argument(
        "--profiles",
        action="append",
        type=Path,
        required=True,
        metavar="FILE",
        help="what agents measured, or figures that you wrote down (docs/formats.md); repeatable",
    )
    parser.add_argument(
        "--accuracy",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="in place of a bundle's own table; repeatable",
    )
    add_accuracy_z(parser)
    parser.add_argument(
        "--policy", choices=sorted(POLICIES), default="compass", help="placements to consider"
    )
    parser.add_argument(
        "--objective",
        choices=("goodput", "cost"),
        default="goodput",
        help="goodput: serve as much weight as possible, then cheaply; cost: the cheapest way to serve "
        "everything, exit code 1 if that cannot be done (default: %(default)s)",
    )
    parser.add_argument(
        "--provision",
        action="store_true",
        help="find the cheapest numbers of units, for sites that come in units, and plan on those",
    )
    parser.add_argument(
        "--goodput",
        type=_share,
        metavar="SHARE",
        help="with --provision: share of the queries' weight to serve (default: 1)",
    )
    parser.add_argument(
        "--items",
        action="append",
        type=_item_count,
        default=[],
        metavar="[PIPELINE/]OPERATOR=MEAN[,SD]",
        help="plan as if a fan-out had so many items a request, in place of what was measured; repeatable",
    )
    parser.add_argument("--explain", metavar="QUERY", help="say why this query gets its plan, or none")
    parser.add_argument("--json", action="store_true", help="print JSON (docs/formats.md)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Plan and print; exit code 1 only if everything had to be served and cannot be."""
    if args.goodput is not None and not args.provision:
        raise ConfigError("--goodput says how much --provision has to serve: give both, or neither")
    problem = _problem(args)
    if args.explain is not None:
        _check_named(problem, args.explain)
    policy = POLICIES[args.policy]
    provided = None
    with busy_with(f"planning {len(problem.queries):,} queries at {len(problem.sites):,} sites"):
        if args.provision:
            wanted = 1.0 if args.goodput is None else args.goodput
            provided = provision_fleet(problem, policy, goodput=wanted, timer=time.perf_counter)
            problem, plan = sized(problem, provided.counts), provided.plan
        else:
            plan = plan_fleet(problem, policy, timer=time.perf_counter)
    explanation = None
    if args.explain is not None:
        with busy_with(f"looking at what else there is for {args.explain}"):
            explanation = explain_choice(problem, plan, args.explain, policy)
    _show(args, problem, plan, explanation, provided)
    if args.objective == "cost" and (plan.refusals or served_in_part(plan)):
        return EXIT_UNSERVED
    return 0


def _problem(args: argparse.Namespace) -> Problem:
    with busy_with("reading files"):
        pipelines, accuracy = load_planned(args.pipeline, args.accuracy, z=args.accuracy_z)
        fleet = load_fleet(args.fleet)
        measured = [load_measurements(file) for file in args.profiles]
        try:
            problem = problem_from(fleet, pipelines, measured, accuracy)
        except ConfigError as error:
            raise ConfigError(error.problem, file=args.fleet, field=error.field) from error
    _note_left_out(fleet, problem)
    return with_items(problem, args.items)


def _note_left_out(fleet: Fleet, problem: Problem) -> None:
    others = sorted({query.pipeline for query in fleet.queries} - set(problem.pipelines))
    if others:
        left_out = len(fleet.queries) - len(problem.queries)
        print(
            f"compass: {left_out} queries of pipelines without --pipeline are left out: {', '.join(others)}",
            file=sys.stderr,
        )


def _check_named(problem: Problem, name: str) -> None:
    if not any(query.name == name for query in problem.queries):
        known = [query.name for query in problem.queries]
        more = ", ..." if len(known) > 5 else ""
        raise ConfigError(f"--explain: no query is called {name!r}; there are {', '.join(known[:5])}{more}")


def _show(
    args: argparse.Namespace,
    problem: Problem,
    plan: FleetPlan,
    explanation: Explanation | None,
    provided: FleetProvision | None,
) -> None:
    if args.json:
        document = describe_plan(problem, plan, explanation=explanation, provided=provided)
        print(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
        return
    _print(explanation_text(explanation) if explanation is not None else plan_text(problem, plan))
    if provided is not None:
        _print(provision_text(provided))
    if args.objective == "cost":
        _print(unserved_text(problem, plan))


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} must be above 0 and at most 1")
    return value


def _item_count(text: str) -> ItemCount:
    try:
        return ItemCount.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _print(lines: Sequence[str]) -> None:
    for line in lines:
        print(line)
