"""``compass query submit`` and ``compass query withdraw``."""

from __future__ import annotations

import argparse
import asyncio
import random
import secrets

from compass_shared import codec
from compass_shared.errors import TransportError
from compass_shared.messages import QueryMessage
from compass_shared.mqtt import MqttTransport
from compass_shared.names import checked_name
from compass_shared.query import Query, Slo, check_query
from compass_shared.topics import Kind, Topics
from compass_shared.transport import Connected, Disconnected, TransportEvent

_CONNECT_TIMEOUT_S = 10.0


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
    submit.add_argument("--weight", type=float, default=1.0, help="how much it counts (default: 1)")
    submit.set_defaults(run=_submit)
    withdraw.set_defaults(run=_withdraw)


def _submit(args: argparse.Namespace) -> int:
    query = Query(
        name=checked_name(args.name, "query"),
        origin=checked_name(args.origin, "origin"),
        pipeline=checked_name(args.pipeline, "pipeline"),
        rate_hz=args.rate,
        weight=args.weight,
        slo=Slo(latency_p95_s=args.latency, accuracy=args.accuracy, cost_usd_per_1000=args.cost),
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
    transport = MqttTransport(
        args.broker,
        client_id=f"query-{secrets.token_hex(4)}",
        filters=(),
        rng=random.Random(),  # noqa: S311  # spreads reconnects, not a secret
    )
    connected: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_event(event: TransportEvent) -> None:
        if connected.done():
            return
        if isinstance(event, Connected):
            connected.set_result(None)
        elif isinstance(event, Disconnected):
            connected.set_exception(TransportError(f"broker {args.broker}: {event.reason}"))

    transport.start(on_event)
    try:
        await asyncio.wait_for(connected, _CONNECT_TIMEOUT_S)
        transport.publish(topic, payload, retain=True)
    except asyncio.TimeoutError as error:
        raise TransportError(f"broker {args.broker}: no answer within {_CONNECT_TIMEOUT_S:.0f} s") from error
    finally:
        await transport.close()
