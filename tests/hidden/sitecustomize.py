"""Makes this Python one that carries OpenSSL inside: ctypes does not find its functions.

For child processes of tests, which have this directory first on PYTHONPATH. Portable
builds link OpenSSL statically and export none of its symbols; to `ctypes` that looks
like this.
"""

import _ssl
import ctypes
from typing import Any


class _HiddenLibrary(ctypes.PyDLL):
    def __getattr__(self, name: str) -> Any:
        if self._name in (None, getattr(_ssl, "__file__", None)):
            raise AttributeError(f"undefined symbol: {name}")
        return super().__getattr__(name)


ctypes.PyDLL = _HiddenLibrary  # type: ignore[misc]
