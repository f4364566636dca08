from __future__ import annotations

from pathlib import Path

import pytest

from compass_shared.broker_url import parse_address
from compass_shared.errors import ConfigError


def test_a_plain_url() -> None:
    address = parse_address("mqtt://broker.example:1884")
    assert (address.host, address.port, address.tls, address.user) == ("broker.example", 1884, None, None)
    assert str(address) == "broker.example:1884"


@pytest.mark.parametrize(("url", "port"), [("mqtt://h", 1883), ("mqtts://h", 8883), ("mqtt://[::1]:99", 99)])
def test_ports(url: str, port: int) -> None:
    assert parse_address(url).port == port


def test_credentials_are_decoded_and_the_password_is_never_shown() -> None:
    address = parse_address("mqtts://a%40b:s%2Fcret@h")
    assert (address.user, address.password) == ("a@b", "s/cret")
    assert address.tls is not None
    assert "cret" not in f"{address} {address!r}"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h:1883",
        "http://h",
        "mqtt://",
        "mqtt://h:0",
        "mqtt://h:99999",
        "mqtt://h:x",
        "mqtt://[::1",
        "mqtt://h/topic",
        "mqtt://h#x",
        "mqtt://h?ca=f",
        "mqtts://h?cert=f",
        "mqtts://h?x",
    ],
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_address(url)
    assert caught.value.field == "broker"


@pytest.mark.parametrize("url", ["mqtts://user:secret@h/topic", "mqtt://user:secret"])
def test_a_refused_url_does_not_show_its_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_address(url)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_certificates_that_cannot_be_read_name_their_file(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        parse_address(f"mqtts://h?ca={file}")
    assert caught.value.file == str(file)
