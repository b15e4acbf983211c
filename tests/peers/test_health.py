"""Health checks of a real Dovecot and Postfix, and of a TLS server of OpenSSL's."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mailproxy.conf.addresses import Address
from mailproxy.mail.probing import ProbeType
from mailproxy.mail.proxy_ssl import ProxySslSettings
from mailproxy.manager.probes.probe import Probe, run
from mailproxy.manager.probes.talk import ProbeLogin
from mailproxy.manager.probes.tls import ProbeTls
from tests.peers.dovecot import PASSWORD, Dovecot
from tests.peers.site import Backends
from tests.processes import free_port, need_program, running
from tests.tls import Certificates

PROTOCOLS = ("imap", "pop3", "smtp")
LOGIN = ProbeLogin(b"watchdog", PASSWORD.encode())


def at(port: int) -> Address:
    return Address(socket.AF_INET, ("127.0.0.1", port), f"127.0.0.1:{port}")


@pytest.fixture
def ports(backends: Backends, smtp_backend: None) -> dict[str, int]:
    return backends.ports


def probe(port: int, protocol: str, login: ProbeLogin = LOGIN) -> Probe:
    return Probe(
        address=at(port),
        type=ProbeType.LOGIN,
        protocol=protocol,
        own_name=b"proxy.test",
        login=login,
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("type_", list(ProbeType))
async def test_a_working_server_is_healthy(
    protocol: str, type_: ProbeType, ports: dict[str, int]
) -> None:
    asked = replace(probe(ports[protocol], protocol), type=type_)
    assert await run(asked) is None


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_refused_login_is_told(protocol: str, ports: dict[str, int]) -> None:
    wrong = ProbeLogin(b"watchdog", b"wrong password")
    failure = await run(probe(ports[protocol], protocol, wrong))
    assert failure is not None
    assert failure.text.startswith('upstream refused the login: "')
    assert "uthentication failed" in failure.text
    assert "watchdog" not in failure.text


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_another_protocol_is_no_healthy_server(
    protocol: str, ports: dict[str, int]
) -> None:
    other = "pop3" if protocol == "imap" else "imap"
    failure = await run(replace(probe(ports[protocol], other), timeout=2.0))
    assert failure is not None
    assert failure.text.startswith('invalid greeting: "')


@pytest.mark.parametrize("version", ["on", "v2"])
@pytest.mark.parametrize("protocol", ["imap", "pop3"])
async def test_a_server_that_wants_a_proxy_header_gets_one(
    protocol: str, version: str, store: Dovecot
) -> None:
    asked = probe(store.proxied[protocol], protocol)
    assert await run(replace(asked, proxy_protocol=version)) is None
    failure = await run(replace(asked, timeout=1.0))
    assert failure is not None
    assert failure.text == "timed out while waiting for the greeting"


# openssl s_server, which says nothing by itself: the connection is probed


@contextmanager
def s_server(certificates: Certificates, name: str, directory: Path) -> Iterator[int]:
    """A TLS server; the value is its port."""
    port = free_port()
    command = [
        need_program("openssl"),
        *("s_server", "-accept", f"127.0.0.1:{port}", "-quiet"),
        *("-cert", certificates.path(f"{name}.pem")),
        *("-cert_chain", certificates.path(f"{name}.pem")),
        *("-key", certificates.path(f"{name}.key")),
    ]
    with running(command, directory, port):
        yield port


async def test_certificates_of_openssl_are_judged(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    now = datetime.now(UTC)
    certificates.issue("old", begins=now - timedelta(9), ends=now - timedelta(1))
    settings = ProxySslSettings(loaded=certificates.client())
    tls = ProbeTls(mode="on", settings=settings, name="localhost")
    with s_server(certificates, "ec", tmp_path) as port:
        asked = Probe(address=at(port), type=ProbeType.CONNECT, tls=tls)
        assert await run(asked) is None
        failure = await run(replace(asked, tls=replace(tls, name="127.0.0.1")))
        assert failure is not None
        assert failure.text == 'upstream SSL certificate does not match "127.0.0.1"'
    with s_server(certificates, "old", tmp_path) as port:
        failure = await run(replace(asked, address=at(port)))
        assert failure is not None
        assert failure.text == (
            "upstream SSL certificate verify error: (10:certificate has expired)"
        )
