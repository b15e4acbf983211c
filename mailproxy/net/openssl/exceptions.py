"""What is raised where OpenSSL says no."""

from __future__ import annotations

from mailproxy.frozen import Frozen


class OpenSSLError(Frozen, Exception):
    """OpenSSL refuses, or cannot do, what is asked; the text is nginx's."""


class PrivateKeyError(OpenSSLError):
    """The private key is what is wrong, not its certificate."""
