"""The command line as every module but `cli` sees it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line, with defaults applied."""

    argv: tuple[str, ...] = ("mailproxy",)
    """The whole command line, which a binary upgrade uses again."""
    name: str = "mailproxy"
    """The program's name in messages: nginx, angie or mailproxy."""
    prefix: str = "/etc/mailproxy/"
    """P/, ends in a slash; not made absolute."""
    conf_file: str = "/etc/mailproxy/mailproxy.conf"
    """The main file, with the prefix applied."""
    globals_text: str = ""
    """The text of -g."""
    error_log: str = ""
    """The start-up log, with the prefix applied; empty for stderr."""
    test: bool = False
    """-t, or -T."""
