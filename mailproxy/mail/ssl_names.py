"""Certificates by name: what the configuration says of them, and what directories have."""

from __future__ import annotations

import errno
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from mailproxy import outside
from mailproxy.conf.tree import ConfigError, Word
from mailproxy.mail.load_state import load_state
from mailproxy.mail.ssl_values import has_variable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mailproxy.conf.directive import Block, Reading
    from mailproxy.mail.listen import Listen
    from mailproxy.mail.ssl import SslSettings
    from mailproxy.net.openssl.choice import ByName, Shelf
    from mailproxy.net.openssl.folder import Folder
    from mailproxy.net.openssl.names import Names
    from mailproxy.net.openssl.variable_files import VariableFiles

MAX_REMARKS = 20
"""Lines about the files of one directory, and about the names in several certificates."""

_LAYOUTS = (
    "expected: *.pem, *.crt with *.key, or NAME/fullchain.pem with NAME/privkey.pem"
)
_DIRECTORY = "ssl_certificate_directory"


def choose_by_name(
    settings: SslSettings, block: Block, reading: Reading
) -> ByName | None:
    """Make what chooses certificates for the clients of a server; None: nothing does.

    Raises:
      ConfigError: a directory cannot be read, or nothing has a certificate.
    """
    if not settings.by_name:
        return None
    from mailproxy.net.openssl.choice import ByName  # loads OpenSSL

    has_default = any(not has_variable(each) for each in settings.ssl_certificate)
    shelf = _shelf(settings, block, reading)
    files = _variable_files(settings, reading)
    if shelf is None and files is None:
        text = '"ssl_reject_handshake" without names refuses everybody'
        reading.warn(text, block.argument("ssl_reject_handshake"))
    name = load_state(reading).server_names.get(block, b"")
    server = ByName(
        shelf,
        files,
        default_name=name.decode("utf-8", "surrogateescape"),
        has_default=has_default,
        reject=settings.ssl_reject_handshake,
    )
    if shelf is not None and not has_default and not settings.ssl_reject_handshake:
        _say_default(server, block, reading)
    return server


# -- variables ---------------------------------------------------------------------


def check_variables(settings: SslSettings, block: Block) -> None:
    """Check that certificates with variables have keys with variables.

    Raises:
      ConfigError: one of the two has none.
    """
    pairs = zip(settings.ssl_certificate, settings.ssl_certificate_key, strict=False)
    for index, (certificate, key) in enumerate(pairs):
        here, there = "ssl_certificate", "ssl_certificate_key"
        if has_variable(certificate) == has_variable(key.source):
            continue
        if not has_variable(certificate):
            here, there = there, here
        raise ConfigError(
            f'variables in "{here}" need one in "{there}"',
            block.argument(here, index),
        )


def _variable_files(settings: SslSettings, reading: Reading) -> VariableFiles | None:
    """Make what finds the files of a name; None: no `ssl_certificate` has a variable."""
    if not any(map(has_variable, settings.ssl_certificate)):
        return None
    from mailproxy.net.openssl import folder  # noqa: F401 # workers have it by fork
    from mailproxy.net.openssl.variable_files import Template, VariableFiles

    templates = [
        Template(reading.in_directory(certificate), reading.in_directory(key.source))
        for certificate, key in zip(
            settings.ssl_certificate, settings.ssl_certificate_key, strict=False
        )
        if has_variable(certificate)
    ]
    return VariableFiles(
        templates, passwords_of(settings), settings.ssl_certificate_cache
    )


def passwords_of(settings: SslSettings) -> tuple[bytes, ...]:
    """Return the passwords for encrypted keys."""
    file = settings.ssl_password_file
    return () if file is None else file.passwords


# -- directories -------------------------------------------------------------------


def _shelf(settings: SslSettings, block: Block, reading: Reading) -> Shelf | None:
    """Read the directories of a server, once for all servers that have the same.

    None if it has none.

    Raises:
      ConfigError: one cannot be read, or there is no certificate at all.
    """
    directories = settings.ssl_certificate_directory
    if not directories:
        return None
    shelf = _filled(directories, passwords_of(settings), block, reading)
    wanted = not settings.ssl_certificate and not settings.ssl_reject_handshake
    for index, folder in enumerate(shelf.folders):
        word = block.argument(_DIRECTORY, index)
        if not shelf.names.pairs and wanted:
            raise ConfigError(_nothing_in(folder.path), word, _LAYOUTS)
        if not folder.pairs:
            _warn_once(reading, _nothing_in(folder.path), word, _LAYOUTS)
    _say_doubles(shelf.names, block.argument(_DIRECTORY), reading)
    return shelf


