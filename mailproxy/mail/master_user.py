"""Master users, who log in at a backend as the user whose login was checked here.

The client's password is not needed then, and need not be known there: with `nopassword`
entries, tokens, or digests, there is none to pass on. Backends know two ways to name
both users: the authorization identity of PLAIN (RFC 4616), and one name for both, as in
Dovecot's ``user*master`` (`auth_master_user_separator`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mailproxy.conf.directive import Reading, Value
from mailproxy.conf.secret_files import SecretFile, secret_file
from mailproxy.conf.tree import ConfigError, Directive, Word, encode
from mailproxy.conf.values import c_string
from mailproxy.errors import AuthError

if TYPE_CHECKING:
    from mailproxy.auth.verdict import Granted
    from mailproxy.mail.client import Client
    from mailproxy.mail.login import Login


@dataclass(frozen=True)
class MasterUser:
    """The master user of `proxy_master_user`."""

    name: bytes
    password_file: SecretFile
    separator: bytes = b""
    """What stands between user and master in a name; empty: PLAIN has both."""

    def __str__(self) -> str:
        text = f"{self.name.decode('utf-8', 'surrogateescape')} password_file={self.password_file}"
        if not self.separator:
            return text
        return f"{text} separator={self.separator.decode('latin-1')}"


def _parse_master_user(found: Directive, reading: Reading) -> MasterUser | None:
    first, *parameters = found.args
    if first.value == "off" and not parameters:
        return None
    if not first.value or not first.value.isprintable():
        raise ConfigError(f'invalid master user "{first.value}"', first)
    file: SecretFile | None = None
    separator = b""
    for word in parameters:
        name, equals, value = word.value.partition("=")
        if name == "password_file" and equals and value:
            path = reading.in_directory(c_string(value))
            file = secret_file(name, path, word)
        elif name == "separator" and equals:
            separator = _parse_separator(value, word)
        else:
            raise ConfigError(f'invalid parameter "{word.value}"', word)
    if file is None:
        raise ConfigError(
            '"proxy_master_user" needs "password_file="',
            found,
            "add: password_file=PATH, a file with the password of the master user",
        )
    return MasterUser(encode(first.value), file, separator)


def _parse_separator(value: str, word: Word) -> bytes:
    if len(value) != 1 or not "!" <= value <= "~" or value.isalnum():
        raise ConfigError(
            f'invalid separator "{value}"', word, "a character that is in no user name"
        )
    return value.encode()


master_user: Value[MasterUser | None] = Value(
    _parse_master_user,
    "name password_file=file [separator=char] | off",
    most=3,
    parameters=("password_file=", "separator=", "off"),
)


def apply(login: Login, granted: Granted, master: bytes, client: Client) -> Login:
    """Return the login for the backend by the master user; there is one.

    Args:
      master: the auth source's own (`Auth-Master-User`), which replaces that of
        `proxy_master_user`; empty: it names none.

    Raises:
      AuthError: nobody has checked the login, or the master user cannot be used.
    """
    if login.envelope is not None:
        return login  # there is no login at all
    if not granted.checked:
        raise AuthError(
            'login of "%s" was not checked, a master login is refused', granted.user
        )
    if master:
        return _by_source(login, granted, master, client)
    configured = client.server.proxy.proxy_master_user
    assert configured is not None, "there is a master user"
    password = client.network.secrets.get(configured.password_file.path)
    if password is None:
        raise AuthError('there is no password in "%s"', configured.password_file.path)
    return login.by_master(configured.name, password, configured.separator)


def _by_source(login: Login, granted: Granted, master: bytes, client: Client) -> Login:
    """The same by the master user of the auth source.

    Raises:
      AuthError: there is no way to name both users.
    """
    proxy = client.server.proxy
    configured = proxy.proxy_master_user
    separator = b"" if configured is None else configured.separator
    if not separator and proxy.proxy_auth_mech != "plain":
        raise AuthError(
            'master user "%s" of the auth source needs "proxy_auth_mech plain"', master
        )
    return login.by_master(master, granted.secret or b"", separator)
