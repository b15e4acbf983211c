"""PROXY protocol headers."""

import ipaddress
import re
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.net.proxy_protocol import (
    MAX_HEADER,
    Endpoint,
    Header,
    ProxyProtocolError,
    Tls,
    crc32c,
    format_v1,
    format_v2,
    parse,
)

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
V4 = Endpoint("192.0.2.1", 56324), Endpoint("192.0.2.2", 143)
V6 = Endpoint("2001:db8::1", 56324), Endpoint("2001:db8::2", 993)


def v2(first: int, second: int, body: bytes, size: int | None = None) -> bytes:
    size = len(body) if size is None else size
    return SIGNATURE + struct.pack("!BBH", first, second, size) + body


V4_BODY = bytes([192, 0, 2, 1, 192, 0, 2, 2]) + struct.pack("!HH", 56324, 143)
V6_BODY = (
    ipaddress.ip_address("2001:db8::1").packed
    + ipaddress.ip_address("2001:db8::2").packed
    + struct.pack("!HH", 56324, 993)
)


@pytest.mark.parametrize(
    ("data", "ends"),
    [
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 143\r\n", V4),
        (b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 993\r\n", V6),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 0 65535\r\n", None),
        (b"PROXY UNKNOWN\r\n", (None, None)),
        (b"PROXY UNKNOWN ff:: ::1 1 2 and more\r\n", (None, None)),
        (v2(0x21, 0x11, V4_BODY), V4),
        (v2(0x21, 0x21, V6_BODY), V6),
        (v2(0x21, 0x11, V4_BODY + b"\x03\0\4abcd"), V4),
        (v2(0x21, 0x11, V4_BODY + bytes(4096 - 16 - 12)), V4),
        (v2(0x20, 0x00, b""), (None, None)),  # LOCAL
        (v2(0x20, 0x11, V4_BODY), (None, None)),
        (v2(0x2F, 0x11, V4_BODY), (None, None)),  # no command anybody knows
        (v2(0x21, 0x00, b"junk"), (None, None)),
        (v2(0x21, 0x12, V4_BODY), (None, None)),  # UDP
        (v2(0x21, 0x31, bytes(216)), (None, None)),  # unix
    ],
)
def test_header_is_read(
    data: bytes, ends: tuple[Endpoint | None, Endpoint | None] | None
) -> None:
    header = parse(data + b"a1 NOOP\r\n")
    assert header is not None
    assert header.size == len(data)
    if ends is not None:
        assert (header.source, header.destination) == ends
    for end in range(len(data)):
        assert parse(data[:end]) is None


def test_version_1_keeps_the_text_of_addresses() -> None:
    header = parse(b"PROXY TCP6 2001:DB8:0::1 ::2 1 2\r\n")
    assert header is not None
    assert header.source is not None
    assert header.source.address == "2001:DB8:0::1"
    assert header.source.ip == ipaddress.ip_address("2001:db8::1")


@pytest.mark.parametrize("word", ["TCP4", "TCP6"])
@pytest.mark.parametrize("source", ["192.0.2.7", "2001:db8::7", "::ffff:192.0.2.7"])
@pytest.mark.parametrize("destination", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_version_1_may_mix_the_families(
    word: str, source: str, destination: str
) -> None:
    line = f"PROXY {word} {source} {destination} 4711 143\r\n".encode()
    wanted = Header(len(line), Endpoint(source, 4711), Endpoint(destination, 143))
    assert parse(line) == wanted


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"GET / HTTP/1.0\r\nHost: x\r\n", 'broken header: "GET / HTTP/1.0"'),
        (b"\x16\x03\x01", 'broken header: "\x16\x03\x01"'),
        (b"proxy tcp4", 'broken header: "proxy tcp4"'),
        (b"a1 NOOP\n", 'broken header: "a1 NOOP"'),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2\n", None),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 65536\r\n", None),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 -2\r\n", None),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 \r\n", None),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1 2 \r\n", None),
        (b"PROXY TCP4 1.1.1.1  2.2.2.2 1 2\r\n", None),
        (b"PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n", None),
        (b"PROXY TCP4 abc 2.2.2.2 1 2\r\n", None),
        (b"PROXY TCP4 1.1.1.1 abc 1 2\r\n", None),
        (b"PROXY TCP6 2001:db8::1 127.0.0 1 2\r\n", None),
        (b"PROXY TCP6 [2001:db8::1] ::1 1 2\r\n", None),
        (b"PROXY TCP6 fe80::1%eth0 fe80::1 1 2\r\n", None),
        (b"PROXY TCP6 fe80::1 fe80::1%eth0 1 2\r\n", None),
        (b"PROXY TCP4 1.1.1.1\0 2.2.2.2 1 2\r\n", None),
        (b"PROXY TCP5 1.1.1.1 2.2.2.2 1 2\r\n", None),
        (b"PROXY \r\n", 'broken header: "PROXY "'),
        (v2(0x11, 0x11, V4_BODY), "unknown PROXY protocol version: 1"),
        (v2(0x31, 0x11, b"")[:13], "unknown PROXY protocol version: 3"),
        (v2(0x21, 0x11, V4_BODY, 4081), "header is too large"),
        (v2(0x21, 0x11, V4_BODY[:11]), "header is too short for its addresses"),
        (v2(0x21, 0x21, V4_BODY), "header is too short for its addresses"),
    ],
)
def test_anything_else_is_refused_in_nginxs_words(
    data: bytes, message: str | None
) -> None:
    with pytest.raises(ProxyProtocolError) as caught:
        parse(data)
    error = caught.value
    if message is None:
        line = re.split("[\r\n]", data.decode())[0]
        message = f'broken header: "{line}"'
    sent = [s.decode() if isinstance(s, bytes) else s for s in error.sent]
    assert error.message % tuple(sent) == message


