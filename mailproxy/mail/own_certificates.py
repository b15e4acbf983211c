"""The certificates that the clients of a server get, for those who look after them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ssl import SSLContext

    from mailproxy.net.openssl.choice import ByName
    from mailproxy.net.openssl.pairs import Leaf
    from mailproxy.outside import FileFacts


Facts = tuple["FileFacts | None", "FileFacts | None"]
"""What is known of the files of a certificate and its key."""


@dataclass(eq=False)
class Default:
    """A certificate of `ssl_certificate`, without variables."""

    file: str
    """Its full name; ``data:...`` if it is written out in the configuration."""
    key: str = field(repr=False)
    """Where its key is: a full name, or ``data:``, ``engine:``, ``store:`` and more."""
    leaf: Leaf
    """What it says; whoever renews it changes that."""
    facts: Facts = None, None
    """The files, as they were when it was loaded."""

    @property
    def is_watched(self) -> bool:
        """Whether both are in files."""
        return not self.file.startswith("data:") and not self.key.startswith(
            ("data:", "engine:", "store:")
        )


@dataclass(frozen=True, eq=False)
class OwnCertificates:
    """The certificates of a TLS context, which several servers may share."""

    context: SSLContext
    defaults: tuple[Default, ...]
    by_name: ByName | None
    """None if all clients get the same ones."""
    passwords: tuple[bytes, ...] = field(default=(), repr=False)
    """For encrypted keys."""
    compressed: bool = False
    """Whether the default ones are compressed beforehand."""

    def in_use(self) -> Iterator[tuple[str, Leaf]]:
        """Yield the certificates that some client may get, with their files.

        Without those that are in files for each name, which are not known beforehand.
        """
        for each in self.defaults:
            yield each.file, each.leaf
        shelf = None if self.by_name is None else self.by_name.shelf
        if shelf is not None:
            used = shelf.names.used()
            for pair in shelf.names.pairs:
                if pair in used:
                    yield pair.file, pair.leaf
