"""The choices among backends, beside those of the real nginx with the same group."""

from __future__ import annotations

import random
import select
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trio

from mailproxy.log import INFO
from mailproxy.mail.group_choice import GroupChoice, make_key
from mailproxy.process.configuration import Loader
from tests.captured_log import CapturedLog
from tests.memory import ScopeTimer
from tests.processes import (
    PATIENCE,
    free_port,
    need,
    need_program,
    nginx_command,
    running,
)

ROUNDS = 1000
MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
NGINX = """\
load_module {module};
error_log error.log;
pid nginx.pid;
events {{ worker_connections 4000; }}
stream {{
    upstream group {{ {group} }}
    server {{ listen 127.0.0.1:{port} proxy_protocol; proxy_pass group; }}
}}
"""
OURS = """\
events {{ }}
mail {{
    upstream group {{ {group} }}
    server {{ listen 127.0.0.1:1; protocol imap; auth_http 127.0.0.1; }}
}}
"""


class Backends:
    """Servers that keep connections, and some that refuse them.

    Attributes:
      places: how a configuration names them; refused ones have a name in `refusing`.
    """

    def __init__(
        self, directory: Path, stack: ExitStack, refusing: Sequence[int]
    ) -> None:
        self.places: list[str] = []
        self.refusing: set[object] = set()
        self._sockets: list[socket.socket] = []
        for number in range(5):
            path = directory / f"{number}.sock"
            family = socket.AF_UNIX if number == 4 else socket.AF_INET
            server = stack.enter_context(socket.socket(family))
            server.bind(str(path) if number == 4 else ("127.0.0.1", 0))
            address = server.getsockname()
            if number in refusing:
                self.refusing.add(address)
            else:
                server.listen(ROUNDS)
            self._sockets.append(server)
            place = f"unix:{path}" if number == 4 else f"127.0.0.1:{address[1]}"
            self.places.append(place)
        self._listening = [
            s for s in self._sockets if s.getsockname() not in self.refusing
        ]

    def take(self) -> tuple[object, socket.socket]:
        """The address at which a connection has arrived, and the connection."""
        ready, _, _ = select.select(self._listening, [], [], PATIENCE)
        assert len(ready) == 1
        connection, _ = ready[0].accept()
        return ready[0].getsockname(), connection


def keys() -> list[bytes]:
    """As many keys as there are rounds; nginx reads them from a PROXY header."""
    draw = random.Random(7)
    return [
        b"%d.%d.%d.%d" % tuple(draw.randrange(256) for _ in range(4))
        for _ in range(ROUNDS)
    ]


def leaving() -> list[int | None]:
    """By round, which of the connections that are there ends after it, if any does."""
    draw = random.Random(8)
    return [
        draw.randrange(1 << 20) if draw.random() < 0.8 else None for _ in range(ROUNDS)
    ]


def choices_of_nginx(port: int, backends: Backends) -> list[object]:
    found = []
    held: list[tuple[socket.socket, socket.socket]] = []
    with ExitStack() as stack:
        for key, end in zip(keys(), leaving(), strict=True):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            client.sendall(b"PROXY TCP4 %s 127.0.0.1 1 2\r\n" % key)
            address, connection = backends.take()
            stack.enter_context(connection)
            connection.settimeout(PATIENCE)
            found.append(address)
            held.append((client, connection))
            if end is not None:
                client, connection = held.pop(end % len(held))
                client.close()
                assert connection.recv(1) == b"", "it counts no more"
                connection.close()
    return found


def our_choices(path: Path, refusing: set[object]) -> list[object]:
    configuration = Loader(prefix="/", path=str(path), name="mailproxy").load()
    live = configuration.upstreams.groups["group"]
    log = CapturedLog(INFO).log
    found: list[object] = []
    held: list[GroupChoice] = []

    async def choose() -> None:
        timer = ScopeTimer()
        for key, end in zip(keys(), leaving(), strict=True):
            text = make_key(live.group.method.key, key, "")
            choice = GroupChoice(live, text, timer, log)
            while True:
                candidate = choice.next()
                assert candidate is not None
                if candidate.address not in refusing:
                    break
                choice.failed(counts=True)
            choice.reached()
            found.append(candidate.address)
            held.append(choice)
            if end is not None:
                held.pop(end % len(held)).release()

    trio.run(choose)
    return found


