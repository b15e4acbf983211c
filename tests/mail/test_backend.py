"""The connection to a backend: TLS, early replies, and what a refused login is."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import pytest
import trio

from mailproxy.errors import BackendError, LoginRefused, SessionError, UpstreamError
from mailproxy.log import SessionInfo
from mailproxy.mail.backend import Backend
from mailproxy.mail.backend_tls import BackendTls
from mailproxy.mail.candidates import Candidate
from mailproxy.mail.client import Client
from mailproxy.mail.login import Login
from mailproxy.mail.proxy_ssl import ProxySslSettings
from mailproxy.mail.trace import Secrets
from mailproxy.net.network import Network
from tests.captured_log import CapturedLog
from tests.memory import MemoryNetwork, MemoryWire
from tests.net.test_wire_tls import Talk, echo, listen, serve
from tests.play import load_server
from tests.tls import Certificates

AGREED = b"+OK begin\r\n"


@pytest.fixture
def files(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@pytest.fixture
def server(files: Certificates) -> ssl.SSLContext:
    """Of the backend."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.path("ec.pem"), files.path("ec.key"))
    return context


def after(agreement: bytes, talk: Talk) -> Talk:
    """A backend that says this when it is asked for TLS, and then goes on."""

    async def start(stream: trio.SocketStream) -> None:
        assert await stream.receive_some(6) == b"STLS\r\n"
        await stream.send_all(agreement)
        await talk(stream)

    return start


async def in_clear_text(stream: trio.SocketStream) -> None:
    """A backend that goes on as if it had never heard of TLS."""
    await stream.receive_some(1)
    await stream.send_all(b"+OK POP3 ready\r\n")
    while await stream.receive_some():
        pass


async def talk_to(
    network: Network,
    talk: Talk,
    client: ssl.SSLContext,
    *,
    name: str = "localhost",
    later: bool = False,
) -> tuple[bytes, SessionInfo]:
    """Start TLS with a backend and say hello to it; returns its answer.

    Raises:
      BackendError: as `Backend.start_tls` says.
    """
    listening, address = await listen()
    context = SessionInfo(1, "127.0.0.1")
    failure: BackendError | None = None
    answer = b""
    async with trio.open_nursery() as nursery, listening:
        nursery.start_soon(serve, listening, talk)
        candidate = Candidate(socket.AF_INET, address, "mail.test:995")
        backend = Backend.connect(network, candidate, 4096, context)
        try:
            if later:
                await backend.send_command(b"STLS\r\n")
                await backend.expect(b"+OK")
            backend.tls = BackendTls(
                mode="on",
                settings=ProxySslSettings(loaded=client),
                name=name,
                where=address,
                resumption=network.resumption,
            )
            await backend.start_tls()
            await backend.send_command(b"hello\r\n")
            answer = await backend.read_line()
        except BackendError as raised:
            failure = raised
        backend.close()
    if failure is not None:
        raise failure
    return answer, context


async def test_tls_at_once(
    network: Network, files: Certificates, server: ssl.SSLContext
) -> None:
    answer, context = await talk_to(network, echo(server), files.client())
    assert answer == b"you said hello\r\n"
    assert context.upstream == "mail.test:995"
    assert context.action == "SSL handshaking to upstream"


async def test_tls_later(
    network: Network, files: Certificates, server: ssl.SSLContext
) -> None:
    talk = after(AGREED, echo(server))
    answer, _ = await talk_to(network, talk, files.client(), later=True)
    assert answer == b"you said hello\r\n"


@pytest.mark.parametrize("injected", [b"+OK you are in\r\n", b"+", b"\x16\x03\x01"])
async def test_what_came_before_tls_is_not_taken_for_an_answer_under_it(
    network: Network, files: Certificates, server: ssl.SSLContext, injected: bytes
) -> None:
    talk = after(AGREED + injected, echo(server))
    with pytest.raises(BackendError) as caught:
        await talk_to(network, talk, files.client(), later=True)
    error = caught.value
    assert error.event == ('upstream sent data before TLS, possible injection: "%s"')
    assert error.values == (injected.rstrip(b"\r\n"),)
    assert (error.level, error.action, error.reply) == ("crit", None, b"")


