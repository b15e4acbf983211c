"""Which certificate a client gets, by the name that it asks for.

The order of choice, and the number of each place in `Presented.place`:

    1  directories: the exact name
    2  the files with the name in their paths
    3  directories: "*." and the name without its first label
    4  the default
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mailproxy.net.openssl import identities
from mailproxy.net.openssl.errors import failure
from mailproxy.net.openssl.exceptions import OpenSSLError
from mailproxy.net.openssl.headers import ssl_h
from mailproxy.net.openssl.names import Chosen, Names, host_name

if TYPE_CHECKING:
    from mailproxy.net.openssl.folder import Folder
    from mailproxy.net.openssl.headers.types import SSL, SSL_CTX
    from mailproxy.net.openssl.identities import Identity
    from mailproxy.net.openssl.notes import Note
    from mailproxy.net.openssl.pairs import Pair
    from mailproxy.net.openssl.variable_files import VariableFiles

EXACT, VARIABLE, WILDCARD, DEFAULT = 1, 2, 3, 4
"""The places."""
_MAX_RECENT = 512
"""Names for which a server has the certificates at hand."""


class Shelf:
    """The certificates of some directories; all servers that name these share it.

    Attributes:
      folders: the directories.
      passwords: for encrypted keys.
      checked: whether `check` was called.
      refused: certificates that OpenSSL refuses, with the reasons.
      names: the table in use.
    """

    def __init__(self, folders: Sequence[Folder], passwords: Sequence[bytes]) -> None:
        self.folders = tuple(folders)
        self.passwords = tuple(passwords)
        self.refused: dict[Pair, str] = {}
        self.checked = False
        self.names = Names(_by_file(folders), datetime.now(UTC))

    def check(self, ctx: SSL_CTX) -> None:
        """Have OpenSSL look at the first `MAX_EAGER` certificates, and keep them ready.

        It refuses keys that are too small for the security level of a context.
        """
        self.checked = True
        for pair in self.names.pairs[: identities.MAX_EAGER]:
            try:
                identities.check(pair, ctx)
            except OpenSSLError as error:
                self.refused[pair] = str(error)
        if self.refused:
            good = [pair for pair in self.names.pairs if pair not in self.refused]
            self.replace(Names(good, datetime.now(UTC)))

    def use(self, folders: Sequence[Folder]) -> None:
        """Use what directories have now."""
        self.folders = tuple(folders)
        good = [pair for pair in _by_file(folders) if pair not in self.refused]
        self.replace(Names(good, datetime.now(UTC)))

    def replace(self, names: Names) -> None:
        """Use another table from the next handshake on."""
        kept = set(names.pairs)
        identities.forget(pair for pair in self.names.pairs if pair not in kept)
        self.names = names


def _by_file(folders: Sequence[Folder]) -> Iterable[Pair]:
    """Return the pairs of all folders; a file that is in two of them counts once."""
    return {pair.file: pair for folder in folders for pair in folder.pairs}.values()


@dataclass(frozen=True, slots=True)
class Presented:
    """What a client gets.

    Attributes:
      place: by which rule; see above.
      pairs: the certificates; empty: those of the context.
      refused: nothing, because there is no certificate for the name.
    """

    place: int
    pairs: Chosen = ()
    refused: bool = False


BY_CONTEXT = Presented(DEFAULT)
_REFUSED = Presented(DEFAULT, refused=True)


class ByName:
    """Chooses the certificates of one server.

    Args:
      shelf: the certificates of its directories.
      files: those with variables in their names.
      default_name: its name, which the default is for if the context has none itself.
      has_default: whether the context has a certificate (`ssl_certificate`).
      reject: refuse names that nobody has a certificate for (`ssl_reject_handshake`).
    """

    def __init__(
        self,
        shelf: Shelf | None,
        files: VariableFiles | None,
        *,
        default_name: str,
        has_default: bool,
        reject: bool,
    ) -> None:
        self.shelf = shelf
        self.files = files
        self.has_default = has_default
        self.reject = reject
        self.default_name = default_name.lower()
        self._recent: dict[bytes, tuple[Identity, ...]] = {}
        self._recent_of: Names | None = None

    def choose(self, sni: bytes | None, note: Callable[[Note], None]) -> Presented:
        """Return what a client gets.

        Args:
          sni: the name that it sent, unchecked.
          note: gets what the log is to say.
        """
        name = host_name(sni)
        if name:
            found = self._find(name, note)
            if found is not None:
                return found
        if self.reject and (sni is not None or not self.has_default):
            return _REFUSED
        if self.has_default or self.shelf is None:
            return BY_CONTEXT
        return Presented(DEFAULT, self.default[1])

    @property
    def default(self) -> tuple[str, Chosen]:
        """The default certificates among those of directories, and a name of theirs."""
        if self.shelf is None:
            return "", ()
        return self.shelf.names.default(self.default_name)

    def _find(self, name: str, note: Callable[[Note], None]) -> Presented | None:
        names = None if self.shelf is None else self.shelf.names
        if names is not None and (found := names.exact(name)):
            return Presented(EXACT, found)
        if self.files is not None and (found := self.files.find(name, note)):
            return Presented(VARIABLE, found)
        if names is not None and (found := names.covering(name)):
            return Presented(WILDCARD, found)
        return None

    def use_recent(self, sni: bytes | None, ssl: SSL) -> bool:
        """Have a connection use what another one, that asked for the same, has used.

        That is the shortest way. Returns False if it is not known.

        Raises:
          OpenSSLError: OpenSSL refuses it.
        """
        if self.shelf is None or sni not in self._recent:
            return False
        if self.shelf.names is not self._recent_of:  # they have been renewed
            self._recent.clear()
            return False
        if self.has_default:
            ssl_h.SSL_certs_clear(ssl)
        for identity in self._recent[sni]:
            if not identity.use(ssl):
                raise failure("SSL_use_cert_and_key() failed")
        return True

    def is_recent(self, sni: bytes) -> bool:
        """Return whether the certificates of a name are at hand."""
        return sni in self._recent

    def remember(self, sni: bytes | None, choice: Presented) -> None:
        """Remember what was used for a name, if a directory has it."""
        if choice.place != EXACT or sni is None or self.shelf is None:
            return
        if len(self._recent) >= _MAX_RECENT or self._recent_of is not self.shelf.names:
            self._recent.clear()
            self._recent_of = self.shelf.names
        self._recent[sni] = tuple(map(identities.identity, choice.pairs))

    def use(self, choice: Presented, ssl: SSL) -> None:
        """Have a connection use what was chosen.

        Raises:
          OpenSSLError: OpenSSL refuses it.
        """
        if not choice.pairs:
            return
        ssl_h.SSL_certs_clear(ssl)
        if choice.place == VARIABLE and self.files is not None:
            self.files.use(choice.pairs, ssl)
            return
        for pair in choice.pairs:
            identities.use(pair, ssl)
