"""Logins at a real Dovecot and a real Postfix: mechanisms, master users, forwarding."""

from __future__ import annotations

import base64
import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import BinaryIO
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.fakes import FakeAuth, granted
from tests.peers import dovecot
from tests.peers.dovecot import PASSWORD, Dovecot
from tests.peers.postfix import DOMAIN
from tests.peers.site import Backends
from tests.processes import (
    free_port,
    load_modules,
    mailproxy_command,
    need_program,
    running,
    wait_for,
)

MASTER_PASSWORD = "of the master"
TOKEN = "a.token-of~ann+/="
CLIENT = "192.0.2.7"
HEADER = f"PROXY TCP4 {CLIENT} 127.0.0.1 4711 143\r\n".encode()
CRLF = "\r\n"


class _TokenInfo(BaseHTTPRequestHandler):
    """Whose a token is, as providers tell it."""

    def do_GET(self) -> None:
        token = parse_qs(urlsplit(self.path).query).get("access_token", [""])[0]
        known = token == TOKEN
        body = json.dumps({"email": "ann"} if known else {"error": "invalid_token"})
        self.send_response(200 if known else 400)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 # its name
        pass


@contextmanager
def token_info() -> Iterator[int]:
    """A server that knows the token; the value is its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _TokenInfo)
    Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def trusting(folder: Path) -> Iterator[Dovecot]:
    """A Dovecot that trusts proxies, knows a master user, and takes tokens."""
    directory = folder / "trusting"
    directory.mkdir()
    (directory / "masters").write_text(
        f"admin:{{PLAIN}}{MASTER_PASSWORD}::::::allow_real_nets=127.0.0.1\n"
        f"other:{{PLAIN}}{MASTER_PASSWORD}::::::allow_real_nets=192.0.2.0/24\n"
    )
    with token_info() as port:
        (directory / "oauth2.conf").write_text(
            f"""
tokeninfo_url = http://127.0.0.1:{port}/tokeninfo?access_token=
introspection_mode =
username_attribute = email
"""
        )
        more = f"""
