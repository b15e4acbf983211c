"""Which certificates a name has: a table that is made once and then only read.

A name has a certificate for each kind of key; OpenSSL picks the one that a client can
use. Of several certificates of one kind, the one that is valid now is used, then the
youngest, then the one that lasts longest, then the first by path.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from datetime import datetime

from mailproxy.net.openssl.pairs import Pair

_MAX_NAME = 253
"""Characters of a host name (RFC 1035, section 2.3.4, without the length octets)."""
_NAME = re.compile(rb"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")

_MAX_REMEMBERED = 4096
"""What clients asked for, and what name that is."""

Chosen = tuple[Pair, ...]
"""The certificates for a connection, one for each kind of key; empty: there is none."""


@functools.lru_cache(maxsize=_MAX_REMEMBERED)
def host_name(sni: bytes | None) -> str:
    """Return the host name that a client asked for, in the form of the table.

    It is empty if there is none, or if it has anything that host names do not have.
    So it can be a part of a path.
    """
    if sni is None:
        return ""
    name = sni.lower().removesuffix(b".")
    if len(name) > _MAX_NAME or _NAME.fullmatch(name) is None:
        return ""
    return name.decode("ascii")


def certified_name(text: str) -> str:
    """Return a name of a certificate in the form of the table; empty if it is no name."""
    star = "*." if text.startswith("*.") else ""
    try:
        name = host_name(text.removeprefix("*.").encode("ascii"))
    except UnicodeEncodeError:
        return ""
    return star + name if name else ""


class Names:
    """The table.

    Args:
      pairs: all certificates.
      now: the time at which those that are valid are preferred.

    Attributes:
      pairs: all certificates, sorted by path.
      doubles: names in several certificates of one kind, with that kind, and the one
        that is used.
    """

    def __init__(self, pairs: Iterable[Pair], now: datetime) -> None:
        self.pairs = tuple(sorted(pairs, key=lambda pair: pair.file))
        self.doubles: dict[tuple[str, str], Pair] = {}
        self._by_name: dict[str, Chosen] = {}
        ranked = sorted(
            self.pairs,
            key=lambda pair: (not pair.leaf.is_valid(now), pair.leaf.age_rank),
        )
        shared: dict[Chosen, Chosen] = {}
        for pair in ranked:
            for name in pair.leaf.names:
                self._add(name, pair, shared)
        self._first = min(self._by_name, default="")

    def _add(self, name: str, pair: Pair, shared: dict[Chosen, Chosen]) -> None:
        known = self._by_name.get(name, ())
        for other in known:
            if other.leaf.kind == pair.leaf.kind:
                if other is not pair:
                    self.doubles[name, other.leaf.kind] = other
                return
        chosen = (*known, pair)
        self._by_name[name] = shared.setdefault(chosen, chosen)

    def __len__(self) -> int:
        return len(self._by_name)

    def exact(self, name: str) -> Chosen:
        """Return what certificates name themselves."""
        return self._by_name.get(name, ())

    def covering(self, name: str) -> Chosen:
        """Return what certificates with a ``*`` in place of the first label have."""
        _, dot, parent = name.partition(".")
        return self._by_name.get(f"*.{parent}", ()) if dot else ()

    def default(self, server_name: str) -> tuple[str, Chosen]:
        """Return the name for clients that name none, and its certificates.

        That is the server's own name, or else the first one in the alphabet.

        Args:
          server_name: in lower case.
        """
        found = self.exact(server_name) or self.covering(server_name)
        if found:
            return server_name, found
        return self._first, self.exact(self._first)

    def used(self) -> set[Pair]:
        """Return the certificates that some name has."""
        return {pair for chosen in self._by_name.values() for pair in chosen}
