"""What OpenSSL calls during a handshake.

Every callback is a function of this module and lives as long as the process:
OpenSSL may call it while a context is being freed, when nothing is left that belongs
to the context. What a context needs is found by the address of its `SSL_CTX`. None
of them raises; ctypes could only print it.

They are installed only where a directive needs them, since each call costs one or
two microseconds. With the default configuration there is but one, for clients that
send ALPN.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import time
from ctypes import byref, c_char_p, c_int, c_uint, c_void_p
from dataclasses import dataclass

from mailproxy.net.openssl.library import c, callback
from mailproxy.net.tls_sessions import MAX_SESSION, ROTATION, SessionZone

TLS1_3 = 0x0304
OP_NO_TICKET = 0x4000

SET_TICKET_KEYS = 59
_ACCEPT_LOOP = 0x2001
_NEGOTIATED = 1
_ALPN_OK, _ALPN_FATAL = 0, 2
_TICKET_ERROR, _TICKET_NONE, _TICKET_GOOD, _TICKET_RENEW = -1, 0, 1, 2


@functools.cache
def alpn(protocol: bytes) -> object:
    """The callback that chooses `protocol`, or refuses a client with others only."""
    wanted = bytes([len(protocol)]) + protocol  # OpenSSL keeps the address of it

    @callback("ippppup")
    def choose(
        _ssl: int, out: int, length: int, offered: int, size: int, _data: int
    ) -> int:
        found = c.SSL_select_next_proto(out, length, wanted, len(wanted), offered, size)
        return _ALPN_OK if found == _NEGOTIATED else _ALPN_FATAL

    return choose


@callback("iip")
def go_on(_ok: int, _store: int) -> int:
    """Accept any client certificate.

    The result is asked for after the handshake, so that the client can be told.
    """
    return 1


@callback("vpii")
def limit_lifetime(ssl: int, where: int, _value: int) -> None:
    """End a session `ssl_session_timeout` after its full handshake.

    With TLS 1.3, OpenSSL starts the time anew whenever a session is resumed. A
    client could go on for ever with a certificate that has expired meanwhile.
    """
    if where != _ACCEPT_LOOP or c.SSL_version(ssl) != TLS1_3:
        return
    session = c.SSL_get_session(ssl)
    if not session:
        return
    now = int(time.time())
    age = now - c.SSL_SESSION_get_time(session)
    if not age:
        return
    limit = min(
        c.SSL_SESSION_get_timeout(session),
        c.SSL_CTX_get_timeout(c.SSL_get_SSL_CTX(ssl)),
    )
    if age >= limit:
        c.SSL_SESSION_set1_id_context(session, b"", 0)
    else:
        c.SSL_SESSION_set_time(session, now)
        c.SSL_SESSION_set_timeout(session, limit - age)


# -- which sessions a context may resume -------------------------------------------


_identities: dict[int, bytes] = {}
_HELLO_GOOD = 1


def keep_identity(ctx: int, identity: bytes) -> None:
    """See that connections have the session id context of their context.

    Since 3.13, Python gives every connection one of its own, the same for all
    contexts. It must not matter where contexts have a cache or ticket keys in common.
    """
    if sys.version_info >= (3, 12):  # in case that it comes to 3.12 as well
        _identities[ctx] = identity
        c.SSL_CTX_set_client_hello_cb(ctx, _identify, None)


@callback("ippp")
def _identify(ssl: int, _alert: int, _data: int) -> int:
    identity = _identities.get(c.SSL_get_SSL_CTX(ssl), b"")
    c.SSL_set_session_id_context(ssl, identity, len(identity))
    return _HELLO_GOOD


# -- ssl_session_cache shared ------------------------------------------------------


_zones: dict[int, SessionZone] = {}
_keyed: dict[int, SessionZone] = {}
"""The contexts whose tickets are made with the key of their zone."""
_renewal = 0.0
"""When some zone has a new key."""


def share_sessions(ctx: int, zone: SessionZone) -> None:
    """Keep the sessions of a context in a zone."""
    _zones[ctx] = zone
    c.SSL_CTX_sess_set_new_cb(ctx, _store)
    c.SSL_CTX_sess_set_get_cb(ctx, _find)
    c.SSL_CTX_sess_set_remove_cb(ctx, _remove)


def use_zone_key(ctx: int, zone: SessionZone) -> None:
    """Make tickets with the key of a zone, whatever it is at the time."""
    _keyed[ctx] = zone
    _give_key(ctx, zone)


def _give_key(ctx: int, zone: SessionZone) -> None:
    key = zone.ticket_key()
    c.SSL_CTX_ctrl(ctx, SET_TICKET_KEYS, len(key), key)


def _renew_keys() -> None:
    global _renewal
    _renewal = (time.monotonic() // ROTATION + 1) * ROTATION
    for ctx, zone in _keyed.items():
        _give_key(ctx, zone)


@callback("ipp")
def _store(ssl: int, session: int) -> int:
    if c.SSL_version(ssl) == TLS1_3 and not c.SSL_get_options(ssl) & OP_NO_TICKET:
        # The ticket holds the session; OpenSSL only lets us know.
        if time.monotonic() >= _renewal:
            _renew_keys()
        return 0
    zone = _zones.get(c.SSL_get_SSL_CTX(ssl))
    if zone is None:
        return 0
    start = c_void_p()
    size = c.i2d_SSL_SESSION(session, byref(start))
    if size > 0 and start.value:
        encoded = ctypes.string_at(start.value, size)
        c.CRYPTO_free(start, None, 0)
        if size <= MAX_SESSION:
            lifetime = c.SSL_SESSION_get_timeout(session)
            zone.store(_id(session), encoded, lifetime)
    return 0


@callback("Pppip")
def _find(ssl: int, start: int, size: int, copy: int) -> int:
    c_int.from_address(copy).value = 0  # the caller gets the only reference
    zone = _zones.get(c.SSL_get_SSL_CTX(ssl))
    encoded = None if zone is None else zone.find(ctypes.string_at(start, size))
    if encoded is None:
        return 0
    return c.d2i_SSL_SESSION(None, byref(c_char_p(encoded)), len(encoded))


@callback("vpp")
def _remove(ctx: int, session: int) -> None:
    zone = _zones.get(ctx)
    if zone is not None:
        zone.remove(_id(session))


def _id(session: int) -> bytes:
    size = c_uint()
    start = c.SSL_SESSION_get_id(session, byref(size))
    return ctypes.string_at(start, size.value)


# -- ssl_session_ticket_key --------------------------------------------------------


@dataclass(frozen=True, repr=False)
class _TicketKey:
    name: bytes
    cipher: int
    cipher_key: bytes
    mac_key: bytes


def _ticket_key(text: bytes) -> _TicketKey:
    """A key file: 48 bytes for AES-128, 80 for AES-256, in nginx's layouts."""
    if len(text) == 48:
        return _TicketKey(text[:16], c.EVP_aes_128_cbc(), text[16:32], text[32:])
    return _TicketKey(text[:16], c.EVP_aes_256_cbc(), text[48:], text[16:48])


