"""What the command line says, as every room but `cli` sees it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line, defaults applied."""

    argv: tuple[str, ...] = ("mailproxy",)
    """As the program was called; a binary upgrade calls it so again."""
    name: str = "mailproxy"
    """In front of messages: nginx, angie or mailproxy."""
    prefix: str = "/etc/mailproxy/"
    """P/, ends in a slash; not made absolute."""
    conf_file: str = "/etc/mailproxy/mailproxy.conf"
    """The main file, prefix applied."""
    globals_text: str = ""
    """The text of -g."""
    error_log: str = ""
    """The start-up log, prefix applied; empty for stderr."""
    test: bool = False
    """-t, or -T."""
