"""The proxy of the demo: a child process, which reports when it serves."""

import os
import socket
import sys
from collections import deque
from pathlib import Path
from typing import IO

import trio

import mailproxy

MAX_START = 15
"""Seconds that the proxy may take to start."""
LAST_LINES = 20
"""Lines of the proxy's log that are shown when it did not start."""


def size(path: Path) -> int:
    """The size of a file in octets; 0 if it does not exist."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def show_end(path: Path, before: int) -> None:
    """Show the last of a log's new lines.

    Args:
      path: the log.
      before: the size that it had, in octets.
    """
    try:
        with path.open("rb") as file:
            file.seek(before)
            lines = deque(file, LAST_LINES)
    except OSError as error:
        print(f"mailproxy demo: {path}: {error.strerror}")
        return
    print(b"".join(lines).decode(errors="replace"), end="", flush=True)


def readiness() -> tuple[trio.socket.SocketType, str]:
    """Open the socket on which the proxy reports that it serves, as it would to systemd.

    Returns:
      The socket, and its address for NOTIFY_SOCKET.
    """
    heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    heard.bind("")  # the kernel chooses a name outside of the file system (unix(7))
    name = heard.getsockname()
    return trio.socket.from_stdlib_socket(heard), "@" + os.fsdecode(name[1:])


async def run_proxy(
    directory: Path,
    log: IO[bytes] | None,
    notify: str,
    *,
    task_status: trio.TaskStatus[trio.Process],
) -> None:
    """Run the proxy with the directory's nginx.conf.

    Args:
      directory: its prefix.
      log: where its standard error goes; None: to ours.
      notify: the address to which it reports that it serves.
    """
    command = [
        *(sys.executable, "-P", "-m", "mailproxy"),
        *("-p", f"{directory}/", "-c", "nginx.conf", "-e", "stderr"),
        *("-g", "daemon off;"),
    ]
    # The package may be in a directory that only our own command line searches.
    home = str(Path(mailproxy.__file__).parent.parent)
    await trio.run_process(
        command,
        env={**os.environ, "PYTHONPATH": home, "NOTIFY_SOCKET": notify},
        stderr=log,
        check=False,
        task_status=task_status,
    )


async def starts(proxy: trio.Process, ready: trio.socket.SocketType) -> bool:
    """Wait until the proxy serves; returns False if it ends first, or is too slow."""
    served = False
    with trio.move_on_after(MAX_START):
        async with trio.open_nursery() as nursery:

            async def end() -> None:
                await proxy.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(end)
            while not (await ready.recv(4096)).startswith(b"READY=1"):
                pass
            served = True
            nursery.cancel_scope.cancel()
    return served
