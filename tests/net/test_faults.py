"""What the log says of connections that broke, whatever Python's `ssl` makes of it."""

from __future__ import annotations

import errno
import os
import ssl

import pytest

from mailproxy.errors import BackendError, ClientError
from mailproxy.net import faults
from mailproxy.net.faults import Call, UnderTlsError


def system(number: int) -> OSError:
    """An error of the system."""
    return OSError(number, os.strerror(number))


RESET = system(errno.ECONNRESET)
NO_MORE = (
    ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "EOF occurred in violation of protocol"),
    ssl.SSLZeroReturnError(
        ssl.SSL_ERROR_ZERO_RETURN, "TLS/SSL connection has been closed"
    ),
    ssl.SSLSyscallError(ssl.SSL_ERROR_SYSCALL, "Some I/O error occurred"),
)
"""How `ssl` says that the peer is gone."""
BAD_RECORD = ssl.SSLError(
    1,
    "[SSL: DECRYPTION_FAILED_OR_BAD_RECORD_MAC] "
    "decryption failed or bad record mac (_ssl.c:1)",
)
BAD_RECORD.library = "SSL"
BAD_RECORD.reason = "DECRYPTION_FAILED_OR_BAD_RECORD_MAC"
OUR_FAULT = ssl.SSLError(1, "[SSL] internal error (_ssl.c:1)")
OUR_FAULT.library = "SSL"

LEFT = (
    *(errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN, errno.ETIMEDOUT),
    *(errno.ECONNREFUSED, errno.ENETDOWN, errno.ENETUNREACH),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH),
)
"""nginx: ngx_connection_error."""


@pytest.mark.parametrize("call", ["recv", "send", "handshake"])
@pytest.mark.parametrize("number", LEFT, ids=errno.errorcode.get)
def test_who_leaves_has_the_level_of_who_it_is(call: Call, number: int) -> None:
    for level in ("info", "error"):
        assert faults.describe(call, system(number), level).level == level
        assert faults.describe(call, UnderTlsError(number, ""), level).level == level


@pytest.mark.parametrize("number", [errno.EBADF, errno.ENOMEM, errno.ENOBUFS])
def test_what_no_peer_brings_about_is_an_alert(number: int) -> None:
    assert faults.describe("recv", system(number), "info").level == "alert"


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        ("recv", RESET, "recv() failed"),
        ("send", RESET, "send() failed"),
        ("send", UnderTlsError(*RESET.args), "SSL_write() failed"),
        ("handshake", RESET, "peer closed connection in SSL handshake"),
        *(
            ("handshake", each, "peer closed connection in SSL handshake")
            for each in NO_MORE
        ),
        *(
            (call, BAD_RECORD, f"{function}() failed (SSL: error:0A000119:SSL routines::"
             "decryption failed or bad record mac)")
            for call, function in (
                ("recv", "SSL_read"),
                ("send", "SSL_write"),
                ("handshake", "SSL_do_handshake"),
            )
        ),
    ],
)  # fmt: skip
def test_the_words_are_those_of_nginx(call: Call, error: OSError, text: str) -> None:
    found = faults.describe(call, error, "info")
    assert (found.event % found.values, found.level) == (text, "info")
    number = None if isinstance(error, ssl.SSLError) else errno.ECONNRESET
    assert (found.error and found.error.errno) == number


def test_bad_tls_has_the_level_of_who_speaks_it() -> None:
    assert faults.describe("recv", BAD_RECORD, "error").level == "error"
    assert faults.describe("recv", OUR_FAULT, "info").level == "crit"


@pytest.mark.parametrize("error", [*NO_MORE, RESET, system(errno.EPIPE)], ids=repr)
def test_versions_of_ssl_make_no_difference(error: OSError) -> None:
    """Python 3.11 hides the number of a reset, later ones show it."""
    assert faults.is_end(error)
    written = faults.under_tls(error)
    assert isinstance(written, UnderTlsError)
    assert written.errno in (errno.ECONNRESET, errno.EPIPE)


@pytest.mark.parametrize(
    "error", [BAD_RECORD, OUR_FAULT, system(errno.ENOMEM)], ids=repr
)
def test_other_errors_are_no_end(error: OSError) -> None:
    assert not faults.is_end(error)
    assert faults.under_tls(error).args == error.args


def test_an_error_ends_the_session_of_who_is_to_blame() -> None:
    for who, level in ((ClientError, "info"), (BackendError, "error")):
        ended = faults.broken(who, "send", RESET)
        assert (type(ended), ended.level, ended.error) == (who, level, RESET)
