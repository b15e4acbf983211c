"""Certificates and keys in files, in whatever layout, and which of them belong together.

A certificate belongs to a key if their public keys are equal. So no naming scheme has to
be known: that of lego (NAME.crt, NAME.key), certbot (NAME/fullchain.pem, privkey.pem),
acme.sh (NAME_ecc/fullchain.cer, NAME.key), Caddy, Kubernetes (tls.crt, tls.key), or one
file with both. Names only help to explain why a certificate cannot be used.

`cryptography` reads the files (`pem_files.py`); OpenSSL gets a certificate when it is
first used (`identities.py`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from mailproxy import outside
from mailproxy.frozen import Frozen
from mailproxy.net.openssl.certificates import read_leaf
from mailproxy.net.openssl.pairs import Leaf, Pair
from mailproxy.net.openssl.pem_files import Extract, Reader, public_der
from mailproxy.outside import FileFacts

MAX_FILES = 20_000
"""Files of a directory that are read."""
MAX_FILE = 1 << 20
"""Octets of a file in a directory of certificates."""

NO_KEY = "no key"
NOT_ITS_KEY = "key does not match"
ENCRYPTED = "key is encrypted"
UNPARSABLE = "cannot be parsed"
NAMELESS = "no names"
UNREADABLE = "not readable"
TOO_LARGE = "larger than 1 MiB"
"""Why a file is passed over."""


class PairError(Frozen, Exception):
    """A certificate cannot be used with its key.

    Attributes:
      of_key: the key is wrong, or missing; not the certificate.
      reason: as in `Folder.passed_over`.
    """

    def __init__(self, reason: str, *, of_key: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.of_key = of_key


def load_pair(
    file: str,
    content: bytes,
    key_file: str,
    key_content: bytes,
    passwords: Sequence[bytes] = (),
) -> Pair:
    """Make a pair of two files that were named; the names in it do not matter.

    Raises:
      PairError: it cannot be used.
    """
    reader = Reader(passwords)
    found = reader.extract(content)
    if not found.chain:
        raise PairError(UNPARSABLE)
    try:
        facts = _look_at(found.chain[0])
    except _UNUSABLE:
        raise PairError(UNPARSABLE) from None
    of_key = reader.extract(key_content)
    for public, key in of_key.keys:
        if public == facts.public:
            return Pair(
                file, key_file, facts.leaf, found.chain[0], found.chain[1:], key
            )
    if of_key.locked:
        raise PairError(ENCRYPTED, of_key=True)
    raise PairError(NOT_ITS_KEY if of_key.keys else UNPARSABLE, of_key=True)


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a certificate."""

    leaf: Leaf
    public: bytes
    is_authority: bool


_UNUSABLE = (ValueError, UnsupportedAlgorithm, x509.InvalidVersion)
"""What `cryptography` raises for certificates that it cannot read."""


def _look_at(der: bytes) -> Facts:
    """Raises one of `_UNUSABLE`."""
    certificate = x509.load_der_x509_certificate(der)
    try:
        constraints = certificate.extensions.get_extension_for_class(
            x509.BasicConstraints
        )
        is_authority = constraints.value.ca
    except x509.ExtensionNotFound:
        is_authority = False
    return Facts(
        read_leaf(certificate), public_der(certificate.public_key()), is_authority
    )


FolderFacts = tuple[FileFacts | None, FileFacts | None]
"""What is known of the files of a certificate and its key."""


