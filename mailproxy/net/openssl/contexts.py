"""ContextBuilder: make the `ssl.SSLContext` of a server as nginx does."""

from __future__ import annotations

import hashlib
import os
import ssl
import weakref
from collections.abc import Callable, Collection, Sequence
from typing import ClassVar

from mailproxy import outside
from mailproxy.conf.values import shown
from mailproxy.net.openssl import by_name, callbacks, material
from mailproxy.net.openssl.choice import ByName
from mailproxy.net.openssl.errors import failure
from mailproxy.net.openssl.exceptions import OpenSSLError, PrivateKeyError
from mailproxy.net.openssl.headers import crypto_h, ssl_h, x509_h
from mailproxy.net.openssl.headers.prototype import has
from mailproxy.net.openssl.headers.types import X509
from mailproxy.net.openssl.library import (
    ctx_of,
    defaults,
    encoded,
    owned,
    unreachable,
    unsupported,
)
from mailproxy.net.openssl.options import (
    NO_CERTIFICATE_COMPRESSION,
    set_options,
    with_protocols,
)
from mailproxy.net.openssl.pairs import Leaf
from mailproxy.net.tls_sessions import TICKET_KEY_SIZE, SessionZone

_MAX_TIMEOUT = 2**31 - 1

_CONF_FLAGS = (
    ssl_h.SSL_CONF_FLAG_FILE
    | ssl_h.SSL_CONF_FLAG_CLIENT
    | ssl_h.SSL_CONF_FLAG_SERVER
    | ssl_h.SSL_CONF_FLAG_SHOW_ERRORS
    | ssl_h.SSL_CONF_FLAG_CERTIFICATE
)


