"""The request to an auth_http server.

It is the same as nginx's, byte for byte, except for the line `Connection: keep-alive`,
which `auth_http_keepalive off` omits. A server that does not support it closes the
connection after its answer, as before.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mailproxy.auth.http import AuthHttpSettings
    from mailproxy.auth.request import AuthRequest, ClientTls
    from mailproxy.net.proxy_protocol import Header

_UNSAFE = re.compile(rb"[\x00-\x20%]")


def escape(text: bytes) -> bytes:
    """Escape a value for a request: octets up to space, and "%", become %XX."""
    if _UNSAFE.search(text) is None:
        return text
    return _UNSAFE.sub(lambda match: b"%%%02X" % match[0][0], text)


_VALUES = (
    b"Auth-Method: %s\r\nAuth-User: %s\r\nAuth-Pass: %s\r\n%s"
    b"Auth-Protocol: %s\r\nAuth-Login-Attempt: %d\r\nClient-IP: %s\r\n%s"
)


def make_template(settings: AuthHttpSettings) -> bytes:
    """Make the request of a server, with a ``%s`` or ``%d`` for what is not always the same.

    So one operation formats a request. The fourth value and the last one are lines, or
    empty: the salt, and whatever else is known of the client.
    """
    url = settings.auth_http
    assert url is not None
    first = b"GET %s HTTP/1.0\r\nHost: %s\r\n" % (url.uri, url.host)
    last = [b"%s: %s\r\n" % pair for pair in settings.auth_http_header]
    if settings.auth_http_keepalive is not None:
        last.append(b"Connection: keep-alive\r\n")
    last.append(b"\r\n")
    return _as_it_is(first) + _VALUES + _as_it_is(b"".join(last))


def _as_it_is(text: bytes) -> bytes:
    """A part of a template that contains no values."""
    return text.replace(b"%", b"%%")


def format_request(settings: AuthHttpSettings, request: AuthRequest) -> bytes:
    """Format the whole request about a login, from GET to the empty line."""
    salt = request.salt
    return settings.request_template % (
        request.method.encode(),
        escape(request.user),
        escape(request.secret or b""),
        b"Auth-Salt: %s\r\n" % salt if salt else b"",
        request.protocol.encode(),
        request.attempt,
        request.client.encode(),
        _client_lines(settings, request),
    )


def _client_lines(settings: AuthHttpSettings, request: AuthRequest) -> bytes:
    """Header lines about the client, in nginx's order; mostly there are none."""
    lines = b""
    if request.client_host is not None:
        lines = b"Client-Host: %s\r\n" % request.client_host
    if request.proxy_header is not None:
        lines += _proxy_lines(request.proxy_header)
    if request.envelope is not None:
        lines += b"Auth-SMTP-Helo: %s\r\nAuth-SMTP-From: %s\r\nAuth-SMTP-To: %s\r\n" % (
            request.helo,
            request.envelope.mail,
            request.envelope.rcpt,
        )
    if request.tls is not None:
        lines += b"".join(_tls_lines(settings, request.tls, request.sni))
    return lines


def _proxy_lines(header: Header) -> bytes:
    """Header lines about the client's PROXY header; empty if that has no addresses."""
    if header.source is None:
        return b""
    assert header.destination is not None, "a header has both or none"
    return (
        b"Proxy-Protocol-Addr: %s\r\nProxy-Protocol-Port: %d\r\n"
        b"Proxy-Protocol-Server-Addr: %s\r\nProxy-Protocol-Server-Port: %d\r\n"
    ) % (
        header.source.address.encode(),
        header.source.port,
        header.destination.address.encode(),
        header.destination.port,
    )


def _tls_lines(
    settings: AuthHttpSettings, tls: ClientTls, sni: bytes | None
) -> Iterator[bytes]:
    """Header lines about TLS and the client's certificate."""
    yield b"Auth-SSL: on\r\nAuth-SSL-Protocol: %s\r\nAuth-SSL-Cipher: %s\r\n" % (
        tls.version.encode(),
        tls.cipher.encode(),
    )
    if sni and settings.auth_http_pass_server_name:
        yield b"Auth-SSL-Server-Name: %s\r\n" % escape(sni)
    if tls.verify:
        yield b"Auth-SSL-Verify: %s\r\n" % tls.verify.encode()
    certificate = tls.certificate
    if certificate is None:
        return
    yield (
        b"Auth-SSL-Subject: %s\r\nAuth-SSL-Issuer: %s\r\n"
        b"Auth-SSL-Serial: %s\r\nAuth-SSL-Fingerprint: %s\r\n"
    ) % (
        certificate.subject,
        certificate.issuer,
        certificate.serial,
        certificate.fingerprint,
    )
    if settings.auth_http_pass_client_cert:
        yield b"Auth-SSL-Cert: %s\r\n" % escape(certificate.pem)
