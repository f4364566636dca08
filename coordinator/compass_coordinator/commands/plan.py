"""``compass plan``."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from compass_coordinator.commands.coordinator import plan_document
from compass_coordinator.commands.files import add_accuracy_z, load_planned
from compass_coordinator.measurements import load_measurements
from compass_coordinator.planline import plan_line
from compass_coordinator.planner.policy import POLICIES
from compass_coordinator.planning import FleetPlan, plan_fleet
from compass_coordinator.what_if import problem_from
from compass_shared.fleet_file import load_fleet
from compass_shared.problem import Problem


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--pipeline", type=Path, required=True, metavar="DIR", help="bundle or pipeline.toml")
    parser.add_argument("--fleet", type=Path, required=True, metavar="FILE", help="fleet.toml")
    parser.add_argument("--profiles", type=Path, required=True, metavar="FILE", help="what agents measured")
    parser.add_argument("--accuracy", type=Path, metavar="FILE", help="in place of the bundle's own table")
    add_accuracy_z(parser)
    parser.add_argument(
        "--policy", choices=sorted(POLICIES), default="compass", help="placements to consider"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Plan and print; exit code 0 also when some queries cannot be served."""
    pipelines, accuracy = load_planned(
        [args.pipeline], [args.accuracy] if args.accuracy else [], z=args.accuracy_z
    )
    problem = problem_from(load_fleet(args.fleet), pipelines, [load_measurements(args.profiles)], accuracy)
    plan = plan_fleet(problem, POLICIES[args.policy], timer=time.perf_counter)
    if args.json:
        print(json.dumps(plan_document(problem, plan), indent=2))
    else:
        _show(problem, plan)
    return 0


def _show(problem: Problem, plan: FleetPlan) -> None:
    for query in problem.queries:
        slo = query.slo
        print(
            f"{query.name}: {query.rate_hz:g}/s, p95 <= {1e3 * slo.latency_p95_s:.0f} ms, "
            f"accuracy >= {slo.accuracy:g}, cost <= {1e3 * slo.cost_usd_per_1000:g} mUSD per 1,000"
        )
        chosen = plan.plans.get(query.name)
        if chosen is None:
            print(f"  refused: {plan.refusals[query.name].detail}")
            continue
        print(f"  {plan_line(problem.pipelines[query.pipeline], chosen)}")
        if chosen.estimate is not None:
            print(
                f"  p95 {1e3 * chosen.estimate.latency_p95_s:.0f} ms, "
                f"accuracy {chosen.estimate.accuracy:.3f}, "
                f"{1e3 * chosen.estimate.cost_usd_per_1000:.2f} mUSD per 1,000"
            )
    print(
        f"{len(plan.plans)} of {len(problem.queries)} queries served, "
        f"goodput {plan.goodput:g} of at most {plan.bound:g}, "
        f"{3600 * plan.cost_usd_per_s:.4f} USD an hour, planned in {sum(plan.seconds.values()):.2f} s"
    )
