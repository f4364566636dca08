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


def host_port(text: str) -> tuple[str, int]:
    """Parse ``HOST:PORT``, the address that a server listens on.

    Raises:
        ValueError: If it is not one; argparse shows it as a wrong option.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)
