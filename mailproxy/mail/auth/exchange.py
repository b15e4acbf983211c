"""One question to an auth_http server, and what its answer means.

The request is nginx's, byte for byte, but for one line: `Connection: keep-alive`.
A server that does not know it closes, as it always did.

The answer is HTTP as nginx reads it: the status code says nothing, the headers
decide, the body is dropped. Where nginx lets a client in although nobody said OK,
we do not: a proxy's error page must not authenticate.
"""

from __future__ import annotations

import contextlib
import re
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from mailproxy.errors import AuthError
from mailproxy.mail.auth.source import Granted, Refused
from mailproxy.mail.client import timed_out
from mailproxy.mail.protocol import FORBIDDEN
from mailproxy.net import openssl
from mailproxy.net.network import connect_level

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mailproxy.mail.auth.http import AuthHttpSettings
    from mailproxy.mail.client import Client
    from mailproxy.mail.protocol import Login
    from mailproxy.net.wire import Wire

HEADER_LIMIT = 16 * 1024
"""Octets of status line and headers (nginx: 1 KiB, and then it waits in vain)."""
BODY_LIMIT = 64 * 1024
"""A longer body is not read; the connection is closed instead of kept."""
BODY_PATIENCE = 0.1
"""Seconds for the body to come; nobody needs it, so nobody's login waits longer."""
MOST_WAITS = 100
"""How often an auth server may put off its answer (`Auth-Status: WAIT`)."""

_UNSAFE = re.compile(rb"[\x00-\x20%]")
_HEADERS = re.compile(rb"(?:[A-Za-z0-9][A-Za-z0-9-]*(?::[^\r\n]*)?(?:\r?\n|\r?\Z))*")
"""Header lines as nginx reads them; one without a colon is passed over."""
_HEADER = re.compile(rb"^([A-Za-z0-9-]+):([^\r\n]*)", re.MULTILINE)


async def check(
    settings: AuthHttpSettings, login: Login, client: Client
) -> Granted | Refused:
    """Ask until there is a decision; see `AuthSource.check`."""
    url = settings.auth_http
    assert url is not None, "every server has one"
    request = b"".join(_request(settings, login, client))
    for _ in range(MOST_WAITS):
        answer = await _ask(settings, request, client)
        failures = [s for s in answer.statuses if s not in (b"OK", b"WAIT")]
        if b"" in failures or not answer.statuses:
            # nginx takes silence for consent; a decision has to be one.
            raise AuthError("auth http server %s did not send a decision", url.address)
        if failures:
            return Refused(
                failures[-1].replace(b"\0", b""),
                answer.wait,
                answer.fields.get(b"auth-error-code", b"").replace(b"\0", b""),
                answer.fields.get(b"auth-error-sasl", b"").replace(b"\0", b""),
            )
        if b"WAIT" not in answer.statuses:
            return _granted(answer.fields, login, client, url.address)
        client.timer.stop()
        await trio.sleep(max(answer.wait, 1))
    raise AuthError("auth http server %s put off its answer too often", url.address)


def escape(text: bytes) -> bytes:
    """A value as it stands in a request: octets up to space, and "%", as %XX."""
    if _UNSAFE.search(text) is None:
        return text
    return _UNSAFE.sub(lambda match: b"%%%02X" % match[0][0], text)


def _request(
    settings: AuthHttpSettings, login: Login, client: Client
) -> Iterator[bytes]:
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
    yield b"Connection: keep-alive\r\n\r\n"


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


@dataclass(slots=True)
class _Answer:
    """A response as far as it matters."""

    statuses: list[bytes]
    """Every value of Auth-Status."""
    fields: dict[bytes, bytes] = field(repr=False)
    """The other headers by lower-case name; of several, the last."""
    keep: bool
    """Whether the connection can be used again, once `body` octets are read."""
    body: int

    @property
    def wait(self) -> int:
        text = self.fields.get(b"auth-wait", b"")
        return int(text[:9]) if text.isdigit() else 0


async def _ask(settings: AuthHttpSettings, request: bytes, client: Client) -> _Answer:
    """Send the request, on a kept connection if there is one, and read the answer."""
    url = settings.auth_http
    assert url is not None
    server = url.address
    client.timer.limit(
        settings.auth_http_timeout,
        lambda: AuthError("auth http server %s timed out", server, error=timed_out()),
    )
    key = (url.family, url.sockaddr)
    wire = client.network.take_idle(key)
    if wire is not None:
        try:
            return await _ask_on(wire, request, server, client, key)
        except _StaleError:
            pass  # the server closed it as we asked: ask again
    try:
        wire = client.network.connect(url.family, url.sockaddr)
    except OSError as error:
        raise AuthError(
            "connect() to %s failed", server, error=error, level=connect_level(error)
        ) from None
    try:
        return await _ask_on(wire, request, server, client, key)
    except _StaleError as stale:
        if stale.error is not None:
            raise AuthError("recv() failed", error=stale.error) from None
        raise AuthError(
            "auth http server %s closed connection prematurely", server
        ) from None


async def _ask_on(
    wire: Wire, request: bytes, server: str, client: Client, key: object
) -> _Answer:
    """Ask on one connection; it is kept for others if its server allows, or closed."""
    keep = False
    try:
        answer = await _exchange(wire, request, server)
        keep = answer.keep and answer.body == 0
    finally:
        if keep:
            client.network.keep(key, wire)
        else:
            wire.close()
    return answer


