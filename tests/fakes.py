"""Fake neighbours for tests with real processes: an auth server and a mail server.

Each runs in threads between `with` and the end of the block, listens on `port`
of the loopback, and keeps what it was told:

    with FakeImap() as backend, FakeAuth(granted(backend.port)) as auth:
        ...
    assert auth.requests[0].headers["Auth-User"] == "u"
"""

import queue
import socket
import socketserver
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

Headers = dict[str, str]


@dataclass(frozen=True)
class Request:
    """What a proxy asked: the bytes as they came, and the headers by name."""

    raw: bytes = field(repr=False)
    headers: Headers = field(repr=False)


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024
    owner: "_Fake"


class _Handler(socketserver.StreamRequestHandler):
    disable_nagle_algorithm = True
    server: _Server

    def handle(self) -> None:
        owner = self.server.owner
        owner.connections.append(self.connection)
        with suppress(OSError):  # the proxy left, which is its right
            owner.serve(self)


class _Fake:
    """A threaded server on a loopback port."""

    def __init__(self, port: int = 0, address: str = "127.0.0.1") -> None:
        kind = (
            type("Server", (_Server,), {"address_family": socket.AF_INET6})
            if ":" in address
            else _Server
        )
        self._server = kind((address, port), _Handler)
        self._server.owner = self
        self.port: int = self._server.server_address[1]
        self.connections: list[socket.socket] = []

    def serve(self, connection: _Handler) -> None:
        """Talk to one connection."""
        raise AssertionError("each fake has its own")

    def __enter__(self) -> Self:
        threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        ).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        for connection in self.connections:
            with suppress(OSError):  # it has ended before
                connection.shutdown(socket.SHUT_RDWR)


Answer = Callable[[Request], Headers | bytes]
"""Decides a request: headers of the answer, or its bytes as they are to be sent."""


def granted(port: int, address: str = "127.0.0.1", **more: str) -> Answer:
    """Answer that lets everyone in, to the backend at `port`; `more`: Auth_User="x"."""
    headers = {"Auth-Status": "OK", "Auth-Server": address, "Auth-Port": str(port)}
    headers |= {name.replace("_", "-"): value for name, value in more.items()}
    return lambda _request: headers


def refused(text: str = "Invalid login or password", **more: str) -> Answer:
    """Answer that lets nobody in; `more`: Auth_Wait="1"."""
    headers = {"Auth-Status": text}
    headers |= {name.replace("_", "-"): value for name, value in more.items()}
    return lambda _request: headers


class FakeAuth(_Fake):
    """An auth_http server; keeps connections open for who asks for that."""

    def __init__(self, answer: Answer, port: int = 0) -> None:
        super().__init__(port)
        self.answer = answer
        self.requests: list[Request] = []

    def serve(self, connection: _Handler) -> None:
        while raw := self._read_request(connection):
            lines = raw.decode("latin-1").split("\r\n")[1:-2]
            request = Request(raw, dict(line.split(": ", 1) for line in lines))
            self.requests.append(request)
            answer = self.answer(request)
            stays = request.headers.get("Connection", "").lower() == "keep-alive"
            if isinstance(answer, bytes):
                connection.wfile.write(answer)
                return
            headers = {
                "Content-Length": "0",
                "Connection": "keep-alive" if stays else "close",
            }
            text = "".join(
                f"{name}: {value}\r\n" for name, value in (answer | headers).items()
            )
            connection.wfile.write(f"HTTP/1.0 200 OK\r\n{text}\r\n".encode("latin-1"))
            if not stays:
                return

    @staticmethod
    def _read_request(connection: _Handler) -> bytes:
        raw = b""
        while not raw.endswith(b"\r\n\r\n"):
            line = connection.rfile.readline()
            if not line:
                return b""
            raw += line
        return raw


class FakeImap(_Fake):
    """A mail server that takes any login, and then answers lines.

    A login has literals of both kinds, or atoms. Behind it, `PING` is answered by
    `PONG`, `SEND n` by n bytes and CR LF, `BYE` by closing; every other line is echoed.
    """

    greeting = b"* OK IMAP4rev1 ready\r\n"

    def __init__(self, port: int = 0, address: str = "127.0.0.1") -> None:
        super().__init__(port, address)
        self.lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        """Every line received, logins included, without its line end."""

    def serve(self, connection: _Handler) -> None:
        self.connection = connection
        if self.let_in(connection):
            self.talk(connection)

    def let_in(self, connection: _Handler) -> bool:
        """The login dialogue; False when the peer left in it."""
        connection.wfile.write(self.greeting)
        line = self.read(connection)
        tag = line.split(b" ")[0]
        while line.endswith(b"}"):
            if not line.endswith(b"+}"):
                connection.wfile.write(b"+ go on\r\n")
            size = int(line[line.rindex(b"{") + 1 : -1].rstrip(b"+"))
            connection.rfile.read(size)
            line = self.read(connection)
        connection.wfile.write(tag + b" OK logged in\r\n")
        return bool(tag)

    def read(self, connection: _Handler) -> bytes:
        """The next line without its end; b"" at the end of the connection."""
        line = connection.rfile.readline()
        if line:
            self.lines.put(line.rstrip(b"\r\n"))
        return line.rstrip(b"\r\n")

    def talk(self, connection: _Handler) -> None:
        """What is spoken after the login."""
        while line := self.read(connection):
            if line == b"PING":
                connection.wfile.write(b"PONG\r\n")
            elif line.startswith(b"SEND "):
                connection.wfile.write(b"x" * int(line[5:]) + b"\r\n")
            elif line == b"BYE":
                return
            else:
                connection.wfile.write(line + b"\r\n")