login_trusted_networks = 127.0.0.1
service anvil {{
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
auth_mechanisms = plain login xoauth2 oauthbearer
auth_master_user_separator = *
passdb {{
  driver = passwd-file
  args = {directory}/masters
  master = yes
}}
passdb {{
  driver = oauth2
  mechanisms = xoauth2 oauthbearer
  args = {directory}/oauth2.conf
}}
"""
        with dovecot.start(need_program("dovecot"), directory, more) as store:
            yield store


@dataclass
class Front:
    """A mailproxy that trusts PROXY headers from the loopback.

    Attributes:
      port: where it listens.
      log: what it logs.
      auth: who tells it where to go.
    """

    port: int
    log: Path
    auth: FakeAuth

    @contextmanager
    def client(self) -> Iterator[BinaryIO]:
        """A connection whose PROXY header names another client."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as made:
            made.sendall(HEADER)
            with made.makefile("rwb", buffering=0) as file:
                yield file  # type: ignore[misc] # it is one of the kind


@contextmanager
def front(
    directory: Path, protocol: str, backend: int, directives: str, **answer: str
) -> Iterator[Front]:
    """mailproxy before a backend.

    Args:
      answer: more headers of the auth server's answer.
    """
    secret = directory / "master"
    secret.write_text(MASTER_PASSWORD + "\n")
    secret.chmod(0o600)
    port = free_port()
    with FakeAuth(granted(backend, **answer)) as auth:
        (directory / "nginx.conf").write_text(
            f"""
            {load_modules()}
            error_log {directory}/error.log info;
            pid {directory}/nginx.pid;
            events {{}}
            mail {{
                auth_http 127.0.0.1:{auth.port}/;
                set_real_ip_from 127.0.0.1;
                server_name front.test;
                {protocol}_auth plain xoauth2 oauthbearer;
                {directives.replace("SECRET", f"password_file={secret}")}
                server {{
                    listen 127.0.0.1:{port} proxy_protocol;
                    protocol {protocol};
                }}
            }}
            """
        )
        with running(mailproxy_command(directory), directory, port):
            yield Front(port, directory / "error.log", auth)


def say(file: BinaryIO, line: str) -> str:
    """Send a line; returns the next one, or the tagged one of IMAP."""
    file.write(line.encode() + b"\r\n")
    while (answer := file.readline()).startswith((b"* CAP", b"* ID")):
        pass
    return answer.decode()


def log_in(proxy: Front, protocol: str, line: str) -> str:
    """Log in with one command, end the session, and return the answer to the login."""
    with proxy.client() as client:
        client.readline()
        answer = say(client, line)
        if protocol == "imap" and answer.startswith("a OK"):
            assert say(client, "b NOOP").startswith("b OK")
            client.write(b"c LOGOUT\r\n")
        elif answer.startswith("+OK"):
            assert say(client, "NOOP").startswith("+OK")
            client.write(b"QUIT\r\n")
        client.read()
    return answer


def logins(store: Dovecot, user: str) -> list[str]:
    """The lines of Dovecot's log about logins of the user."""
    log = (store.mail.parent / "dovecot.log").read_text()
    return re.findall(
        rf"^.*-login: .*Login: user=<{re.escape(user)}>.*$", log, re.MULTILINE
    )


def logged(store: Dovecot, user: str, before: int = 0) -> str:
    """The line of Dovecot's log about another login of the user.

    Args:
      before: how many there have been.
    """
    wait_for(
        lambda: len(logins(store, user)) > before,
        f"a login of {user} in Dovecot's log",
    )
    return logins(store, user)[-1]


def coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def ports(store: Dovecot) -> dict[str, int]:
    return {"imap": store.imap_port, "pop3": store.pop3_port}


def plain(protocol: str, user: str, password: str) -> str:
    """A command that logs in with a password."""
    command = "a AUTHENTICATE" if protocol == "imap" else "AUTH"
    return f"{command} PLAIN {coded(f'{chr(0)}{user}{chr(0)}{password}')}"


def bearer(protocol: str, user: str, token: str) -> str:
    """A command that logs in with a token."""
    command = "a AUTHENTICATE" if protocol == "imap" else "AUTH"
    return f"{command} XOAUTH2 {coded(f'user={user}{chr(1)}auth=Bearer {token}{chr(1)}{chr(1)}')}"


GOOD = {"imap": "a OK", "pop3": "+OK"}
both = pytest.mark.parametrize("protocol", GOOD)


@both
@pytest.mark.parametrize("mechanism", ["command", "plain", "login", "auto"])
def test_passwords(
    protocol: str, mechanism: str, trusting: Dovecot, tmp_path: Path
) -> None:
    user = f"{protocol}-{mechanism}"
    directives = f"proxy_auth_mech {mechanism};"
    with front(tmp_path, protocol, ports(trusting)[protocol], directives) as proxy:
        answer = log_in(proxy, protocol, plain(protocol, user, PASSWORD))
        assert answer.startswith(GOOD[protocol])
        wanted = "LOGIN" if mechanism == "login" else "PLAIN"
        assert f"method={wanted}," in logged(trusting, user)
        refused = log_in(proxy, protocol, plain(protocol, user, "wrong"))
        assert "internal server error" in refused
        assert "[AUTH" in proxy.log.read_text()


@both
@pytest.mark.parametrize("mechanism", ["xoauth2", "oauthbearer", "auto"])
def test_tokens(
    protocol: str, mechanism: str, trusting: Dovecot, tmp_path: Path
) -> None:
    directives = f"proxy_auth_mech {mechanism}; proxy_pass_error_message on;"
    with front(tmp_path, protocol, ports(trusting)[protocol], directives) as proxy:
        before = len(logins(trusting, "ann"))
        answer = log_in(proxy, protocol, bearer(protocol, "ann", TOKEN))
        assert answer.startswith(GOOD[protocol])
        wanted = "XOAUTH2" if mechanism == "xoauth2" else "OAUTHBEARER"
        assert f"method={wanted}," in logged(trusting, "ann", before)
        refused = log_in(proxy, protocol, bearer(protocol, "ann", "wrong"))
        assert refused.startswith(("a NO", "-ERR"))
        log = proxy.log.read_text()
        assert re.search(r'\[info\] .*upstream refused the token: status="\w+"', log)
        assert "upstream sent invalid response" in log
        assert TOKEN not in log


# Master users


@both
@pytest.mark.parametrize(
    ("kind", "directives"),
    [
        ("identity", "proxy_auth_mech plain; proxy_master_user admin SECRET;"),
        (
            "identity-forwarded",
            "proxy_auth_mech plain; proxy_master_user admin SECRET; proxy_forward id xclient;",
        ),
        ("separator", "proxy_master_user admin SECRET separator=*;"),
        ("login", "proxy_auth_mech login; proxy_master_user admin SECRET separator=*;"),
    ],
)
def test_master_user(
    protocol: str, kind: str, directives: str, trusting: Dovecot, tmp_path: Path
) -> None:
    user = f"{protocol}-by-{kind}"
    with front(tmp_path, protocol, ports(trusting)[protocol], directives) as proxy:
        answer = log_in(proxy, protocol, plain(protocol, user, "what nobody knows"))
        assert answer.startswith(GOOD[protocol])
        assert f"user=<{user}>" in logged(trusting, user)
        assert MASTER_PASSWORD not in proxy.log.read_text()


@both
def test_master_user_who_must_not_come_from_here(
    protocol: str, trusting: Dovecot, tmp_path: Path
) -> None:
    directives = "proxy_master_user other SECRET separator=*; proxy_forward id xclient;"
    with front(tmp_path, protocol, ports(trusting)[protocol], directives) as proxy:
        answer = log_in(proxy, protocol, plain(protocol, "ann", "any"))
        assert "internal server error" in answer


def test_master_user_of_the_auth_server(trusting: Dovecot, tmp_path: Path) -> None:
    with front(
        tmp_path,
        "imap",
        trusting.imap_port,
        "proxy_auth_mech plain;",
        Auth_Master_User="admin",
        Auth_Pass=MASTER_PASSWORD,
    ) as proxy:
        answer = log_in(proxy, "imap", plain("imap", "by-answer", "any"))
        assert answer.startswith("a OK")
        assert "method=PLAIN" in logged(trusting, "by-answer")


# Forwarding


@both
def test_dovecot_sees_the_client(
    protocol: str, trusting: Dovecot, tmp_path: Path
) -> None:
    user = f"{protocol}-forwarded"
    directives = "proxy_forward id xclient;"
    with front(tmp_path, protocol, ports(trusting)[protocol], directives) as proxy:
        answer = log_in(proxy, protocol, plain(protocol, user, PASSWORD))
        assert answer.startswith(GOOD[protocol])
        line = logged(trusting, user)
        assert f"rip={CLIENT}," in line
        assert re.search(r"session=<[0-9a-f]+\.[0-9a-f]+\.[0-9a-f]+>", line)
        assert proxy.log.read_text().count("[error]") == 0


@both
def test_dovecot_sees_the_proxy_otherwise(
    protocol: str, trusting: Dovecot, tmp_path: Path
) -> None:
    user = f"{protocol}-unknown"
    with front(tmp_path, protocol, ports(trusting)[protocol], "") as proxy:
        log_in(proxy, protocol, plain(protocol, user, PASSWORD))
        assert "rip=127.0.0.1," in logged(trusting, user)


@both
def test_dovecot_that_does_not_trust_us(
    protocol: str, store: Dovecot, tmp_path: Path
) -> None:
    """It takes no notice of ID, and announces no XCLIENT."""
    user = f"{protocol}-untrusted"
    directives = "proxy_forward id xclient;"
    with front(tmp_path, protocol, ports(store)[protocol], directives) as proxy:
        answer = log_in(proxy, protocol, plain(protocol, user, PASSWORD))
        assert answer.startswith(GOOD[protocol])
        assert "rip=127.0.0.1," in logged(store, user)


@both
def test_two_proxies_in_a_row(protocol: str, trusting: Dovecot, tmp_path: Path) -> None:
    """The second one counts down, and Dovecot sees a client, too."""
    user = f"{protocol}-twice"
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    inner.mkdir()
    outer.mkdir()
    forward = "proxy_forward id xclient; imap_capabilities IMAP4rev1 ID;"
    with (
        front(inner, protocol, ports(trusting)[protocol], forward) as second,
        front(outer, protocol, second.port, f"{forward} proxy_protocol on;") as first,
    ):
        answer = log_in(first, protocol, plain(protocol, user, PASSWORD))
        assert answer.startswith(GOOD[protocol])
        assert f"rip={CLIENT}," in logged(trusting, user)


@both
def test_loop_of_two_proxies_ends(protocol: str, tmp_path: Path) -> None:
    """Each one has the other as its backend, and seven times is enough."""
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    inner.mkdir()
    outer.mkdir()
    forward = (
        "proxy_forward id xclient; imap_capabilities IMAP4rev1 ID; proxy_protocol on;"
    )
    with (
        front(inner, protocol, 1, forward) as second,
        front(outer, protocol, second.port, forward) as first,
    ):
        second.auth.answer = granted(first.port)
        answer = log_in(first, protocol, plain(protocol, "ann", PASSWORD))
        assert "internal server error" in answer
        logs = first.log.read_text() + second.log.read_text()
    assert logs.count("[error]") == 8, logs
    assert len(re.findall(r"\[error\] .* proxy loop while ", logs)) == 1


# Postfix


@pytest.mark.usefixtures("smtp_backend")
@pytest.mark.parametrize("mechanism", ["command", "plain", "login", "auto"])
def test_postfix_sees_the_client(
    mechanism: str, backends: Backends, store: Dovecot, tmp_path: Path
) -> None:
    directives = (
        f"proxy_forward xclient; proxy_smtp_auth on; proxy_auth_mech {mechanism};"
    )
    subject = f"forwarded {mechanism}"
    with front(tmp_path, "smtp", backends.ports["smtp"], directives) as proxy:
        with proxy.client() as client:
            client.readline()
            assert say(client, "HELO there.example").startswith("250")
            for command, code in (
                (f"AUTH PLAIN {coded(f'{chr(0)}ann{chr(0)}{PASSWORD}')}", "235"),
                (f"MAIL FROM:<ann@{DOMAIN}>", "250"),
                (f"RCPT TO:<eve@{DOMAIN}>", "250"),
                ("DATA", "354"),
                (f"Subject: {subject}{CRLF}{CRLF}x{CRLF}.", "250"),
                ("QUIT", "221"),
            ):
                answer = say(client, command)
                assert answer.startswith(code), (command, answer)
        assert "[error]" not in proxy.log.read_text()
    inbox = store.maildir("eve") / "new"

    def arrived() -> list[str]:
        mail = [each.read_text() for each in inbox.iterdir()]
        return [each for each in mail if f"Subject: {subject}\n" in each]

    wait_for(lambda: bool(arrived()), "the message")
    assert f"from there.example (unknown [{CLIENT}])" in arrived()[0]
