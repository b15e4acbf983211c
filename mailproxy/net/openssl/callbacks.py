"""Callbacks: the functions that OpenSSL calls during a handshake.

Every callback is a function of this module and lives as long as the process:
OpenSSL may call it while a context is being freed, when nothing that belongs to the
context is left. Callbacks find the data of a context by the address of its `SSL_CTX`.
None of them raises; ctypes could only print the exception.

They are installed only where a directive needs them, since each call costs one or
two microseconds. The default configuration has only one, for clients that send ALPN.
"""

import ctypes
import functools
import os
import ssl as python_ssl
import sys
import time
from ctypes import byref, c_char_p, c_int, c_uint
from dataclasses import dataclass

from mailproxy.net.openssl.headers import crypto_h, ssl_h
from mailproxy.net.openssl.headers.prototype import callback
from mailproxy.net.openssl.headers.types import (
    EVP_CIPHER,
    OSSL_PARAM,
    OSSL_PARAM_UTF8_STRING,
    SSL,
    SSL_CTX,
    SSL_SESSION,
    Int,
    Pointer,
    UInt,
)
from mailproxy.net.openssl.library import encoded
from mailproxy.net.tls_sessions import MAX_SESSION, ROTATION, SessionZone

_TLS1_3 = python_ssl.TLSVersion.TLSv1_3

# Results of the callback for tickets, SSL_CTX_set_tlsext_ticket_key_evp_cb(3).
_TICKET_ERROR, _TICKET_NONE, _TICKET_GOOD, _TICKET_RENEW = -1, 0, 1, 2


@functools.cache
def alpn(protocol: bytes) -> object:
    """Return a callback that chooses `protocol`, or rejects a client without it."""
    wanted = bytes([len(protocol)]) + protocol  # OpenSSL keeps its address

    @callback
    def choose(
        _ssl: SSL,
        out: Pointer,
        out_size: Pointer,
        offered: Pointer,
        size: UInt,
        _data: Pointer,
    ) -> Int:
        found = ssl_h.SSL_select_next_proto(
            out, out_size, wanted, len(wanted), offered, size
        )
        if found == ssl_h.OPENSSL_NPN_NEGOTIATED:
            return ssl_h.SSL_TLSEXT_ERR_OK
        return ssl_h.SSL_TLSEXT_ERR_ALERT_FATAL

    return choose


@callback
def go_on(_ok: Int, _store: Pointer) -> Int:
    """Accept any client certificate.

    The session asks for the result after the handshake, so that it can tell the client.
    """
    return 1


@callback
def limit_lifetime(ssl: SSL, where: Int, _value: Int) -> None:
    """End a TLS session `ssl_session_timeout` after its full handshake.

    With TLS 1.3, OpenSSL restarts the timeout whenever a session is resumed. A client
    could keep using a certificate that has expired meanwhile for ever.
    """
    if where != ssl_h.SSL_CB_ACCEPT_LOOP or ssl_h.SSL_version(ssl) != _TLS1_3:
        return
    session = ssl_h.SSL_get_session(ssl)
    if not session:
        return
    now = int(time.time())
    age = now - ssl_h.SSL_SESSION_get_time(session)
    if not age:
        return
    limit = min(
        ssl_h.SSL_SESSION_get_timeout(session),
        ssl_h.SSL_CTX_get_timeout(ssl_h.SSL_get_SSL_CTX(ssl)),
    )
    if age >= limit:
        ssl_h.SSL_SESSION_set1_id_context(session, b"", 0)
    else:
        ssl_h.SSL_SESSION_set_time(session, now)
        ssl_h.SSL_SESSION_set_timeout(session, limit - age)


# -- which sessions a context may resume -------------------------------------------


_identities: dict[SSL_CTX, bytes] = {}


def keep_identity(ctx: SSL_CTX, identity: bytes) -> None:
    """Give connections the session id context of their context.

    Since 3.13, Python sets a session id context of its own on every connection, the
    same for all contexts. It must not apply if contexts share a cache or ticket keys.
    """
    if sys.version_info >= (3, 12):  # in case 3.12 gets the change as well
        _identities[ctx] = identity
        ssl_h.SSL_CTX_set_client_hello_cb(ctx, _identify, None)


@callback
def _identify(ssl: SSL, _alert: Pointer, _data: Pointer) -> Int:
    identity = _identities.get(ssl_h.SSL_get_SSL_CTX(ssl), b"")
    ssl_h.SSL_set_session_id_context(ssl, identity, len(identity))
    return ssl_h.SSL_CLIENT_HELLO_SUCCESS


# -- ssl_session_cache shared ------------------------------------------------------


_zones: dict[SSL_CTX, SessionZone] = {}
_keyed: dict[SSL_CTX, SessionZone] = {}
"""The contexts whose tickets are encrypted with the key of their zone."""
_renewal = 0.0
"""When the zones change their keys next, by the monotonic clock."""


def share_sessions(ctx: SSL_CTX, zone: SessionZone) -> None:
    """Keep the sessions of a context in a zone."""
    _zones[ctx] = zone
    ssl_h.SSL_CTX_sess_set_new_cb(ctx, _store)
    ssl_h.SSL_CTX_sess_set_get_cb(ctx, _find)
    ssl_h.SSL_CTX_sess_set_remove_cb(ctx, _remove)