def test_a_line_without_end_is_not_waited_for_beyond_the_limit() -> None:
    assert parse(b"PROXY UNKNOWN".ljust(MAX_HEADER - 1)) is None
    with pytest.raises(ProxyProtocolError):
        parse(b"PROXY UNKNOWN".ljust(MAX_HEADER))


@given(st.binary(max_size=200), st.sampled_from([b"", b"PROXY ", SIGNATURE]))
def test_any_bytes_are_a_header_its_beginning_or_refused(
    tail: bytes, start: bytes
) -> None:
    data = start + tail
    results: list[Header | None] = []
    for end in range(len(data) + 1):
        try:
            results.append(parse(data[:end]))
        except ProxyProtocolError:
            break
    else:
        # Once complete, more bytes change nothing.
        headers = [header for header in results if header is not None]
        assert len(set(headers)) <= 1
        if headers:
            assert results.index(headers[0]) == headers[0].size


addresses = st.ip_addresses()
ports = st.integers(0, 65535)
endpoints = st.builds(lambda ip, port: Endpoint(str(ip), port), addresses, ports)


@given(endpoints, endpoints)
def test_both_versions_say_what_was_put_in(
    source: Endpoint, destination: Endpoint
) -> None:
    for data in format_v1(source, destination), format_v2(source, destination):
        header = parse(data)
        assert header is not None
        assert header.size == len(data)
        for found, wanted in (
            (header.source, source),
            (header.destination, destination),
        ):
            assert found is not None
            assert found.port == wanted.port
            assert unmapped(found.address) == unmapped(wanted.address)


def unmapped(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    ip = ipaddress.ip_address(address)
    return getattr(ip, "ipv4_mapped", None) or ip


def test_version_1_for_backends() -> None:
    assert format_v1(*V4) == b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 143\r\n"
    assert format_v1(*V6) == b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 993\r\n"
    assert format_v1(None, V4[1]) == b"PROXY UNKNOWN\r\n"
    assert format_v1(V4[0], None) == b"PROXY UNKNOWN\r\n"


def test_version_1_writes_mixed_addresses_as_ipv6() -> None:
    assert format_v1(V6[0], V4[1]) == (
        b"PROXY TCP6 2001:db8::1 ::ffff:192.0.2.2 56324 143\r\n"
    )
    assert format_v1(Endpoint("fe80::1%eth0", 1), V6[1]) == (
        b"PROXY TCP6 fe80::1 2001:db8::2 1 993\r\n"
    )


def checked(data: bytes) -> bytes:
    """A version 2 header without its checksum, which is right."""
    head, kind, checksum = data[:-7], data[-7:-4], data[-4:]
    assert kind == b"\x03\0\x04"
    assert crc32c(head + kind + bytes(4)) == int.from_bytes(checksum, "big")
    assert int.from_bytes(data[14:16], "big") == len(data) - 16
    return head[:14] + head[16:]


def test_version_2_for_backends() -> None:
    assert checked(format_v2(*V4)) == SIGNATURE + b"\x21\x11" + V4_BODY
    assert checked(format_v2(*V6)) == SIGNATURE + b"\x21\x21" + V6_BODY
    assert checked(format_v2(None, V4[1])) == SIGNATURE + b"\x20\x00"


def test_version_2_prefers_ipv4_and_maps_what_is_mixed() -> None:
    mapped = Endpoint("::ffff:192.0.2.1", 56324)
    assert checked(format_v2(mapped, V4[1])) == SIGNATURE + b"\x21\x11" + V4_BODY
    mixed = checked(format_v2(V6[0], Endpoint("192.0.2.2", 993)))
    assert mixed == SIGNATURE + b"\x21\x21" + (
        V6_BODY[:16]
        + ipaddress.ip_address("::ffff:192.0.2.2").packed
        + struct.pack("!HH", 56324, 993)
    )


def test_version_2_describes_the_clients_tls() -> None:
    tls = Tls(
        version="TLSv1.3",
        cipher="TLS_AES_256_GCM_SHA384",
        certificate=True,
        verify=0,
        common_name=b"client",
        signature="SHA256",
        key="RSA2048",
        server_name=b"mail.example.com",
        alpn=b"imap",
    )

    def value(kind: int, data: bytes) -> bytes:
        return bytes([kind]) + struct.pack("!H", len(data)) + data

    assert checked(format_v2(*V4, tls=tls)) == (
        SIGNATURE
        + b"\x21\x11"
        + V4_BODY
        + value(0x02, b"mail.example.com")
        + value(0x01, b"imap")
        + value(
            0x20,
            b"\x07"
            + bytes(4)
            + value(0x21, b"TLSv1.3")
            + value(0x22, b"client")
            + value(0x23, b"TLS_AES_256_GCM_SHA384")
            + value(0x24, b"SHA256")
            + value(0x25, b"RSA2048"),
        )
    )


@pytest.mark.parametrize(
    ("certificate", "resumed", "bits"),
    [(False, False, 1), (False, True, 1), (True, False, 7), (True, True, 5)],
)
def test_version_2_tells_a_shown_certificate_from_a_remembered_one(
    certificate: bool, resumed: bool, bits: int
) -> None:
    tls = Tls("TLSv1.2", "X", certificate=certificate, resumed=resumed, verify=1)
    data = format_v2(*V4, tls=tls)
    assert data[28] == 0x20
    assert data[31] == bits
    assert data[32:36] == b"\0\0\0\1"


def test_checksum_is_castagnolis() -> None:
    assert crc32c(b"123456789") == 0xE3069283
