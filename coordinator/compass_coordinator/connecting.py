"""A short visit to a broker: connect, say or look, and leave."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections.abc import AsyncIterator, Callable, Sequence

from compass_shared.errors import TransportError
from compass_shared.mqtt import MqttTransport
from compass_shared.transport import Connected, Disconnected, Received, Transport, TransportEvent

CONNECT_TIMEOUT_S = 10.0


@contextlib.asynccontextmanager
async def visiting(
    broker: str,
    *,
    filters: Sequence[str] = (),
    on_received: Callable[[Received], None] = lambda _received: None,
) -> AsyncIterator[Transport]:
    """Connect to a broker for as long as a block lasts; what was published in it is delivered at its end.

    Args:
        broker: URL of the broker.
        filters: What to subscribe to.
        on_received: Told every message.

    Raises:
        ConfigError: If the URL is wrong.
        TransportError: If the broker cannot be reached.
    """
    transport = MqttTransport(
        broker,
        client_id=f"visitor-{secrets.token_hex(4)}",
        filters=filters,
        rng=random.Random(),  # noqa: S311  # spreads reconnects, not a secret
    )
    connected: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def on_event(event: TransportEvent) -> None:
        if isinstance(event, Received):
            on_received(event)
        elif not connected.done():
            if isinstance(event, Connected):
                connected.set_result(None)
            elif isinstance(event, Disconnected):
                connected.set_exception(TransportError(f"broker {broker}: {event.reason}"))

    transport.start(on_event)
    try:
        await asyncio.wait_for(connected, CONNECT_TIMEOUT_S)
        yield transport
    except asyncio.TimeoutError as error:
        raise TransportError(f"broker {broker}: no answer within {CONNECT_TIMEOUT_S:.0f} s") from error
    finally:
        await transport.close()
