"""Beside the real nginx: what one of them gives a client, the other one takes."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from mailproxy.process.configuration import Loader
from tests.processes import (
    free_port,
    load_modules,
    nginx_command,
    require_peers,
    running,
)
from tests.tls import Certificates

CONFIGURATION = """\
{modules}
error_log error.log;
pid nginx.pid;
events {{ }}
mail {{
    auth_http 127.0.0.1:9;
    ssl_certificate ec.pem;
    ssl_certificate_key ec.key;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_ticket_key first;
    ssl_session_ticket_key second;
    {directives}
    server {{ listen 127.0.0.1:{port} ssl; protocol imap; }}
}}
"""


@pytest.fixture
def files(tmp_path: Path) -> Certificates:
    made = Certificates(tmp_path)
    made.write("first", os.urandom(80))
    made.write("second", os.urandom(48))
    return made


def our_context(directory: Path) -> ssl.SSLContext:
    """What mailproxy makes of nginx's configuration."""
    loader = Loader(
        prefix=f"{directory}/",
        path=f"{directory}/nginx.conf",
        name="nginx",
    )
    (server,) = loader.load().servers
    assert server.ssl.context is not None
    return server.ssl.context


def connect_to_us(context: ssl.SSLContext) -> tuple[socket.socket, threading.Thread]:
    """A connection to a server with our context, and the server."""
    here, there = socket.socketpair()

    def serve() -> None:
        with suppress(OSError), context.wrap_socket(here, server_side=True) as tls:
            tls.recv(1)
            tls.send(b"*")
            tls.unwrap()

    server = threading.Thread(target=serve)
    server.start()
    return there, server


def talk(
    client: ssl.SSLContext,
    connection: socket.socket,
    session: ssl.SSLSession | None = None,
) -> tuple[bool, ssl.SSLSession]:
    """Whether the session was resumed, and what to resume it with the next time."""
    with client.wrap_socket(
        connection, server_hostname="localhost", session=session
    ) as tls:
        tls.send(b"a LOGOUT\r\n")
        assert tls.recv(1) == b"*"
        assert tls.session is not None
        return bool(tls.session_reused), tls.session


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_sessions_go_on_when_mailproxy_takes_the_place_of_nginx(
    files: Certificates, version: ssl.TLSVersion
) -> None:
    """And back: same ticket keys, same certificates, same sessions."""
    assert exchanged(files, version, "") == {"nginx": True, "ours": True}


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_sessions_with_client_certificates_begin_anew(
    files: Certificates, version: ssl.TLSVersion
) -> None:
    """What nginx found good under other CAs could not be told from the ticket."""
    directives = "ssl_verify_client optional_no_ca; ssl_client_certificate ca.pem;"
    assert exchanged(files, version, directives) == {"nginx": False, "ours": False}


def exchanged(
    files: Certificates, version: ssl.TLSVersion, directives: str
) -> dict[str, bool]:
    """Whether a session that one of the two began is resumed by the other."""
    command = nginx_command(files.directory)
    if command is None and not require_peers():
        pytest.skip("nginx is not installed")
    assert command is not None
    port = free_port()
    text = CONFIGURATION.format(
        modules=load_modules(), port=port, directives=directives
    )
    files.write("nginx.conf", text)
    context = our_context(files.directory)
    client = files.client(version=version)
    with running(command, files.directory, port):
        begun = {}
        for name in ("nginx", "ours"):
            resumed, begun[name] = to(name, client, context, port)
            assert not resumed
        return {
            "nginx": to("ours", client, context, port, begun["nginx"])[0],
            "ours": to("nginx", client, context, port, begun["ours"])[0],
        }


def to(
    name: str,
    client: ssl.SSLContext,
    context: ssl.SSLContext,
    port: int,
    session: ssl.SSLSession | None = None,
) -> tuple[bool, ssl.SSLSession]:
    """Talk to one of the two."""
    if name == "nginx":
        return talk(client, socket.create_connection(("127.0.0.1", port)), session)
    connection, server = connect_to_us(context)
    result = talk(client, connection, session)
    server.join()
    return result
