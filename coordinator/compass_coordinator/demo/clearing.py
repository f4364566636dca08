"""Leaves a broker as it was: clears everything that one fleet retained there."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets

from compass_shared.errors import CompassError
from compass_shared.mqtt import MqttTransport
from compass_shared.topics import Topics
from compass_shared.transport import Received, TransportEvent

logger = logging.getLogger(__name__)

_QUIET_S = 1.0


async def clear_fleet(broker: str, fleet: str) -> None:
    """Publish an empty retained message over each retained one of a fleet.

    Args:
        broker: URL of the broker.
        fleet: Name of the fleet; only its topics are touched.
    """
    transport = MqttTransport(
        broker,
        client_id=f"clear-{secrets.token_hex(4)}",
        filters=(*Topics(fleet).for_coordinator(), Topics(fleet).pipeline("x").rsplit("/", 1)[0] + "/+"),
        rng=random.Random(),  # noqa: S311  # spreads reconnects, not a secret
    )
    retained: set[str] = set()

    def on_event(event: TransportEvent) -> None:
        if isinstance(event, Received) and event.retained and event.payload:
            retained.add(event.topic)

    transport.start(on_event)
    try:
        await asyncio.sleep(_QUIET_S)
        for topic in sorted(retained):
            transport.publish(topic, b"", retain=True)
    except CompassError as error:
        logger.warning("%d retained messages stay on %s: %s", len(retained), broker, error)
    finally:
        await transport.close()
