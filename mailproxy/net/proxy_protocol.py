"""PROXY protocol headers, versions 1 and 2: parse, format; no I/O.

https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt

A header comes first on a connection, even before TLS, and says who the client behind
a proxy is. nginx requires all of it in the first segment; here it may arrive in pieces
of any size, up to a limit. Its addresses are checked, because they are trusted and
passed on.
"""

import ipaddress
import socket
import struct
from dataclasses import dataclass

from mailproxy.conf.addresses import IPAddress
from mailproxy.frozen import Frozen

MAX_HEADER = 4096
"""Bytes of a received header."""

MAX_COMMON_NAME = 1024
"""Bytes of a client's common name in a header that we send; a longer one is left out.
A client may choose one of a hundred thousand bytes, which no header can hold, and a
truncated name could be that of another client."""

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_V1_PREFIX = b"PROXY "


class ProxyProtocolError(Frozen, ValueError):
    """The bytes are not a PROXY header; the message is nginx's for the log.

    Attributes:
      message: the text for the log, perhaps with a `%s`.
      sent: what the client sent, for the `%s` of the message.
    """

    def __init__(self, message: str, *sent: object) -> None:
        super().__init__(message)
        self.message = message
        self.sent = sent


@dataclass(frozen=True)
class Endpoint:
    """An address and a port from a header."""

    address: str
    """Version 1: as received; version 2: in its usual form."""
    port: int

    @property
    def ip(self) -> IPAddress:
        """The parsed address."""
        return ipaddress.ip_address(self.address)

    @property
    def text(self) -> str:
        """The address in its usual form, with "::ffff:192.0.2.1" for mapped ones."""
        return _text(self.ip)


@dataclass(frozen=True)
class Header:
    """A complete PROXY header."""

    size: int
    """Its length in bytes; what follows belongs to the mail protocol, or to TLS."""
    source: Endpoint | None = None
    """The client; None if the proxy does not know it or speaks for itself."""
    destination: Endpoint | None = None
    """The address that the client connected to."""


def parse(buffer: bytes | bytearray | memoryview) -> Header | None:
    """Read a header from the first bytes of a connection.

    Args:
      buffer: everything received so far; more than `MAX_HEADER` bytes are never needed.

    Returns:
      The header, or None if its end has not arrived yet.

    Raises:
      ProxyProtocolError: the bytes are not, or will not become, a header.
    """
    data = bytes(buffer[:MAX_HEADER])
    start = data[: len(_SIGNATURE)]
    if start == _SIGNATURE:
        return _parse_v2(data)
    if start[:6] == _V1_PREFIX:
        return _parse_v1(data)
    if _SIGNATURE.startswith(start) or _V1_PREFIX.startswith(start):
        return None
    raise _broken(data)


def _broken(data: bytes) -> ProxyProtocolError:
    line = data.partition(b"\n")[0].partition(b"\r")[0]
    return ProxyProtocolError('broken header: "%s"', line)


def _parse_v1(data: bytes) -> Header | None:
    line, end, _ = data.partition(b"\n")
    if not end:
        if len(data) < MAX_HEADER:
            return None
        raise _broken(data)
    if not line.endswith(b"\r"):
        raise _broken(data)
    size = len(line) + 1
    words = line[:-1].split(b" ")
    if words[1].startswith(b"UNKNOWN"):
        return Header(size)
    if len(words) != 6 or words[1] not in (b"TCP4", b"TCP6"):
        raise _broken(data)
    return Header(
        size,
        Endpoint(_v1_address(words[2], data), _v1_port(words[4], data)),
        Endpoint(_v1_address(words[3], data), _v1_port(words[5], data)),
    )


def _v1_address(word: bytes, data: bytes) -> str:
    """Read an address of either family, whichever family the header names.

    nginx's stream module names the family of the client, whose address
    `set_real_ip_from` may have replaced, and sends its own address as it is:
    "TCP6 2001:db8::7 127.0.0.1".
    """
    text = word.decode("latin-1")
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise _broken(data) from None
    # A zone ("fe80::1%eth0") means nothing on another machine.
    if "%" in text:
        raise _broken(data)
    return text


def _v1_port(word: bytes, data: bytes) -> int:
    if not (word.isdigit() and len(word) <= 5 and int(word) <= 65535):
        raise _broken(data)
    return int(word)


_V2_FAMILIES = {
    0x1: (socket.AF_INET, struct.Struct("!4s4sHH")),
    0x2: (socket.AF_INET6, struct.Struct("!16s16sHH")),
}


def _parse_v2(data: bytes) -> Header | None:
    if len(data) < 16:
        if len(data) > 12 and data[12] >> 4 != 2:
            raise _unknown_version(data[12])
        return None
    if data[12] >> 4 != 2:
        raise _unknown_version(data[12])
    size = 16 + int.from_bytes(data[14:16], "big")
    if size > MAX_HEADER:
        raise ProxyProtocolError("header is too large")
    if len(data) < size:
        return None
    command, family, transport = data[12] & 15, data[13] >> 4, data[13] & 15
    if command != 1 or transport != 1 or family not in _V2_FAMILIES:
        return Header(size)
    number, layout = _V2_FAMILIES[family]
    if size < 16 + layout.size:
        # nginx closes the connection without a message.
        raise ProxyProtocolError("header is too short for its addresses")
    source, destination, source_port, destination_port = layout.unpack_from(data, 16)
    return Header(
        size,
        Endpoint(socket.inet_ntop(number, source), source_port),
        Endpoint(socket.inet_ntop(number, destination), destination_port),
    )


