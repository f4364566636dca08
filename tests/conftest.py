"""What every test gets: Hypothesis settings and a free port."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import HealthCheck, settings

# Time says nothing on a shared machine, so no example has a deadline. CI draws the same examples every
# time; a person's run draws new ones and keeps what failed.
settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture
def free_port() -> int:
    """A TCP port on loopback that nobody listened on a moment ago."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
