"""Certificates by name: OpenSSL asks, in each handshake, which ones the client gets.

SNI chooses a certificate and nothing else: it is a string that anybody can send, so it
must not choose between two policies (CVE-2025-23419 was such a choice). A server has one
`SSL_CTX`, with one set of tickets, and the certificate is set on the connection.

OpenSSL asks twice: whether it is to go on with this name at all (the servername
callback, also when a session is resumed), and which certificate to use (the certificate
callback, in full handshakes). Both come within one call of SSL_do_handshake(), so
what the first one has found is remembered for the second: there are no threads.
"""

from ctypes import c_int

from mailproxy.net.openssl import notes
from mailproxy.net.openssl.choice import BY_CONTEXT, DEFAULT, ByName, Presented
from mailproxy.net.openssl.exceptions import OpenSSLError
from mailproxy.net.openssl.headers import ssl_h
from mailproxy.net.openssl.headers.prototype import callback, has
from mailproxy.net.openssl.headers.types import SSL, SSL_CTX, Int, Pointer
from mailproxy.net.openssl.notes import Note

UNSUPPORTED = "certificates by name are not supported by this OpenSSL"
_MAX_SHOWN = 255
"""Octets of a name that the log shows."""

_servers: dict[SSL_CTX, ByName] = {}
_last: tuple[SSL, Presented] = SSL(0), BY_CONTEXT
"""What was chosen for the connection that OpenSSL asked about last."""


def is_supported() -> bool:
    """Return whether this OpenSSL has the functions that are needed."""
    return (
        has(ssl_h.SSL_CTX_set_cert_cb)
        and has(ssl_h.SSL_CTX_callback_ctrl)
        and has(ssl_h.SSL_certs_clear)
        and has(ssl_h.SSL_use_cert_and_key)
        and has(ssl_h.SSL_CTX_use_cert_and_key)
    )


def install(ctx: SSL_CTX, server: ByName) -> None:
    """Have a context's connections get their certificates by name."""
    _servers[ctx] = server
    ssl_h.SSL_CTX_callback_ctrl(
        ctx, ssl_h.SSL_CTRL_SET_TLSEXT_SERVERNAME_CB, _decide_name
    )
    ssl_h.SSL_CTX_set_cert_cb(ctx, _decide_certificate, None)


def server_of(ctx: SSL_CTX) -> ByName | None:
    """Return what chooses certificates for a context; None if nothing does."""
    return _servers.get(ctx)


def forget(ctx: SSL_CTX) -> None:
    """Drop the data of a context that is about to be freed."""
    _servers.pop(ctx, None)


@callback
def _decide_name(ssl: SSL, alert: Pointer, _data: Pointer) -> Int:
    """Tell OpenSSL whether the client's name is known; see SSL_CTX_set_tlsext_…(3)."""
    global _last
    notes.begin(ssl)
    try:
        server = _servers[ssl_h.SSL_get_SSL_CTX(ssl)]
        sni = ssl_h.SSL_get_servername(ssl, ssl_h.TLSEXT_NAMETYPE_host_name)
        choice = server.choose(sni, lambda note: notes.say(ssl, note))
        if not choice.refused:
            _last = ssl, choice
            known = choice.place != DEFAULT
            return ssl_h.SSL_TLSEXT_ERR_OK if known else ssl_h.SSL_TLSEXT_ERR_NOACK
        notes.say(ssl, _refusal(sni))
        code = ssl_h.SSL_AD_UNRECOGNIZED_NAME
    except Exception as error:  # noqa: BLE001 # ctypes could only print it
        notes.say(ssl, _bug(error))
        code = ssl_h.SSL_AD_INTERNAL_ERROR
    c_int.from_address(alert).value = code
    return ssl_h.SSL_TLSEXT_ERR_ALERT_FATAL


@callback
def _decide_certificate(ssl: SSL, _data: Pointer) -> Int:
    """Set the certificates of a connection; see SSL_CTX_set_cert_cb(3)."""
    try:
        server = _servers[ssl_h.SSL_get_SSL_CTX(ssl)]
        asked, choice = _last
        if asked != ssl:
            sni = ssl_h.SSL_get_servername(ssl, ssl_h.TLSEXT_NAMETYPE_host_name)
            choice = server.choose(sni, lambda note: notes.say(ssl, note))
        server.use(choice, ssl)
    except OpenSSLError as error:
        notes.say(ssl, _unusable(choice.pairs[0].file, error))
        return 0
    except Exception as error:  # noqa: BLE001 # ctypes could only print it
        notes.say(ssl, _bug(error))
        return 0
    return 1


def _refusal(sni: bytes | None) -> Note:
    if sni is None:
        return Note("info", "client named no server", refusal=True)
    shown = sni[:_MAX_SHOWN]
    event = 'client asked for "%s", which has no certificate'
    return Note("info", event, (shown,), refusal=True)


def _unusable(file: str, error: OpenSSLError) -> Note:
    event = 'cannot use certificate "%s": %s'
    return Note("error", event, (file, str(error)), refusal=True)


def _bug(error: Exception) -> Note:
    return Note(
        "alert", "choosing a certificate failed, this is a bug", refusal=True, bug=error
    )
