"""A UDP socket for the questions to one name server.

It is connected, so that the kernel passes on only what comes from the server's
address. An answer belongs to the question whose number it has, and whose text it
repeats (RFC 5452, section 4). Whoever guesses has to hit a random number out of 65536,
and the port, which is the kernel's choice. So a port does not last: it is worn out
after `MAX_PORT_QUERIES` questions or `MAX_PORT_AGE` seconds, and given up when `MAX_STRAYS`
messages came with numbers that nobody has used, because somebody is guessing then.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket

import trio

from mailproxy.conf.addresses import Address
from mailproxy.net.dns_messages import (
    Answer,
    Question,
    read_answer,
    write_query,
)
from mailproxy.net.engine import READABLE, Engine

MAX_PORT_QUERIES = 1024
"""Questions after which a port is worn out."""
MAX_PORT_AGE = 120.0
"""Seconds after which a port is worn out."""
MAX_STRAYS = 256
"""Messages with numbers of no question, after which a port is given up."""
MAX_PENDING = 4096
"""Questions that may wait for answers at one port: a sixteenth of all numbers."""
MAX_DATAGRAM = 4096
"""Octets of a datagram that are looked at, as in nginx; servers send 512 unless they
are told that more is welcome (RFC 1035, section 4.2.1)."""
MAX_IN_A_ROW = 16
"""Datagrams that are taken from a port before others have their turn; of an answer
that is waited for, it is one."""


class _Pending:
    """A question that waits for its answer.

    Attributes:
      answer: what came of it; None, and the port is gone.
    """

    __slots__ = ("answer", "done", "question")

    def __init__(self, question: Question) -> None:
        self.question = question
        self.answer: Answer | None = None
        self.done = trio.Event()


class Port:
    """A UDP socket, connected to a name server.

    Attributes:
      closed: it takes no questions any more.
    """

    def __init__(self, engine: Engine, address: Address) -> None:
        """Raises:
        OSError: connect() failed, or there is no room for a socket.
        """
        self._engine = engine
        self._pending: dict[bytes, _Pending] = {}
        self._questions = self._strays = 0
        self._old = trio.current_time() + MAX_PORT_AGE
        self._fault: int | None = None
        self._has_more = False
        self.closed = False
        self._socket = socket.socket(
            address.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        )
        try:
            self._socket.connect(address.sockaddr)
            engine.register(self._socket.fileno(), self._ready)
        except BaseException:
            self._socket.close()
            raise

    @property
    def is_worn(self) -> bool:
        """Whether another port should be used from now on."""
        return self._questions >= MAX_PORT_QUERIES or trio.current_time() >= self._old

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for an answer."""
        return not self._pending

    @property
    def is_full(self) -> bool:
        """Whether as many wait as may."""
        return len(self._pending) >= MAX_PENDING

    async def ask(self, question: Question) -> Answer:
        """Ask, and wait for the answer.

        Raises:
          OSError: the server, or the way to it, does not work; ECONNABORTED: the port
            was given up.
        """
        number = secrets.token_bytes(2)
        while number in self._pending:
            number = secrets.token_bytes(2)
        pending = self._pending[number] = _Pending(question)
        self._questions += 1
        try:
            self._send(write_query(number, question))
            await pending.done.wait()
        finally:
            del self._pending[number]
        if pending.answer is None:
            fault = self._fault or errno.ECONNABORTED
            raise OSError(fault, os.strerror(fault))
        return pending.answer

    def _send(self, query: bytes) -> None:
        try:
            self._socket.send(query)
        except BlockingIOError:
            raise  # too much at a time; those who wait have nothing to do with it
        except OSError as error:
            self._give_up(error.errno)
            raise

    def _ready(self, events: int) -> None:
        """The handler on the engine."""
        if events & READABLE and not self._has_more:
            self._receive()

    def _go_on(self) -> None:
        """Receive in a later round what the one before has left."""
        self._has_more = False
        if not self.closed:
            self._receive()

    def _receive(self) -> None:
        """Take what has arrived: one answer, or a number of messages that are none."""
        for _ in range(MAX_IN_A_ROW):
            try:
                message = self._socket.recv(MAX_DATAGRAM)
            except BlockingIOError:
                return
            except OSError as error:
                # An ICMP error: the server, or the way to it, is not there. It says
                # nothing of the question, so it concerns all of them.
                self._give_up(error.errno)
                return
            if self._take(message):
                break
            self._strays += 1
            if self._strays >= MAX_STRAYS:
                self._give_up(errno.ECONNABORTED)
                return
        self._has_more = True
        self._engine.again(self._go_on)

    def _take(self, message: bytes) -> bool:
        """Read a message if a question has its number; returns whether one has."""
        pending = self._pending.get(message[:2])
        if pending is None or pending.answer is not None:
            return False
        pending.answer = read_answer(pending.question, message)
        if pending.answer is not None:
            self._wake(pending)
        return True

    def _wake(self, pending: _Pending) -> None:
        self._engine.woke = True
        pending.done.set()

    def _give_up(self, fault: int | None) -> None:
        """Close, and let everyone who waits know."""
        self._fault = fault
        self.close()
        for pending in self._pending.values():
            self._wake(pending)

    def close(self) -> None:
        """Close the socket; a second call does nothing."""
        if not self.closed:
            self.closed = True
            self._engine.unregister(self._socket.fileno())
            self._socket.close()