_ticket_keys: dict[int, tuple[_TicketKey, ...]] = {}


def use_ticket_keys(ctx: int, texts: tuple[bytes, ...]) -> None:
    """Make tickets with the first of these keys, and take those of all."""
    _ticket_keys[ctx] = tuple(map(_ticket_key, texts))
    c.SSL_CTX_set_tlsext_ticket_key_evp_cb(ctx, _protect_ticket)


class _Parameter(ctypes.Structure):
    """OSSL_PARAM."""

    _fields_ = (
        ("key", c_char_p),
        ("data_type", c_uint),
        ("data", c_char_p),
        ("data_size", ctypes.c_size_t),
        ("return_size", ctypes.c_size_t),
    )


_UTF8_STRING = 4
_SHA256 = (_Parameter * 2)(_Parameter(b"digest", _UTF8_STRING, b"SHA256", 6, 0))


@callback("ipppppi")
def _protect_ticket(
    ssl: int, name: int, iv: int, cipher: int, mac: int, encrypt: int
) -> int:
    keys = _ticket_keys.get(c.SSL_get_SSL_CTX(ssl), ())
    wanted = None if encrypt else ctypes.string_at(name, 16)
    key = next((key for key in keys if wanted in (None, key.name)), None)
    if key is None:
        return _TICKET_NONE
    if encrypt:
        ctypes.memmove(name, key.name, 16)
        done = c.RAND_bytes(iv, 16) == 1 and c.EVP_EncryptInit_ex(
            cipher, key.cipher, None, key.cipher_key, iv
        )
    else:
        done = c.EVP_DecryptInit_ex(cipher, key.cipher, None, key.cipher_key, iv)
    if not done or not c.EVP_MAC_init(mac, key.mac_key, len(key.mac_key), _SHA256):
        return _TICKET_ERROR
    if not encrypt and (key is not keys[0] or c.SSL_version(ssl) == TLS1_3):
        return _TICKET_RENEW
    return _TICKET_GOOD


def forget(ctx: int) -> None:
    """Drop what belongs to a context that is about to be freed."""
    if _zones.pop(ctx, None) is not None:
        c.SSL_CTX_sess_set_remove_cb(ctx, None)
    _keyed.pop(ctx, None)
    _ticket_keys.pop(ctx, None)
    _identities.pop(ctx, None)
