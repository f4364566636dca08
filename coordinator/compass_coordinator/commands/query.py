"""``compass query submit`` and ``compass query withdraw``."""

from __future__ import annotations

import argparse
import asyncio

from compass_coordinator.connecting import visiting
from compass_shared import codec
from compass_shared.messages import QueryMessage
from compass_shared.names import checked_name
from compass_shared.query import Query, Slo, check_query
from compass_shared.topics import Kind, Topics


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    submit = actions.add_parser("submit", help="ask the coordinator to serve a query")
    withdraw = actions.add_parser("withdraw", help="take a query back")
    for action in (submit, withdraw):
        action.add_argument("name", help="name of the query, [a-z0-9-]")
        action.add_argument("--broker", required=True, metavar="URL", help="mqtt://host:port")
        action.add_argument("--fleet", default="default", help="name of the fleet (default: %(default)s)")
        action.add_argument("--origin", required=True, help="device that the requests arise on")
    submit.add_argument("--pipeline", required=True)
    submit.add_argument("--rate", type=float, required=True, metavar="HZ", help="requests per second")
    submit.add_argument("--latency", type=float, required=True, metavar="S", help="p95 in seconds")
    submit.add_argument("--accuracy", type=float, required=True, help="least mean of the metric, in [0, 1]")
    submit.add_argument("--cost", type=float, required=True, metavar="USD", help="most per 1,000 requests")
    submit.add_argument(
        "--metric",
        action="append",
        default=[],
        type=_floor,
        metavar="NAME=LEAST",
        help="least mean of an extra metric of the pipeline, in [0, 1]; repeatable",
    )
    submit.add_argument("--weight", type=float, default=1.0, help="how much it counts (default: 1)")
    submit.add_argument(
        "--divisible", action="store_true", help="it may be split over several plans, or served in part"
    )
    submit.set_defaults(run=_submit)
    withdraw.set_defaults(run=_withdraw)


def _floor(text: str) -> tuple[str, float]:
    name, _, least = text.partition("=")
    try:
        return name, float(least)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=LEAST, as in hit_rate=0.8") from None


def _submit(args: argparse.Namespace) -> int:
    query = Query(
        name=checked_name(args.name, "query"),
        origin=checked_name(args.origin, "origin"),
        pipeline=checked_name(args.pipeline, "pipeline"),
        rate_hz=args.rate,
        weight=args.weight,
        divisible=args.divisible,
        slo=Slo(
            latency_p95_s=args.latency,
            accuracy=args.accuracy,
            cost_usd_per_1000=args.cost,
            metrics=dict(args.metric),
        ),
    )
    payload = codec.encode(QueryMessage(query=check_query(query)))
    asyncio.run(_publish(args, payload))
    print(f"query {query.name} submitted for {query.origin}")
    return 0


def _withdraw(args: argparse.Namespace) -> int:
    checked_name(args.name, "query")
    asyncio.run(_publish(args, b""))
    print(f"query {args.name} withdrawn from {args.origin}")
    return 0


async def _publish(args: argparse.Namespace, payload: bytes) -> None:
    """Publish one retained message and wait until the broker has it."""
    topic = Topics(args.fleet).query(Kind.QUERY, args.origin, args.name)
    async with visiting(args.broker) as transport:
        transport.publish(topic, payload, retain=True)
