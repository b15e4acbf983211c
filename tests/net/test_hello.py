"""What is read of a client's hello, and what is left for OpenSSL to refuse."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.net.openssl.hello import Hello, read_hello


def hello_of(protocols: list[str], name: str | None) -> bytes:
    """What OpenSSL's client sends first."""
    context = ssl.create_default_context()
    context.check_hostname = name is not None
    if protocols:
        context.set_alpn_protocols(protocols)
    down, up = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(down, up, server_hostname=name).do_handshake()
    return up.read()


def in_records(data: bytes, size: int) -> bytes:
    """The message of one record in several."""
    message = data[5:]
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(data[:3] + len(p).to_bytes(2, "big") + p for p in pieces)


@pytest.mark.parametrize("protocols", [[], ["imap"], ["h2", "http/1.1", "pop3"]])
@pytest.mark.parametrize("name", [None, "mx.example.com"])
def test_protocols_and_server_name_are_read(
    protocols: list[str], name: str | None
) -> None:
    wanted = Hello(
        tuple(each.encode() for each in protocols), name.encode() if name else None
    )
    data = hello_of(protocols, name)
    assert read_hello(data) == wanted
    assert read_hello(data + b"more") == wanted
    for size in (1, 3, 100):
        assert read_hello(in_records(data, size)) == wanted


def test_of_a_hello_that_is_not_complete_more_must_come() -> None:
    data = hello_of(["imap"], "mx.example.com")
    for whole in (data, in_records(data, 7)):
        for size in range(len(whole)):
            assert read_hello(whole[:size]) is None


@pytest.mark.parametrize(
    "data",
    [
        b"a LOGIN x y\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x28",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",
        b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
    ],
)
def test_what_is_no_hello_is_for_openssl_to_refuse(data: bytes) -> None:
    assert read_hello(data) == Hello()


@given(st.binary(max_size=300))
def test_any_octets_are_read_without_an_error(body: bytes) -> None:
    size = len(body)
    message = b"\x01" + size.to_bytes(3, "big") + body
    data = b"\x16\x03\x01" + (size + 4).to_bytes(2, "big") + message
    assert isinstance(read_hello(data), Hello)
    read_hello(body)


_WHOLE = hello_of(["imap", "pop3"], "mx.example.com")


@given(st.integers(0, 400), st.integers(0, 255))
def test_a_damaged_hello_is_read_without_an_error(at: int, octet: int) -> None:
    data = bytearray(_WHOLE)
    data[at % len(data)] = octet
    read_hello(bytes(data))
