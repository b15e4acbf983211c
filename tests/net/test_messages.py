"""Messages between processes, as frames; whatever arrives is a message or an error."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailproxy.net.messages import (
    COMPLAINT_PAUSE,
    MAX_FRAME,
    Complaints,
    Message,
    MessageError,
    read_frame,
    write_frame,
)
from mailproxy.process.messages import Order, read_order, write_order

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
MESSAGES = st.builds(
    Message,
    kind=st.integers(0, 2**16 - 1),
    request=st.integers(0, 2**32 - 1),
    body=st.dictionaries(st.text(max_size=10), JSON, max_size=4),
)


def frame(
    body: bytes, *, length: int | None = None, kind: int = Order.PING, version: int = 1
) -> bytes:
    """A frame that need not be a good one; request id 7."""
    size = 12 + len(body) if length is None else length
    return struct.pack(">IIHH", size, 7, kind, version) + body


def test_frame_is_length_request_kind_version_and_json() -> None:
    message = Message(13, 0x01020304, {"user": b"\xff@b".decode("latin-1")})
    assert write_frame(message) == (
        b"\x00\x00\x00\x1f" b"\x01\x02\x03\x04" b"\x00\x0d" b"\x00\x01"
        b'{"user":"\\u00ff@b"}'
    )  # fmt: skip


def test_empty_body_is_left_out() -> None:
    assert write_order(Order.QUIT, 5) == bytes.fromhex("0000000c 00000005 0066 0001")
    assert read_frame(frame(b"{}")) == Message(Order.PING, 7)


@given(MESSAGES)
def test_what_was_written_is_read(message: Message) -> None:
    assert read_frame(write_frame(message)) == message


@given(st.binary(max_size=200) | st.binary(max_size=200).map(frame))
@example(frame(b"[" * (MAX_FRAME - 12)))
@example(frame(b'{"a":' * 10_000))
@example(frame(b'{"a":' + b"9" * 10_000 + b"}"))
@example(frame(b'{"a":"\\ud800"}'))
def test_any_octets_are_a_message_or_an_error(octets: bytes) -> None:
    try:
        message = read_frame(octets)
    except MessageError:
        return
    assert read_frame(write_frame(message)) == message


@given(MESSAGES, st.data())
def test_part_of_a_frame_is_an_error(message: Message, data: st.DataObject) -> None:
    whole = write_frame(message)
    with pytest.raises(MessageError):
        read_frame(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(MessageError):
        read_frame(whole + b" ")


@pytest.mark.parametrize(
    ("octets", "why"),
    [
        (b"", "too short"),
        (b"ping", "too short"),
        (frame(b"")[:11], "too short"),
        (frame(b"", length=11), "its length is not what it says"),
        (frame(b"", length=2**32 - 1), "its length is not what it says"),
        (frame(b"", version=0), "unknown version 0"),
        (frame(b"", version=2), "unknown version 2"),
        (frame(b"[]"), "its body is not a JSON object"),
        (frame(b"{"), "its body is not a JSON object"),
        (frame(b"{}{}"), "its body is not a JSON object"),
        (frame(b'{"a":NaN}'), "its body is not a JSON object"),
        (frame(b'{"a":-Infinity}'), "its body is not a JSON object"),
        (frame(b'{"a":1e999}'), "its body is not a JSON object"),
        (frame('{"a":"ä"}'.encode()), "its body is not a JSON object"),
        (frame(b"{}".ljust(MAX_FRAME - 11)), "too long"),
    ],
)
def test_bad_frame_says_why(octets: bytes, why: str) -> None:
    with pytest.raises(MessageError, match=f"^{why}$"):
        read_frame(octets)


def test_longest_frame() -> None:
    assert read_frame(frame(b"{}".ljust(MAX_FRAME - 12))) == Message(Order.PING, 7)
    body = {"a": "x" * (MAX_FRAME - 12 - len('{"a":""}'))}
    assert len(write_frame(Message(1, body=body))) == MAX_FRAME
    with pytest.raises(ValueError, match="too long"):
        write_frame(Message(1, body={"a": body["a"] + "x"}))


@pytest.mark.parametrize(
    "message",
    [
        Message(-1),
        Message(2**16),
        Message(1, -1),
        Message(1, 2**32),
        Message(1, body={"a": float("nan")}),
    ],
)
def test_what_no_frame_can_say_is_not_written(message: Message) -> None:
    with pytest.raises(ValueError, match=r"out of range|not JSON compliant"):
        write_frame(message)


def test_orders_have_their_kinds() -> None:
    assert read_order(write_order(Order.STOP, 9)) == (
        Order.STOP,
        Message(Order.STOP, 9),
    )
    with pytest.raises(MessageError, match=r"^unknown kind 13$"):
        read_order(frame(b"", kind=13))


def test_secrets_are_in_no_text() -> None:
    secret = "wonderland"
    assert secret not in repr(Message(13, 1, {"password": secret}))
    for broken in (f'{{"password":"{secret}"', json.dumps([secret])):
        with pytest.raises(MessageError) as raised:
            read_frame(frame(broken.encode()))
        assert secret not in str(raised.value)
        assert raised.value.__cause__ is raised.value.__context__ is None


def test_complaints_are_one_a_second() -> None:
    now = 50.0
    complaints = Complaints(lambda: now)
    assert complaints.is_due()
    assert not complaints.is_due()
    now += COMPLAINT_PAUSE - 0.01
    assert not complaints.is_due()
    now += 0.01
    assert complaints.is_due()
    assert not complaints.is_due()
