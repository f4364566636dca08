from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
import time

import pytest

from compass_coordinator.demo.broker import EmbeddedBroker, end_process
from compass_shared.errors import ConfigError

pytestmark = pytest.mark.broker


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=0.5).close()
    except OSError:
        return False
    return True


def test_it_listens_on_loopback_only_as_long_as_the_block_lasts() -> None:
    pytest.importorskip("iotcore")
    with EmbeddedBroker() as broker:
        port = port_of(broker.url)
        assert listens(port)
        broker.start()  # once more changes nothing
        assert port_of(broker.url) == port
    assert not listens(port)
    broker.stop()


def test_it_ends_with_whoever_started_it() -> None:
    pytest.importorskip("iotcore")
    script = (
        "import sys, time\n"
        "from compass_coordinator.demo.broker import EmbeddedBroker\n"
        "broker = EmbeddedBroker()\n"
        "broker.start()\n"
        "print(broker.url, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=False)
    assert parent.stdout is not None
    port = port_of(parent.stdout.readline().decode().strip())
    assert listens(port)
    parent.kill()
    end_process(parent, 5.0)
    parent.stdout.close()
    end_s = time.monotonic() + 20.0
    while listens(port) and time.monotonic() < end_s:
        time.sleep(0.02)
    assert not listens(port)


def test_without_the_wheel_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"compass-agent\[demo\]"):
        EmbeddedBroker()
