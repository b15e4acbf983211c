"""`mailproxy certificates`: the certificates of a configuration, and who gets which.

    mailproxy certificates [-c FILE] [-p PREFIX] [-g DIRECTIVES] [--json] [--warn DAYS]
                           [--name HOST]

Keys and passwords never show.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from mailproxy.arguments import UsageError
from mailproxy.mail.server import Server
from mailproxy.net.openssl.choice import DEFAULT, EXACT, VARIABLE, WILDCARD, Presented
from mailproxy.net.openssl.pairs import Leaf

if TYPE_CHECKING:
    from mailproxy.mail.own_certificates import OwnCertificates
    from mailproxy.net.openssl.names import Names
    from mailproxy.net.openssl.notes import Note
    from mailproxy.net.openssl.pairs import Pair

USAGE = """\
Usage: {name} certificates [-p prefix] [-c filename] [-g directives]
             [--json] [--warn days] [--name host]

Shows the certificates of a configuration, those that end first at the top.

Options:
  --json        : show them as JSON
  --warn days   : exit with 1 if one in use has less than this left (default: 0)
  --name host   : show what a client gets that asks for this host

Exits with 1 if a certificate in use has expired, with 2 if the configuration cannot
be loaded.
"""

_SOON = timedelta(days=7)
_PLACES = {
    EXACT: "exact name",
    VARIABLE: "$ssl_server_name",
    WILDCARD: "wildcard",
    DEFAULT: "default",
}


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for."""

    options: tuple[str, ...] = ()
    """nginx's options among its words."""
    as_json: bool = False
    warn: int = 0
    """Days."""
    name: str | None = None
    help: bool = False


def parse(words: Sequence[str]) -> Wanted:
    """Parse the words after the command.

    Raises:
      UsageError: they are wrong.
    """
    options: list[str] = []
    found: dict[str, bool | int | str] = {}
    rest = iter(words)
    for word in rest:
        if word == "--json":
            found["as_json"] = True
        elif word in ("--help", "-h", "-?"):
            found["help"] = True
        elif word in ("--warn", "--name"):
            value = next(rest, None)
            if value is None:
                raise UsageError(f'option "{word}" requires a value')
            found[word[2:]] = _days(value) if word == "--warn" else _host(value)
        else:
            options.append(word)
    return Wanted(tuple(options), **found)  # type: ignore[arg-type] # by their names


def _days(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 6):
        raise UsageError(f'invalid number of days: "{text}"')
    return int(text)


def _host(text: str) -> str:
    try:
        return text if text.isascii() else text.encode("idna").decode("ascii")
    except UnicodeError:
        raise UsageError(f'invalid host name: "{text}"') from None


# -- what there is -----------------------------------------------------------------


@dataclass
class Listed:
    """A certificate, or a file for each name."""

    file: str
    leaf: Leaf
    used_by: dict[str, bool] = field(default_factory=dict)
    """Addresses that show it, and whether by default."""
    unused: str = ""
    """Why nobody gets it."""


def rows(servers: Iterable[Server]) -> list[Listed]:
    """Return all certificates; those that end first come first."""
    found: dict[str, Listed] = {}
    for server in servers:
        own = server.ssl.own
        if own is not None:
            for row in _of_server(own):
                known = found.setdefault(row.file, row)
                if row.used_by:
                    known.unused = ""
                    for address in _addresses(server):
                        default = row.used_by[""] or known.used_by.get(address, False)
                        known.used_by[address] = default
    for row in found.values():
        row.used_by.pop("", None)
    far = datetime.max.replace(tzinfo=UTC)
    return sorted(found.values(), key=lambda row: (row.leaf.ends or far, row.file))


def _addresses(server: Server) -> list[str]:
    """Return the addresses of a server at which there is TLS."""
    starts = server.ssl.starttls != "off"
    return [each.address for each in server.core.listen if each.ssl or starts]


def _of_server(own: OwnCertificates) -> Iterator[Listed]:
    """Yield the certificates of a server; the address that they are used by is empty."""
    for each in own.defaults:
        yield Listed(each.file, each.leaf, {"": True})
    if own.by_name is None:
        return
    if own.by_name.files is not None:
        for template in own.by_name.files.templates:
            yield Listed(template.file, Leaf(names=("$ssl_server_name",)), {"": False})
    shelf = own.by_name.shelf
    if shelf is None:
        return
    used = shelf.names.used()
    # With `reject`, clients that the default would be for are turned away.
    lacks = not (own.by_name.has_default or own.by_name.reject)
    default = own.by_name.default[1] if lacks else ()
    for pair in shelf.names.pairs:
        if pair in used:
            yield Listed(pair.file, pair.leaf, {"": pair in default})
        else:
            yield Listed(pair.file, pair.leaf, unused=_why_unused(pair, shelf.names))
    for pair, reason in shelf.refused.items():
        yield Listed(pair.file, pair.leaf, unused=reason)


def _why_unused(pair: Pair, names: Names) -> str:
    name = pair.leaf.names[0]
    other = next(each for each in names.exact(name) if each.leaf.kind == pair.leaf.kind)
    now = datetime.now(UTC)
    if other.leaf.is_valid(now) and not pair.leaf.is_valid(now):
        return f"{name} is in a valid one"
    younger = other.leaf.age_rank[0] < pair.leaf.age_rank[0]
    return f"{name} is in {'a younger' if younger else 'another'} one"


def is_due(leaf: Leaf, days: int, now: datetime) -> bool:
    """Return whether a certificate has expired, or has less than `days` left."""
    return leaf.ends is not None and leaf.ends - now < timedelta(days=days)


