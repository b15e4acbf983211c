"""PortableBuilder: contexts made with `ssl` alone, for Pythons with OpenSSL inside.

What `ContextBuilder` does by OpenSSL's own functions is done here by what `ssl` and
`cryptography` offer, in the same order and with the same texts. Where that is not
enough, a directive that was written is refused by name (`NeedsOpenSSLError`), and a
default gives way:

- A bad client certificate ends the handshake with an alert; nginx, and `ContextBuilder`,
  go on and tell the client in its mail protocol.
- Sessions of clients that were asked for a certificate are not resumed by ticket, and
  end with the worker otherwise: `ssl` cannot say which CAs a ticket was made under.
- The names of CAs are not sent to clients; the lifetime of sessions is OpenSSL's.
- OpenSSL cannot be told to refuse a client that offers other protocols by ALPN only.
  Whoever does the handshake looks at the hello (hello.py), and refuses it.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Collection, Sequence
from typing import ClassVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from mailproxy.conf.values import shown
from mailproxy.net.openssl import by_name, certificates, portable_files
from mailproxy.net.openssl.choice import ByName
from mailproxy.net.openssl.errors import error_text
from mailproxy.net.openssl.exceptions import OpenSSLError, PrivateKeyError
from mailproxy.net.openssl.library import NeedsOpenSSLError, unsupported
from mailproxy.net.openssl.options import (
    NO_CERTIFICATE_COMPRESSION,
    set_options,
    with_protocols,
)
from mailproxy.net.openssl.pairs import Leaf
from mailproxy.net.openssl.plain import PortableContext
from mailproxy.net.tls_sessions import SessionZone

DEFAULT_TIMEOUT = 300
"""Seconds of `ssl_session_timeout` where nothing is written."""

_BY_PYTHON = (
    ssl.OP_ALL
    | ssl.OP_CIPHER_SERVER_PREFERENCE
    | ssl.OP_SINGLE_DH_USE
    | ssl.OP_SINGLE_ECDH_USE
)
"""Options that Python sets in a new context, and nginx does not."""
_CURVES = {
    "P-256": "prime256v1",
    "secp256r1": "prime256v1",
    "P-384": "secp384r1",
    "P-521": "secp521r1",
}
"""Names that lists of groups may have, and `set_ecdh_curve` does not know."""
_SEVERAL = re.compile(r"[:/?*]")
"""What makes a list of groups of names (SSL_CTX_set1_groups_list(3))."""
_OTHER_GROUP = re.compile(
    r"x25519|x448|ffdhe\d+|\w*mlkem\w*|[PKB]-\d+|brainpool\w+|sm2\w*|(sec|prime)\w+",
    re.ASCII | re.IGNORECASE,
)
"""Groups that OpenSSL knows or may know, and not every Python's `set_ecdh_curve`."""
_UNFIT = frozenset({"CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK", "EE_KEY_TOO_SMALL"})
"""Reasons of OpenSSL not to use a certificate."""
_NOT_ITS_KEY = frozenset(
    {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"}
)
"""Reasons of OpenSSL not to use a key with a certificate."""
_OTHER_KIND = "(SSL: error:05800073:x509 certificate routines::key type mismatch)"


class PortableBuilder:
    """Makes a context step by step, as `ContextBuilder`, which says what each does.

    Attributes:
      context: the result.
    """

    _role: ClassVar = ssl.PROTOCOL_TLS_SERVER
    _prefix: ClassVar = ""
    """What stands before "ssl_" in the names of the directives."""

    def __init__(self, protocols: Collection[str]) -> None:
        """As `ContextBuilder`; the security level remains that of Python."""
        reason = unsupported()
        if reason is not None:
            raise OpenSSLError(reason)
        self.context = context = PortableContext(self._role)
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
        options = context.options & ~_BY_PYTHON
        set_options(context, with_protocols(options, protocols))
        self._cached = False

    def _needs_openssl(self, directive: str) -> NeedsOpenSSLError:
        """The error for a directive, named without "ssl_", that is not available."""
        return NeedsOpenSSLError(f"{self._prefix}ssl_{directive}")

    def _add_options(self, options: int) -> None:
        set_options(self.context, self.context.options | options)

    def alpn(self, protocol: bytes) -> None:
        self.context.alpn = protocol
        self.context.set_alpn_protocols([protocol.decode()])

    def ciphers(self, text: str, *, prefer_server: bool = False) -> None:
        try:
            self.context.set_ciphers(text)
        except (ssl.SSLError, ValueError):  # the latter: bytes that are not UTF-8
            raise OpenSSLError(
                f'SSL_CTX_set_cipher_list("{text}") failed '
                "(SSL: error:0A0000B9:SSL routines::no cipher match)"
            ) from None
        if prefer_server:
            self._add_options(ssl.OP_CIPHER_SERVER_PREFERENCE)

    def certificate(
        self, certificate: str, key: str, passwords: Sequence[bytes] | None = None
    ) -> Leaf:
        what = f'cannot load certificate "{shown(certificate)}"'
        content = portable_files.read(certificate, what)
        try:
            own = x509.load_pem_x509_certificates(content)[0].public_bytes(Encoding.DER)
        except (ValueError, x509.InvalidVersion):
            raise OpenSSLError(
                f"{what}: PEM_read_bio_X509_AUX() failed (SSL: error:0480006C:PEM "
                "routines::no start line:Expecting: TRUSTED CERTIFICATE)"
            ) from None
        if key.startswith(("engine:", "store:")):
            raise self._needs_openssl("certificate_key")
        key_what = f'cannot load certificate key "{shown(key)}"'
        try:
            key_content = portable_files.read(key, key_what)
        except OpenSSLError as error:
            raise PrivateKeyError(str(error)) from None
        with (
            portable_files.named(content) as certificate_file,
            portable_files.named(key_content) as key_file,
        ):
            self._load(certificate_file, key_file, passwords, (certificate, key))
        self.context.own += (certificates.server_certificate(own),)
        return certificates.leaf(own)

    def _load(
        self,
        certificate: str,
        key: str,
        passwords: Sequence[bytes] | None,
        names: tuple[str, str],
    ) -> None:
        """Try the passwords in turn; None: OpenSSL asks at the terminal."""
        failed = ssl.SSLError("no password")
        for password in (None,) if passwords is None else passwords:
            try:
                self.context.load_cert_chain(certificate, key, password)
            except ValueError:  # longer than `ssl` allows
                continue
            except ssl.SSLError as error:
                failed = error
            else:
                return
        reason = f"(SSL: {error_text(failed)})"
        why = getattr(failed, "reason", None)
        if why in _UNFIT:
            raise OpenSSLError(
                f'SSL_CTX_use_certificate("{shown(names[0])}") failed {reason}'
            )
        name = shown(names[1])
        if why == "NO_CERTIFICATE_ASSIGNED":  # the key's kind has none
            reason = _OTHER_KIND
        if why in _NOT_ITS_KEY:
            raise PrivateKeyError(f'SSL_CTX_use_PrivateKey("{name}") failed {reason}')
        raise PrivateKeyError(
            f'cannot load certificate key "{name}": '
            f"PEM_read_bio_PrivateKey() failed {reason}"
        )

    def certificates_by_name(self, server: ByName) -> None:
        del server
        raise OpenSSLError(by_name.UNSUPPORTED)

    def compress_certificates(self, *, enable: bool) -> bool:
        if enable:
            raise NeedsOpenSSLError("ssl_certificate_compression")
        self._add_options(NO_CERTIFICATE_COMPRESSION)
        return True

    def verify_client(self, depth: int, mode: str = "on") -> None:
        if mode == "optional_no_ca":
            raise NeedsOpenSSLError("ssl_verify_client")
        self.context.verify_mode = ssl.CERT_OPTIONAL
        self.context.depth = depth
        self.context.num_tickets = 0
        self._add_options(ssl.OP_NO_TICKET)

    def announce(self, path: str) -> None:
        self.trust(path)

    def trust(self, path: str) -> None:
        what = f'cannot load certificate "{path}"'
        self._add(
            path,
            portable_files.CERTIFICATES,
            what,
            f"{what}: PEM_read_bio_X509() failed",
        )

    def revoke(self, path: str) -> None:
        what = f'cannot load CRL "{path}"'
        self._add(
            path, portable_files.LISTS, what, f"{what}: PEM_read_bio_X509_CRL() failed"
        )
        self.context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN

    def _add(
        self, path: str, labels: Collection[bytes], what: str, failed: str
    ) -> None:
        """Have the context know what a file has under `labels`, and nothing else of it.

        `ssl` would take certificates among CRLs for CAs, and CRLs among CAs for good.
        """
        with portable_files.named(
            portable_files.only(portable_files.read(path, what), labels, failed)
        ) as file:
            try:
                self.context.load_verify_locations(file)
            except ssl.SSLError as error:
                raise OpenSSLError(f"{failed} (SSL: {error_text(error)})") from None

    def dh_parameters(self, path: str) -> None:
        what = f'cannot load DH parameters "{path}"'
        content = portable_files.read(path, what, f'BIO_new_file("{path}") failed')
        try:
            with portable_files.named(content) as file:
                self.context.load_dh_params(file)
        except ssl.SSLError as error:
            raise OpenSSLError(
                f'PEM_read_bio_DHparams("{path}") failed (SSL: {error_text(error)})'
            ) from None

    def curves(self, names: str) -> None:
        if _SEVERAL.search(names):
            raise NeedsOpenSSLError("ssl_ecdh_curve")
        if names == "auto":
            return
        try:
            self.context.set_ecdh_curve(_CURVES.get(names, names))
        except (ValueError, ssl.SSLError):
            if _OTHER_GROUP.fullmatch(names):
                raise NeedsOpenSSLError("ssl_ecdh_curve") from None
            raise OpenSSLError(f'SSL_CTX_set1_curves_list("{names}") failed') from None

    def session_id_context(self, label: bytes, *, private: bool = False) -> None:
        """Nothing is shared between contexts, so they need no names."""

    def sessions(
        self,
        timeout: int,
        *,
        cache: bool | None = None,
        builtin: int | None = None,
        zone: SessionZone | None = None,
    ) -> None:
        if timeout != DEFAULT_TIMEOUT:
            raise NeedsOpenSSLError("ssl_session_timeout")
        if cache is False or zone is not None or (cache and builtin not in (None, -1)):
            raise NeedsOpenSSLError("ssl_session_cache")
        self._cached = bool(cache)

    def tickets(self, *, enable: bool, keys: Sequence[bytes] = ()) -> None:
        if keys:
            raise NeedsOpenSSLError("ssl_session_ticket_key")
        if not enable:
            if not self._cached:  # in TLS 1.3 what is in the cache has tickets, too
                self.context.num_tickets = 0
            self._add_options(ssl.OP_NO_TICKET)

    def commands(
        self, commands: Sequence[tuple[str, str]], full_name: Callable[[str], str]
    ) -> None:
        del full_name
        if commands:
            raise self._needs_openssl("conf_command")
