"""Octets that mean something in lines."""

CR, LF, NUL = b"\r\n\0"
"""As numbers: ``CR in text`` is ten times as quick as ``b"\\r" in text``, which raises an
exception inside before it looks."""