class _StaleError(Exception):
    """The connection ended before a byte of the answer came."""

    def __init__(self, error: OSError | None = None) -> None:
        super().__init__()
        self.error = error


async def _exchange(wire: Wire, request: bytes, server: str) -> _Answer:
    """Send the request; read the headers, and the body if the connection is kept."""
    received = b""
    try:
        await wire.send_all(request)
        while True:
            data = await wire.receive_some()
            if not data:
                if received:
                    raise AuthError(
                        "auth http server %s closed connection prematurely", server
                    )
                raise _StaleError
            new = max(len(received) - 3, 0)
            received += data
            end = _END.search(received, new)
            if end is not None and end.end() <= HEADER_LIMIT:
                break
            if len(received) > HEADER_LIMIT:
                raise AuthError("auth http server %s sent too long header", server)
    except OSError as error:
        if received:
            raise AuthError("recv() failed", error=error) from None
        raise _StaleError(error) from None
    answer = parse(received[: end.start()], server)
    answer.body -= len(received) - end.end()
    if answer.keep and 0 < answer.body <= BODY_LIMIT:
        await _drop_body(wire, answer)
    return answer


async def _drop_body(wire: Wire, answer: _Answer) -> None:
    """Read the body away; if it does not come, the connection cannot be kept."""
    with trio.move_on_after(BODY_PATIENCE), contextlib.suppress(OSError):
        while answer.body > 0:
            data = await wire.receive_some()
            if not data:
                return
            answer.body -= len(data)


_END = re.compile(rb"(?:\A|\n)\r?\n")


def parse(header: bytes, server: str) -> _Answer:
    """Status line and headers, without the empty line that ends them.

    Raises:
      AuthError: nginx would not read them either.
    """
    framing = b""
    if header.startswith(b"HTTP/"):
        framing, _, header = header.partition(b"\n")
        framing = framing.removesuffix(b"\r")
        if b"\r" in framing:
            raise AuthError("auth http server %s sent invalid response", server)
    if not _HEADERS.fullmatch(header):
        raise AuthError("auth http server %s sent invalid header in response", server)
    pairs = [
        (name.lower(), value.strip(b" ")) for name, value in _HEADER.findall(header)
    ]
    statuses = [value for name, value in pairs if name == b"auth-status"]
    fields = dict(pairs)
    length = fields.get(b"content-length", b"")
    words = fields.get(b"connection", b"").lower().replace(b",", b" ").split()
    lasting = (
        b"close" not in words
        if framing.startswith(b"HTTP/1.1 ")
        else framing.startswith(b"HTTP/1.0 ") and b"keep-alive" in words
    )
    bodyless = framing[9:13] in (b"204 ", b"204", b"304 ", b"304")
    known = length.isdigit() and b"transfer-encoding" not in fields
    # Where two could read two lengths, what follows could be read as an answer to
    # somebody else; and behind a 1xx there is another response to the same request.
    clear = [name for name, _ in pairs].count(b"content-length") <= 1
    return _Answer(
        statuses,
        fields,
        keep=lasting and clear and framing[9:10] != b"1" and (known or bodyless),
        body=int(length[:18]) if known and not bodyless else 0,
    )


def _granted(
    fields: dict[bytes, bytes], login: Login, client: Client, server: str
) -> Granted:
    """Where to go, from an answer that says OK.

    Raises:
      AuthError: the answer does not tell, or what it tells is not usable.
    """
    host = fields.get(b"auth-server", b"")
    port = fields.get(b"auth-port", b"")
    if not host or not port:
        raise AuthError("auth http server %s did not send server or port", server)
    user = fields.get(b"auth-user", login.user)
    secret = fields.get(b"auth-pass")
    if secret is None and login.method not in ("apop", "cram-md5"):
        secret = login.secret
    if secret is None and client.server.protocol.name != "smtp":
        raise AuthError("auth http server %s did not send password", server)
    if not FORBIDDEN.isdisjoint(user + (secret or b"")):
        raise AuthError("auth http server %s sent invalid user or password", server)
    address = host.decode("latin-1")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        socket.inet_pton(family, address)
    except (OSError, ValueError):
        raise AuthError(
            'auth http server %s sent invalid server address:"%s"', server, host
        ) from None
    number = int(port) if port.isdigit() and len(port) < 20 else 0
    if not 1 <= number <= 65535:
        raise AuthError(
            'auth http server %s sent invalid server port:"%s"', server, port
        )
    return Granted(
        family,
        (address, number),
        f"{address}:{port.decode()}",
        user,
        secret,
        _smtp_auth(fields, client, server),
    )


def _smtp_auth(fields: dict[bytes, bytes], client: Client, server: str) -> bool | None:
    """Whether the SMTP backend wants AUTH, if the answer says so (``Auth-SMTP``).

    Raises:
      AuthError: it says something else than yes or no.
    """
    value = fields.get(b"auth-smtp", b"")
    if not value or client.server.protocol.name != "smtp":
        return None
    if value.lower() not in (b"yes", b"no"):
        raise AuthError(
            'auth http server %s sent invalid "Auth-SMTP":"%s"', server, value
        )
    return value.lower() == b"yes"
