"""What answers mean, beside a reading that takes one look for each question.

The reference is slow and plain: what is a header, what is its value, what do they say.
"""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mailproxy.auth.http_answer import HttpAnswer, Unusable, decide, parse
from mailproxy.auth.request import AuthRequest
from mailproxy.auth.verdict import Destinations, Granted, Refused

_LINES = re.compile(rb"(?:[A-Za-z0-9][A-Za-z0-9-]*(?::[^\r\n]*)?(?:\r?\n|\r?\Z))*")
_HEADER = re.compile(rb"^([A-Za-z0-9-]+):([^\r\n]*)", re.MULTILINE)


def parts(header: bytes) -> tuple[bytes, bytes]:
    """Status line, which may be missing, and headers."""
    if not header.startswith(b"HTTP/"):
        return b"", header
    line, _, headers = header.partition(b"\n")
    return line.removesuffix(b"\r"), headers


def is_well_formed(header: bytes) -> bool:
    line, headers = parts(header)
    return b"\r" not in line and _LINES.fullmatch(headers) is not None


def values(header: bytes, name: bytes) -> list[bytes]:
    """All values of a header."""
    found = _HEADER.findall(parts(header)[1])
    return [value.strip(b" ") for each, value in found if each.lower() == name]


def length(header: bytes) -> int | None:
    """Octets of the body; None if only the end of the connection tells."""
    if parts(header)[0][9:13] in (b"204 ", b"204", b"304 ", b"304"):
        return 0
    lengths = values(header, b"content-length")
    if values(header, b"transfer-encoding") or not lengths or not lengths[-1].isdigit():
        return None
    return int(lengths[-1][:18])


def stays_open(header: bytes) -> bool:
    line, _ = parts(header)
    said = (values(header, b"connection") or [b""])[-1]
    words = said.lower().replace(b",", b" ").split()
    if line.startswith(b"HTTP/1.1 "):
        lasting = b"close" not in words
    else:
        lasting = line.startswith(b"HTTP/1.0 ") and b"keep-alive" in words
    return lasting and line[9:10] != b"1"


def keeps(header: bytes) -> bool:
    """Whether another answer may follow on the same connection."""
    several = len(values(header, b"content-length")) > 1
    return stays_open(header) and not several and length(header) is not None


def said(answer: HttpAnswer, request: AuthRequest) -> Granted | Refused | str:
    """What an answer means, or what is wrong with it."""
    try:
        return decide(answer, request)
    except Unusable as unusable:
        return f"{unusable.text}{unusable.came!r} {unusable.wanted}"


_NAMES = (
    *("Auth-Status", "auth-status", "AUTH-STATUS", "Auth-Server", "Auth-Port"),
    *(
        "Auth-User",
        "Auth-Pass",
        "Auth-Wait",
        "Auth-SMTP",
        "auth-smtp",
        "Content-Length",
    ),
    *("Connection", "Transfer-Encoding", "X-Other", "x", "-x", "x y", "", "1", "ä"),
)
_VALUES = (
    *("OK", "WAIT", "NO", "", "127.0.0.1", "::1", "host", "25", "0", "0143", "99999"),
    *("yes", "No", "perhaps", "keep-alive", "close", "Keep-Alive, x", "u", "\0", "\r"),
)
_STATUS = (
    *("HTTP/1.0 200 OK", "HTTP/1.1 200 OK", "HTTP/1.1 204 No", "HTTP/1.1 204"),
    *("HTTP/1.1 100 Continue", "HTTP/1.0 302", "HTTP/2 200", "HTTP/1.0 200\r", "HTTP/"),
)
_ends = st.sampled_from(("\r\n", "\n", "\r\n", "\r", "", "\n\n", "\n\r"))


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """Answers that are well-formed, nearly so, or not at all."""
    text = ""
    if draw(st.booleans()):
        text = draw(st.sampled_from(_STATUS)) + draw(_ends)
    for _ in range(draw(st.integers(0, 8))):
        space = draw(st.sampled_from(("", " ", "  ", "\t")))
        value = (
            space + draw(st.sampled_from(_VALUES)) + draw(st.sampled_from(("", " ")))
        )
        colon = draw(st.sampled_from((":", ":", ":", "")))
        text += draw(st.sampled_from(_NAMES)) + colon + (value if colon else "")
        text += draw(_ends)
    return text.encode("latin-1")


