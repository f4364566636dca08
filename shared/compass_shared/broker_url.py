"""URLs of MQTT brokers."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from compass_shared.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a broker listens and how to greet it."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None
    user: str | None = None
    password: str | None = None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    def client_id(self, fleet: str, name: str) -> str:
        """Client id of one member of a fleet.

        A broker that knows its users lets each connect under its own name alone; on one that knows nobody,
        fleets must not throw each other's members off.
        """
        return self.user or f"{fleet}.{name}"

    def __repr__(self) -> str:  # never the password
        return f"Address({self}, tls={self.tls is not None}, user={self.user!r})"


def parse_address(url: str, *, ca_file: Path | str | None = None) -> Address:
    """Parse a broker's URL.

    Args:
        url: ``mqtt://HOST[:1883]`` or ``mqtts://[USER:PASSWORD@]HOST[:8883][?ca=FILE]``; user and password
            percent-encoded.
        ca_file: Certificates to trust instead of the system's; wins over ``?ca=``.

    Raises:
        ConfigError: If it is no such URL, or the file cannot be read.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
        query = parse_qs(parts.query, strict_parsing=bool(parts.query))
    except ValueError:  # its text may quote the password
        raise ConfigError("not a broker URL; write mqtt://HOST:1883", field="broker") from None
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or port == 0:
        raise ConfigError("a broker URL is mqtt://HOST:1883 or mqtts://USER:PASSWORD@HOST", field="broker")
    if parts.path.strip("/") or parts.fragment or set(query) - {"ca"}:
        raise ConfigError("after HOST:PORT a broker URL may only have ?ca=FILE", field="broker")
    secure = parts.scheme == "mqtts"
    if query and not secure:
        raise ConfigError("?ca=FILE needs mqtts://", field="broker")
    return Address(
        host=parts.hostname,
        port=port or (8883 if secure else 1883),
        tls=_tls(ca_file or (query["ca"][0] if query else None)) if secure else None,
        user=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
    )


class _TlsSocket(ssl.SSLSocket):
    """Closes itself when the handshake fails, which paho leaves to the garbage collector."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002  # as inherited
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise


def _tls(ca_file: Path | str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        problem = f"no certificates can be read from it: {error}"
        raise ConfigError(problem, file=ca_file, field="broker") from error
    context.sslsocket_class = _TlsSocket
    return context
