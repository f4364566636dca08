"""What only a real broker can do to the MQTT transport: access rules, TLS, silence."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import shutil
import struct
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest

from compass_shared.mqtt import MqttTransport
from compass_shared.transport import Backoff, Connected, Disconnected, Received, TransportEvent, Will
from support.brokers import Mosquitto

pytestmark = pytest.mark.broker


class Listener:
    """Keeps events and waits for one."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[TransportEvent] = asyncio.Queue()

    async def first(self, kind: type[TransportEvent]) -> TransportEvent:
        while True:
            event = await asyncio.wait_for(self.events.get(), 20.0)
            if isinstance(event, kind):
                return event


def transport(
    url: str, *, client_id: str = "a1", filters: Sequence[str] = (), keepalive_s: int = 20, **more: object
) -> MqttTransport:
    will = more.get("will")
    assert will is None or callable(will)
    return MqttTransport(
        url,
        client_id=client_id,
        filters=filters,
        will=will,
        rng=random.Random(1),
        backoff=Backoff(first_s=0.1, most_s=0.2),
        keepalive_s=keepalive_s,
    )


async def until(condition: Callable[[], bool]) -> None:
    async def poll() -> None:
        while not condition():  # noqa: ASYNC110  # counters tell nobody
            await asyncio.sleep(0.005)

    await asyncio.wait_for(poll(), 20.0)


@pytest.fixture
def guarded(tmp_path: Path) -> Mosquitto:
    """A broker that knows one user, who may not write everywhere."""
    tool = shutil.which("mosquitto_passwd")
    if tool is None:
        pytest.skip("mosquitto_passwd is not installed (Debian: apt-get install mosquitto)")
    passwords, rules = tmp_path / "passwords", tmp_path / "rules"
    subprocess.run([tool, "-c", "-b", str(passwords), "a1", "s/cret"], check=True, capture_output=True)
    rules.write_text("user a1\ntopic readwrite open/#\n")
    passwords.chmod(0o644)
    rules.chmod(0o644)
    tmp_path.chmod(0o755)
    extra = f"allow_anonymous false\npassword_file {passwords}\nacl_file {rules}\nuser root"
    return Mosquitto(tmp_path, extra)


async def test_a_wrong_password_is_told_and_tried_again(
    guarded: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    with guarded:
        listener, client = Listener(), transport(guarded.url.replace("//", "//a1:wrong@"))
        client.start(listener.events.put_nowait)
        down = await listener.first(Disconnected)
        await until(lambda: client.counters.connections > 2)
        await client.close()
    assert isinstance(down, Disconnected)
    assert "refused the connection: Not authorized" in down.reason
    assert "wrong" not in caplog.text
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


async def test_a_forbidden_publish_is_counted_and_logged(
    guarded: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    with guarded:
        listener = Listener()
        client = transport(guarded.url.replace("//", "//a1:s%2Fcret@"), filters=["open/+"])
        client.start(listener.events.put_nowait)
        await listener.first(Connected)
        client.publish("closed/1", b"x")
        client.publish("open/1", b"y")
        assert await listener.first(Received) == Received(topic="open/1", payload=b"y")
        await client.close()
    assert (client.counters.refused_publishes, client.counters.sent) == (1, 1)
    assert "closed/1 was not published: the broker refused it: Not authorized" in caplog.text


async def test_each_connection_has_the_will_of_its_number(tmp_path: Path) -> None:
    def will_of(connection: int) -> Will:
        return Will(topic="status", payload=b"%d" % connection)

    with Mosquitto(tmp_path) as broker:
        listener, thief_listener = Listener(), Listener()
        watcher = transport(broker.url, client_id="watcher", filters=["status"])
        client, thief = transport(broker.url, will=will_of), transport(broker.url)
        watcher.start(listener.events.put_nowait)
        await listener.first(Connected)
        client.start(Listener().events.put_nowait)
        await until(lambda: client.counters.connections == 1)
        thief.start(thief_listener.events.put_nowait)  # the same client id: each throws the other off
        wills = [await listener.first(Received), await listener.first(Received)]
        for each in (thief, client, watcher):
            await each.close()
    assert [event.payload for event in wills if isinstance(event, Received)] == [b"1", b"2"]


@contextlib.asynccontextmanager
async def fake_broker(greeting: bytes) -> AsyncIterator[str]:
    """Something that listens, says one thing and then nothing."""
    served: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.append(writer)
        writer.write(greeting)
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"mqtt://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for writer in served:
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@pytest.mark.parametrize("greeting", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x20\x03\x00\x00\x00"])
async def test_a_broker_that_does_not_answer_is_given_up(
    monkeypatch: pytest.MonkeyPatch, greeting: bytes
) -> None:
    monkeypatch.setattr("compass_shared.mqtt._ANSWER_TIMEOUT_S", 0.05)
    async with fake_broker(greeting) as url:
        listener, client = Listener(), transport(url, filters=["a/+"])
        client.start(listener.events.put_nowait)
        assert await listener.first(Disconnected) == Disconnected(reason="the broker does not answer")
        await until(lambda: client.counters.connections > 1)
        await client.close()


async def test_bytes_that_paho_fails_on_end_only_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def loop_read(_self: object) -> None:
        raise struct.error("unpack requires 2 bytes")

    monkeypatch.setattr("paho.mqtt.client.Client.loop_read", loop_read)
    async with fake_broker(b"\x30") as url:
        listener, client = Listener(), transport(url)
        client.start(listener.events.put_nowait)
        down = await listener.first(Disconnected)
        await until(lambda: client.counters.connections > 1)
        await client.close()
    assert down == Disconnected(reason="paho failed: error: unpack requires 2 bytes")


async def test_a_name_that_does_not_resolve_is_survived() -> None:
    listener, client = Listener(), transport("mqtt://nowhere.invalid")
    client.start(listener.events.put_nowait)
    await listener.first(Disconnected)
    await client.close()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    tool = shutil.which("openssl")
    if tool is None:
        pytest.skip("openssl is not installed")
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *(tool, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return certificate, key


async def test_tls_with_a_certificate_of_ones_own(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    with Mosquitto(tmp_path, f"certfile {certificate[0]}\nkeyfile {certificate[1]}\nuser root") as broker:
        trusting, doubting = Listener(), Listener()
        url = f"mqtts://localhost:{broker.port}"
        client = transport(f"{url}?ca={certificate[0]}", filters=["t/+"])
        other = transport(url, client_id="other")
        client.start(trusting.events.put_nowait)
        await trusting.first(Connected)
        for number in range(50):  # several packets in one TLS record
            client.publish("t/1", b"%d" % number * 100)
        received = [await trusting.first(Received) for _ in range(50)]
        other.start(doubting.events.put_nowait)
        down = await doubting.first(Disconnected)
        await client.close()
        await other.close()
    assert [event.payload for event in received if isinstance(event, Received)] == [
        b"%d" % number * 100 for number in range(50)
    ]
    assert isinstance(down, Disconnected)
    assert "certificate" in down.reason
