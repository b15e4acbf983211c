"""What is asked about a login: everything that an auth source gets to know of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mailproxy.net.proxy_protocol import Header


@dataclass(frozen=True, slots=True)
class Envelope:
    """The SMTP commands of a client that does not log in (`smtp_auth none`).

    Attributes:
      mail: the whole ``MAIL FROM:…`` line, without line end.
      rcpt: the whole ``RCPT TO:…`` line.
    """

    mail: bytes
    rcpt: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCertificate:
    """The certificate that a client has shown."""

    subject: bytes
    """RFC 2253: last part first, non-ASCII as ``\\C3\\9C``."""
    issuer: bytes
    """As `subject`."""
    serial: bytes
    """Whole bytes in upper-case hexadecimal."""
    fingerprint: bytes
    """SHA-1 in lower-case hexadecimal."""
    pem: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls:
    """What was agreed with a client, and who it has shown to be."""

    version: str
    """As "TLSv1.3"."""
    cipher: str
    """The cipher suite, as OpenSSL calls it."""
    verify: str = ""
    """What became of the client's certificate: "SUCCESS", "NONE" (it sent none) or
    "FAILED:" with OpenSSL's reason; empty where none is asked for."""
    certificate: ClientCertificate | None = None
    """None as well where no certificate is asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthRequest:
    """One login, and who tries it.

    It is a value: no source can change it, keep a session alive with it, or read from
    the client. What differs between protocols is a field, so that no source has to know
    the protocols by name.
    """

    protocol: str
    """"imap", "pop3", "smtp", or what else `protocol` may say."""
    method: str
    """In lower case: plain (LOGIN as well), apop, cram-md5, external, xoauth2,
    oauthbearer; none: the client does not log in, and `envelope` says what it wants."""
    user: bytes
    """Free of CR, LF and NUL."""
    secret: bytes | None = field(default=None, repr=False)
    """Password, digest or token, free of the same; None if the method has none."""
    salt: bytes = b""
    """What the digest of apop and cram-md5 was made with."""
    envelope: Envelope | None = None
    needs_password: bool = True
    """Whether the client cannot be logged in at the backend without a password."""
    attempt: int = 1
    """1 for the first login of the session, 2 for the second."""

    client: str
    """The address after `set_real_ip_from`; "unix:" for a client of a unix socket."""
    client_port: int | None = None
    """None for a client of a unix socket."""
    client_host: bytes | None = None
    """The client's name in the DNS, or ``[UNAVAILABLE]`` or ``[TEMPUNAVAIL]``; None if
    the protocol does not look for it."""
    helo: bytes = b""
    """What an SMTP client has called itself."""
    proxy_header: Header | None = None
    """The PROXY header that came before the client's first octet."""
    listen: str = ""
    """The address that the client has come to, as the log shows it: "0.0.0.0:143"."""
    server_name: bytes = b""
    """`server_name` of the server."""

    tls: ClientTls | None = None
    """None in clear text."""
