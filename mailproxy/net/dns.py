"""The `resolver` directive: host names of SMTP clients.

A name is believed if it leads back to the client's address (RFC 1912, section 2.1).
The rest of the program asks name servers only while it reads its configuration.
"""

from __future__ import annotations

import ipaddress
import itertools
import math
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from socket import SOCK_DGRAM, SOCK_STREAM
from typing import NamedTuple, Protocol

import trio

from mailproxy.log import Logger, MailContext

UNAVAILABLE = b"[UNAVAILABLE]"
"""There is no name, or it is not the client's; as XCLIENT of Postfix has it."""
TEMPUNAVAIL = b"[TEMPUNAVAIL]"
"""Nobody could say."""

RESEND = 5.0
"""Seconds after which the next server is asked, too."""
PATIENCE = 4 * RESEND
"""Seconds for which one server is waited for."""
CONCURRENT = 2048
"""Lookups that one resolver does at once; others wait. So many that clients with silent
name servers, who take a place for `resolver_timeout`, do not keep others waiting."""
CACHED = 4096
"""Answers that one resolver keeps."""
CACHED_VALUES = 64
"""Values of an answer that is kept; an answer can have thousands, of a client's choice."""
ALIASES = 8
"""CNAMEs that are followed from answer to answer."""

NOT_FOUND = 3
TIMED_OUT = 110
_TEXTS = {
    1: "Format error",
    2: "Server failure",
    3: "Host not found",
    4: "Unimplemented",
    5: "Operation refused",
    110: "Operation timed out",
}


class Question(NamedTuple):
    """What is asked."""

    kind: str
    """PTR, A or AAAA."""
    name: str
    """Absolute, as in master files: "mail.example.com."."""


@dataclass(frozen=True)
class Answer:
    """What a name server says."""

    code: int
    """0, or an error: 2 server failure, 3 host not found …"""
    values: tuple[bytes, ...] = ()
    """Host names in lower case without the final dot, or addresses as text."""
    ttl: int = 0
    """Seconds for which it is good."""
    alias: str = ""
    """The name is another one for this, about which there is nothing yet."""
    truncated: bool = False
    """There is more than fits into a datagram."""


Accept = Callable[[bytes], Answer | None]
"""Reads a message; None if it does not answer the question."""


class NameServer(Protocol):
    """A socket address."""

    @property
    def family(self) -> int:
        """AF_INET or AF_INET6."""

    @property
    def sockaddr(self) -> tuple[str, int] | tuple[str, int, int, int] | str:
        """What connect() takes."""


class ResolverSettings(Protocol):
    """The arguments of the `resolver` directive."""

    @property
    def servers(self) -> Sequence[NameServer]:
        """At least one."""

    @property
    def valid(self) -> float | None:
        """Seconds for which answers are kept, instead of their own time."""

    @property
    def ipv4(self) -> bool:
        """Whether to ask for A records."""

    @property
    def ipv6(self) -> bool:
        """Whether to ask for AAAA records."""


Ask = Callable[[NameServer, bytes, Accept, bool], Awaitable[Answer]]
"""Asks one server once, over TCP if the last argument says so; OSError: in vain."""


async def ask(server: NameServer, query: bytes, accept: Accept, tcp: bool) -> Answer:
    """Send a question and wait for its answer, from a port of its own.

    A connected socket takes datagrams of that server only; what does not answer the
    question is passed over, so that guessing takes the right port and number.

    Raises:
      OSError: the server cannot be reached, or closes the connection.
    """
    kind = SOCK_STREAM if tcp else SOCK_DGRAM
    with trio.socket.socket(server.family, kind) as sock:
        await sock.connect(server.sockaddr)
        if tcp:
            answer = accept(await _ask_stream(trio.SocketStream(sock), query))
            if answer is None or answer.truncated:
                raise ConnectionAbortedError("no answer to the question")
            return answer
        await sock.send(query)
        while True:
            answer = accept(await sock.recv(65535))
            if answer is not None:
                return answer


async def _ask_stream(stream: trio.SocketStream, query: bytes) -> bytes:
    """RFC 1035, section 4.2.2: a length goes before each message."""
    try:
        await stream.send_all(len(query).to_bytes(2, "big") + query)
        data = b""
        while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big"):
            more = await stream.receive_some()
            if not more:
                raise ConnectionAbortedError("closed before the end of an answer")
            data += more
    except trio.BrokenResourceError as error:
        raise ConnectionAbortedError(str(error)) from error
    return data[2 : 2 + int.from_bytes(data[:2], "big")]


@dataclass
class _Lookup:
    """A question on its way, and all who wait for it."""

    done: trio.Event = field(default_factory=trio.Event)
    answer: Answer | None = None


