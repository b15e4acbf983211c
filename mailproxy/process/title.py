"""The title of a process, as ps shows it."""

from __future__ import annotations

import os

import setproctitle

# It finds the memory for titles, which lies before the environment, by the first
# variable there, so it must run before that variable is removed.
setproctitle.getproctitle()


def set_title(name: str, title: str) -> None:
    """Show the process as `NAME: TITLE`, and its command (ps -C) as NAME.

    Monitoring and start-stop-daemon look for these.
    """
    readable = os.fsencode(title).decode("utf-8", "replace")
    setproctitle.setproctitle(f"{name}: {readable}")
    # The call above has set the command's name to the beginning of the title.
    setproctitle.setthreadtitle(name)
