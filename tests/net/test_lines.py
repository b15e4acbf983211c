"""LineStream: lines and literals of any split, within a bound."""

from __future__ import annotations

import itertools
import ssl

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.errors import BackendError, ClientError
from mailproxy.net.lines import LineStream, TooLong


def stream_of(*segments: bytes, limit: int = 64) -> LineStream:
    """A stream that receives `segments` one by one, and then the end."""
    return LineStream(_Segments(segments), limit, ClientError, "gone")


class _Segments:
    def __init__(self, segments: tuple[bytes, ...]) -> None:
        self._segments = list(filter(None, segments))
        self.largest = 0
        self._waited = False

    def receive_now(self, size: int) -> bytes | None:
        self.largest = max(self.largest, size)
        if not self._segments:
            return b""
        self._waited = not self._waited
        if self._waited:
            return None
        data, rest = self._segments[0][:size], self._segments[0][size:]
        self._segments[:1] = [rest] if rest else []
        return data

    async def wait_to_retry(self) -> None:
        await trio.lowlevel.checkpoint()

    def send_now(self, data: bytes) -> int:
        raise ConnectionResetError(104, "Connection reset by peer")

    async def send_all(self, data: bytes) -> None:
        raise AssertionError("send_now() has failed")


async def test_lines_come_one_by_one() -> None:
    lines = stream_of(b"a\r\nb\nc", b"d\n")
    assert [await lines.read_line() for _ in range(3)] == [b"a\r\n", b"b\n", b"cd\n"]


async def test_the_end_is_a_fault_of_the_peer() -> None:
    with pytest.raises(ClientError) as raised:
        await stream_of(b"half a line").read_line()
    assert raised.value.event == "gone"


async def test_a_line_may_fill_the_buffer() -> None:
    assert await stream_of(b"12345678\n", limit=9).read_line() == b"12345678\n"


@pytest.mark.parametrize("sent", [b"123456789", b"123456789\n", b"1234567890\n"])
async def test_a_longer_line_is_too_long(sent: bytes) -> None:
    with pytest.raises(TooLong) as raised:
        await stream_of(sent, limit=9).read_line()
    assert raised.value.received == sent[:9]


async def test_parts_of_a_command_share_the_buffer() -> None:
    lines = stream_of(b"abc {3}\nxyz\n", limit=12)
    line = await lines.read_line()
    literal = await lines.read_exactly(3, len(line))
    assert (literal, await lines.read_line(len(line) + 3)) == (b"xyz", b"\n")
    with pytest.raises(TooLong):
        await stream_of(b"abc {9}\nxyzxyz", limit=12).read_exactly(9, 8)


async def test_a_literal_that_is_here_already_may_be_too_long_for_its_command() -> None:
    lines = stream_of(b"{9}\nxyzxyzxyz", limit=13)
    line = await lines.read_line()
    with pytest.raises(TooLong) as raised:
        await lines.read_exactly(9, len(line) + 1)
    assert raised.value.received == b"xyzxyzxy"


async def test_the_rest_is_handed_over() -> None:
    lines = stream_of(b"login\nselect inbox\n")
    await lines.read_line()
    assert (lines.buffered, lines.take_rest()) == (True, b"select inbox\n")
    assert (lines.buffered, lines.take_rest()) == (False, b"")


async def test_a_failed_send_is_a_fault_of_the_peer() -> None:
    lines = LineStream(_Segments(()), 10, BackendError)
    with pytest.raises(BackendError) as raised:
        await lines.send(b"x")
    assert raised.value.error is not None


class _BadRecord(_Segments):
    def receive_now(self, size: int) -> bytes | None:
        raise ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number")


async def test_a_fault_of_tls_is_told_in_the_words_of_openssl() -> None:
    lines = LineStream(_BadRecord(()), 10, ClientError)
    with pytest.raises(ClientError) as raised:
        await lines.read_line()
    assert raised.value.event % raised.value.values == (
        "SSL_read() failed (SSL: error:wrong version number)"
    )
    assert raised.value.error is None


@given(
    st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"") + b"\n")),
    st.lists(st.integers(0, 100)),
)
def test_any_split_gives_the_same_lines(lines: list[bytes], cuts: list[int]) -> None:
    whole = b"".join(lines)
    borders = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    segments = tuple(whole[a:b] for a, b in itertools.pairwise(borders))
    stream = _Segments(segments)

    async def read() -> list[bytes]:
        reader = LineStream(stream, 16, ClientError)
        return [await reader.read_line() for _ in lines]

    assert trio.run(read) == lines
    assert stream.largest <= 16
