"""What the answer of an auth_http server means.

It is HTTP as nginx reads it: the headers decide, and the body is dropped. The status
code counts only where `Auth-Status` is missing: nginx lets a client in if the answer
names a backend, whatever the code. Here the code must be a success as well, so that a
proxy's error page does not authenticate anyone.

An unusable answer raises `Unusable`, which says what came and what was wanted.

A login asks for one answer, so the usual one is read in one pass, with as few calls as
possible: what only others need is found out when they come.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from mailproxy.auth.verdict import Granted, Refused, Route, is_clean
from mailproxy.conf.values import lower
from mailproxy.frozen import Frozen
from mailproxy.log.secrets import HIDDEN, repeats
from mailproxy.net.octets import CR

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mailproxy.auth.request import AuthRequest
    from mailproxy.auth.verdict import Destinations

MAX_SHOWN = 256
"""Octets of an answer that a log line shows."""

MAX_ROUTES = 256
"""Routes that a worker remembers, because the same ones come again and again."""

_HEADERS = re.compile(rb"(?:[A-Za-z0-9][A-Za-z0-9-]*(?::[^\r\n]*)?(?:\r?\n|\r?\Z))*")
"""Header lines as nginx reads them."""
_NAME = re.compile(rb"[A-Za-z0-9][A-Za-z0-9-]*")
_USUAL_NAMES = {
    spelling: name
    for name in (
        b"auth-status auth-server auth-port auth-user auth-pass auth-wait auth-smtp "
        b"connection keep-alive content-length content-type date server"
    ).split()
    for spelling in (name, name.title())
}
"""Names in lower case, by the spellings in which they usually come."""
_SUCCESS = re.compile(rb"HTTP/[0-9](?:\.[0-9])? 2[0-9][0-9](?: |\Z)")
_MUTE_STATUS = re.compile(rb"^auth-status\r?$", re.IGNORECASE | re.MULTILINE)
"""``Auth-Status`` without a colon: the decision is missing."""
_HOST = re.compile(
    rb"(?=.{1,253}\Z)(?:[A-Za-z0-9-]{1,63}\.)*(?=[^.]*[A-Za-z])[A-Za-z0-9-]{1,63}"
)
"""A name that can be looked up. The last label of one is no number, which would make it
an address in a form of old (``127.1``)."""
_SECRET = re.compile(
    rb"pass|pwd|secret|token|key|cookie|credential|authorization", re.IGNORECASE
)
"""Text behind one of these words may be a secret, and is not logged."""


class Unusable(Frozen, Exception):  # noqa: N818 - it is about the answer, as "Refused" is
    """The answer contains no usable decision.

    Attributes:
      text: what is wrong, in nginx's words where it has some, up to the quote of
        `came`: "sent invalid header in response: ".
      came: the octets that are wrong, which may contain secrets; see `shown`.
      wanted: what the answer must contain instead.
    """

    def __init__(self, text: str, came: bytes, wanted: str) -> None:
        # The octets come from outside, so they are kept out of the exception's text.
        super().__init__(text)
        self.text = text
        self.came = came
        self.wanted = wanted


def shown(octets: bytes, secrets: Iterable[bytes]) -> bytes:
    """Cut a piece of an answer for the log: at most `MAX_SHOWN` octets, no secrets.

    Args:
      secrets: `spellings` that must not appear; a piece with one of them is not shown
        at all.
    """
    if repeats(octets, secrets):
        return HIDDEN
    limit = MAX_SHOWN
    found = _SECRET.search(octets, 0, limit)
    if found is not None:
        limit = found.end()
    return octets if len(octets) <= limit else octets[:limit] + b"..."


def first_line(octets: bytes) -> bytes:
    """The first line, without its end."""
    return octets.partition(b"\n")[0].removesuffix(b"\r")


@dataclass(slots=True)
class HttpAnswer:
    """The parts of a response that matter here."""

    statuses: list[bytes]
    """Every value of Auth-Status."""
    fields: dict[bytes, bytes] = field(repr=False)
    """The headers by lower-case name; of several, the last."""
    header: bytes = field(repr=False)
    """Status line and headers, as received."""
    keep: bool
    """Whether the connection can be reused, once the body is read."""
    body: int
    """Octets of the body that are still to be read."""

    @property
    def puts_off(self) -> bool:
        """Whether the server says WAIT and does not refuse."""
        statuses = self.statuses
        return b"WAIT" in statuses and {b"OK", b"WAIT"}.issuperset(statuses)

    @property
    def wait(self) -> int:
        """Seconds to wait, from Auth-Wait."""
        text = self.fields.get(b"auth-wait", b"")
        return int(text[:9]) if text.isdigit() else 0

    def unusable(self, text: str, wanted: str) -> Unusable:
        """Make an exception that shows the first line."""
        return Unusable(text, first_line(self.header), wanted)


def parse(header: bytes) -> HttpAnswer:
    """Parse status line and headers, without the empty line that ends them.

    Raises:
      Unusable: they are not well-formed; nginx rejects them, too.
    """
    framing, lines = b"", header
    if header.startswith(b"HTTP/"):
        framing, _, lines = header.partition(b"\n")
        framing = framing.removesuffix(b"\r")
        if CR in framing:
            raise Unusable(
                "sent invalid response: ", framing, "a status line without CR in it"
            )
    statuses: list[bytes] = []
    fields: dict[bytes, bytes] = {}
    lengths = 0
    for line in _split_lines(lines):
        name, colon, value = line.partition(b":")
        known = _USUAL_NAMES.get(name)
        if known is None:
            if not _NAME.fullmatch(name):
                raise _bad_header(lines)
            known = name.lower()
        if colon:  # nginx skips lines without
            fields[known] = value = value.strip(b" ")
            if known == b"auth-status":
                statuses.append(value)
            elif known == b"content-length":
                lengths += 1
    length = fields.get(b"content-length", b"")
    bodyless = framing[9:13] in (b"204 ", b"204", b"304 ", b"304")
    sized = length.isdigit() and b"transfer-encoding" not in fields
    # With two lengths, server and proxy may disagree about where the answer ends, and
    # the rest would be read as the answer to the next request (RFC 9112, section 6.3).
    keep = lengths <= 1 and (sized or bodyless) and _stays_open(framing, fields)
    body = int(length[:18]) if sized and not bodyless else 0
    return HttpAnswer(statuses, fields, header, keep, body)


def _split_lines(text: bytes) -> list[bytes]:
    """Split header lines, which end in LF or CR LF; the last one may have no LF.

    Raises:
      Unusable: there is a CR anywhere else.
    """
    if not text:
        return []
    lines = text.replace(b"\r\n", b"\n").removesuffix(b"\r")
    if CR in lines or text[-2:] in (b"\r", b"\n\r"):
        raise _bad_header(text)
    return lines.removesuffix(b"\n").split(b"\n")


def _stays_open(framing: bytes, fields: dict[bytes, bytes]) -> bool:
    """Whether the server keeps the connection open, and this response is its last one.

    Args:
      framing: the status line. Another response to the same request follows one with
        1xx.
    """
    version, status = framing[:9], framing[9:10]
    if status == b"1" or version not in (b"HTTP/1.0 ", b"HTTP/1.1 "):
        return False
    words = fields.get(b"connection", b"").lower().replace(b",", b" ").split()
    if version == b"HTTP/1.1 ":
        return b"close" not in words
    return b"keep-alive" in words


def _bad_header(lines: bytes) -> Unusable:
    """The error for the first header line that is not well-formed."""
    good = _HEADERS.match(lines)
    start = good.end() if good is not None else 0
    line = first_line(lines[start:])
    if line[:1] in (b" ", b"\t"):
        # A folded line (RFC 9112, section 5.2) continues the value before it.
        before = lines[:start].rstrip(b"\r\n").rpartition(b"\n")[2]
        if _SECRET.search(before):
            line = b" ..."
    return Unusable(
        "sent invalid header in response: ",
        line,
        'NAME: VALUE in one line, with letters, digits and "-" in NAME',
    )


def decide(answer: HttpAnswer, request: AuthRequest) -> Granted | Refused:
    """The decision in an answer that is not WAIT.

    Raises:
      Unusable: the answer contains no usable decision.
    """
    if answer.statuses == [b"OK"]:
        return _granted(answer, request)
    failures = [s for s in answer.statuses if s not in (b"OK", b"WAIT")]
    if b"" in failures or (not answer.statuses and not _lets_in(answer)):
        # nginx lets clients in if no decision is sent; here one is required.
        raise answer.unusable(
            "did not send a decision: ",
            "Auth-Status, or Auth-Server and Auth-Port with an HTTP status of 2xx",
        )
    if failures:
        return Refused(
            text=failures[-1].replace(b"\0", b""),
            wait=answer.wait,
            code=answer.fields.get(b"auth-error-code", b"").replace(b"\0", b""),
            sasl_error=answer.fields.get(b"auth-error-sasl", b"").replace(b"\0", b""),
        )
    return _granted(answer, request)


def _lets_in(answer: HttpAnswer) -> bool:
    """Whether an answer without Auth-Status lets the client in.

    An answer without server or port counts as well; `_granted` reports it, as nginx
    does.
    """
    fields = answer.fields
    nowhere = not fields.get(b"auth-server") or not fields.get(b"auth-port")
    if nowhere:
        return True
    good = _SUCCESS.match(first_line(answer.header))
    return good is not None and not _MUTE_STATUS.search(answer.header)


def _granted(answer: HttpAnswer, request: AuthRequest) -> Granted:
    """The user, secret and route in an answer that lets the client in.

    Raises:
      Unusable: one of them is missing or invalid.
    """
    fields = answer.fields
    host = fields.get(b"auth-server", b"")
    port = fields.get(b"auth-port", b"")
    places = request.destinations
    if (not host or not port) and not _suffices(answer, host, port, places):
        missing = [] if answer.statuses else ["Auth-Status"]
        missing += [] if host else ["Auth-Server"]
        missing += [] if port else ["Auth-Port"]
        raise answer.unusable(
            "did not send server or port: ", f"{' and '.join(missing)} as well"
        )
    user, secret = _credentials(answer, request)
    smtp = b"" if request.needs_password else fields.get(b"auth-smtp", b"")
    master = fields.get(b"auth-master-user", b"")
    if master:
        _check_master(answer, master)
    tls = fields.get(b"auth-server-ssl", b"")
    route = _route(host, port, smtp, master, tls, places)
    if route.ssl == "off" and request.needs_backend_tls:
        raise _bad_ssl(b"off", "on or starttls, as proxy_ssl says")
    return Granted(user=user, secret=secret, route=route)


def _check_master(answer: HttpAnswer, master: bytes) -> None:
    """Check the master user of an answer.

    Raises:
      Unusable: their password is missing, or the name is invalid.
    """
    if b"auth-pass" not in answer.fields:
        raise answer.unusable(
            "did not send password: ", "Auth-Pass, the password of Auth-Master-User"
        )
    if not is_clean(master):
        raise _unclean(b"Auth-Master-User")


def _suffices(
    answer: HttpAnswer, host: bytes, port: bytes, places: Destinations
) -> bool:
    """Whether an answer without server or port says where the backend is.

    Without `Auth-Status` it never does: what names no backend may be an error page.
    """
    if not answer.statuses:
        return False
    if host:
        return _group(host, places) is not None
    return places.default and not port


@lru_cache(MAX_ROUTES)
def _route(
    host: bytes,
    port: bytes,
    smtp: bytes,
    master: bytes,
    tls: bytes,
    places: Destinations,
) -> Route:
    """The route that an answer names.

    Args:
      host, port, smtp, master, tls: the values of `Auth-Server`, `Auth-Port`,
        `Auth-SMTP`, `Auth-Master-User`, `Auth-Server-SSL`.
      places: what the answer may name.

    Raises:
      Unusable: one of them is invalid.
    """
    auth, mode = _smtp_auth(smtp), _ssl(tls)
    if not host:
        return Route(
            kind="default", server="", port=0, ssl=mode, smtp_auth=auth, master=master
        )
    address = _address(host)
    group = None if address else _group(host, places)
    if group is not None:
        return Route(
            kind="group",
            server=group,
            port=0,
            text=group,
            ssl=mode,
            smtp_auth=auth,
            master=master,
        )
    if not address and not (places.hosts and _HOST.fullmatch(host)):
        wanted = "an IPv4 or IPv6 address"
        if places.hosts:
            wanted += ", or the name of a host or an upstream"
        else:
            wanted += ", or the name of an upstream" if places.groups else ", no name"
        raise Unusable("sent invalid server address:", host, wanted)
    name, number = address or host.decode("ascii"), _port(port)
    return Route(
        kind="address" if address else "host",
        server=name,
        port=number,
        text=f"{name}:{port.decode()}",
        ssl=mode,
        smtp_auth=auth,
        master=master,
    )


def _group(host: bytes, places: Destinations) -> str | None:
    """The group of a name, in lower case; None if there is none."""
    name = lower(host.decode("utf-8", "surrogateescape"))
    return name if name in places.groups else None


def _credentials(
    answer: HttpAnswer, request: AuthRequest
) -> tuple[bytes, bytes | None]:
    """User and secret for the backend: those of the answer, or else of the client.

    Raises:
      Unusable: a required secret is missing, or user or secret is invalid.
    """
    user = answer.fields.get(b"auth-user", request.user)
    secret = answer.fields.get(b"auth-pass")
    if secret is None and request.method not in ("apop", "cram-md5"):
        secret = request.secret
    if secret is None and request.needs_password:
        raise answer.unusable(
            "did not send password: ", "Auth-Pass, as the client sent no password"
        )
    if not is_clean(user):
        raise _unclean(b"Auth-User")
    if secret and not is_clean(secret):
        raise _unclean(b"Auth-Pass")
    return user, secret


def _unclean(name: bytes) -> Unusable:
    """The error for a header whose value must not be sent to a backend."""
    return Unusable("sent invalid user or password: ", name, "no CR, LF or NUL in it")


def _address(host: bytes) -> str | None:
    """Parse the value of `Auth-Server`; None if it is not an IP address."""
    address = host.decode("latin-1")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        socket.inet_pton(family, address)
    except (OSError, ValueError):
        return None
    return address


def _port(port: bytes) -> int:
    """Parse the value of `Auth-Port`.

    Raises:
      Unusable: it is not a port.
    """
    number = int(port) if port.isdigit() and len(port) < 20 else 0
    if not 1 <= number <= 65535:
        raise Unusable("sent invalid server port:", port, "1 to 65535")
    return number


def _smtp_auth(value: bytes) -> bool | None:
    """Whether the SMTP backend requires AUTH (`Auth-SMTP`); None: the answer is silent.

    Raises:
      Unusable: the value is neither yes nor no.
    """
    if not value:
        return None
    if value.lower() not in (b"yes", b"no"):
        raise Unusable('sent invalid "Auth-SMTP":', value, "yes or no")
    return value.lower() == b"yes"


def _ssl(value: bytes) -> str:
    """Whether there is TLS to the backend; empty: the answer is silent.

    Raises:
      Unusable: the value is none of on, off, starttls.
    """
    mode = value.decode("latin-1").lower()
    if mode not in ("", "on", "off", "starttls"):
        raise _bad_ssl(value, "on, off or starttls")
    return mode


def _bad_ssl(value: bytes, wanted: str) -> Unusable:
    """The error for `Auth-Server-SSL`."""
    return Unusable('sent invalid "Auth-Server-SSL":', value, wanted)
