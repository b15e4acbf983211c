"""Certificates that change while they are in use: `ssl_certificate_watch`.

Every T, the master compares what stat(2) says of the files in use, and of those in the
directories, with what it said before. When something has changed it looks again after
`SETTLING`, and only when both looks agree are files read: certbot swaps its links one by
one. What fits is used from then on by the master, from which later workers are forked,
and by the workers that are told (`certificate_orders`). What does not fit leaves things
as they were.

It also says when certificates are about to expire, without `ssl_certificate_watch`, too.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mailproxy import outside
from mailproxy.outside import FileError, FileFacts
from mailproxy.process.configuration import certificates_in_use, own_certificates
from mailproxy.process.expiry import DAY, Expiry

if TYPE_CHECKING:
    from mailproxy.log import Logger
    from mailproxy.mail.own_certificates import Default, OwnCertificates
    from mailproxy.net.openssl.choice import Shelf
    from mailproxy.net.openssl.folder import Folder
    from mailproxy.net.openssl.pairs import Pair
    from mailproxy.outside import Listing
    from mailproxy.process.configuration import Configuration

SETTLING = 2.0
"""Seconds between a change and the look that has to confirm it."""
_MAX_NAMES = 5
"""Names of a renewed certificate that the log shows."""
_OTHER_KIND = "its key is of another kind, which needs a reload"


@dataclass(frozen=True)
class ShelfChange:
    """What has changed in the directories of a shelf."""

    shelf: int
    """Its number in the configuration, which workers know it by."""
    pairs: tuple[Pair, ...]
    """New ones, and those that take the place of others from the same file."""
    gone: tuple[str, ...]
    """The files of those that are not used any more."""


@dataclass(frozen=True)
class DefaultChange:
    """A certificate of `ssl_certificate` that has changed."""

    own: int
    """The number of the context in the configuration."""
    pair: Pair
    compressed: bool


@dataclass
class Change:
    """All that a look at the files has found."""

    shelves: list[ShelfChange] = field(default_factory=list)
    defaults: list[DefaultChange] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.shelves or self.defaults)


@dataclass(frozen=True)
class _Look:
    """What stat(2) says of everything that is watched."""

    listings: tuple[Listing | None, ...]
    """Of each directory; None: it cannot be read."""
    facts: dict[str, FileFacts | None]
    """Of each file of `ssl_certificate`, and of the keys."""


class Renewal:
    """Looks after the certificates of one configuration.

    Args:
      tell: tells the workers what has changed.
      clock: seconds that never go backwards.
      now: the time of day.
    """

    def __init__(
        self,
        configuration: Configuration,
        log: Logger,
        tell: Callable[[Change], None],
        *,
        clock: Callable[[], float],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        main = configuration.main
        self._servers = configuration.servers
        self._owns = own_certificates(configuration.servers)
        self._shelves = shelves(self._owns)
        self._log = log
        self._tell = tell
        self._clock = clock
        self._now = now
        self._period = main.ssl_certificate_watch if self._owns else 0.0
        self._expiry = Expiry(main.ssl_certificate_warning)
        self._expiry.due(certificates_in_use(self._servers), now())  # the load said it
        self._seen = self._as_loaded()
        self._unsettled: _Look | None = None
        self._failing: set[str] = set()
        self._look_at = clock() + (self._period or math.inf)
        self._judge_at = clock() + (DAY.total_seconds() if self._owns else math.inf)

    def until_next(self) -> float:
        """Seconds until `catch_up` has something to do."""
        return max(min(self._look_at, self._judge_at) - self._clock(), 0.0)

    def catch_up(self) -> None:
        """Look at files, and at the calendar, if it is time."""
        now = self._clock()
        if now >= self._look_at:
            settled = self._look()
            self._look_at = now + (self._period if settled else SETTLING)
            if settled:
                self._judge_at = min(self._judge_at, now)
        if now >= self._judge_at:
            self._judge_at = now + DAY.total_seconds()
            for remark in self._expiry.due(
                certificates_in_use(self._servers), self._now()
            ):
                self._log.log(remark.level, remark.text)

    # Looking

    def _as_loaded(self) -> _Look:
        """Return what was known of the files when they were loaded."""
        facts: dict[str, FileFacts | None] = {}
        for default in self._defaults():
            facts[default.file], facts[default.key] = default.facts
        return _Look(tuple(folder.listing for folder in self._folders()), facts)

    def _defaults(self) -> Iterator[Default]:
        for own in self._owns:
            yield from (each for each in own.defaults if each.is_watched)

    def _folders(self) -> Iterator[Folder]:
        for shelf in self._shelves:
            yield from shelf.folders

    def _look(self) -> bool:
        """Look at everything; returns False if it has to be looked at again soon."""
        seen = self._see()
        if seen == self._seen:
            self._unsettled = None
            return True
        if seen != self._unsettled:
            self._unsettled = seen
            return False
        before, self._seen, self._unsettled = self._seen, seen, None
        change = self._take(before, seen)
        if change:
            self._tell(change)
        return True

    def _see(self) -> _Look:
        listings = tuple(self._list(folder.path) for folder in self._folders())
        return _Look(listings, {path: self._stat(path) for path in self._seen.facts})

    def _list(self, path: str) -> Listing | None:
        from mailproxy.net.openssl.folder import MAX_FILES

        try:
            found = outside.listing(path, MAX_FILES)
        except FileError as error:
            self._fail(path, error)
            return None
        self._failing.discard(path)
        return found

    def _stat(self, path: str) -> FileFacts | None:
        try:
            found = outside.facts(path)
        except OSError as error:
            self._fail(path, error)
            return None
        self._failing.discard(path)
        return found

    def _fail(self, path: str, error: OSError) -> None:
        """Log that something cannot be looked at, once until it can."""
        if path not in self._failing:
            self._failing.add(path)
            call = error.call if isinstance(error, FileError) else "stat"
            self._log.error(f'{call}() "{path}" failed', error=error)

    # Reading

    def _take(self, before: _Look, seen: _Look) -> Change:
        """Read what has changed, and use it in this process."""
        change = Change()
        number = 0
        for index, shelf in enumerate(self._shelves):
            end = number + len(shelf.folders)
            listings = seen.listings[number:end]
            if listings != before.listings[number:end]:
                found = self._read_shelf(index, shelf, listings)
                if found.pairs or found.gone:
                    change.shelves.append(found)
            number = end
        changed = {
            path for path, facts in seen.facts.items() if facts != before.facts[path]
        }
        change.defaults += self._read_defaults(changed)
        return change

    def _read_shelf(
        self, index: int, shelf: Shelf, listings: Sequence[Listing | None]
    ) -> ShelfChange:
        folders = []
        for folder, listing in zip(shelf.folders, listings, strict=True):
            new = self._read_folder(folder, shelf) if listing is not None else None
            folders.append(folder if new is None else new)
        before = {pair.file: pair for pair in shelf.names.pairs}
        shelf.use(folders)
        after = {pair.file: pair for pair in shelf.names.pairs}
        pairs = tuple(
            pair for file, pair in after.items() if before.get(file) is not pair
        )
        gone = tuple(file for file in before if file not in after)
        for pair in pairs:
            self._say_new(pair, renewed=pair.file in before)
        for file in gone:
            self._log.notice(f'certificate "{file}" is gone')
        return ShelfChange(index, pairs, gone)

    def _read_folder(self, before: Folder, shelf: Shelf) -> Folder | None:
        """Read a directory again; None if it cannot be read."""
        from mailproxy.net.openssl.folder import Folder

        try:
            new = Folder(before.path, shelf.passwords, before)
        except FileError as error:
            self._fail(before.path, error)
            return None
        self._check(before, new, shelf)
        known = {pair.file for pair in new.pairs}
        elsewhere = {pair.der for pair in new.pairs}
        for pair in before.pairs:
            reason = new.passed_over.get(pair.file)
            if (
                pair.file in known
                or pair.der in elsewhere
                or not os.path.lexists(pair.file)
            ):
                continue
            if new.keep(pair) != before.kept.get(pair.file):
                self._say_unusable(pair.file, reason or "no certificate")
        for file, reason in sorted(new.passed_over.items()):
            if before.passed_over.get(file) != reason:
                self._log.warn(f'"{file}" is passed over: {reason}')
        return new

    def _check(self, before: Folder, new: Folder, shelf: Shelf) -> None:
        """Pass over what OpenSSL refuses of the new certificates."""
        from mailproxy.net.openssl import identities
        from mailproxy.net.openssl.context_tools import refusal_of

        known = set(before.pairs)
        own = next(own for own in self._owns if _shelf_of(own) is shelf)
        added = [pair for pair in new.pairs if pair not in known]
        for pair in added[: identities.MAX_EAGER]:
            reason = refusal_of(pair, own.context)
            if reason:
                new.pairs.remove(pair)
                new.passed_over[pair.file] = reason

    def _read_defaults(self, changed: set[str]) -> Iterator[DefaultChange]:
        """Read the certificates that have changed, and use them."""
        from mailproxy.net.openssl.context_tools import renew_default

        loaded: dict[tuple[str, str], Pair | None] = {}
        for index, own in enumerate(self._owns):
            for default in own.defaults:
                files = default.file, default.key
                if not default.is_watched or changed.isdisjoint(files):
                    continue
                if files not in loaded:
                    loaded[files] = self._load(default, own)
                pair = loaded[files]
                if pair is None:
                    continue
                default.leaf = pair.leaf
                renew_default(own.context, pair, compressed=own.compressed)
                yield DefaultChange(index, pair, own.compressed)

    def _load(self, default: Default, own: OwnCertificates) -> Pair | None:
        """Load a certificate of `ssl_certificate`; None, and a log line, if it is bad."""
        from mailproxy.net.openssl import folder
        from mailproxy.net.openssl.context_tools import refusal_of

        try:
            content, _ = outside.read_regular(default.file, folder.MAX_FILE)
            key, _ = outside.read_regular(default.key, folder.MAX_FILE)
            pair = folder.load_pair(
                default.file, content, default.key, key, own.passwords
            )
        except FileError as error:
            self._say_unusable(default.file, f"{error.call}() failed", error)
            return None
        except folder.PairError as error:
            self._say_unusable(default.file, error.reason)
            return None
        reason = refusal_of(pair, own.context)
        if pair.leaf.kind != default.leaf.kind:
            reason = _OTHER_KIND
        if reason:
            self._say_unusable(default.file, reason)
            return None
        self._say_new(pair, renewed=True)
        return pair

    # Saying

    def _say_unusable(
        self, file: str, reason: str, error: OSError | None = None
    ) -> None:
        self._log.error(
            f'certificate "{file}" was changed, but is not used: {reason}', error=error
        )

    def _say_new(self, pair: Pair, *, renewed: bool) -> None:
        if not renewed:
            self._log.notice(f'certificate "{pair.file}" is new')
            return
        names = ", ".join(pair.leaf.names[:_MAX_NAMES])
        more = len(pair.leaf.names) - _MAX_NAMES
        if more > 0:
            names += f" and {more} more"
        ends = pair.leaf.ends
        until = "" if ends is None else f", until {ends.date()}"
        self._log.notice(f'certificate "{pair.file}" was renewed: {names}{until}')


def shelves(owns: Iterable[OwnCertificates]) -> list[Shelf]:
    """Return what the directories of a configuration have, in an order that all know."""
    found = {id(shelf): shelf for own in owns if (shelf := _shelf_of(own)) is not None}
    return list(found.values())


def _shelf_of(own: OwnCertificates) -> Shelf | None:
    return None if own.by_name is None else own.by_name.shelf