class ContextBuilder:
    """Makes a context step by step; the caller follows nginx's order.

    Every method raises `OpenSSLError` with nginx's text.

    Attributes:
      context: the result.
    """

    _role: ClassVar = ssl.PROTOCOL_TLS_SERVER

    def __init__(self, protocols: Collection[str]) -> None:
        """Begin a context with the options that nginx always sets.

        Args:
          protocols: names as in `ssl_protocols`. OpenSSL has no SSLv2, and most builds
            of it have no SSLv3: as in nginx, these names have no effect then.
        """
        reason = unsupported() or unreachable()
        if reason is not None:
            raise OpenSSLError(reason)
        crypto_h.ERR_clear_error()
        self.context = ssl.SSLContext(self._role)
        self._ctx = ctx = ctx_of(self.context)
        weakref.finalize(self.context, callbacks.forget, ctx)
        options, level = defaults()
        set_options(self.context, with_protocols(options, protocols))
        ssl_h.SSL_CTX_set_security_level(ctx, level)
        self.context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        self.context.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
        mode = ssl_h.SSL_MODE_RELEASE_BUFFERS | ssl_h.SSL_MODE_NO_AUTO_CHAIN
        # nginx reads ahead. Here, octets that OpenSSL holds undecrypted would be waited
        # for in vain: see `relay` about short records.
        self._control(ssl_h.SSL_CTRL_MODE, mode)
        self._identity = b""
        self._zone: SessionZone | None = None
        self._certificates: list[bytes] = []
        self._announced: dict[bytes, None] = {}
        self._verification: list[bytes] = []
        """All that decides about client certificates; empty if none is asked for."""

    def _control(
        self, command: int, number: int = 0, data: bytes | int | None = None
    ) -> int:
        return ssl_h.SSL_CTX_ctrl(self._ctx, command, number, data)

    def _add_options(self, options: int) -> None:
        set_options(self.context, self.context.options | options)

    def alpn(self, protocol: bytes) -> None:
        """Choose `protocol`; reject clients that offer only others."""
        ssl_h.SSL_CTX_set_alpn_select_cb(self._ctx, callbacks.alpn(protocol), None)

    def ciphers(self, text: str, *, prefer_server: bool = False) -> None:
        """Set the ciphers of TLS 1.2 and older, and whose preference counts."""
        if not ssl_h.SSL_CTX_set_cipher_list(self._ctx, os.fsencode(text)):
            raise failure(f'SSL_CTX_set_cipher_list("{text}") failed')
        if prefer_server:
            self._add_options(ssl.OP_CIPHER_SERVER_PREFERENCE)

    def certificate(
        self, certificate: str, key: str, passwords: Sequence[bytes] | None = None
    ) -> Leaf:
        """Use a certificate with its chain and its key, beside those of other types.

        Args:
          certificate: a file, or ``data:PEM``; the server's certificate comes first.
          key: a file, ``data:PEM``, ``engine:NAME:ID`` or ``store:URI``.
          passwords: for an encrypted key, tried in turn; None: OpenSSL asks at
            the terminal.

        Returns:
          What the certificate says, regardless of its chain.

        Raises:
          PrivateKeyError: the key is wrong, not the certificate.
        """
        with material.certificates(certificate) as (own, *chain):
            name = shown(certificate)
            if not ssl_h.SSL_CTX_use_certificate(self._ctx, own):
                raise failure(f'SSL_CTX_use_certificate("{name}") failed')
            der = encoded(own, x509_h.i2d_X509)
            self._certificates.append(_digest(der))
            for each in chain:
                if not self._control(ssl_h.SSL_CTRL_CHAIN_CERT, _COPY, each):
                    raise failure(f'SSL_CTX_set0_chain("{name}") failed')
        try:
            self._use_key(key, passwords)
        except OpenSSLError as error:
            raise PrivateKeyError(str(error)) from None
        return _leaf(der)

    def _use_key(self, key: str, passwords: Sequence[bytes] | None) -> None:
        with material.private_key(key, passwords) as private_key:
            if not ssl_h.SSL_CTX_use_PrivateKey(self._ctx, private_key):
                name = shown(key)
                raise failure(f'SSL_CTX_use_PrivateKey("{name}") failed')

    def certificates_by_name(self, server: ByName) -> None:
        """Let clients get their certificates by the names that they ask for.

        To be called last, as the security level decides which ones OpenSSL accepts.
        """
        if not by_name.is_supported():
            raise OpenSSLError(by_name.UNSUPPORTED)
        by_name.install(self._ctx, server)
        weakref.finalize(self.context, by_name.forget, self._ctx)
        if server.shelf is not None and not server.shelf.checked:
            server.shelf.check(self._ctx)

    def compress_certificates(self, *, enable: bool) -> bool:
        """Send certificates compressed (RFC 8879); return False if OpenSSL cannot."""
        if not enable:
            self._add_options(NO_CERTIFICATE_COMPRESSION)
            return True
        if not has(ssl_h.SSL_CTX_compress_certs):
            return False
        done = ssl_h.SSL_CTX_compress_certs(self._ctx, _ALL_ALGORITHMS)
        crypto_h.ERR_clear_error()
        return bool(done)

    def verify_client(self, depth: int, mode: str = "on") -> None:
        """Ask clients for a certificate; the handshake goes on whatever they send.

        Args:
          depth: how many CA certificates a chain may have, as nginx counts.
          mode: `ssl_verify_client`; the caller acts on it after the handshake.
        """
        ssl_h.SSL_CTX_set_verify(self._ctx, ssl_h.SSL_VERIFY_PEER, callbacks.go_on)
        ssl_h.SSL_CTX_set_verify_depth(self._ctx, depth)
        ssl_h.SSL_CTX_set_info_callback(self._ctx, callbacks.limit_lifetime)
        self._verification.append(f"{mode} {depth}".encode())

    def announce(self, path: str) -> None:
        """Trust the CAs of a file, and send their names to clients."""
        self._verification.append(b"announced")
        self._trust(path, self._announce)

    def trust(self, path: str) -> None:
        """Trust the CAs of a file."""
        self._verification.append(b"trusted")
        self._trust(path, lambda _: None)

    def revoke(self, path: str) -> None:
        """Use the CRLs of a file; every CA of a chain must then have one."""
        self._verification.append(b"revoked")
        store = ssl_h.SSL_CTX_get_cert_store(self._ctx)
        with material.revocation_lists(path) as lists:
            for each in lists:
                if not x509_h.X509_STORE_add_crl(store, each):
                    raise failure(f'X509_STORE_add_crl("{path}") failed')
                self._verification.append(_digest(encoded(each, x509_h.i2d_X509_CRL)))
        self.context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN

    def _trust(self, path: str, then: Callable[[X509], None]) -> None:
        store = ssl_h.SSL_CTX_get_cert_store(self._ctx)
        with material.certificates(path) as authorities:
            for authority in authorities:
                if not x509_h.X509_STORE_add_cert(store, authority):
                    raise failure(f'X509_STORE_add_cert("{path}") failed')
                self._verification.append(_digest(encoded(authority, x509_h.i2d_X509)))
                then(authority)

    def _announce(self, authority: X509) -> None:
        name = x509_h.X509_get_subject_name(authority)
        identity = _digest(encoded(name, x509_h.i2d_X509_NAME))
        if identity not in self._announced:
            self._announced[identity] = None
            ssl_h.SSL_CTX_add_client_CA(self._ctx, authority)

    def dh_parameters(self, path: str) -> None:
        """Set the parameters for DHE ciphers."""
        with material.dh_parameters(path) as parameters:
            if not self._control(ssl_h.SSL_CTRL_SET_TMP_DH, 0, parameters):
                raise failure(f'SSL_CTX_set_tmp_dh("{path}") failed')

    def curves(self, names: str) -> None:
        """Set the groups for the key exchange, joined by colons; "auto": OpenSSL's."""
        if names != "auto" and not self._control(
            ssl_h.SSL_CTRL_SET_GROUPS_LIST, 0, os.fsencode(names)
        ):
            raise failure(f'SSL_CTX_set1_curves_list("{names}") failed')

    def session_id_context(self, label: bytes, *, private: bool = False) -> None:
        """Let sessions be resumed by contexts with the same label and certificates.

        A session keeps the verdict on its client's certificate, and OpenSSL does not
        check the certificate again. So the CAs, the CRLs, the depth and the mode must
        be the same as well: otherwise a session could carry the verdict of a laxer
        server, or of one with other CAs, to a stricter one.

        If clients are not asked for certificates, the value is nginx's: with the same
        ticket keys, nginx and this proxy accept each other's tickets. To be called
        after the certificates, and everything about those of clients, have been set.

        Args:
          private: no other context may resume the sessions, because things that are not
            known here decide about client certificates as well.
        """
        identity = label + b"".join([*self._certificates, *self._announced])
        identity += b"".join(b"\0" + each for each in self._verification)
        if private:
            identity += os.urandom(32)
        value = _digest(identity)
        if not ssl_h.SSL_CTX_set_session_id_context(self._ctx, value, len(value)):
            raise failure("SSL_CTX_set_session_id_context() failed")
        self._identity = value

    def sessions(
        self,
        timeout: int,
        *,
        cache: bool | None = None,
        builtin: int | None = None,
        zone: SessionZone | None = None,
    ) -> None:
        """Set how long sessions can be resumed, and where they are kept.

        To be called after `session_id_context`.

        Args:
          timeout: seconds.
          cache: False: sessions are not resumed; None: they are not kept, but clients
            are not told; True: they are kept in `builtin`, in `zone`, or in both.
          builtin: sessions that each worker keeps for itself; 0: any number, -1:
            OpenSSL's default, None: none.
          zone: the memory in which all workers keep sessions.
        """
        ssl_h.SSL_CTX_set_timeout(self._ctx, min(timeout, _MAX_TIMEOUT))
        if cache is False:
            self._cache(ssl_h.SSL_SESS_CACHE_OFF)
        elif cache is None:
            self._cache(
                ssl_h.SSL_SESS_CACHE_SERVER
                | ssl_h.SSL_SESS_CACHE_NO_AUTO_CLEAR
                | ssl_h.SSL_SESS_CACHE_NO_INTERNAL_STORE,
                size=1,
            )
        else:
            mode = ssl_h.SSL_SESS_CACHE_SERVER
            if builtin is None and zone is not None:
                mode |= ssl_h.SSL_SESS_CACHE_NO_INTERNAL
            self._cache(mode, size=-1 if builtin is None else builtin)
            if zone is not None:
                callbacks.keep_identity(self._ctx, self._identity)
                callbacks.share_sessions(self._ctx, zone)
                self._zone = zone

    def _cache(self, mode: int, size: int = -1) -> None:
        """Set up OpenSSL's own cache; a `size` of -1 leaves OpenSSL's default."""
        self._control(ssl_h.SSL_CTRL_SET_SESS_CACHE_MODE, mode)
        if size >= 0:
            self._control(ssl_h.SSL_CTRL_SET_SESS_CACHE_SIZE, size)

    def tickets(self, *, enable: bool, keys: Sequence[bytes] = ()) -> None:
        """Set up session tickets (RFC 5077); to be called after `sessions`.

        Args:
          keys: keys of 48 or 80 bytes: the first one encrypts tickets, all can decrypt
            them. If empty: the key of the zone, or else OpenSSL's for the context.
        """
        if not enable:
            self._add_options(ssl.OP_NO_TICKET)
        if keys:
            callbacks.keep_identity(self._ctx, self._identity)
        if len(keys) == 1 and len(keys[0]) == TICKET_KEY_SIZE:
            # This is OpenSSL's own layout, which needs no callback.
            command = ssl_h.SSL_CTRL_SET_TLSEXT_TICKET_KEYS
            self._control(command, TICKET_KEY_SIZE, keys[0])
        elif keys:
            callbacks.use_ticket_keys(self._ctx, tuple(keys))
        elif self._zone is not None:
            callbacks.use_zone_key(self._ctx, self._zone)

    def commands(
        self, commands: Sequence[tuple[str, str]], full_name: Callable[[str], str]
    ) -> None:
        """Run commands of OpenSSL's own configuration language, SSL_CONF_cmd(3).

        Args:
          full_name: makes a file name absolute.
        """
        with owned(ssl_h.SSL_CONF_CTX_new(), ssl_h.SSL_CONF_CTX_free) as configuration:
            ssl_h.SSL_CONF_CTX_set_flags(configuration, _CONF_FLAGS)
            ssl_h.SSL_CONF_CTX_set_ssl_ctx(configuration, self._ctx)
            for name, value in commands:
                key = os.fsencode(name)
                kind = ssl_h.SSL_CONF_cmd_value_type(configuration, key)
                if kind in (ssl_h.SSL_CONF_TYPE_FILE, ssl_h.SSL_CONF_TYPE_DIR):
                    value = full_name(value)
                if kind == ssl_h.SSL_CONF_TYPE_FILE:
                    _check_file(f'SSL_CONF_cmd("{name}", "{value}") failed', value)
                if ssl_h.SSL_CONF_cmd(configuration, key, os.fsencode(value)) <= 0:
                    raise failure(f'SSL_CONF_cmd("{name}", "{value}") failed')
            if ssl_h.SSL_CONF_CTX_finish(configuration) != 1:
                raise failure("SSL_CONF_finish() failed")


_ALL_ALGORITHMS = 0
"""An argument of SSL_CTX_compress_certs(3): every algorithm that OpenSSL prefers."""

_COPY = 1
"""An argument of SSL_CTX_ctrl(): OpenSSL takes a reference of its own."""


def _digest(octets: bytes) -> bytes:
    """Hash with SHA-1, as nginx does to identify certificates, names and contexts."""
    return hashlib.sha1(octets, usedforsecurity=False).digest()


def _leaf(der: bytes) -> Leaf:
    from mailproxy.net.openssl import certificates  # it is slow to import

    return certificates.leaf(der)


def _check_file(failed: str, path: str) -> None:
    """Check that OpenSSL, which opens this file itself, can read it to its end.

    Raises:
      OpenSSLError: the file is too large, or not regular: a FIFO would never end.
    """
    try:
        outside.check_regular(path, material.MAX_FILE)
    except outside.FileError as error:
        if error.limit is not None:
            why = "no regular file" if error.limit == "kind" else error.strerror
            raise OpenSSLError(f"{failed}: {why}") from None
        # OpenSSL reports a missing file, in its own words.
