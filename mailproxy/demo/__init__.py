"""`mailproxy demo`: a whole mail site on this machine, with the proxy in front of it.

It has an auth_http server, mail servers for all protocols with one small mailbox, and
certificates; the proxy runs as a child process with an nginx.conf that is written to
disk, so that the user can read, change and reload it.
"""

import argparse
import os
import signal
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import IO, NoReturn

import trio

from mailproxy.demo import keys
from mailproxy.demo.auth import auth_session
from mailproxy.demo.check import LETTER, check
from mailproxy.demo.faults import NO_ROOM, failed, refusal
from mailproxy.demo.mailbox import PASSWORD, USER, Mailbox, serve
from mailproxy.demo.proxy import readiness, run_proxy, show_end, size, starts
from mailproxy.demo.servers import Machine, mail_servers
from mailproxy.demo.site import (
    HOST,
    Door,
    Site,
    configuration,
    make_certificates,
    read_site,
)
from mailproxy.process.configuration import ConfigErrors

DIRECTORY = Path("demo")
"""Where the site is on disk unless --directory names another place."""

CURL = {
    "imap": "'imap{s}://{host}:{port}/INBOX;MAILINDEX=1'",
    "pop3": "pop3{s}://{host}:{port}/2",
    "smtp": "smtp{s}://{host}:{port} --upload-file {directory}/letter.eml \\\n"
    "      --mail-from alice@example.com --mail-rcpt alice@example.com",
}
"""The arguments of curl, for each protocol."""

PRESS = """
Press 1 to stop the first ones, and again to start them: logins go on at the others.
"""


class _Parser(argparse.ArgumentParser):
    """Reports an error of the command line in one sentence, as the program does."""

    def error(self, message: str) -> NoReturn:
        self.exit(1, f'{self.prog}: {message}\n  = see "{self.prog} --help"\n')


def main(argv: Sequence[str]) -> int:
    """Run the demo.

    Args:
      argv: the words after `mailproxy demo` on the command line.

    Returns:
      The exit status: 0, or 1 when something failed.
    """
    parser = _Parser(
        prog="mailproxy demo",
        description="A whole mail site on this machine, with the proxy in front of it.",
    )
    parser.add_argument(
        "--directory",
        type=Path,
        help=f"where nginx.conf and the certificates are written (default: {DIRECTORY},"
        " or a temporary one if that is not possible);"
        " what is there already is used as it is",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="log in through every port of a new site, say what failed, and end",
    )
    try:
        options = parser.parse_args(argv)
        return run(options.directory, check=options.check)
    except KeyboardInterrupt:  # a second Ctrl-C, of an impatient person
        return 0
    except (OSError, RuntimeError, MemoryError, ExceptionGroup) as error:
        refused = refusal(error)
        if refused is None:
            raise
        return failed(refused)


def run(directory: Path | None, *, check: bool) -> int:
    """Run the demo in a directory; None: in the default one, or in a temporary one.

    Raises:
      OSError: the directory or the loopback cannot be used.
      ExceptionGroup: the same, from one of several tasks.
    """
    if not check:
        try:
            usable(directory or DIRECTORY)
        except OSError as error:
            if directory is not None or error.errno in NO_ROOM:
                raise
            print(
                f'mailproxy demo: "{DIRECTORY}" cannot be written ({error.strerror}),'
                " so everything is in a temporary directory, which is gone in the end"
            )
        else:
            return trio.run(demonstrate, directory or DIRECTORY, None)
    with tempfile.TemporaryDirectory(prefix="mailproxy-demo-") as temporary:
        if not check:
            return trio.run(demonstrate, Path(temporary), None)
        with (Path(temporary) / "error.log").open("w+b") as log:
            return trio.run(demonstrate, Path(temporary), log)


