"""Questions to name servers over UDP and TCP, on the engine.

A worker has `PORTS` UDP sockets for each name server, which all lookups share (see
`dns_port`), and as many again at most that are worn out, but waited at still; and `STREAMS` TCP connections, for answers that do not fit into
a datagram. All of them are registered on the engine: `worker_connections` counts
them. If there is no room for one more, the lookup fails, not a login.
"""

from __future__ import annotations

import errno
import os
import secrets

import trio

from mailproxy.conf.addresses import Address
from mailproxy.net.dns_messages import Answer, Question, read_answer, write_query
from mailproxy.net.dns_port import Port
from mailproxy.net.engine import Engine
from mailproxy.net.wire import Wire

PORTS = 4
"""UDP sockets for one name server that are not worn out."""
MAX_PORTS = 2 * PORTS
"""UDP sockets for one name server in all."""
STREAMS = 4
"""TCP connections to one name server; lookups wait for each other."""


class NameServers:
    """Asks name servers, for all resolvers of a worker."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._servers: dict[Address, _Server] = {}

    async def ask(self, address: Address, question: Question) -> Answer:
        """Ask one server once, over TCP if the answer is too long for UDP.

        It waits until it is cancelled; a cancelled question leaves nothing behind.

        Raises:
          OSError: the server cannot be reached or hangs up; ENOBUFS, EMFILE …: there
            is no room for a socket.
        """
        for each in self._servers.values():
            each.close_worn()
        server = self._servers.get(address)
        if server is None:
            server = self._servers[address] = _Server(self._engine, address)
        answer = await server.ask_port(question)
        if answer.truncated:
            answer = await server.ask_stream(question)
        return answer

    def make_room(self) -> bool:
        """Close a socket without waiting questions; return whether there was one."""
        return any(server.close_idle() for server in self._servers.values())

    def close(self) -> None:
        """Close all sockets; no question may be waiting."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()


class _Server:
    """The sockets for one name server."""

    def __init__(self, engine: Engine, address: Address) -> None:
        self._engine = engine
        self._address = address
        self._ports: list[Port] = []
        self._streams = trio.Semaphore(STREAMS)

    async def ask_port(self, question: Question) -> Answer:
        return await self._choose().ask(question)

    def _choose(self) -> Port:
        """Choose a port at random, so that an attacker cannot predict it.

        A worn port is replaced although questions wait there: if a zone is silent, some
        always do.
        """
        self._ports = [port for port in self._ports if not port.closed]
        fresh = sum(not port.is_worn for port in self._ports)
        if fresh < PORTS and len(self._ports) < MAX_PORTS:
            try:
                self._ports.append(Port(self._engine, self._address))
            except OSError:
                if not self._ports:
                    raise
        ports = [port for port in self._ports if not port.is_full]
        if not ports:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        return secrets.choice([port for port in ports if not port.is_worn] or ports)

    async def ask_stream(self, question: Question) -> Answer:
        """Ask over TCP: a length goes before each message (RFC 1035, 4.2.2)."""
        number = secrets.token_bytes(2)
        query = write_query(number, question)
        async with self._streams:
            address = self._address
            wire = Wire.connect(self._engine, address.family, address.sockaddr)
            try:
                await wire.send_all(len(query).to_bytes(2, "big") + query)
                size = int.from_bytes(await _receive(wire, 2), "big")
                message = await _receive(wire, size)
            finally:
                wire.close()
        answer = read_answer(question, message) if message[:2] == number else None
        if answer is None or answer.truncated:
            raise ConnectionAbortedError(
                errno.ECONNABORTED, "no answer to the question"
            )
        return answer

    def close_worn(self) -> None:
        """Close worn ports without waiting questions."""
        for port in self._ports:
            if port.is_worn and port.is_idle:
                port.close()

    def close_idle(self) -> bool:
        """Close a port without waiting questions; return whether there was one."""
        for port in self._ports:
            if port.is_idle and not port.closed:
                port.close()
                return True
        return False

    def close(self) -> None:
        for port in self._ports:
            port.close()


async def _receive(wire: Wire, size: int) -> bytes:
    """Receive exactly `size` octets, at most 65535.

    Raises:
      OSError: the connection ends before.
    """
    data = bytearray()
    while len(data) < size:
        more = await wire.receive_some(size - len(data))
        if not more:
            raise ConnectionAbortedError(errno.ECONNABORTED, "closed within an answer")
        data += more
    return bytes(data)
