"""The title of a process, as ps shows it."""

from __future__ import annotations

import os

import setproctitle

# It finds the place for titles, which the kernel has put in front of the
# environment, by the first variable there: before anybody takes that one away.
setproctitle.getproctitle()


def set_title(name: str, title: str) -> None:
    """Show the process as `NAME: TITLE`, and its command (ps -C) as NAME.

    Monitoring and start-stop-daemon look for these.
    """
    readable = os.fsencode(title).decode("utf-8", "replace")
    setproctitle.setproctitle(f"{name}: {readable}")
    # The call above has put the beginning of the title there.
    setproctitle.setthreadtitle(name)