def usable(directory: Path) -> None:
    """Check that files can be created in a directory, which is made if necessary.

    Raises:
      OSError: the directory or a file in it cannot be created.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory):
        pass


async def demonstrate(directory: Path, log: IO[bytes] | None) -> int:
    """Start the whole site, then check it, or run it until the user ends it.

    Args:
      directory: where the site is on disk; files that are there already are used.
      log: where the proxy's log goes while everything is checked; None: show it.

    Returns:
      The exit status.
    """
    make_certificates(directory)
    (directory / "letter.eml").write_bytes(LETTER)
    if not (directory / "nginx.conf").exists():
        reload = reload_command(directory)
        text = configuration(reload, usual=log is None)
        (directory / "nginx.conf").write_text(text)
    try:
        site = read_site(directory)
    except ConfigErrors:
        site = Site()  # the proxy will report the errors
    status = 0
    async with until_signal() as nursery:
        machines = await start_servers(site, directory, nursery)
        written = {path: size(path) for path in site.log_files}
        ready, notify = readiness()
        proxy: trio.Process = await nursery.start(run_proxy, directory, log, notify)
        with ready:
            served = await starts(proxy, ready)
        if not served:
            print("mailproxy demo: the proxy did not start", flush=True)
            for path, before in written.items():
                show_end(path, before)
            status = 1
        elif log is not None:
            status = await check_all(site, directory)
        else:
            print(summary(directory, site, machines), flush=True)
            if keys.are_there():
                nursery.start_soon(obey_keys, machines)
            status = await proxy.wait()
            print(f"mailproxy demo: the proxy ended with exit code {status}")
        if status and log is not None:
            show_end(Path(log.name), 0)
        elif status:
            print(f"Without {directory}/nginx.conf, the next start makes a new one.")
        nursery.cancel_scope.cancel()
    return status


@asynccontextmanager
async def until_signal() -> AsyncIterator[trio.Nursery]:
    """Open a nursery that is cancelled by SIGINT, SIGTERM and SIGHUP."""
    ends = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    with trio.open_signal_receiver(*ends) as signals:
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                await anext(aiter(signals))
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait)
            yield nursery


async def start_servers(
    site: Site, directory: Path, nursery: trio.Nursery
) -> list[Machine]:
    """Start the mail servers and the auth servers that the configuration names.

    Returns:
      The machines with mail servers. If the configuration names none, the auth servers
      do, for each protocol one.
    """
    mailbox = Mailbox()
    contexts: dict[str, ssl.SSLContext] = {}
    if site.secured:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(directory / "server.pem", directory / "server.key")
        contexts = dict.fromkeys(site.secured, context)
    named: dict[str, int | None] = dict.fromkeys(site.routed)
    others = {name: 0 for name in mail_servers(mailbox) if name not in named}
    places = [ports for ports in (*site.machines, others) if ports]
    machines = [Machine(ports, mailbox, contexts) for ports in places]
    for machine in machines:
        await nursery.start(machine.run)
    backends = {**named, **{name: machines[-1].ports[name] for name in others}}
    auth = partial(auth_session, backends=backends)
    for port in site.auth_ports:
        try:
            await nursery.start(partial(serve, auth, port=port))
        except OSError as error:
            if error.errno in NO_ROOM:
                raise
            # Another one may be listening there: a second demo, your own.
            print(f"mailproxy demo: no auth server at {HOST}:{port}: {error}")
    return machines


async def obey_keys(machines: Sequence[Machine]) -> None:
    """Stop and start machines by their numbers."""
    by_key = {str(number): each for number, each in enumerate(machines, start=1)}
    async with aclosing(keys.pressed()) as pressed:
        async for key in pressed:
            machine = by_key.get(key)
            if machine is not None:
                what = "stop" if machine.running else "start"
                print(f"mailproxy demo: mail servers {key} {what}", flush=True)
                machine.press()


async def check_all(site: Site, directory: Path) -> int:
    """Log in through every port and print the outcome; returns the exit status."""
    context = ssl.create_default_context(cafile=directory / "ca.pem")
    failures: dict[Door, str | None] = {}

    async def one(door: Door) -> None:
        failures[door] = await trio.to_thread.run_sync(check, door, context)

    async with trio.open_nursery() as nursery:
        for door in site.doors:
            nursery.start_soon(one, door)
    for door in site.doors:
        print(f"{door}: {failures[door] or 'ok'}", flush=True)
    return 1 if any(failures.values()) else 0


def summary(directory: Path, site: Site, machines: Sequence[Machine]) -> str:
    """Format what the user needs to know, which is shown before the log."""
    listening = "\n".join(f"  {door}" for door in site.doors)
    asked = " and ".join(f"{HOST}:{port}" for port in site.auth_ports) or "another"
    behind = "\n".join(
        f"  {number}: {each}" for number, each in enumerate(machines, start=1)
    )
    over = " over TLS" if site.secured else ""
    commands = "\n".join(f"  {command(door, directory)}" for door in to_try(site))
    return f"""
The proxy listens on

{listening}

asks the auth server at {asked}, and logs in{over} at one of

{behind}
{PRESS if keys.are_there() and len(machines) > 1 else ""}
There is one account: {USER.decode()}, password {PASSWORD.decode()}. Try, in another terminal:

{commands}

The configuration is {directory}/nginx.conf. After a change:

  {reload_command(directory)}

Ctrl-C ends the demo. What follows is the proxy's error log at level "info".
"""


def reload_command(directory: Path) -> str:
    """The command that makes the proxy reload its configuration."""
    called = Path(sys.argv[0])
    ours = called.name == "mailproxy"
    name = os.path.relpath(called) if ours and called.is_file() else "mailproxy"
    return f"{name} -p {directory}/ -c nginx.conf -s reload"


def to_try(site: Site) -> list[Door]:
    """One port for each protocol, if possible with TLS for IMAP, STARTTLS for others."""
    found = {}
    for door in site.doors:
        wanted = "TLS" if door.protocol == "imap" else "STARTTLS"
        if door.protocol not in found or door.security == wanted:
            found[door.protocol] = door
    return list(found.values())


def command(door: Door, directory: Path) -> str:
    """The command line with which curl uses a port of the proxy."""
    words = ["curl"]
    if door.security:
        words += ["--cacert", f"{directory}/ca.pem"]
    if door.security == "STARTTLS":
        words += ["--ssl-reqd"]
    words += ["--user", f"{USER.decode()}:{PASSWORD.decode()}"]
    url = CURL[door.protocol].format(
        s="s" if door.security == "TLS" else "",
        host=door.host,
        port=door.port,
        directory=directory,
    )
    return " ".join([*words, url])
