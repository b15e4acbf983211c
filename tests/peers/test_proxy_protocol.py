"""mailproxy with `proxy_protocol` before a Dovecot that expects the header, or does not."""

import imaplib
import poplib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes import FakeAuth, granted
from tests.peers.dovecot import PASSWORD, Dovecot
from tests.processes import free_port, load_modules, mailproxy_command, running

pytestmark = pytest.mark.parametrize("version", ["on", "v2"])


@dataclass(frozen=True)
class Proxy:
    """A running mailproxy: a port, and the file of its log."""

    port: int
    log: Path


@contextmanager
def proxy(
    directory: Path, protocol: str, version: str, backend: int, secret: str
) -> Iterator[Proxy]:
    """mailproxy, which logs in at `backend` with `secret`, whatever the client says."""
    port = free_port()
    with FakeAuth(granted(backend, Auth_Pass=secret)) as auth:
        (directory / "nginx.conf").write_text(
            f"""
            {load_modules()}
            error_log {directory}/error.log info;
            pid {directory}/nginx.pid;
            events {{}}
            mail {{
                auth_http 127.0.0.1:{auth.port}/;
                proxy_protocol {version};
                proxy_pass_error_message on;
                server {{ listen 127.0.0.1:{port}; protocol {protocol}; }}
            }}
            """
        )
        with running(mailproxy_command(directory), directory, port):
            yield Proxy(port, directory / "error.log")


def test_imap(tmp_path: Path, store: Dovecot, version: str) -> None:
    backend = store.proxied["imap"]
    with (
        proxy(tmp_path, "imap", version, backend, PASSWORD) as server,
        imaplib.IMAP4("127.0.0.1", server.port, timeout=30) as client,
    ):
        assert client.login("ann", "any")[0] == "OK"
        assert client.noop()[0] == "OK"
        assert "upstream sent" not in server.log.read_text()


def test_a_wrong_imap_password(tmp_path: Path, store: Dovecot, version: str) -> None:
    backend = store.proxied["imap"]
    with proxy(tmp_path, "imap", version, backend, "wrong") as server:
        client = imaplib.IMAP4("127.0.0.1", server.port, timeout=30)
        with pytest.raises(imaplib.IMAP4.error, match="AUTHENTICATIONFAILED"):
            client.login("ann", "any")
        client.shutdown()
        text = server.log.read_text()
    assert (
        "upstream sent invalid response: "
        '"NO [AUTHENTICATIONFAILED] Authentication failed." while reading' in text
    )
    assert "PROXY" not in text


def test_a_wrong_pop3_password(tmp_path: Path, store: Dovecot, version: str) -> None:
    backend = store.proxied["pop3"]
    with proxy(tmp_path, "pop3", version, backend, "wrong") as server:
        client = poplib.POP3("127.0.0.1", server.port, timeout=30)
        client.user("ann")
        with pytest.raises(poplib.error_proto, match="Authentication failed"):
            client.pass_("any")
        client.close()
        text = server.log.read_text()
    assert '"-ERR [AUTH] Authentication failed." while reading' in text
    assert "PROXY" not in text


@pytest.mark.parametrize("protocol", ["imap", "pop3"])
def test_a_dovecot_that_expects_no_header(
    tmp_path: Path, store: Dovecot, version: str, protocol: str
) -> None:
    backend = {"imap": store.imap_port, "pop3": store.pop3_port}[protocol]
    with proxy(tmp_path, protocol, version, backend, PASSWORD) as server:
        if protocol == "imap":
            client = imaplib.IMAP4("127.0.0.1", server.port, timeout=30)
            with pytest.raises(imaplib.IMAP4.error):
                client.login("ann", "any")
            client.shutdown()
        else:
            session = poplib.POP3("127.0.0.1", server.port, timeout=30)
            session.user("ann")
            with pytest.raises(poplib.error_proto):
                session.pass_("any")
            session.close()
        text = server.log.read_text()
    assert 'to PROXY, try "proxy_protocol off" while reading' in text