def use_zone_key(ctx: SSL_CTX, zone: SessionZone) -> None:
    """Encrypt tickets with the key that a zone has at the time."""
    _keyed[ctx] = zone
    _give_key(ctx, zone)


def _give_key(ctx: SSL_CTX, zone: SessionZone) -> None:
    key = zone.ticket_key()
    ssl_h.SSL_CTX_ctrl(ctx, ssl_h.SSL_CTRL_SET_TLSEXT_TICKET_KEYS, len(key), key)


def _renew_keys() -> None:
    global _renewal
    _renewal = (time.monotonic() // ROTATION + 1) * ROTATION
    for ctx, zone in _keyed.items():
        _give_key(ctx, zone)


@callback
def _store(ssl: SSL, session: SSL_SESSION) -> Int:
    tickets = not ssl_h.SSL_get_options(ssl) & python_ssl.OP_NO_TICKET
    if tickets and ssl_h.SSL_version(ssl) == _TLS1_3:
        # The ticket holds the session; this call only announces it.
        if time.monotonic() >= _renewal:
            _renew_keys()
        return 0
    zone = _zones.get(ssl_h.SSL_get_SSL_CTX(ssl))
    if zone is None:
        return 0
    content = encoded(session, ssl_h.i2d_SSL_SESSION)
    if 0 < len(content) <= MAX_SESSION:
        zone.store(_id(session), content, ssl_h.SSL_SESSION_get_timeout(session))
    return 0


@callback
def _find(ssl: SSL, start: Pointer, size: Int, copy: Pointer) -> SSL_SESSION:
    c_int.from_address(copy).value = 0  # the caller gets the only reference
    zone = _zones.get(ssl_h.SSL_get_SSL_CTX(ssl))
    content = None if zone is None else zone.find(ctypes.string_at(start, size))
    if content is None:
        return SSL_SESSION(0)
    return ssl_h.d2i_SSL_SESSION(None, byref(c_char_p(content)), len(content))


@callback
def _remove(ctx: SSL_CTX, session: SSL_SESSION) -> None:
    zone = _zones.get(ctx)
    if zone is not None:
        zone.remove(_id(session))


def _id(session: SSL_SESSION) -> bytes:
    size = c_uint()
    start = ssl_h.SSL_SESSION_get_id(session, byref(size))
    return ctypes.string_at(start, size.value)


# -- ssl_session_ticket_key --------------------------------------------------------


@dataclass(frozen=True, repr=False)
class _TicketKey:
    name: bytes
    cipher: EVP_CIPHER
    cipher_key: bytes
    mac_key: bytes


_AES_128_KEY_FILE = 48


def _ticket_key(text: bytes) -> _TicketKey:
    """Read a key file: 48 bytes for AES-128, 80 for AES-256, in nginx's layouts."""
    if len(text) == _AES_128_KEY_FILE:
        return _TicketKey(text[:16], crypto_h.EVP_aes_128_cbc(), text[16:32], text[32:])
    return _TicketKey(text[:16], crypto_h.EVP_aes_256_cbc(), text[48:], text[16:48])


_ticket_keys: dict[SSL_CTX, tuple[_TicketKey, ...]] = {}


def use_ticket_keys(ctx: SSL_CTX, texts: tuple[bytes, ...]) -> None:
    """Encrypt tickets with the first of these keys, and accept tickets of all."""
    _ticket_keys[ctx] = tuple(map(_ticket_key, texts))
    ssl_h.SSL_CTX_set_tlsext_ticket_key_evp_cb(ctx, _protect_ticket)


_SHA256 = (OSSL_PARAM * 2)(
    OSSL_PARAM(b"digest", OSSL_PARAM_UTF8_STRING, b"SHA256", 6, 0)
)


@callback
def _protect_ticket(
    ssl: SSL, name: Pointer, iv: Pointer, cipher: Pointer, mac: Pointer, encrypt: Int
) -> Int:
    keys = _ticket_keys.get(ssl_h.SSL_get_SSL_CTX(ssl), ())
    wanted = None if encrypt else ctypes.string_at(name, 16)
    key = next((key for key in keys if wanted in (None, key.name)), None)
    if key is None:
        return _TICKET_NONE
    if encrypt:
        ctypes.memmove(name, key.name, 16)
        ctypes.memmove(iv, os.urandom(16), 16)
        done = crypto_h.EVP_EncryptInit_ex(cipher, key.cipher, None, key.cipher_key, iv)
    else:
        done = crypto_h.EVP_DecryptInit_ex(cipher, key.cipher, None, key.cipher_key, iv)
    if not done or not crypto_h.EVP_MAC_init(
        mac, key.mac_key, len(key.mac_key), _SHA256
    ):
        return _TICKET_ERROR
    if not encrypt and (key is not keys[0] or ssl_h.SSL_version(ssl) == _TLS1_3):
        return _TICKET_RENEW
    return _TICKET_GOOD


def forget(ctx: SSL_CTX) -> None:
    """Drop the data of a context that is about to be freed."""
    if _zones.pop(ctx, None) is not None:
        ssl_h.SSL_CTX_sess_set_remove_cb(ctx, None)
    _keyed.pop(ctx, None)
    _ticket_keys.pop(ctx, None)
    _identities.pop(ctx, None)