class Resolver:
    """Asks the name servers of one `resolver` directive and remembers the answers.

    It holds nothing open between lookups, so that workers may inherit it by fork.
    """

    def __init__(
        self, settings: ResolverSettings, timeout: float, ask: Ask = ask
    ) -> None:
        """Args:
        timeout: `resolver_timeout`, seconds for each lookup.
        ask: asks one server.
        """
        # dnspython takes a while to import: here, before anybody forks or waits,
        # and only where names are wanted.
        from mailproxy.net import dns_messages

        self._messages = dns_messages
        self._settings = settings
        self._timeout = timeout
        self._ask = ask
        self._turn = itertools.count()
        self._slots = trio.Semaphore(CONCURRENT)
        self._running: dict[Question, _Lookup] = {}
        self._cache: dict[Question, tuple[float, Answer]] = {}

    async def client_host(self, context: MailContext, log: Logger) -> bytes:
        """The name of the client, or `UNAVAILABLE` or `TEMPUNAVAIL`.

        Args:
          context: says who the client is; its action is changed.
          log: the logger of the session, bound to `context`.
        """
        client = context.client
        if client == "unix:":
            return TEMPUNAVAIL
        address = _address(client)
        context.action = "in resolving client address"
        question = self._messages.reverse_question(str(address))
        answer = await self._within_timeout(self._find(question))
        if answer.code:
            log.error("%s could not be resolved (%s: %s)", client, *_reason(answer))
            return _unknown(answer)
        name = answer.values[0]
        if not _is_host_name(name):
            log.error('%s resolved to invalid host name "%s"', client, name)
            return TEMPUNAVAIL
        context.action = "in resolving client hostname"
        answer = await self._within_timeout(self._addresses(name, address))
        if answer.code:
            log.error('"%s" could not be resolved (%s: %s)', name, *_reason(answer))
            return _unknown(answer)
        return name if _includes(answer, address) else UNAVAILABLE

    async def _within_timeout(self, lookup: Awaitable[Answer]) -> Answer:
        with trio.move_on_after(self._timeout):
            return await lookup
        return Answer(TIMED_OUT)

    async def _addresses(self, name: bytes, wanted: _Address) -> Answer:
        """All addresses of a name, or as many as it takes to find the wanted one."""
        kinds = {"A": self._settings.ipv4, "AAAA": self._settings.ipv6}
        answers: list[Answer] = []
        async with trio.open_nursery() as nursery:

            async def find(kind: str) -> None:
                answer = await self._find(Question(kind, f"{name.decode()}."))
                answers.append(answer)
                if _includes(answer, wanted):
                    nursery.cancel_scope.cancel()

            for kind, on in kinds.items():
                if on:
                    nursery.start_soon(find, kind)
        values = tuple(value for answer in answers for value in answer.values)
        if values:
            return Answer(0, values)
        # One server that failed may have known more than one that knew nothing.
        codes = [answer.code for answer in answers if answer.code != NOT_FOUND]
        return Answer(codes[0] if codes else NOT_FOUND)

    async def _find(self, question: Question) -> Answer:
        """An answer with values or with a code."""
        for _ in range(ALIASES):
            answer = await self._look_up(question)
            if answer.code or answer.values:
                return answer
            if not answer.alias or question.kind == "PTR":
                break
            question = Question(question.kind, answer.alias)
        return Answer(NOT_FOUND)

    async def _look_up(self, question: Question) -> Answer:
        """One question: from memory, from who asks it already, or from a server."""
        while True:
            kept = self._cache.get(question)
            if kept is not None and kept[0] > trio.current_time():
                return kept[1]
            other = self._running.get(question)
            if other is None:
                break
            await other.done.wait()
            if other.answer is not None:
                return other.answer
        lookup = self._running[question] = _Lookup()
        try:
            async with self._slots:
                lookup.answer = await self._exchange(question)
        finally:
            del self._running[question]
            lookup.done.set()
        self._keep(question, lookup.answer)
        return lookup.answer

    def _keep(self, question: Question, answer: Answer) -> None:
        self._cache.pop(question, None)
        valid = self._settings.valid
        seconds = answer.ttl if valid is None else valid
        if answer.code or seconds <= 0 or len(answer.values) > CACHED_VALUES:
            return
        while len(self._cache) >= CACHED:
            del self._cache[next(iter(self._cache))]
        self._cache[question] = trio.current_time() + seconds, answer

    async def _exchange(self, question: Question) -> Answer:
        """Ask one server after the other until one answers."""
        query, accept = self._messages.make_query(question)
        send, receive = trio.open_memory_channel[Answer | None](math.inf)

        async def try_server(server: NameServer) -> None:
            answer = None
            with trio.move_on_after(PATIENCE):
                try:
                    answer = await self._ask(server, query, accept, False)
                    if answer.truncated:
                        answer = await self._ask(server, query, accept, True)
                except OSError:
                    answer = None
            send.send_nowait(answer)

        servers = self._settings.servers
        first = next(self._turn)
        failed = 0
        async with trio.open_nursery() as nursery:
            for turn in itertools.count(first):
                nursery.start_soon(try_server, servers[turn % len(servers)])
                with trio.move_on_after(RESEND):
                    while True:
                        answer = await receive.receive()
                        if answer is not None:
                            nursery.cancel_scope.cancel()
                            return answer
                        failed += 1
                        if failed < len(servers):
                            break  # ask the next one at once, but each only once
        raise AssertionError("the servers never run out")


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _address(text: str) -> _Address:
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def _includes(answer: Answer, wanted: _Address) -> bool:
    return any(_address(value.decode("ascii")) == wanted for value in answer.values)


def _is_host_name(name: bytes) -> bool:
    """A name that may stand in a header or a command, and can be asked for."""
    return (
        re.fullmatch(rb"[A-Za-z0-9.-]+", name) is not None
        and len(name) <= 253
        and all(0 < len(label) <= 63 for label in name.split(b"."))
    )


def _reason(answer: Answer) -> tuple[int, str]:
    return answer.code, _TEXTS.get(answer.code, "Unknown error")


def _unknown(answer: Answer) -> bytes:
    return UNAVAILABLE if answer.code == NOT_FOUND else TEMPUNAVAIL
