"""Leaves a broker as it was: clears everything that one fleet retained there."""

from __future__ import annotations

import asyncio
import logging

from compass_coordinator.connecting import visiting
from compass_shared.errors import CompassError
from compass_shared.topics import Topics
from compass_shared.transport import Received

logger = logging.getLogger(__name__)

_QUIET_S = 1.0


async def clear_fleet(broker: str, fleet: str) -> None:
    """Publish an empty retained message over each retained one of a fleet.

    Args:
        broker: URL of the broker.
        fleet: Name of the fleet; only its topics are touched.
    """
    retained: set[str] = set()

    def on_received(message: Received) -> None:
        if message.retained and message.payload:
            retained.add(message.topic)

    filters = (*Topics(fleet).for_coordinator(), Topics(fleet).pipeline("x").rsplit("/", 1)[0] + "/+")
    try:
        async with visiting(broker, filters=filters, on_received=on_received) as transport:
            await asyncio.sleep(_QUIET_S)
            for topic in sorted(retained):
                transport.publish(topic, b"", retain=True)
    except CompassError as error:
        logger.warning("%d retained messages stay on %s: %s", len(retained), broker, error)