def _unknown_version(byte: int) -> ProxyProtocolError:
    return ProxyProtocolError("unknown PROXY protocol version: %s", byte >> 4)


@dataclass(frozen=True)
class Tls:
    """The client's TLS, as a version 2 header describes it to a backend."""

    version: str
    """"TLSv1.3"."""
    cipher: str
    certificate: bool = False
    """Whether the client presented a certificate, now or when the TLS session began."""
    resumed: bool = False
    """Whether the TLS session was resumed."""
    verify: int = 1
    """OpenSSL's result for the certificate: 0 if it is good; 1 if there is none."""
    common_name: bytes | None = None
    """CN of the client's certificate."""
    signature: str | None = None
    """Signature algorithm of our certificate: "SHA256"."""
    key: str | None = None
    """Key of our certificate: "RSA2048"."""
    server_name: bytes | None = None
    """The name that the client asked for (SNI)."""
    alpn: bytes | None = None


def format_v1(source: Endpoint | None, destination: Endpoint | None) -> bytes:
    """Write a version 1 header for a backend.

    A header cannot hold an IPv4 and an IPv6 address; nginx sends such a header anyway.
    Here the IPv4 address is written as an IPv4-mapped IPv6 address.

    Args:
      source: the client; None for one on a unix socket.
      destination: the address it connected to.
    """
    pair = _pair(source, destination)
    if pair is None:
        return b"PROXY UNKNOWN\r\n"
    (source_ip, source_port), (destination_ip, destination_port) = pair
    return (
        f"PROXY TCP{source_ip.version} {_text(source_ip)} {_text(destination_ip)}"
        f" {source_port} {destination_port}\r\n"
    ).encode("ascii")


def format_v2(
    source: Endpoint | None, destination: Endpoint | None, tls: Tls | None = None
) -> bytes:
    """Write a version 2 header for a backend.

    Args:
      source: the client; None for one on a unix socket.
      destination: the address it connected to.
      tls: the client's TLS; None if it has none.
    """
    pair = _pair(source, destination)
    if pair is None:
        command, family, addresses = 0x20, 0x00, b""
    else:
        (source_ip, source_port), (destination_ip, destination_port) = pair
        short = _unmapped(source_ip), _unmapped(destination_ip)
        if short[0].version == short[1].version == 4:
            source_ip, destination_ip = short
        command, family = 0x21, 0x11 if source_ip.version == 4 else 0x21
        addresses = source_ip.packed + destination_ip.packed
        addresses += struct.pack("!HH", source_port, destination_port)
    body = addresses + (b"" if tls is None else _tls_values(tls))
    checksum_size = 7
    head = struct.pack(
        "!12sBBH", _SIGNATURE, command, family, len(body) + checksum_size
    )
    checksum = crc32c(head + body + _value(0x03, bytes(4)))
    return head + body + _value(0x03, checksum.to_bytes(4, "big"))


def _pair(
    source: Endpoint | None, destination: Endpoint | None
) -> tuple[tuple[IPAddress, int], tuple[IPAddress, int]] | None:
    """Bring both addresses to one family; None if one of them is no IP address."""
    if source is None or destination is None:
        return None
    ends = source.ip, destination.ip
    if ends[0].version != ends[1].version:
        ends = _mapped(ends[0]), _mapped(ends[1])
    return (ends[0], source.port), (ends[1], destination.port)


def _mapped(address: IPAddress) -> ipaddress.IPv6Address:
    if isinstance(address, ipaddress.IPv6Address):
        return address
    return ipaddress.IPv6Address(b"\0" * 10 + b"\xff\xff" + address.packed)


def _unmapped(address: IPAddress) -> IPAddress:
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def _text(address: IPAddress) -> str:
    """Write an address as inet_ntop() does: mapped ones as "::ffff:192.0.2.1"."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    return socket.inet_ntop(family, address.packed)


def _value(kind: int, data: bytes) -> bytes:
    return struct.pack("!BH", kind, len(data)) + data


def _tls_values(tls: Tls) -> bytes:
    values = b""
    if tls.server_name:
        values += _value(0x02, tls.server_name)
    if tls.alpn:
        values += _value(0x01, tls.alpn)
    bits = 0x01
    if tls.certificate:
        bits |= 0x04 if tls.resumed else 0x06
    ssl = struct.pack("!BI", bits, tls.verify & 0xFFFFFFFF)
    ssl += _value(0x21, tls.version.encode())
    if tls.common_name is not None and len(tls.common_name) <= MAX_COMMON_NAME:
        ssl += _value(0x22, tls.common_name)
    ssl += _value(0x23, tls.cipher.encode())
    if tls.signature is not None:
        ssl += _value(0x24, tls.signature.encode())
    if tls.key is not None:
        ssl += _value(0x25, tls.key.encode())
    return values + _value(0x20, ssl)


def _crc32c_table() -> tuple[int, ...]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return tuple(table)


_CRC32C = _crc32c_table()


def crc32c(data: bytes) -> int:
    """Compute the CRC-32C checksum (Castagnoli; RFC 9260, appendix A)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC32C[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF
