"""The exceptions for errors of OpenSSL."""

from __future__ import annotations

from mailproxy.frozen import Frozen


class OpenSSLError(Frozen, Exception):
    """OpenSSL rejects a value, or lacks a function; the text is nginx's."""


class PrivateKeyError(OpenSSLError):
    """The private key is wrong, not its certificate."""
