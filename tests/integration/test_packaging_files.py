"""The files in packaging/ are accepted by what they are for."""

from __future__ import annotations

import asyncio
import configparser
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from compass_agent.cli import main as agent_main
from compass_shared.codec import MAX_MESSAGE_BYTES
from compass_shared.mqtt import MqttTransport
from compass_shared.transport import Connected, TransportEvent

PACKAGING = Path(__file__).resolve().parents[2] / "packaging"
CONF = PACKAGING / "mosquitto" / "compass.conf"


def test_mosquitto_takes_the_configuration(tmp_path: Path, free_port: int) -> None:
    mosquitto = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    if mosquitto is None:
        pytest.skip("mosquitto is not installed")
    tmp_path.chmod(0o777)  # mosquitto gives up root before it looks
    text = CONF.read_text(encoding="utf-8")
    text = text.replace("listener 1883 0.0.0.0", f"listener {free_port} 127.0.0.1")
    text = text.replace("/var/lib/mosquitto/", f"{tmp_path}/")
    conf = tmp_path / "compass.conf"
    conf.write_text(text, encoding="utf-8")
    with subprocess.Popen([mosquitto, "-c", str(conf)], stderr=subprocess.DEVNULL) as broker:
        try:
            asyncio.run(_connect(f"mqtt://127.0.0.1:{free_port}"))
            assert broker.poll() is None
        finally:
            broker.terminate()
    assert f"message_size_limit {MAX_MESSAGE_BYTES}" in text


async def _connect(url: str) -> None:
    connected = asyncio.Event()

    def on_event(event: TransportEvent) -> None:
        if isinstance(event, Connected):
            connected.set()

    transport = MqttTransport(url, client_id="packaging", filters=(), rng=random.Random(0))
    transport.start(on_event)
    try:
        await asyncio.wait_for(connected.wait(), 20)
    finally:
        await transport.close()


def test_the_unit_starts_an_agent_with_options_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    text = (PACKAGING / "systemd" / "compass-agent.service").read_text(encoding="utf-8")
    unit.read_string(text.replace("\\\n", " "))
    words = unit["Service"]["ExecStart"].split()
    assert Path(words[0]).name == "compass-agent"
    # The bundle is not on this machine: everything before it has to be understood.
    assert agent_main(words[1:]) == 2
    assert "/opt/compass/bundles/read_text" in capsys.readouterr().err