@pytest.mark.parametrize("later", [False, True])
async def test_backend_that_goes_on_in_clear_text(
    network: Network, files: Certificates, later: bool
) -> None:
    talk = after(AGREED, in_clear_text) if later else in_clear_text
    with pytest.raises(BackendError) as caught:
        await talk_to(network, talk, files.client(), later=later)
    assert caught.value.event == "SSL_do_handshake() failed (SSL: %s)"
    assert caught.value.action is None


async def test_certificate_that_does_not_verify(
    network: Network, files: Certificates, server: ssl.SSLContext
) -> None:
    with pytest.raises(BackendError) as caught:
        await talk_to(network, echo(server), files.client(), name="other.test")
    error = caught.value
    assert error.event == 'upstream SSL certificate does not match "%s"'
    assert error.values == ("other.test",)
    assert error.action is None


async def test_backend_that_leaves_in_the_handshake(
    network: Network, files: Certificates
) -> None:
    async def leave(stream: trio.SocketStream) -> None:
        await stream.receive_some(1)
        stream.socket.shutdown(socket.SHUT_WR)
        while await stream.receive_some():
            pass

    with pytest.raises(BackendError) as caught:
        await talk_to(network, leave, files.client())
    error = caught.value
    assert error.event == "peer closed connection in SSL handshake"
    assert (error.level, error.action) == ("error", None)


async def test_backend_that_cannot_be_reached(network: Network, tmp_path: Path) -> None:
    path = str(tmp_path / "none")
    context = SessionInfo(1, "127.0.0.1")
    with pytest.raises(BackendError) as caught:
        Backend.connect(network, Candidate(socket.AF_UNIX, path, path), 4096, context)
    error = caught.value
    assert (error.event, error.values) == ("connect() to %s failed", (path,))
    assert (error.level, error.action) == ("crit", None)
    assert context.action == "connecting to upstream"


@pytest.mark.parametrize(
    ("early", "passed_on"),
    [
        (b"+OK you are in\r\n", b""),
        (b"-ERR not for you\r\n", b"-ERR not for you\r\n"),
        (b"421 busy\r\n250 OK\r\n", b"421 busy\r\n"),
        (b"+", b""),
    ],
)
async def test_command_is_not_sent_to_a_backend_that_is_ahead(
    early: bytes, passed_on: bytes
) -> None:
    wire = MemoryWire()
    wire.put(b"+OK ready\r\n" + early)
    backend = Backend(wire, 4096, SessionInfo(1, "127.0.0.1"))
    await backend.expect(b"+OK")
    with pytest.raises(BackendError) as caught:
        await backend.send_command(b"USER u\r\n")
    assert wire.outgoing == b""
    assert caught.value.values == (early.rstrip(b"\r\n"),)
    assert caught.value.reply == passed_on


def answering(replies: list[str]) -> MemoryWire:
    """A backend that greets, and answers what it hears as long as it has replies; then
    it closes."""
    waiting = [f"{reply}\r\n".encode() for reply in replies]
    wire = MemoryWire()
    wire.put(waiting.pop(0))

    def hear(wire: MemoryWire, _: bytes) -> None:
        if waiting:
            wire.put(waiting.pop(0))
        else:
            wire.finish()

    wire.listener = hear
    return wire


async def enter(
    protocol: str, replies: list[str], directives: str = "", secret: bytes = b"p"
) -> UpstreamError:
    """How a backend that answers so ends the session."""
    server = load_server(
        f"protocol {protocol}; xclient off; proxy_smtp_auth on; {directives}"
    )
    client = Client(
        MemoryWire(),
        server,
        server.core.listen[0],
        MemoryNetwork(None),
        SessionInfo(1, "127.0.0.1"),
        CapturedLog().log,
        Secrets(),
    )
    backend = Backend(answering(replies), 4096, client.info)
    login = Login(method="plain", user=b"u", secret=secret, tag=b"a1 ")
    dialogue = server.protocol.dialogue(client)
    try:
        await dialogue.meet(backend)
        await dialogue.enter(backend, login)
    except UpstreamError as error:
        return error
    pytest.fail("it has entered")


