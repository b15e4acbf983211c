"""Starts a proxy with a server block for each script."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import trio

from tests.differential import certificates
from tests.differential.log import Log
from tests.differential.neighbours import Stage
from tests.differential.player import Player
from tests.differential.script import NGINX, Script
from tests.processes import (
    free_port,
    load_modules,
    mailproxy_command,
    nginx_command,
    running,
)

AT_ONCE = 32
"""Scripts that are played at the same time."""


@contextmanager
def staged(
    proxy: str, scripts: Sequence[Script], directory: Path
) -> Iterator[list[Stage]]:
    """`proxy` running in `directory`, with a server for each of `scripts`, in their order."""
    log = Log(directory / "error.log")
    signs = certificates.write(directory)
    ready = free_port()
    stages = [_stage(proxy, script, directory, log, signs) for script in scripts]
    servers = "\n".join(map(_server, scripts, stages))
    (directory / "nginx.conf").write_text(
        f"""{load_modules()}
worker_processes 1;
pid {directory}/pid;
error_log {directory}/error.log info;
events {{ worker_connections 8192; }}
mail {{
    server_name mx.test;
    server {{ listen 127.0.0.1:{ready}; protocol imap; auth_http 127.0.0.1:1; }}
{servers}
}}
"""
    )
    command = (
        nginx_command(directory) if proxy == NGINX else mailproxy_command(directory)
    )
    assert command is not None
    with running(command, directory, ready):
        yield stages


def _stage(
    proxy: str, script: Script, directory: Path, log: Log, signs: dict[bytes, bytes]
) -> Stage:
    port = free_port()
    if script.address == "unix":
        listen = f"unix:{directory}/listen{port}"
    else:
        listen = (
            f"[{script.address}]:{port}"
            if ":" in script.address
            else f"{script.address}:{port}"
        )
    ports = (
        free_port(),
        directory / f"auth{port}",
        free_port(),
        free_port(),
        free_port(),
    )
    return Stage(proxy, directory, log, listen, port, *ports, signs)


def _server(script: Script, stage: Stage) -> str:
    auth = script.auth.replace("⟨auth⟩", str(stage.auth_port))
    auth = auth.replace("⟨closed⟩", str(stage.closed_port))
    auth = auth.replace("⟨socket⟩", str(stage.auth_socket))
    listen = f"listen {stage.listen} {script.listen}".rstrip()
    directives = script.directives(stage.proxy).replace("⟨dns⟩", str(stage.dns_port))
    return f"    server {{ {listen}; protocol {script.protocol}; auth_http {auth}; {directives} }}"


def play_all(players: Sequence[Player]) -> None:
    """Play many at the same time; those about time by themselves, lest they wait for others."""
    limit = trio.CapacityLimiter(AT_ONCE)

    async def play(player: Player) -> None:
        async with limit:
            await player.play()

    async def play_those(*, timed: bool) -> None:
        async with trio.open_nursery() as nursery:
            for player in players:
                if player.script.is_timed() == timed:
                    nursery.start_soon(play, player)

    for timed in (False, True):
        trio.run(partial(play_those, timed=timed))
