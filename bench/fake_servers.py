"""IMAP, POP3 and SMTP servers, and an auth server, in one process.

    python -m bench.fake_servers IMAP POP3 SMTP AUTH

The arguments are ports on 127.0.0.1. The first line on standard output says that all
are open.

Mail servers let in who says the password of `dialogues`. After the login they know, in
all three protocols:

BULK n    n octets come from the server
SINK n    n octets come from the client; the answer is OK
PING ...  the same line, as PONG
"""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Callable

from bench.dialogues import PASSWORD, USER
from bench.loop import READ, Loop, Waiting, Wire

BACKLOG = 4096
CONNECTIONS_IN_A_ROW = 64

_LITERAL = re.compile(rb"\{\d+(\+?)\}\r\n\Z")


def _argument(value: bytes) -> bytes:
    """A pattern for RFC 3501's astring: a literal, quoted, or as it is."""
    text = re.escape(value)
    return rb'(?:\{%d\+?\}\r\n%b|"%b"|%b)' % (len(value), text, text, text)


_IMAP_LOGIN = re.compile(
    rb"(?i)(\S+) LOGIN %b %b\r\n\Z" % (_argument(USER), _argument(PASSWORD))
)


class MailServer:
    """One session: lines in, replies out.

    Attributes:
      ended: whether to close after the reply.
    """

    greeting = b""

    def __init__(self) -> None:
        self.ended = False

    def answer(self, line: bytes) -> bytes:
        """The reply to a line, CR LF included in both."""
        raise NotImplementedError

    def say_goodbye(self, reply: bytes) -> bytes:
        """A last reply."""
        self.ended = True
        return reply


class ImapServer(MailServer):
    """RFC 3501: LOGIN in every form that it may have, and LOGOUT."""

    greeting = b"* OK backend\r\n"

    def __init__(self) -> None:
        super().__init__()
        self._command = b""

    def answer(self, line: bytes) -> bytes:
        """Gather a command with its literals, and answer it."""
        command = self._command + line
        if literal := _LITERAL.search(line):
            self._command = command
            return b"" if literal[1] else b"+ OK\r\n"
        self._command = b""
        if login := _IMAP_LOGIN.match(command):
            return login[1] + b" OK LOGIN completed\r\n"
        tag, _, name = command.rstrip().partition(b" ")
        if name.upper() == b"LOGOUT":
            return self.say_goodbye(b"* BYE\r\n%s OK LOGOUT completed\r\n" % tag)
        return tag + b" BAD that is not for a benchmark\r\n"


class Pop3Server(MailServer):
    """RFC 1939: USER, PASS, QUIT."""

    greeting = b"+OK backend\r\n"

    def answer(self, line: bytes) -> bytes:
        """The reply to a command."""
        if line == b"USER %s\r\n" % USER:
            return b"+OK\r\n"
        if line == b"PASS %s\r\n" % PASSWORD:
            return b"+OK logged in\r\n"
        if line == b"QUIT\r\n":
            return self.say_goodbye(b"+OK bye\r\n")
        return b"-ERR that is not for a benchmark\r\n"


class SmtpServer(MailServer):
    """RFC 5321, and Postfix's XCLIENT, which tells the server who has logged in."""

    greeting = b"220 backend\r\n"

    def answer(self, line: bytes) -> bytes:
        """The reply to a command."""
        if line.startswith(b"EHLO "):
            return b"250-backend\r\n250-PIPELINING\r\n250 XCLIENT ADDR LOGIN NAME\r\n"
        if line.startswith(b"XCLIENT ") and b" LOGIN=%s" % USER in line:
            return b"220 backend\r\n"
        if line == b"QUIT\r\n":
            return self.say_goodbye(b"221 bye\r\n")
        return b"502 that is not for a benchmark\r\n"


def serve_mail(wire: Wire, server: MailServer) -> Waiting[None]:
    """One session of a mail server."""
    wire.send(server.greeting)
    waiting = b""
    while not server.ended:
        line, end, rest = waiting.partition(b"\n")
        if not end:
            data = yield from wire.receive()
            if not data:
                break
            waiting += data
            continue
        line, waiting = line + end, rest
        if line.startswith(b"PING "):
            wire.send(b"PONG " + line[5:])
        elif line.startswith(b"BULK "):
            yield from wire.send_filling(int(line[5:]))
        elif line.startswith(b"SINK "):
            yield from wire.discard(int(line[5:]) - len(waiting))
            waiting = b""
            wire.send(b"OK\r\n")
        elif reply := server.answer(line):
            wire.send(reply)
    wire.close()


class AuthServer:
    """Knows one user, and sends them to the mail servers.

    Args:
      ports: of the mail servers, by the names of the protocols.
    """

    def __init__(self, ports: dict[str, int]) -> None:
        self._ports = ports

    def serve(self, wire: Wire) -> Waiting[None]:
        """One connection; it is kept open as the client likes (RFC 9112, section 9.3)."""
        waiting = b""
        keep = True
        while keep:
            data = yield from wire.receive()
            if not data:
                break
            waiting += data
            while keep and (end := waiting.find(b"\r\n\r\n")) >= 0:
                request, waiting = waiting[: end + 2], waiting[end + 4 :]
                keep = _keeps_open(request)
                wire.send(self._answer(request, keep=keep))
        wire.close()

    def _answer(self, request: bytes, *, keep: bool) -> bytes:
        protocol = re.search(rb"\nAuth-Protocol: (\w+)\r", request)
        secret = re.search(rb"\nAuth-Pass: (.*)\r", request)
        if protocol is None or secret is None or secret[1] != PASSWORD:
            decision = b"Auth-Status: Invalid login"
        else:
            port = self._ports[protocol[1].decode()]
            decision = (
                b"Auth-Status: OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: %d" % port
            )
        return (
            b"HTTP/1.%d 200 OK\r\n%b\r\nConnection: %b\r\nContent-Length: 0\r\n\r\n"
            % (
                b" HTTP/1.1\r\n" in request,
                decision,
                b"keep-alive" if keep else b"close",
            )
        )


def _keeps_open(request: bytes) -> bool:
    said = re.search(rb"(?i)\nConnection: *(keep-alive|close)", request)
    if said is not None:
        return said[1].lower() == b"keep-alive"
    return b" HTTP/1.1\r\n" in request


def _listen(loop: Loop, port: int, serve: Callable[[Wire], Waiting[None]]) -> None:
    listening = socket.create_server(("127.0.0.1", port), backlog=BACKLOG)

    def accept() -> Waiting[None]:
        while True:
            yield READ
            for _ in range(CONNECTIONS_IN_A_ROW):
                try:
                    sock, _address = listening.accept()
                except BlockingIOError:
                    break
                wire = Wire(sock)
                loop.start(wire, serve(wire))

    loop.watch(listening, accept())


def main() -> None:
    """Serve as long as the benchmark is there."""
    benchmark = os.getppid()
    imap, pop3, smtp, auth = map(int, sys.argv[1:])
    loop = Loop()
    _listen(loop, imap, lambda wire: serve_mail(wire, ImapServer()))
    _listen(loop, pop3, lambda wire: serve_mail(wire, Pop3Server()))
    _listen(loop, smtp, lambda wire: serve_mail(wire, SmtpServer()))
    _listen(loop, auth, AuthServer({"imap": imap, "pop3": pop3, "smtp": smtp}).serve)
    print("ready", flush=True)
    while os.getppid() == benchmark:
        loop.turn(1.0)


if __name__ == "__main__":
    main()
