"""The request to an auth source: everything that it is told about a login."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mailproxy.auth.verdict import Destinations

if TYPE_CHECKING:
    from mailproxy.net.proxy_protocol import Header

NO_DESTINATIONS = Destinations()
"""Those of a server that has no groups."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """The SMTP commands of a client that sends mail without a login (`smtp_auth none`).

    Attributes:
      mail: the whole ``MAIL FROM:…`` line, without line end.
      rcpt: the whole ``RCPT TO:…`` line.
    """

    mail: bytes
    rcpt: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCertificate:
    """The certificate that a client has sent."""

    subject: bytes
    """RFC 2253: last part first, non-ASCII as ``\\C3\\9C``."""
    issuer: bytes
    """In the form of `subject`."""
    serial: bytes
    """Whole bytes in upper-case hexadecimal."""
    fingerprint: bytes
    """SHA-1 in lower-case hexadecimal."""
    pem: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls:
    """The parameters of a client's TLS connection, and its certificate."""

    version: str
    """For example "TLSv1.3"."""
    cipher: str
    """The cipher suite, as OpenSSL calls it."""
    verify: str = ""
    """The result of verifying the client's certificate: "SUCCESS", "NONE" (the client
    sent none) or "FAILED:" with OpenSSL's reason; empty if the server requests none."""
    certificate: ClientCertificate | None = None
    """None if the client sent no certificate, or the server requests none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthRequest:
    """One login, and the client that attempts it.

    It is a value: no source can change it, keep a session alive with it, or read from
    the client. Differences between protocols are fields, so that no source has to know
    the protocols by name.
    """

    protocol: str
    """The value of `protocol`: "imap", "pop3", "smtp" or that of an added protocol."""
    method: str
    """In lower case: plain (LOGIN as well), apop, cram-md5, external, xoauth2,
    oauthbearer; none: the client does not log in, and `envelope` has its commands."""
    user: bytes
    """The user name, without CR, LF and NUL."""
    secret: bytes | None = field(default=None, repr=False)
    """Password, digest or token, without CR, LF, NUL; None if the method has none."""
    salt: bytes = b""
    """The challenge from which the client made the digest of apop or cram-md5."""
    envelope: Envelope | None = None
    needs_password: bool = True
    """Whether the backend login requires a password."""
    needs_backend_tls: bool = False
    """Whether the configuration requires TLS with backends, so that no source may switch
    it off."""
    attempt: int = 1
    """1 for the first login of the session, 2 for the second."""

    destinations: Destinations = NO_DESTINATIONS
    """What the answer may name as backend, beside an address."""

    client: str
    """The address after `set_real_ip_from`; "unix:" for a client of a unix socket."""
    client_port: int | None = None
    """None for a client of a unix socket."""
    client_host: bytes | None = None
    """The client's name in the DNS, or ``[UNAVAILABLE]`` or ``[TEMPUNAVAIL]``; None if
    the protocol does not look it up."""
    helo: bytes = b""
    """The argument of an SMTP client's HELO or EHLO."""
    proxy_header: Header | None = None
    """The PROXY header in front of the client's first octet."""
    listen: str = ""
    """The `listen` address that accepted the client, as the log shows it:
    "0.0.0.0:143"."""
    server_name: bytes = b""
    """`server_name` of the server."""

    sni: bytes | None = None
    """The server name that the client asked for in TLS (RFC 6066), unchecked."""
    tls: ClientTls | None = None
    """None without TLS."""
