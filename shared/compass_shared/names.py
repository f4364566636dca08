"""Names that travel in topics, URLs and files, and addresses on command lines."""

from __future__ import annotations

import re

from compass_shared.errors import ConfigError

NAME_PATTERN = "[a-z0-9-]{1,64}"
_NAME = re.compile(NAME_PATTERN)


def is_name(text: str) -> bool:
    """Whether ``text`` may name an agent, query, pipeline or fleet."""
    return _NAME.fullmatch(text) is not None


def checked_name(text: str, what: str) -> str:
    """Return ``text`` if it may be used as a name.

    Args:
        text: The candidate.
        what: What it names, for the error: ``agent``, ``query``.

    Raises:
        ConfigError: If it does not match ``[a-z0-9-]{1,64}``.
    """
    if not is_name(text):
        raise ConfigError(f"{what} name {text!r} must match {NAME_PATTERN}", field=what)
    return text


def check_reachable(host: str, address: str | None) -> None:
    """Refuse to listen everywhere without saying how others get there.

    Args:
        host: Where a server listens.
        address: Base URL under which others reach it, if given.

    Raises:
        ConfigError: If the host is a wildcard and no address was given.
    """
    if address is None and host in {"0.0.0.0", "::", ""}:  # noqa: S104  # refused, not bound
        raise ConfigError(
            f"{host!r} is every address of this machine: give --address URL too, for others to use"
        )


def host_port(text: str) -> tuple[str, int]:
    """Parse ``HOST:PORT``, the address that a server listens on.

    Raises:
        ValueError: If it is not one; argparse shows it as a wrong option.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)
