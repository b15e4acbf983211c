"""New certificates on their way from the master to workers.

They are in a file in memory, sealed so that nobody can change it, whose descriptor goes
over the order line. It is a JSON object: for each shelf (see `renewal.shelves`) its number,
the new pairs and the files of those that are gone; for each renewed default the number of
its context and the pair. Keys are in it, in clear text; no file system is.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from mailproxy.net.openssl import identities
from mailproxy.net.openssl.context_tools import refusal_of, renew_default
from mailproxy.net.openssl.exceptions import OpenSSLError
from mailproxy.net.openssl.names import Names
from mailproxy.net.openssl.pairs import Leaf, Pair
from mailproxy.process.configuration import own_certificates
from mailproxy.process.renewal import Change, DefaultChange, ShelfChange, shelves

if TYPE_CHECKING:
    from mailproxy.process.configuration import Configuration

MAX_SHEET = 256 << 20
"""Octets of such a file."""
_MAX_PREPARED = 32
"""Pairs that a worker has OpenSSL read at once; the master has seen that it can."""
_SEALS = (
    fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
)


def write_sheet(change: Change) -> int:
    """Return the descriptor of a sealed file with a change; the caller closes it.

    Raises:
      OSError: it cannot be made.
    """
    content = json.dumps({
        "shelves": [
            {
                "shelf": each.shelf,
                "gone": each.gone,
                "pairs": [_written(pair) for pair in each.pairs],
            }
            for each in change.shelves
        ],
        "defaults": [
            {
                "own": each.own,
                "compressed": each.compressed,
                "pair": _written(each.pair),
            }
            for each in change.defaults
        ],
    }).encode("ascii")  # fmt: skip
    sheet = os.memfd_create("certificates", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(sheet, left) :]
        fcntl.fcntl(sheet, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(sheet)
        raise
    return sheet


def _written(pair: Pair) -> dict[str, object]:
    leaf = asdict(pair.leaf)
    for name in ("begins", "ends"):
        leaf[name] = None if leaf[name] is None else leaf[name].isoformat()
    return {
        "file": pair.file,
        "key_file": pair.key_file,
        "leaf": leaf,
        "certificates": [_text(der) for der in (pair.der, *pair.chain)],
        "key": _text(pair.key),
    }


def _text(octets: bytes) -> str:
    return base64.b64encode(octets).decode("ascii")


def read_sheet(sheet: int) -> Change:
    """Read a file that `write_sheet` has made.

    Raises:
      OSError, ValueError, LookupError, TypeError: it cannot be read.
    """
    # All workers share one descriptor, and with it the place where it is read.
    size = os.fstat(sheet).st_size
    if size > MAX_SHEET:
        raise ValueError("too large")
    content = bytearray()
    while len(content) < size:
        piece = os.pread(sheet, size - len(content), len(content))
        if not piece:
            raise ValueError("too short")
        content += piece
    found = json.loads(content)
    return Change(
        [
            ShelfChange(
                each["shelf"],
                tuple(_read(pair) for pair in each["pairs"]),
                tuple(each["gone"]),
            )
            for each in found["shelves"]
        ],
        [
            DefaultChange(each["own"], _read(each["pair"]), each["compressed"])
            for each in found["defaults"]
        ],
    )


def _read(written: Mapping[str, Any]) -> Pair:
    leaf = Leaf(**written["leaf"])
    leaf = replace(
        leaf,
        begins=_time(written["leaf"]["begins"]),
        ends=_time(written["leaf"]["ends"]),
        names=tuple(leaf.names),
    )
    der, *chain = map(base64.b64decode, written["certificates"])
    key = base64.b64decode(written["key"])
    return Pair(written["file"], written["key_file"], leaf, der, tuple(chain), key)


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def apply(change: Change, configuration: Configuration, now: datetime) -> None:
    """Use new certificates from the next handshake on; all of them, or none.

    Raises:
      OpenSSLError: one cannot be used.
      LookupError: there is no such shelf or context.
    """
    owns = own_certificates(configuration.servers)
    kept = shelves(owns)
    tables = []
    for each in change.shelves:
        shelf = kept[each.shelf]
        _prepare(each.pairs)
        pairs = {pair.file: pair for pair in shelf.names.pairs}
        for file in each.gone:
            pairs.pop(file, None)
        pairs |= {pair.file: pair for pair in each.pairs}
        tables.append((shelf, Names(pairs.values(), now)))
    contexts = [(owns[each.own], each) for each in change.defaults]
    for own, each_default in contexts:
        refusal = refusal_of(each_default.pair, own.context)
        if refusal:
            raise OpenSSLError(refusal)
    for own, each_default in contexts:
        renew_default(
            own.context, each_default.pair, compressed=each_default.compressed
        )
    for shelf, names in tables:
        shelf.replace(names)


def _prepare(pairs: Sequence[Pair]) -> None:
    """Have OpenSSL read the first of these now, to see that it can.

    Raises:
      OpenSSLError: it cannot.
    """
    for pair in pairs[:_MAX_PREPARED]:
        identities.identity(pair)