requests = st.builds(
    AuthRequest,
    protocol=st.just("imap"),
    method=st.sampled_from(("plain", "cram-md5", "apop", "external")),
    user=st.binary(max_size=4),
    secret=st.none() | st.binary(max_size=4),
    needs_password=st.booleans(),
    client=st.just("127.0.0.1"),
)
GOOD = b"Auth-Status: OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: 143"


@given(answers() | st.binary(max_size=30), st.just(GOOD) | st.just(b""))
@example(b"", b"")
@example(b"\r", b"")
@example(b"\n", b"")
@example(b"X: y\r\n\r", b"")
@example(b"X: y\n\r", b"")
@example(b"X: y\r\r", b"")
def test_each_part_is_found(text: bytes, end: bytes) -> None:
    header = text + end
    if not is_well_formed(header):
        with pytest.raises(Unusable):
            parse(header)
        return
    answer = parse(header)
    assert answer.header == header
    assert answer.statuses == values(header, b"auth-status")
    names = {name.lower() for name, _ in _HEADER.findall(parts(header)[1])}
    assert answer.fields == {name: values(header, name)[-1] for name in names}
    assert answer.keep == keeps(header)
    assert answer.body == (length(header) or 0)


@given(st.lists(st.sampled_from((b"OK", b"WAIT", b"NO", b"")), max_size=4), requests)
def test_every_status_counts(statuses: list[bytes], request: AuthRequest) -> None:
    header = b"HTTP/1.0 200 OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: 143\r\n"
    header += b"".join(b"Auth-Status: %s\r\n" % status for status in statuses)
    decided = said(parse(header), request)
    refusals = [each for each in statuses if each not in (b"OK", b"WAIT")]
    if b"" in refusals:
        assert str(decided).startswith("did not send a decision")
    elif refusals:
        assert isinstance(decided, Refused)
        assert decided.text == refusals[-1]
    else:
        assert not isinstance(decided, Refused)
        assert decided == said(parse(header + b"Auth-Status: OK\r\n"), request)


@given(requests, st.sampled_from((b"127.0.0.1", b"::1")), st.integers(1, 65535))
def test_a_route_is_the_same_each_time(
    request: AuthRequest, host: bytes, port: int
) -> None:
    header = b"Auth-Status: OK\nAuth-Server: %s\nAuth-Port: %d\nAuth-Pass: p" % (
        host,
        port,
    )
    for _ in range(2):
        decided = said(parse(header), request)
        if isinstance(decided, Granted):
            assert decided.route is not None
            assert decided.route.server == host.decode()
            assert decided.route.port == port
        else:
            assert str(decided).startswith("sent invalid user or password")


ALL = Destinations(groups=frozenset({"host", "no"}), hosts=True, default=True)


@given(answers(), requests)
@example(GOOD, AuthRequest(protocol="imap", method="plain", user=b"", client="x"))
def test_names_of_backends_change_nothing_for_those_who_send_addresses(
    header: bytes, request: AuthRequest
) -> None:
    """And what names nothing grants nothing, unless it says that all is well."""
    try:
        answer = parse(header)
    except Unusable:
        return
    before = said(answer, request)
    after = said(answer, replace(request, destinations=ALL))
    if isinstance(before, Granted | Refused):
        assert after == before
    elif isinstance(after, Granted):
        assert after.route is not None
        assert after.route.kind != "address"
        port = answer.fields.get(b"auth-port", b"")
        told = set(answer.statuses) <= {b"OK", b"WAIT"} and bool(answer.statuses)
        assert told or (answer.fields.get(b"auth-server") and port)


@pytest.mark.parametrize(("smtp", "auth"), [("yes", True), ("no", False), ("", None)])
def test_default_backend_may_want_a_login(smtp: str, auth: bool | None) -> None:
    request = AuthRequest(
        protocol="smtp",
        method="plain",
        user=b"u",
        secret=b"p",
        needs_password=False,
        client="127.0.0.1",
        destinations=ALL,
    )
    answer = parse(f"Auth-Status: OK\r\nAuth-SMTP: {smtp}".encode())
    granted = decide(answer, request)
    assert isinstance(granted, Granted)
    assert granted.route is not None
    assert (granted.route.kind, granted.route.smtp_auth) == ("default", auth)
