"""Whatever arrives decodes to a message or raises MessageError; whatever is sent comes back the same."""

from __future__ import annotations

import contextlib
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compass_shared import messages
from compass_shared.codec import MAX_MESSAGE_BYTES, decode, encode
from compass_shared.errors import MessageError
from compass_shared.topics import Kind
from support.drawing import JSON, damaged, distorted, drawn

TYPES: dict[Kind, type[messages.Message]] = {
    Kind.STATUS: messages.StatusMessage,
    Kind.HELLO: messages.HelloMessage,
    Kind.TELEMETRY: messages.TelemetryMessage,
    Kind.PROFILE: messages.ProfileMessage,
    Kind.PROBE: messages.ProbeMessage,
    Kind.SERVED: messages.ServedMessage,
    Kind.ACK: messages.AckMessage,
    Kind.QUERY: messages.QueryMessage,
    Kind.ASSIGNMENT: messages.AssignmentMessage,
    Kind.SHARE: messages.ShareMessage,
    Kind.PIPELINE: messages.PipelineMessage,
    Kind.COORDINATOR: messages.CoordinatorMessage,
}
BOMBS = [
    b"\x91" * 100_000,
    b"\x81\xa1a" * 30_000,
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xd6\xff\x00\x00\x00\x00",
    b"\x81\xa1a\xd6\xff\x00\x00\x00\x00",
    b"\xdc\x75\x30" + b"\x00" * 30_000,
]


def test_every_kind_has_its_type() -> None:
    assert set(TYPES) == set(Kind)


@pytest.mark.parametrize("kind", Kind)
@settings(max_examples=40)
@given(data=st.data())
def test_a_message_comes_back_as_it_was(kind: Kind, data: st.DataObject) -> None:
    message = data.draw(drawn(TYPES[kind]))
    assert decode(kind, encode(message)) == message


@pytest.mark.parametrize("kind", Kind)
@settings(max_examples=40)
@given(payload=st.binary(max_size=200) | JSON.map(msgpack.packb) | st.sampled_from(BOMBS))
def test_any_bytes_are_a_message_or_a_message_error(kind: Kind, payload: bytes) -> None:
    decode_or_refuse(kind, payload)


@pytest.mark.parametrize("kind", Kind)
@settings(max_examples=40)
@given(data=st.data())
def test_a_damaged_message_is_a_message_or_a_message_error(kind: Kind, data: st.DataObject) -> None:
    decode_or_refuse(kind, data.draw(damaged(encode(data.draw(drawn(TYPES[kind]))))))


@pytest.mark.parametrize("kind", Kind)
@settings(max_examples=40)
@given(data=st.data())
def test_a_distorted_message_is_a_message_or_a_message_error(kind: Kind, data: st.DataObject) -> None:
    body = {"schema": messages.SCHEMA, **msgspec.to_builtins(data.draw(drawn(TYPES[kind])))}
    decode_or_refuse(kind, msgpack.packb(data.draw(distorted(body))))


def decode_or_refuse(kind: Kind, payload: bytes) -> None:
    with contextlib.suppress(MessageError):
        message = decode(kind, payload)
        assert isinstance(message, TYPES[kind])


@given(extra=st.dictionaries(st.text(min_size=1).map("x_".__add__), JSON, max_size=3))
def test_fields_of_the_future_are_ignored(extra: dict[str, Any]) -> None:
    body = {"schema": 1, "online": True, "session": 4, **extra}
    assert decode(Kind.STATUS, msgpack.packb(body)) == messages.StatusMessage(online=True, session=4)


@pytest.mark.parametrize("schema", [None, 0, -1, 2, True, 1.0, "1", [1]])
def test_other_schemas_are_refused(schema: object) -> None:
    with pytest.raises(MessageError, match="schema"):
        decode(Kind.STATUS, msgpack.packb({"schema": schema, "online": True, "session": 4}))


@pytest.mark.parametrize("field", ["online", "session"])
def test_the_error_names_a_wrong_field(field: str) -> None:
    body = {"schema": 1, "online": True, "session": 4, field: "wrong"}
    with pytest.raises(MessageError, match=rf"status: .*\$\.{field}"):
        decode(Kind.STATUS, msgpack.packb(body))


@pytest.mark.parametrize("kind", Kind)
def test_too_long_is_refused_before_it_is_looked_at(kind: Kind) -> None:
    with pytest.raises(MessageError, match="more than"):
        decode(kind, bytes(MAX_MESSAGE_BYTES + 1))


@pytest.mark.parametrize(
    "text", ["x" * MAX_MESSAGE_BYTES, "\ud800"], ids=["too long for the wire", "half a character"]
)
def test_what_cannot_be_sent_is_refused(text: str) -> None:
    with pytest.raises(MessageError):
        encode(messages.PipelineMessage(pipeline=text, version="", digest="", document={}))