class Folder:
    """A directory of certificates, as it was when it was read.

    Attributes:
      path: its full name.
      pairs: the certificates that can be used.
      passed_over: files that cannot be used, with the reasons.
      listing: its files.
      kept: certificates of before that are used although their files have changed, and
        what is known of these.
      extracts: what they hold, by path.
      facts: of the certificates in DER that may be a server's; None: unreadable.
    """

    def __init__(
        self, path: str, passwords: Sequence[bytes] = (), before: Folder | None = None
    ) -> None:
        """Read a directory, or only what has changed in it.

        Args:
          passwords: for encrypted keys, tried in turn.
          before: the same directory as it was.

        Raises:
          FileError: the directory cannot be read.
        """
        self.path = path
        self.listing = outside.listing(path, MAX_FILES)
        self.pairs: list[Pair] = []
        self.passed_over = dict.fromkeys(self.listing.unreadable, UNREADABLE)
        self.extracts: dict[str, Extract] = {}
        self.facts: dict[bytes, Facts | None] = {}
        self.kept: dict[str, FolderFacts] = {}
        self._read(passwords, before)
        self._pair_up(before)

    def readable_keys(self) -> Iterator[str]:
        """Yield the files of keys in use that everybody can read."""
        for path in sorted({pair.key_file for pair in self.pairs}):
            if self.listing.files[path].mode & stat.S_IROTH:
                yield path

    def keep(self, pair: Pair) -> FolderFacts:
        """Go on with a pair of before, although its files have changed.

        Returns:
          What is known of these files.
        """
        self.pairs.append(pair)
        self.passed_over.pop(pair.file, None)
        files = self.listing.files
        self.kept[pair.file] = found = files.get(pair.file), files.get(pair.key_file)
        return found

    def _read(self, passwords: Sequence[bytes], before: Folder | None) -> None:
        reader = Reader(passwords)
        for path, facts in self.listing.files.items():
            known = None
            if before is not None and before.listing.files.get(path) == facts:
                known = before.extracts.get(path)
            if known is None and facts.size > MAX_FILE:
                self.passed_over[path] = TOO_LARGE
            elif known is None:
                try:
                    known = reader.extract(outside.read(path, MAX_FILE))
                except outside.FileError:
                    self.passed_over[path] = UNREADABLE
            if known is not None:
                self.extracts[path] = known

    def _pair_up(self, before: Folder | None) -> None:
        known = {} if before is None else {pair.file: pair for pair in before.pairs}
        keys: dict[bytes, list[tuple[str, bytes]]] = {}
        best: dict[bytes, str] = {}
        for path, extract in self.extracts.items():
            if extract.broken:
                self.passed_over[path] = UNPARSABLE
            for public, key in extract.keys:
                keys.setdefault(public, []).append((path, key))
            if extract.chain:
                chosen = best.setdefault(extract.chain[0], path)
                if len(extract.chain) > len(self.extracts[chosen].chain):
                    best[extract.chain[0]] = path
        related = _Related(self.extracts)
        for der, path in best.items():
            if before is not None and der in before.facts:
                self.facts[der] = before.facts[der]
            made = self._pair(der, path, keys, related)
            if isinstance(made, Pair):
                old = known.get(path)
                self.pairs.append(
                    old if old is not None and made.same_as(old) else made
                )
                self.passed_over.pop(path, None)  # what is broken in it is not needed
            elif made:
                self.passed_over[path] = made

    def _pair(
        self,
        der: bytes,
        path: str,
        keys: Mapping[bytes, list[tuple[str, bytes]]],
        related: _Related,
    ) -> Pair | str:
        """Return a certificate with its key, or why not; empty: it is a CA's."""
        if der not in self.facts:
            try:
                self.facts[der] = _look_at(der)
            except _UNUSABLE:
                self.facts[der] = None
        facts = self.facts[der]
        if facts is None:
            return UNPARSABLE
        leaf = facts.leaf
        found = keys.get(facts.public)
        if facts.is_authority and not (found and leaf.has_alt_names and leaf.names):
            # `openssl req -x509` makes CAs; with names and a key they are servers'.
            return ""
        if not found:
            return related.explain(path)
        if not leaf.names:
            return NAMELESS
        home = os.path.dirname(path)
        file, key = min(
            found, key=lambda each: (os.path.dirname(each[0]) != home, each)
        )
        return Pair(path, file, leaf, der, self.extracts[path].chain[1:], key)


class _Related:
    """Files of keys that are named as if they belonged to a certificate."""

    def __init__(self, extracts: Mapping[str, Extract]) -> None:
        self._stems: dict[str, bool] = {}
        """By what names have in common: whether such a key is encrypted."""
        for path, extract in extracts.items():
            if extract.keys or extract.locked:
                for stem in _stems(path):
                    self._stems[stem] = self._stems.get(stem, False) or extract.locked

    def explain(self, path: str) -> str:
        """Return why a certificate has no key."""
        found = [self._stems[stem] for stem in _stems(path) if stem in self._stems]
        if not found:
            return NO_KEY
        return ENCRYPTED if any(found) else NOT_ITS_KEY


def _stems(path: str) -> Iterator[str]:
    """Yield what files that belong together have in common."""
    stem, _ = os.path.splitext(path)
    yield stem
    directory, name = os.path.split(stem)
    folder = os.path.basename(directory)
    if name in ("fullchain", "cert", "privkey") or folder in (name, f"{name}_ecc"):
        yield f"{directory}/"  # of certbot, Caddy, acme.sh
