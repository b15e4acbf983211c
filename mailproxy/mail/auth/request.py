"""What an auth_http server is asked.

The request is nginx's, byte for byte, but for one line: `Connection: keep-alive`, which
`auth_http_keepalive off` leaves out. A server that does not know it closes, as it always
did.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from mailproxy.net import openssl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mailproxy.mail.auth.http import AuthHttpSettings
    from mailproxy.mail.client import Client
    from mailproxy.mail.login import Login

_UNSAFE = re.compile(rb"[\x00-\x20%]")


def escape(text: bytes) -> bytes:
    """A value as it stands in a request: octets up to space, and "%", as %XX."""
    if _UNSAFE.search(text) is None:
        return text
    return _UNSAFE.sub(lambda match: b"%%%02X" % match[0][0], text)


def request(settings: AuthHttpSettings, login: Login, client: Client) -> bytes:
    """What is asked about a login, from GET to the empty line."""
    return b"".join(_lines(settings, login, client))


def _lines(settings: AuthHttpSettings, login: Login, client: Client) -> Iterator[bytes]:
    """The request, in the order of nginx's lines."""
    url = settings.auth_http
    assert url is not None
    protocol = client.server.protocol.name
    yield b"GET %s HTTP/1.0\r\nHost: %s\r\nAuth-Method: %s\r\n" % (
        url.uri,
        url.host,
        login.method.encode(),
    )
    yield b"Auth-User: %s\r\nAuth-Pass: %s\r\n" % (
        escape(login.user),
        escape(login.secret or b""),
    )
    if login.salt:
        yield b"Auth-Salt: %s\r\n" % login.salt
    yield b"Auth-Protocol: %s\r\nAuth-Login-Attempt: %d\r\nClient-IP: %s\r\n" % (
        protocol.encode(),
        client.attempts,
        client.address.encode(),
    )
    if protocol == "smtp":
        yield b"Client-Host: %s\r\n" % client.host
    header = client.header
    if header is not None and header.source is not None:
        yield b"Proxy-Protocol-Addr: %s\r\nProxy-Protocol-Port: %d\r\n" % (
            header.source.address.encode(),
            header.source.port,
        )
        assert header.destination is not None, "a header has both or none"
        yield (
            b"Proxy-Protocol-Server-Addr: %s\r\nProxy-Protocol-Server-Port: %d\r\n"
            % (header.destination.address.encode(), header.destination.port)
        )
    if login.envelope is not None:
        yield b"Auth-SMTP-Helo: %s\r\nAuth-SMTP-From: %s\r\nAuth-SMTP-To: %s\r\n" % (
            client.helo,
            login.envelope.mail,
            login.envelope.rcpt,
        )
    if client.secure:
        yield _tls_lines(settings, client)
    for name, value in settings.auth_http_header:
        yield b"%s: %s\r\n" % (name, value)
    if settings.auth_http_keepalive is not None:
        yield b"Connection: keep-alive\r\n"
    yield b"\r\n"


def _tls_lines(settings: AuthHttpSettings, client: Client) -> bytes:
    """What the auth server is told about TLS and the client's certificate."""
    tls = client.wire.tls
    assert tls is not None
    cipher = tls.cipher()
    lines = [
        b"Auth-SSL: on",
        b"Auth-SSL-Protocol: %s" % (tls.version() or "").encode(),
        b"Auth-SSL-Cipher: %s" % (cipher[0] if cipher else "").encode(),
    ]
    if client.server.ssl.ssl_verify_client != "off":
        certificate = openssl.peer_certificate(tls)
        code, reason = openssl.verify_result(tls)
        if certificate is None:
            lines.append(b"Auth-SSL-Verify: NONE")
        else:
            verdict = f"FAILED:{reason}" if code else "SUCCESS"
            lines += [
                b"Auth-SSL-Verify: %s" % verdict.encode(),
                b"Auth-SSL-Subject: %s" % certificate.subject,
                b"Auth-SSL-Issuer: %s" % certificate.issuer,
                b"Auth-SSL-Serial: %s" % certificate.serial,
                b"Auth-SSL-Fingerprint: %s" % certificate.fingerprint,
            ]
            if settings.auth_http_pass_client_cert:
                lines.append(b"Auth-SSL-Cert: %s" % escape(certificate.pem))
    return b"".join(b"%s\r\n" % line for line in lines)
