"""What every test gets: Hypothesis settings, a free port, and its place among those that run beside it."""

from __future__ import annotations

import os
import socket
from typing import Any

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


def runs_in_turn_with(nodeid: str) -> str:
    """Tests that share this name never run at the same time.

    ``make test`` runs two tests at a time. Those that wait for brokers, agents and demos leave the machine to
    unit and property tests meanwhile, and never meet one another.
    """
    file = nodeid.partition("::")[0]
    return file if file.startswith(("tests/unit/", "tests/property/")) else "processes"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Called where tests run beside one another."""
    from xdist.scheduler import LoadScopeScheduling  # noqa: PLC0415  # only there it is needed

    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = runs_in_turn_with
    return scheduler