@contextmanager
def nginx(directory: Path, group: str) -> Iterator[int]:
    """A running nginx with a group; yields its port."""
    need_program("nginx")
    need(MODULE.exists(), "nginx's stream module")
    port = free_port()
    text = NGINX.format(module=MODULE, group=group, port=port)
    (directory / "nginx.conf").write_text(text)
    command = nginx_command(directory)
    assert command is not None
    with running(command, directory, port):
        yield port


GROUPS: dict[str, str] = {
    "in turn": "server A; server B; server C;",
    "weights": "server A weight=5; server B; server C weight=2; server E;",
    "down": "server A weight=5; server B down; server C weight=2;",
    "limits": "server A max_conns=40; server B weight=3 max_conns=90; server C;",
    "failures": "server A weight=3; server X weight=4 max_fails=3 fail_timeout=1h; server C;",
    "endless failures": "server A weight=3; server X weight=4 max_fails=0; server C weight=2;",
    "backups": "server X fail_timeout=1h; server A backup weight=2; server B backup;",
    "least busy": "least_conn; server A weight=3; server B; server C weight=2;",
    "least busy, failures": "least_conn; server A; server X weight=2 max_fails=0; server E;",
    "least busy, backups": "least_conn; server X max_fails=0; server A backup; server B backup;",
    "keys": "hash KEY; server A; server B; server C;",
    "keys, weights": "hash KEY; server A weight=5; server B; server C weight=2; server E;",
    "keys, down": "hash KEY; server A weight=5; server B down; server C weight=2;",
    "keys, failures": "hash KEY; server A; server X max_fails=0; server C weight=2;",
    "keys, limits": "hash KEY; server A max_conns=50; server B; server C;",
    "longer keys": "hash user-KEY/x; server A; server B; server C;",
    "empty key": 'hash ""; server A weight=5; server B; server C;',
    "ring": "hash KEY consistent; server A; server B; server C; server E;",
    "ring, weights": "hash KEY consistent; server A weight=9; server B; server E weight=3;",
    "ring, down": "hash KEY consistent; server A; server B down; server C; server E;",
    "ring, failures": "hash KEY consistent; server A; server X max_fails=0; server C;",
    "ring, limits": "hash KEY consistent; server A max_conns=50; server B; server C;",
    "ring, one twice": "hash KEY consistent; server A; server A weight=2; server B;",
    "ring, empty key": 'hash "" consistent; server A weight=5; server B; server C;',
}  # fmt: skip
"""A to C accept at 127.0.0.1, E at a unix socket; X refuses."""


@pytest.mark.proves("server", "weight=", "max_conns=", "max_fails=", "backup", "down")
@pytest.mark.proves("hash", "consistent")
@pytest.mark.proves("least_conn")
@pytest.mark.parametrize("group", GROUPS.values(), ids=GROUPS)
def test_choices_are_those_of_nginx(tmp_path: Path, group: str) -> None:
    with ExitStack() as stack:
        backends = Backends(tmp_path, stack, refusing=[3])
        for letter, place in zip("ABCXE", backends.places, strict=True):
            group = group.replace(f"server {letter}", f"server {place}")
        ours = tmp_path / "ours.conf"
        ours.write_text(OURS.format(group=group.replace("KEY", "${auth_user}")))
        there = group.replace("KEY", "${proxy_protocol_addr}")
        with nginx(tmp_path, there) as port:
            expected = choices_of_nginx(port, backends)
        assert our_choices(ours, backends.refusing) == expected
        assert len(set(expected)) > 1
