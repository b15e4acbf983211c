"""A UDP socket for the questions to one name server.

It is connected, so the kernel delivers only what comes from the server's address. An
answer belongs to the question whose number it has and whose text it repeats (RFC 5452,
section 4). An attacker who forges answers has to guess a random number out of 65536 and
the port, which the kernel chooses. So ports do not last: a port is worn out after
`MAX_PORT_QUERIES` questions or `MAX_PORT_AGE` seconds, and given up after `MAX_STRAYS`
messages whose numbers belong to no question, since they show that an attacker is
guessing.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket

import trio

from mailproxy.conf.addresses import Address
from mailproxy.net.calls import READABLE
from mailproxy.net.dns_messages import (
    Answer,
    Question,
    read_answer,
    write_query,
)
from mailproxy.net.engine import Engine, Handler

MAX_PORT_QUERIES = 1024
"""Questions after which a port is worn out."""
MAX_PORT_AGE = 120.0
"""Seconds after which a port is worn out."""
MAX_STRAYS = 256
"""Messages that answer no question, after which a port is given up."""
MAX_PENDING = 4096
"""Questions that may wait for answers on one port: a sixteenth of all numbers."""
MAX_DATAGRAM = 4096
"""Octets of a datagram that are read, as in nginx; servers send at most 512 unless
they are asked for more (RFC 1035, section 4.2.1)."""
MAX_IN_A_ROW = 16
"""Datagrams that are read from a port before other sockets have their turn. An answer
to a waiting question ends the turn at once."""


class _Pending:
    """A question that waits for its answer.

    Attributes:
      answer: what the server answered; None if the port was given up before.
    """

    __slots__ = ("answer", "done", "question")

    def __init__(self, question: Question) -> None:
        self.question = question
        self.answer: Answer | None = None
        self.done = trio.Event()


class Port(Handler):
    """A UDP socket, connected to a name server.

    Attributes:
      closed: whether the socket is closed; it then takes no more questions.
    """

    def __init__(self, engine: Engine, address: Address) -> None:
        """Raises:
        OSError: connect() failed, or there is no room for another socket.
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
            engine.register(self._socket.fileno(), self)
        except BaseException:
            self._socket.close()
            raise

    @property
    def is_worn(self) -> bool:
        """Whether another port should be used from now on."""
        return self._questions >= MAX_PORT_QUERIES or trio.current_time() >= self._old

    @property
    def is_idle(self) -> bool:
        """Whether no question waits for an answer."""
        return not self._pending

    @property
    def is_full(self) -> bool:
        """Whether `MAX_PENDING` questions wait for answers."""
        return len(self._pending) >= MAX_PENDING

    async def ask(self, question: Question) -> Answer:
        """Ask a question and wait for the answer.

        Raises:
          OSError: the server, or the network before it, does not work; ECONNABORTED:
            the port was given up.
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
            raise  # too much at a time; this does not concern waiting questions
        except OSError as error:
            self._give_up(error.errno)
            raise

    def ready(self, events: int) -> None:
        """Receive datagrams: called by the engine."""
        if events & READABLE and not self._has_more:
            self._receive()

    def _go_on(self) -> None:
        """Receive, in a later round, what the previous one has left."""
        self._has_more = False
        if not self.closed:
            self._receive()

    def _receive(self) -> None:
        """Read what has arrived, up to one answer or `MAX_IN_A_ROW` other messages."""
        for _ in range(MAX_IN_A_ROW):
            try:
                message = self._socket.recv(MAX_DATAGRAM)
            except BlockingIOError:
                return
            except OSError as error:
                # An ICMP error: the server, or the network before it, is down. It does
                # not name a question, so it concerns all of them.
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
        """Read a message if a question has its number; return whether one has."""
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
        """Close the socket, and wake all waiting questions with `fault`."""
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
