"""Certificates by name: OpenSSL asks, in each handshake, which ones the client gets.

SNI chooses a certificate and nothing else: it is a string that anybody can send, so it
must not choose between two policies (CVE-2025-23419 was such a choice). A server has one
`SSL_CTX`, with one set of tickets, and the certificate is set on the connection.

OpenSSL asks when it knows the client's hello: the servername callback can refuse it, and
says whether the name is known, which the client is told (RFC 6066, section 3). It also
sets the certificates, although there is a callback of its own for that: to go from
OpenSSL into Python and back costs more than all that is done there.
"""

from ctypes import c_int
from functools import partial

from mailproxy.net.openssl import notes
from mailproxy.net.openssl.choice import DEFAULT, ByName
from mailproxy.net.openssl.exceptions import OpenSSLError
from mailproxy.net.openssl.headers import ssl_h
from mailproxy.net.openssl.headers.prototype import callback, has
from mailproxy.net.openssl.headers.types import SSL, SSL_CTX, Int, Pointer
from mailproxy.net.openssl.notes import Note

_KNOWN, _UNKNOWN = ssl_h.SSL_TLSEXT_ERR_OK, ssl_h.SSL_TLSEXT_ERR_NOACK
UNSUPPORTED = "certificates by name are not supported by this OpenSSL"
_MAX_SHOWN = 255
"""Octets of a name that the log shows."""

_servers: dict[SSL_CTX, ByName] = {}


def is_supported() -> bool:
    """Return whether this OpenSSL has the functions that are needed."""
    return (
        has(ssl_h.SSL_CTX_callback_ctrl)
        and has(ssl_h.SSL_certs_clear)
        and has(ssl_h.SSL_use_cert_and_key)
        and has(ssl_h.SSL_CTX_use_cert_and_key)
    )


def install(ctx: SSL_CTX, server: ByName) -> None:
    """Have a context's connections get their certificates by name."""
    _servers[ctx] = server
    ssl_h.SSL_CTX_ctrl(ctx, ssl_h.SSL_CTRL_SET_TLSEXT_SERVERNAME_ARG, 0, ctx)
    ssl_h.SSL_CTX_callback_ctrl(ctx, ssl_h.SSL_CTRL_SET_TLSEXT_SERVERNAME_CB, _decide)


def server_of(ctx: SSL_CTX) -> ByName | None:
    """Return what chooses certificates for a context; None if nothing does."""
    return _servers.get(ctx)


def forget(ctx: SSL_CTX) -> None:
    """Drop the data of a context that is about to be freed."""
    _servers.pop(ctx, None)


@callback
def _decide(ssl: SSL, alert: Pointer, ctx: Pointer) -> Int:
    """Give a connection its certificates, or refuse it.

    See SSL_CTX_set_tlsext_servername_callback(3); it is called without SNI, too.
    """
    if notes.pending:
        notes.begin(ssl)
    try:
        server = _servers[ctx]  # type: ignore[index] # it is the address of an SSL_CTX
        if server.files is not None and ssl_h.SSL_session_reused(ssl):
            return ssl_h.SSL_TLSEXT_ERR_OK  # no certificate is sent, so no file is read
        sni = ssl_h.SSL_get_servername(ssl, ssl_h.TLSEXT_NAMETYPE_host_name)
        if server.use_recent(sni, ssl):
            return _KNOWN
        shown = server.choose(sni, partial(notes.say, ssl))
        if not shown.refused:
            server.use(shown, ssl)
            server.remember(sni, shown)
            return _KNOWN if shown.place != DEFAULT else _UNKNOWN
        notes.say(ssl, _refusal(sni))
        code = ssl_h.SSL_AD_UNRECOGNIZED_NAME
    except OpenSSLError as error:
        notes.say(ssl, _unusable(error))
        code = ssl_h.SSL_AD_INTERNAL_ERROR
    except Exception as error:  # noqa: BLE001 # ctypes could only print it
        notes.say(ssl, _bug(error))
        code = ssl_h.SSL_AD_INTERNAL_ERROR
    c_int.from_address(alert).value = code
    return ssl_h.SSL_TLSEXT_ERR_ALERT_FATAL


def _refusal(sni: bytes | None) -> Note:
    if sni is None:
        return Note("info", "client named no server", refusal=True)
    shown = sni[:_MAX_SHOWN]
    event = 'client asked for "%s", which has no certificate'
    return Note("info", event, (shown,), refusal=True)


def _unusable(error: OpenSSLError) -> Note:
    event = "the certificate for this name cannot be used: %s"
    return Note("error", event, (str(error),), refusal=True)


def _bug(error: Exception) -> Note:
    return Note(
        "alert", "choosing a certificate failed, this is a bug", refusal=True, bug=error
    )
