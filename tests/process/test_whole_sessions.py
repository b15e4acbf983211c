"""Sessions of all kinds in a real worker, at the level debug.

A worker waits in trio's place, where nothing may wait as tasks of trio do: not even a
line of the log that is written only there. Sessions in virtual time would not notice.
"""

from __future__ import annotations

import socket
import ssl
from contextlib import ExitStack

from tests.fakes import FakeAuth, FakeImap, Headers, Request, granted
from tests.play import certificate
from tests.process.site import Site
from tests.processes import PATIENCE, free_port

PORTS = ("IMAP", "SECURE", "HEADER", "POP3", "SMTP")
SERVERS = """
    timeout 1s; auth_http_timeout 1s; resolver_timeout 1s;
    ssl_certificate CERT; ssl_certificate_key CERT;
    server { listen 127.0.0.1:IMAP; protocol imap; starttls on; proxy_timeout 1s; }
    server { listen 127.0.0.1:SECURE ssl; protocol imap; }
    server { listen 127.0.0.1:HEADER proxy_protocol; protocol imap; proxy_protocol on; }
    server { listen 127.0.0.1:POP3; protocol pop3; pop3_auth plain apop cram-md5; }
    server { listen 127.0.0.1:SMTP; protocol smtp; smtp_auth plain none;
             resolver 127.0.0.1:NAMES; smtp_greeting_delay 50ms; }
"""
END = b"the end"
"""What no server says: the client listens to the end of its connection."""
BUGS = ("this is a bug", "Traceback", "RuntimeError", "[alert]", "[emerg]")


class Everyone:
    """An auth server whose answer depends on the user."""

    def __init__(self, backend: int) -> None:
        self._backend = backend
        self._waited = False

    def __call__(self, request: Request) -> Headers | bytes:
        user = request.headers.get("Auth-User", "")
        good = granted(self._backend)(request)
        assert isinstance(good, dict)
        match user:
            case "refused":
                return {"Auth-Status": "no", "Auth-Wait": "1"}
            case "later" if not self._waited:
                self._waited = True
                return {"Auth-Status": "WAIT", "Auth-Wait": "1"}
            case "gone":
                return {
                    "Auth-Status": "OK",
                    "Auth-Server": "127.0.0.1",
                    "Auth-Port": "9",
                }
            case "nonsense":
                return b"nonsense\r\n\r\n"
            case "body" | "half":
                lines = "".join(f"{name}: {value}\r\n" for name, value in good.items())
                head = f"HTTP/1.1 200 OK\r\n{lines}Content-Length: 4\r\n\r\n"
                return head.encode() + b"body"[: 4 if user == "body" else 2]
            case _:
                return good


def secured(client: socket.socket) -> socket.socket:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(client)


def until(client: socket.socket, end: bytes) -> bytes:
    """What is received, up to `end`, or to the end of the connection."""
    received = b""
    while end not in received:
        try:
            data = client.recv(4096)
        except ConnectionResetError:
            break
        if not data:
            break
        received += data
    return received


def test_nothing_waits_as_tasks_of_trio_do(site: Site) -> None:
    ports = {name: free_port() for name in PORTS}
    with ExitStack() as stack:
        backend = stack.enter_context(FakeImap())
        auth = stack.enter_context(FakeAuth(Everyone(backend.port)))
        names = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        names.bind(("127.0.0.1", 0))
        names.settimeout(PATIENCE)
        site.configure(
            SERVERS,
            main="worker_processes 1;",
            AUTH=auth.port,
            CERT=certificate(),
            NAMES=names.getsockname()[1],
            **ports,
        )
        path = site.directory / "nginx.conf"
        path.write_text(path.read_text().replace("error.log info", "error.log debug"))
        site.start()

        def connect(name: str, said: bytes = b"") -> socket.socket:
            client = socket.create_connection(("127.0.0.1", ports[name]), PATIENCE)
            stack.callback(client.close)
            client.sendall(said)
            return client

        def imap(user: bytes) -> socket.socket:
            return connect("IMAP", b"a LOGIN %s p\r\n" % user)

        expected: list[tuple[socket.socket, bytes]] = []

        def expect(client: socket.socket, answer: bytes) -> None:
            expected.append((client, answer))

        # Those that need a second each go on at the same time.
        expect(imap(b"refused"), b"a NO no\r\n")
        expect(imap(b"later"), b"a OK logged in\r\n")
        expect(imap(b"gone"), b"internal server error\r\n")
        expect(imap(b"nonsense"), b"internal server error\r\n")
        expect(imap(b"body"), b"a OK logged in\r\n")
        expect(imap(b"half"), b"a OK logged in\r\n")
        expect(imap(b"good"), b"a OK logged in\r\n")
        expect(imap(b"good"), END + b": relayed, and silent")
        expect(connect("IMAP"), END + b": silent")
        expect(connect("IMAP", b"a NONSENSE\r\n" * 5), END + b": errors")
        expect(
            connect("IMAP", b"a AUTHENTICATE PLAIN\r\nAHUAcA==\r\n"),
            b"a OK logged in\r\n",
        )
        expect(connect("IMAP", b"a LOGOUT\r\n"), b"a OK completed\r\n")
        later = connect("IMAP", b"a STARTTLS\r\n")
        until(later, b"a OK completed\r\n")
        for client in (connect("SECURE"), later):
            secure = secured(client)
            stack.callback(secure.close)
            secure.sendall(b"a LOGIN good p\r\n")
            expect(secure, b"a OK logged in\r\n")
        expect(connect("SECURE"), END + b": no handshake")
        expect(connect("SECURE", b"a LOGIN u p\r\n\r\n"), END + b": no TLS")
        header = b"PROXY TCP4 192.0.2.1 192.0.2.2 1234 143\r\n"
        expect(connect("HEADER", header + b"a LOGOUT\r\n"), b"a OK completed\r\n")
        expect(connect("HEADER", b"a LOGIN u p\r\n"), END + b": no header")
        expect(connect("POP3", b"CAPA\r\nUSER u\r\nPASS p\r\n"), END + b": IMAP there")
        expect(connect("POP3", b"AUTH CRAM-MD5\r\nnonsense\r\nQUIT\r\n"), b"+OK\r\n")
        for answer in (b"\x81\x83", b"\x80\x82"):
            smtp = connect("SMTP")
            query, worker = names.recvfrom(512)
            names.sendto(query[:2] + answer + query[4:], worker)
            assert until(smtp, b"\r\n").startswith(b"220 ")
            smtp.sendall(b"EHLO me\r\nMAIL FROM:<a>\r\nRCPT TO:<b>\r\n")
            expect(smtp, END + b": IMAP there")
        early = connect("SMTP", b"EHLO me\r\n")
        query, worker = names.recvfrom(512)
        names.sendto(query[:2] + b"\x81\x83" + query[4:], worker)
        expect(early, END + b": too early")
        expect(connect("SMTP"), END + b": nobody knows its name")

        for client, answer in expected:
            heard = until(client, answer)
            assert heard.endswith(answer) or answer.startswith(END), heard
    text = site.log_path.read_text(errors="replace")
    assert not [line for line in text.splitlines() if any(bug in line for bug in BUGS)]
    assert "[debug]" in text
