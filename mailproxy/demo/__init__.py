"""`mailproxy demo`: a whole mail site on this machine, with the proxy in front of it.

An auth_http server, mail servers for all protocols with one small mailbox, and
certificates are made here; the proxy runs as a child process with an nginx.conf that
is written to disk, so that a person can read, change and reload it.
"""

import argparse
import os
import signal
import ssl
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO

import trio

import mailproxy
from mailproxy.demo.auth import auth_session
from mailproxy.demo.check import LETTER, check
from mailproxy.demo.imap import ImapSession
from mailproxy.demo.mailbox import PASSWORD, USER, Mailbox, Session, serve
from mailproxy.demo.pop3 import pop3_session
from mailproxy.demo.site import (
    HOST,
    Door,
    choose_ports,
    configuration,
    doors,
    make_certificates,
)
from mailproxy.demo.smtp import smtp_session

START_LIMIT = 15  # seconds

COMMANDS = {
    "imap ssl": "'imaps://{host}:{port}/INBOX;MAILINDEX=1'",
    "pop3": "--ssl-reqd pop3://{host}:{port}/2",
    "smtp": "--ssl-reqd smtp://{host}:{port} \\\n"
    "      --mail-from alice@example.com --mail-rcpt alice@example.com --upload-file {directory}/letter.eml",
}
"""What curl is to do, for a port of the proxy."""


def main(argv: Sequence[str]) -> int:
    """Run the demo.

    Args:
      argv: what follows `mailproxy demo` on the command line.

    Returns:
      The exit status: 0, or 1 when something failed.
    """
    parser = argparse.ArgumentParser(
        prog="mailproxy demo",
        description="A whole mail site on this machine, with the proxy in front of it.",
    )
    parser.add_argument(
        "--directory",
        type=Path,
        default=Path("demo"),
        help="where nginx.conf and the certificates are written (default: %(default)s)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="log in through every port of the proxy, say what failed, and end",
    )
    options = parser.parse_args(argv)
    if options.check:
        with tempfile.TemporaryDirectory(prefix="mailproxy-demo-") as directory:
            return trio.run(demonstrate, Path(directory), True)
    options.directory.mkdir(parents=True, exist_ok=True)
    return trio.run(demonstrate, options.directory, False)


def mail_servers(mailbox: Mailbox) -> dict[str, Session]:
    """The mail servers behind the proxy."""
    return {
        "imap": lambda client: ImapSession(client, mailbox).run(),
        "pop3": lambda client: pop3_session(client, mailbox),
        "smtp": lambda client: smtp_session(client, mailbox),
    }


async def demonstrate(directory: Path, checking: bool) -> int:
    """Make everything, then check it, or show it until somebody ends it."""
    status = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end_on_signal, nursery.cancel_scope)
        backends: dict[str, int] = {}
        for protocol, session in mail_servers(Mailbox()).items():
            backends[protocol] = await nursery.start(serve, session)
        ports = choose_ports(backends, usual=not checking)
        auth = partial(auth_session, backends=backends)
        await nursery.start(partial(serve, auth, port=ports["auth"]))
        make_certificates(directory)
        (directory / "letter.eml").write_bytes(LETTER)
        (directory / "nginx.conf").write_text(configuration(directory, ports))

        log = (directory / "error.log").open("w+b") if checking else None
        proxy: trio.Process = await nursery.start(run_proxy, directory, log)
        if not await answers(doors(ports)[0], proxy):
            print("mailproxy demo: the proxy did not start")
            status = 1
        elif checking:
            status = await check_all(doors(ports), directory)
        else:
            print(summary(directory, ports, backends), flush=True)
            status = await proxy.wait()
            print(f"mailproxy demo: the proxy ended with exit code {status}")
        if status and log:
            log.seek(0)
            print(log.read().decode(errors="replace"), end="")
        nursery.cancel_scope.cancel()
    return status


async def end_on_signal(scope: trio.CancelScope) -> None:
    """Cancel the scope when a person or a service manager wants an end."""
    with trio.open_signal_receiver(
        signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    ) as signals:
        async for _ in signals:
            scope.cancel()


async def run_proxy(
    directory: Path,
    log: IO[bytes] | None,
    *,
    task_status: trio.TaskStatus[trio.Process],
) -> None:
    """Run the proxy with the directory's nginx.conf; its log goes to `log`, or stderr."""
    command = [
        *(sys.executable, "-P", "-m", "mailproxy"),
        *("-p", f"{directory}/", "-c", "nginx.conf", "-e", "stderr"),
        *("-g", "daemon off; master_process off;"),
    ]
    # The package may lie where only the command that started us has looked for it.
    home = str(Path(mailproxy.__file__).parent.parent)
    await trio.run_process(
        command,
        env={**os.environ, "PYTHONPATH": home},
        stderr=log,
        check=False,
        task_status=task_status,
    )


async def answers(door: Door, proxy: trio.Process) -> bool:
    """Wait until the proxy greets; false if it ends, or is too slow."""
    with trio.move_on_after(START_LIMIT):
        while proxy.returncode is None:
            try:
                async with await trio.open_tcp_stream(HOST, door.port) as stream:
                    return bool(await stream.receive_some())
            except OSError:
                await trio.sleep(0.05)  # a child process has no event for "I listen"
    return False


async def check_all(doors: Iterable[Door], directory: Path) -> int:
    """Log in through every port; says how it went, line by line."""
    context = ssl.create_default_context(cafile=directory / "ca.pem")
    status = 0
    for door in doors:
        failure = await trio.to_thread.run_sync(check, door, context)
        print(f"{door}: {failure or 'ok'}", flush=True)
        status = 1 if failure else status
    return status


def summary(
    directory: Path, ports: Mapping[str, int], backends: Mapping[str, int]
) -> str:
    """What a person wants to know before the log begins."""
    curl = (
        f"curl --cacert {directory}/ca.pem --user {USER.decode()}:{PASSWORD.decode()}"
    )
    listening = "\n".join(f"  {door}" for door in doors(ports))
    behind = "\n".join(
        f"  {name.upper()} {HOST}:{port}" for name, port in backends.items()
    )
    commands = "\n".join(
        f"  {curl} {command.format(host=HOST, port=ports[name], directory=directory)}"
        for name, command in COMMANDS.items()
        if name in ports
    )
    return f"""
The proxy listens on

{listening}

and asks auth_http at {HOST}:{ports["auth"]}, which sends it to one of

{behind}

There is one account: {USER.decode()}, password {PASSWORD.decode()}. Try, in another terminal:

{commands}

The configuration is {directory}/nginx.conf: change it, and reload. Ctrl-C ends the demo.
What follows is the proxy's error log at level "info".
"""
