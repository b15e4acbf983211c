"""The title of a process, as ps shows it."""

from __future__ import annotations

import setproctitle


def set_title(name: str, title: str) -> None:
    """Show the process as `NAME: TITLE`, and its command (ps -C) as NAME.

    Monitoring and start-stop-daemon look for these.
    """
    setproctitle.setproctitle(f"{name}: {title}")
    # The call above has put the beginning of the title there.
    setproctitle.setthreadtitle(name)