def _filled(
    directories: tuple[str, ...],
    passwords: tuple[bytes, ...],
    block: Block,
    reading: Reading,
) -> Shelf:
    """Read directories, unless another server has the same.

    Raises:
      ConfigError: one cannot be read.
    """
    shelves = load_state(reading).shelves
    key = directories, passwords
    if key not in shelves:
        from mailproxy.net.openssl.choice import Shelf

        folders = [
            _read(path, passwords, block.argument(_DIRECTORY, index), reading)
            for index, path in enumerate(directories)
        ]
        shelves[key] = Shelf(folders, passwords)
    return shelves[key]


def _nothing_in(path: str) -> str:
    return f'no certificate with its key is in "{path}"'


def _warn_once(
    reading: Reading,
    text: str,
    word: Word | None,
    remedy: str | None = None,
    level: str = "warn",
) -> None:
    """Warn, unless that was said of the same directive before: servers share them."""
    said = load_state(reading).said_of_certificates
    place = "" if word is None else str(word.position)
    if (text, place) not in said:
        said.add((text, place))
        reading.warn(text, None if word is None else word.position, remedy, level=level)


def _read(
    path: str, passwords: Sequence[bytes], word: Word | None, reading: Reading
) -> Folder:
    """Read a directory, and warn of what cannot be used.

    Raises:
      ConfigError: it cannot be read.
    """
    from mailproxy.net.openssl.folder import Folder  # it is slow to import

    try:
        folder = Folder(path, passwords)
    except outside.FileError as error:
        if error.errno == errno.ENOTDIR:
            raise ConfigError(f'"{path}" is not a directory', word) from None
        raise ConfigError(f'open() "{path}" failed', word, error=error) from None
    _remark_on(folder, word, reading)
    return folder


def _remark_on(folder: Folder, word: Word | None, reading: Reading) -> None:
    """Warn of files that cannot be used, and of what is strange about others."""
    remarks = [
        f'"{file}" is passed over: {reason}'
        for file, reason in sorted(folder.passed_over.items())
    ]
    _warn_of_some(remarks, folder.path, word, reading)
    if folder.listing.left_out:
        text = f'{folder.listing.left_out} files are left out in "{folder.path}"'
        _warn_once(reading, text, word, "20000 files are read")
    for file in folder.readable_keys():
        text = f'key "{file}" is readable by everybody'
        _warn_once(reading, text, word, f"chmod 600 {shlex.quote(file)}")
    for pair in folder.pairs:
        if not pair.leaf.has_alt_names:
            text = f'certificate "{pair.file}" has no subjectAltName'
            _warn_once(reading, text, word)


def _warn_of_some(
    remarks: Sequence[str], path: str, word: Word | None, reading: Reading
) -> None:
    for text in remarks[:MAX_REMARKS]:
        _warn_once(reading, text, word)
    if len(remarks) > MAX_REMARKS:
        more = len(remarks) - MAX_REMARKS
        _warn_once(reading, f'and {more} more in "{path}"', word)


def _say_doubles(names: Names, word: Word | None, reading: Reading) -> None:
    """Say which certificate is used for names that several ones have."""
    doubles = sorted((name, pair.file) for (name, _), pair in names.doubles.items())
    for name, file in doubles[:MAX_REMARKS]:
        text = f'name "{name}" is in several certificates, "{file}" is used'
        _warn_once(reading, text, word, level="notice")
    if len(doubles) > MAX_REMARKS:
        text = f"and {len(doubles) - MAX_REMARKS} more names"
        _warn_once(reading, text, word, level="notice")


def _say_default(server: ByName, block: Block, reading: Reading) -> None:
    """Say which certificate is the default, if that is not the server's own."""
    used, pairs = server.default
    if not pairs or used == server.default_name:
        return
    listen = block.given.get("listen")
    listens = cast("Iterable[Listen]", () if listen is None else listen.value)
    for each in listens:
        text = f'default certificate of {each.address} is "{pairs[0].file}" ({used})'
        reading.warn(text, block.argument(_DIRECTORY), level="notice")


def say_refused(shelf: Shelf, block: Block, reading: Reading) -> None:
    """Warn of certificates that OpenSSL has refused."""
    remarks = [
        f'"{pair.file}" is passed over: {reason}'
        for pair, reason in shelf.refused.items()
    ]
    path = shelf.folders[0].path
    _warn_of_some(remarks, path, block.argument(_DIRECTORY), reading)
