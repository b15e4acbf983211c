"""Files whose content is a secret, such as the password of a master user.

The configuration names them, and checks whose they are and who else may read them. They
are opened with the rights of the master, and read only by the process that needs the
secret: neither `-t` nor the master knows it.
"""

from __future__ import annotations

from dataclasses import dataclass

from mailproxy import outside
from mailproxy.conf.tree import ConfigError, Word

MAX_SECRET = 4096
"""Octets of such a file."""


@dataclass(frozen=True)
class SecretFile:
    """A file of a secret; the content is no part of the configuration."""

    path: str

    def __str__(self) -> str:
        return self.path


def secret_file(name: str, path: str, word: Word) -> SecretFile:
    """Check a file of a secret.

    Args:
      name: the directive or parameter that names it, for messages.
      path: its full name.
      word: where that is written.

    Raises:
      ConfigError: it cannot be opened, or is not as such a file must be.
    """
    try:
        outside.check_secret(path, MAX_SECRET)
    except outside.UnfitSecretError as error:
        raise ConfigError(
            f'"{name}" "{path}" {error.reason}', word, f"{error.remedy} {path}"
        ) from None
    except outside.FileError as error:
        raise ConfigError(
            f'{error.call}() "{path}" failed', word, error=error
        ) from None
    return SecretFile(path)