# -- how it is shown ---------------------------------------------------------------


def table(found: Sequence[Listed], directory: str, warn: int, now: datetime) -> str:
    """Format certificates for people.

    Args:
      directory: C/, which file names below it are shown without.
    """
    lines = [("NAME", "TYPE", "EXPIRES", "LEFT", "FILE", "USED BY")]
    for row in found:
        names = row.leaf.names
        more = f", +{len(names) - 1}" if len(names) > 1 else ""
        lines.append((
            f"{names[0]}{more}" if names else "-",
            row.leaf.key_text or "-",
            "-" if row.leaf.ends is None else str(row.leaf.ends.date()),
            _left(row.leaf, warn, now),
            row.file.removeprefix(directory),
            _users(row),
        ))  # fmt: skip
    return _aligned(lines)


def _users(row: Listed) -> str:
    if not row.used_by:
        return f"unused: {row.unused}"
    return ", ".join(
        f"{address} (default)" if default else address
        for address, default in row.used_by.items()
    )


def _left(leaf: Leaf, warn: int, now: datetime) -> str:
    if leaf.ends is None:
        return "-"
    left = leaf.ends - now
    if left < timedelta(0):
        return "expired"
    soon = left <= _SOON or is_due(leaf, warn, now)
    return f"{left.days}d{'!' if soon else ''}"


def _aligned(lines: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ""
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        text += "  ".join(cells).rstrip() + "\n"
    return text


def as_json(found: Sequence[Listed], now: datetime) -> str:
    """Format certificates as JSON."""
    return _dump([
        {
            **_describe(row.file, row.leaf, now),
            "used_by": [
                {"listen": address, "default": default}
                for address, default in row.used_by.items()
            ],
            "unused": row.unused or None,
        }
        for row in found
    ])  # fmt: skip


def _describe(file: str, leaf: Leaf, now: datetime) -> dict[str, object]:
    return {
        "file": file,
        "names": list(leaf.names),
        "type": leaf.kind or None,
        "bits": leaf.bits or None,
        "begins": None if leaf.begins is None else leaf.begins.isoformat(),
        "expires": None if leaf.ends is None else leaf.ends.isoformat(),
        "days_left": None if leaf.ends is None else (leaf.ends - now).days,
    }


def _dump(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


# -- what a client gets ------------------------------------------------------------


@dataclass
class Shown:
    """What a client gets from one address."""

    listen: str
    place: int = DEFAULT
    refused: bool = False
    certificates: list[tuple[str, Leaf]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def answers(servers: Iterable[Server], host: str) -> list[Shown]:
    """Return what a client gets that asks for a host."""
    found = []
    for server in servers:
        own = server.ssl.own
        if own is not None:
            found += [_answer(each, own, host) for each in _addresses(server)]
    return found


def _answer(listen: str, own: OwnCertificates, host: str) -> Shown:
    answer = Shown(listen)

    def note(said: Note) -> None:
        if said.level != "debug":
            values = [str(each) for each in said.values]
            error = "" if said.error is None else f" ({said.error.strerror})"
            answer.notes.append(said.event % tuple(values) + error)

    shown = Presented(DEFAULT)
    if own.by_name is not None:
        shown = own.by_name.choose(host.encode("ascii"), note)
    answer.place, answer.refused = shown.place, shown.refused
    if not shown.refused:
        answer.certificates = [(pair.file, pair.leaf) for pair in shown.pairs] or [
            (each.file, each.leaf) for each in own.defaults
        ]
    return answer


def answer_table(
    found: Sequence[Shown], directory: str, warn: int, now: datetime
) -> str:
    """Format what a client gets for people; arguments as for `table`."""
    lines = [("LISTEN", "TYPE", "EXPIRES", "LEFT", "FILE", "BY")]
    notes = ""
    for answer in found:
        by = "refused" if answer.refused else _PLACES[answer.place]
        for file, leaf in answer.certificates or [("-", Leaf())]:
            lines.append((
                answer.listen,
                leaf.key_text or "-",
                "-" if leaf.ends is None else str(leaf.ends.date()),
                _left(leaf, warn, now),
                file.removeprefix(directory),
                by,
            ))  # fmt: skip
        notes += "".join(f"{answer.listen}: {each}\n" for each in answer.notes)
    return _aligned(lines) + notes


def answers_as_json(found: Sequence[Shown], now: datetime) -> str:
    """Format what a client gets as JSON."""
    return _dump([
        {
            "listen": answer.listen,
            "by": None if answer.refused else _PLACES[answer.place],
            "row": answer.place,
            "refused": answer.refused,
            "certificates": [
                _describe(file, leaf, now) for file, leaf in answer.certificates
            ],
            "notes": answer.notes,
        }
        for answer in found
    ])  # fmt: skip


def show(
    servers: Sequence[Server], wanted: Wanted, directory: str, now: datetime
) -> tuple[str, int]:
    """Return what the command prints, and its exit code.

    Args:
      directory: as for `table`.
    """
    if wanted.name is not None:
        given = answers(servers, wanted.name)
        used = [leaf for answer in given for _, leaf in answer.certificates]
        text = (
            answers_as_json(given, now)
            if wanted.as_json
            else answer_table(given, directory, wanted.warn, now)
        )
    else:
        found = rows(servers)
        used = [row.leaf for row in found if row.used_by]
        text = (
            as_json(found, now)
            if wanted.as_json
            else table(found, directory, wanted.warn, now)
        )
    return text, int(any(is_due(leaf, wanted.warn, now) for leaf in used))
