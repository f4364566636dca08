"""The data plane's bytes: values come back the same, and anything else is a MessageError."""

from __future__ import annotations

import contextlib
import tracemalloc
from typing import Any

import msgpack
import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from compass_shared import calls
from compass_shared.errors import MessageError
from compass_shared.framing import (
    MAX_DEPTH,
    MAX_FRAME_BYTES,
    MAX_ITEMS,
    decode_value,
    encode_value,
    framed_size,
)
from support.drawing import JSON, TEXT, VALUES, damaged, distorted, drawn, same

HEADS = st.lists(
    JSON | st.sampled_from(["<f4", "|O", "<U4", [2, 2], [0, 2**63], [2**40, 2**40], [-1], [True]]), max_size=3
)
ANY_VALUES = st.dictionaries(TEXT, VALUES, max_size=3)
CALLS = st.builds(calls.Call, header=drawn(calls.CallHeader), values=ANY_VALUES)
ANSWERS = st.builds(calls.Answer, header=drawn(calls.AnswerHeader), values=ANY_VALUES)


@given(VALUES)
def test_a_value_comes_back_as_it_was(value: Any) -> None:
    framed = encode_value(value)
    assert framed_size(value) == len(framed)
    assert same(decode_value(framed), value)


@given(st.binary(max_size=200) | JSON.map(msgpack.packb))
@example(b"\xd6\xff\x00\x00\x00\x07")  # a timestamp
@example(b"\x81\xc4\x01a\x00")  # a key of bytes
@example(b"\x81\x00\x00")  # a key of a number
@example(b"\x91" * 2_000)
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\xc6\xff\xff\xff\xff")
def test_any_bytes_are_a_value_or_a_message_error(payload: bytes) -> None:
    decode_or_refuse(payload)


@given(VALUES.map(encode_value).flatmap(damaged))
def test_a_damaged_value_is_a_value_or_a_message_error(payload: bytes) -> None:
    decode_or_refuse(payload)


def decode_or_refuse(payload: bytes) -> None:
    with contextlib.suppress(MessageError):
        assert is_value(decode_value(payload))


def is_value(thing: object) -> bool:
    if isinstance(thing, dict):
        return all(isinstance(key, str) and is_value(item) for key, item in thing.items())
    if isinstance(thing, list):
        return all(map(is_value, thing))
    return thing is None or type(thing) in (str, bytes, int, float, bool, np.ndarray)


@given(HEADS, st.binary(max_size=40), st.sampled_from([1, 1, 1, 2, 127, -1]))
def test_any_array_is_an_array_or_a_message_error(head: list[Any], body: bytes, code: int) -> None:
    with contextlib.suppress(MessageError):
        payload = msgpack.packb(msgpack.ExtType(code & 127, msgpack.packb(head) + body))
        assert isinstance(decode_value(payload), np.ndarray)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12).reshape(3, 4).T,
        np.arange(12)[::-2],
        np.arange(6, dtype=">i4").reshape(2, 3),
        np.array(3.5),
        np.empty((0, 7), np.float32),
        np.asfortranarray(np.eye(3, dtype=np.float16)),
    ],
)
def test_arrays_of_any_layout_arrive_with_their_numbers(array: np.ndarray[Any, Any]) -> None:
    decoded = decode_value(encode_value(array))
    assert isinstance(decoded, np.ndarray)
    assert decoded.shape == array.shape
    np.testing.assert_array_equal(decoded, array)
    assert not decoded.flags.writeable


@pytest.mark.parametrize(
    "value",
    [object(), {1, 2}, np.array(["text"]), np.array([None]), 1j, 2**70, "\ud800", np.zeros((1,) * 9)],
    ids=lambda value: repr(value).partition(" at 0x")[0],  # the same in every process
)
def test_what_is_no_value_is_refused(value: Any) -> None:
    with pytest.raises(MessageError):
        encode_value(value)


def test_too_long_is_refused_both_ways() -> None:
    with pytest.raises(MessageError, match="larger"):
        encode_value(bytes(MAX_FRAME_BYTES))
    with pytest.raises(MessageError, match="more than"):
        decode_value(bytes(MAX_FRAME_BYTES + 1))


