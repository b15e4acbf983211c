"""The open files of the secrets that a configuration names.

The master opens them, with its own rights, and never reads them: what it does not know,
it cannot give away. Workers inherit the descriptors. Before they serve anybody, and
before they give up their rights, they read what their sessions need, and close them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Self

from mailproxy import outside
from mailproxy.conf.secret_files import MAX_SECRET, SecretFile
from mailproxy.frozen import Frozen


class SecretError(Frozen, Exception):
    """A file of a secret cannot be used.

    Attributes:
      error: the system error, if it is one.
    """

    def __init__(self, text: str, error: OSError | None = None) -> None:
        super().__init__(text)
        self.error = error


class SecretFiles:
    """Descriptors of files of secrets, by path."""

    def __init__(self, descriptors: Mapping[str, int] | None = None) -> None:
        self._descriptors = dict(descriptors or {})

    @classmethod
    def open(cls, files: Iterable[SecretFile]) -> Self:
        """Open the files.

        Raises:
          SecretError: one of them cannot be opened, or is not as such a file must be.
        """
        opened = cls()
        for path in {file.path for file in files}:
            try:
                opened._descriptors[path] = outside.open_secret(path, MAX_SECRET)
            except outside.FileError as error:
                opened.close()
                raise SecretError(f'{error.call}() "{path}" failed', error) from error
            except outside.UnfitSecretError as error:
                opened.close()
                raise SecretError(f'"{path}" {error.reason}') from error
        return opened

    def take(self) -> dict[str, bytes]:
        """Read the first line of each file, without its end, and close them.

        Raises:
          SecretError: a file cannot be read, or begins with no secret.
        """
        try:
            return {
                path: _read(path, descriptor)
                for path, descriptor in self._descriptors.items()
            }
        finally:
            self.close()

    def close(self) -> None:
        """Close the files; a second call does nothing."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])


def _read(path: str, descriptor: int) -> bytes:
    try:
        # Other workers have the same descriptor, and its place in the file.
        content = os.pread(descriptor, MAX_SECRET, 0)
    except OSError as error:
        raise SecretError(f'read() "{path}" failed', error) from error
    line = content.partition(b"\n")[0].removesuffix(b"\r")
    if not line or b"\r" in line or b"\0" in line:
        raise SecretError(f'there is no secret in the first line of "{path}"')
    return line
