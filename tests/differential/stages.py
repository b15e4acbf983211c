"""Starts a proxy with a server block for each script."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import trio

from tests.differential import certificates
from tests.differential.log import Log
from tests.differential.neighbours import Stage
from tests.differential.player import Player
from tests.differential.script import NGINX, Script
from tests.processes import (
    Ports,
    load_modules,
    mailproxy_command,
    nginx_command,
    running,
)

AT_ONCE = 32
"""Scripts that are played at the same time."""


@contextmanager
def staged(
    proxy: str,
    scripts: Sequence[Script],
    directory: Path,
    environment: dict[str, str] | None = None,
) -> Iterator[list[Stage]]:
    """`proxy` running in `directory`, with a server for each of `scripts`, in their order."""
    with closing(Ports()) as ports:
        carpenter = _Carpenter(proxy, directory, ports)
        stages = list(map(carpenter.build, scripts))
        ready = ports.take()
        servers = "\n".join(map(_server, scripts, stages))
        # It has nginx's bytes then; a script about the other way says so.
        as_nginx = "" if proxy == NGINX else "proxy_login literal;"
        (directory / "nginx.conf").write_text(
            f"""{load_modules()}
worker_processes 1;
pid {directory}/pid;
error_log {directory}/error.log info;
events {{ worker_connections 8192; }}
mail {{
    server_name mx.test; {as_nginx}
    server {{ listen 127.0.0.1:{ready}; protocol imap; auth_http 127.0.0.1:1; }}
{servers}
}}
"""
        )
        find_command = nginx_command if proxy == NGINX else mailproxy_command
        command = find_command(directory)
        assert command is not None
        with running(command, directory, ready, environment):
            yield stages


class _Carpenter:
    """Builds the stages of one process."""

    def __init__(self, proxy: str, directory: Path, ports: Ports) -> None:
        self._proxy, self._directory, self._ports = proxy, directory, ports
        self._log = Log(directory / "error.log")
        self._volatile = certificates.write(directory)
        self._closed, self._no_dns = ports.take(), ports.take()

    def build(self, script: Script) -> Stage:
        port = self._ports.take()
        host = f"[{script.address}]" if ":" in script.address else script.address
        path = f"unix:{self._directory}/listen{port}"
        return Stage(
            proxy=self._proxy,
            directory=self._directory,
            log=self._log,
            listen=path if script.address == "unix" else f"{host}:{port}",
            port=port,
            auth_port=self._ports.take(),
            auth_socket=self._directory / f"auth{port}",
            backend_port=self._ports.take(),
            dns_port=self._ports.take() if script.dns else self._no_dns,
            closed_port=self._closed,
            volatile=self._volatile,
        )


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