IMAP = ["* OK [CAPABILITY LITERAL+] ready"]
LITERAL = "proxy_login literal;"
POP3 = ["+OK ready"]
SMTP = ["220 ready", "250 mail.test"]


@pytest.mark.parametrize(
    ("protocol", "replies"),
    [
        ("imap", [*IMAP, "a1 NO no such user"]),
        ("imap", [*IMAP, "a1 NO"]),
        ("imap", [*IMAP, "a1 no [AUTHENTICATIONFAILED] no"]),
        ("imap", [*IMAP, "a1 NO try later [UNAVAILABLE]"]),
        ("imap", ["* OK ready", "a1 NO no"]),
        ("pop3", [*POP3, "-ERR no such user"]),
        ("pop3", [*POP3, "+OK", "-ERR wrong password"]),
        ("pop3", [*POP3, "+OK", "-ERR [AUTH] wrong password"]),
        ("smtp", [*SMTP, "535 5.7.8 no"]),
        ("smtp", [*SMTP, "550 no"]),
    ],
)
async def test_login_is_refused(protocol: str, replies: list[str]) -> None:
    for secret in (b"p", b"\\") if replies[:1] == IMAP else (b"p",):
        error = await enter(protocol, replies, secret=secret)
        assert type(error) is LoginRefused
        assert error.reply == replies[-1].encode() + b"\r\n"


async def test_login_with_literals_is_refused() -> None:
    replies = ["* OK ready", "+ go", "+ go", "a1 NO no"]
    assert type(await enter("imap", replies, LITERAL)) is LoginRefused


@pytest.mark.parametrize(
    ("protocol", "replies"),
    [
        ("imap", ["* BYE busy"]),
        ("imap", ["* PREAUTH welcome"]),
        ("imap", [*IMAP, "a1 NO [UNAVAILABLE] later"]),
        ("imap", [*IMAP, "a1 NO [serverbug] oh"]),
        ("imap", [*IMAP, "a1 NO [LIMIT] too many"]),
        ("imap", [*IMAP, "a1 NO [INUSE] locked"]),
        ("imap", [*IMAP, "a1 NO [CONTACTADMIN] call"]),
        ("imap", [*IMAP, "a1 NO [PRIVACYREQUIRED] TLS"]),
        ("imap", [*IMAP, "a1 BAD what"]),
        ("imap", [*IMAP, "a1 NOT a word"]),
        ("imap", [*IMAP, "* BYE busy"]),
        ("imap", ["* OK ready", "+ go"]),
        ("pop3", ["-ERR busy"]),
        ("pop3", [*POP3, "-ERR [SYS/TEMP] later"]),
        ("pop3", [*POP3, "+OK", "-ERR [SYS/PERM] call"]),
        ("pop3", [*POP3, "+OK", "-ERR [in-use] locked"]),
        ("pop3", [*POP3, "+OK", "-ERR [LOGIN-DELAY] later"]),
        ("pop3", [*POP3, "+OK", "huh"]),
        ("smtp", ["554 no"]),
        ("smtp", [*SMTP, "454 4.7.0 later"]),
        *[("smtp", [*SMTP, f"{code} what"]) for code in range(500, 505)],
        ("smtp", [*SMTP, "334 more"]),
    ],
)
async def test_backend_fails(protocol: str, replies: list[str]) -> None:
    for secret in (b"p", b"\\") if replies[:1] == IMAP else (b"p",):
        error = await enter(protocol, replies, secret=secret)
        assert type(error) is BackendError
        assert error.reply == replies[-1].encode() + b"\r\n"


async def test_backend_that_refuses_literals_fails() -> None:
    """It has not seen the password, so its NO is not about that."""
    error = await enter("imap", ["* OK ready", "a1 NO no"], LITERAL)
    assert type(error) is BackendError
    assert error.reply == b"a1 NO no\r\n"