def nested(depth: int) -> Any:
    value: Any = 0
    for level in range(depth):
        value = [value] if level % 2 else {"": value}
    return value


@pytest.mark.parametrize(
    ("most", "more", "said"),
    [
        ([None] * (MAX_ITEMS - 1), [None] * MAX_ITEMS, "values in one frame"),
        ({str(key): key for key in range(MAX_ITEMS // 2 - 1)}, [[""] * 999] * 101, "values in one frame"),
        (nested(MAX_DEPTH), nested(MAX_DEPTH + 1), "deep in each other"),
    ],
    ids=["long", "wide", "deep"],
)
def test_what_holds_too_much_is_refused_both_ways(most: Any, more: Any, said: str) -> None:
    assert decode_value(encode_value(most)) == most
    with pytest.raises(MessageError, match=said):
        encode_value(more)
    with pytest.raises(MessageError, match=said):
        decode_value(msgpack.packb(more))


BOMBS = {
    "empty lists": b"\xdd\x01\xff\xff\xf0" + b"\x90" * 0x1FFFFF0,
    "lists that claim much": b"\xdd\x01\xff\xff\xf0" * 1000,
    "lists that claim much in an array's head": b"\xc9"
    + (10_000).to_bytes(4, "big")
    + b"\x01"
    + b"\xdd\x01\xff\xff\xf0" * 2000,
    "maps of maps": b"\xdf\x00\xff\xff\xf0" + b"\xa0\x81\xa0\x80" * 5_000_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_little_is_allocated_for_a_frame_that_is_refused(name: str) -> None:
    payload = BOMBS[name]
    tracemalloc.start()
    try:
        with pytest.raises(MessageError):
            decode_value(payload)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1_000_000


@given(VALUES | JSON)
def test_values_are_counted_as_msgpack_has_them(value: Any) -> None:
    """A frame of one value more than allowed is refused, whatever the values are."""
    payload = encode_value(value)
    times = MAX_ITEMS // counted(value)
    head = b"\xdd" + (times + 1).to_bytes(4, "big")
    if len(payload) * times < MAX_FRAME_BYTES // 2:
        with pytest.raises(MessageError, match="values in one frame"):
            decode_value(head + payload * (times + 1))
        assert len(decode_value(b"\xdc\x00\x03" + payload * 3)) == 3  # type: ignore[arg-type]


def counted(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(1 + counted(item) for item in value.values())
    return 1 + sum(map(counted, value)) if isinstance(value, list) else 1


@given(CALLS)
def test_a_call_comes_back_as_it_was(call: calls.Call) -> None:
    decoded = calls.decode_call(calls.encode_call(call))
    assert decoded.header == call.header
    assert same(decoded.values, call.values)


@given(ANSWERS)
def test_an_answer_comes_back_as_it_was(answer: calls.Answer) -> None:
    decoded = calls.decode_answer(calls.encode_answer(answer))
    assert decoded.header == answer.header
    assert same(decoded.values, answer.values)


@given(drawn(calls.ErrorBody))
def test_an_error_comes_back_as_it_was(error: calls.ErrorBody) -> None:
    assert calls.decode_error(calls.encode_error(error)) == error


def decode_each(payload: bytes) -> None:
    """Decode as everything that travels; only MessageError may come out."""
    for decode in (calls.decode_call, calls.decode_answer, calls.decode_error):
        with contextlib.suppress(MessageError):
            decode(payload)


@given(st.binary(max_size=200) | JSON.map(msgpack.packb))
def test_any_bytes_are_a_call_or_a_message_error(payload: bytes) -> None:
    decode_each(payload)


@given(st.data())
def test_a_damaged_call_is_a_call_or_a_message_error(data: st.DataObject) -> None:
    framed = data.draw(CALLS.map(calls.encode_call) | ANSWERS.map(calls.encode_answer))
    decode_each(data.draw(damaged(framed)))


@given(st.data())
def test_a_distorted_call_is_a_call_or_a_message_error(data: st.DataObject) -> None:
    header = data.draw(drawn(calls.CallHeader) | drawn(calls.AnswerHeader) | drawn(calls.ErrorBody))
    body = {"schema": calls.SCHEMA, "header": msgspec.to_builtins(header), "values": {}}
    decode_each(encode_value(data.draw(distorted(body))))