SASL = {
    "imap": ["* OK [CAPABILITY IMAP4 SASL-IR AUTH=PLAIN AUTH=LOGIN AUTH=XOAUTH2] hi"],
    "pop3": ["+OK ready", "+OK\r\nSASL PLAIN LOGIN XOAUTH2\r\n."],
    "smtp": ["220 ready", "250-mail.test\r\n250 AUTH PLAIN LOGIN XOAUTH2"],
}
"""What backends say before the login."""
ASKS = {"imap": "+", "pop3": "+ ", "smtp": "334 "}
REFUSALS = {
    "imap": ["a1 NO", "a1 NO [AUTHENTICATIONFAILED] no", "a1 no [EXPIRED] old"],
    "pop3": ["-ERR", "-ERR [AUTH] no", "-ERR no"],
    "smtp": [
        "535 5.7.8 no",
        "530 5.7.0 TLS first",
        "534 5.7.9 weak",
        "554 no",
        "599 no",
    ],
}
FAILURES = {
    "imap": [
        *("a1 NO [UNAVAILABLE] x", "a1 NO [SERVERBUG] x", "a1 NO [LIMIT] x"),
        *("a1 NO [INUSE] x", "a1 NO [CONTACTADMIN] x", "a1 NO [PRIVACYREQUIRED] x"),
        *("a1 BAD what", "* BYE busy", "huh", "a1 OKAY"),
    ],
    "pop3": ["-ERR [SYS/TEMP] x", "-ERR [SYS/PERM] x", "-ERR [IN-USE] x", "-ERR [LOGIN-DELAY] x", "huh"],
    "smtp": ["421 bye", "454 4.7.0 x", "500 x", "501 x", "502 x", "503 x", "504 x", "250 x", "huh"],
}  # fmt: skip
EXCHANGES = {
    # By mechanism, how often the backend asks until it has seen the secret.
    "plain": {"imap": 0, "pop3": 0, "smtp": 0},
    "login": {"imap": 2, "pop3": 2, "smtp": 2},
    "xoauth2": {"imap": 1, "pop3": 2, "smtp": 1},
}
every_exchange = pytest.mark.parametrize(
    ("protocol", "mechanism"),
    [(protocol, mechanism) for protocol in SASL for mechanism in EXCHANGES],
)


def asking(protocol: str, mechanism: str) -> list[str]:
    """What the backend says until it knows the secret; XOAUTH2: and until it says no."""
    return [*SASL[protocol], *[ASKS[protocol]] * EXCHANGES[mechanism][protocol]]


@every_exchange
async def test_login_by_a_mechanism_is_refused(protocol: str, mechanism: str) -> None:
    for refusal in REFUSALS[protocol]:
        replies = [*asking(protocol, mechanism), refusal]
        error = await enter(protocol, replies, f"proxy_auth_mech {mechanism};")
        assert type(error) is LoginRefused, refusal
        assert error.reply == refusal.encode() + b"\r\n"


@every_exchange
async def test_backend_fails_in_a_mechanism(protocol: str, mechanism: str) -> None:
    for failure in FAILURES[protocol]:
        replies = [*asking(protocol, mechanism), failure]
        error = await enter(protocol, replies, f"proxy_auth_mech {mechanism};")
        assert type(error) is BackendError, failure
        assert error.reply == failure.encode() + b"\r\n"


@pytest.mark.parametrize("protocol", SASL)
async def test_backend_that_refuses_a_mechanism_fails(protocol: str) -> None:
    """It has seen neither user nor password, so its NO is not about them."""
    for refusal in REFUSALS[protocol]:
        replies = [*SASL[protocol], refusal]
        error = await enter(protocol, replies, "proxy_auth_mech login;")
        assert type(error) is BackendError
        assert error.reply == refusal.encode() + b"\r\n"


@every_exchange
async def test_backend_that_leaves_in_a_mechanism(
    protocol: str, mechanism: str
) -> None:
    for number in range(len(SASL[protocol]), len(asking(protocol, mechanism)) + 1):
        replies = asking(protocol, mechanism)[:number]
        error = await enter(protocol, replies, f"proxy_auth_mech {mechanism};")
        assert type(error) is BackendError
        assert error.reply == b""


def test_a_refused_login_is_no_fault_of_the_backend() -> None:
    """Who catches one of them does not get the other."""
    assert not issubclass(LoginRefused, BackendError)
    assert not issubclass(BackendError, LoginRefused)
    assert issubclass(LoginRefused, SessionError)
