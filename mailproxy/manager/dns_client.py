"""Questions to name servers, each over a socket of its own, as tasks of trio ask them.

A manager asks seldom. So each question has a port that the kernel chooses anew, and a
random number (RFC 5452, section 4); `net/dns_transport.py` is for workers.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket

import trio

from mailproxy.conf.addresses import Address
from mailproxy.net.dns_messages import Answer, Question, read_answer, write_query

MAX_DATAGRAM = 4096
"""Octets of a datagram that are read."""


async def ask(address: Address, question: Question) -> Answer:
    """Ask one server once, over TCP if the answer is too long for UDP.

    It waits until it is cancelled.

    Raises:
      OSError: the server cannot be reached, or hangs up.
    """
    answer = await _ask_datagram(address, question)
    return await _ask_stream(address, question) if answer.truncated else answer


async def _ask_datagram(address: Address, question: Question) -> Answer:
    number = secrets.token_bytes(2)
    with trio.socket.socket(address.family, socket.SOCK_DGRAM) as connection:
        await connection.connect(address.sockaddr)
        await connection.send(write_query(number, question))
        while True:
            message = await connection.recv(MAX_DATAGRAM)
            answer = _understand(number, question, message)
            if answer is not None:  # else it is forged, or late
                return answer


async def _ask_stream(address: Address, question: Question) -> Answer:
    """Ask over TCP: a length goes before each message (RFC 1035, 4.2.2)."""
    number = secrets.token_bytes(2)
    query = write_query(number, question)
    connection = trio.socket.socket(address.family, socket.SOCK_STREAM)
    async with trio.SocketStream(connection) as stream:
        await connection.connect(address.sockaddr)
        await stream.send_all(len(query).to_bytes(2, "big") + query)
        size = int.from_bytes(await _receive(stream, 2), "big")
        answer = _understand(number, question, await _receive(stream, size))
    if answer is None or answer.truncated:
        raise ConnectionAbortedError(errno.ECONNABORTED, "no answer to the question")
    return answer


def _understand(number: bytes, question: Question, message: bytes) -> Answer | None:
    return read_answer(question, message) if message[:2] == number else None


async def _receive(stream: trio.SocketStream, size: int) -> bytes:
    """Receive exactly `size` octets.

    Raises:
      OSError: the connection ends before.
    """
    data = bytearray()
    while len(data) < size:
        try:
            more = await stream.receive_some(size - len(data))
        except trio.BrokenResourceError as error:
            raise ConnectionResetError(
                errno.ECONNRESET, os.strerror(errno.ECONNRESET)
            ) from error
        if not more:
            raise ConnectionAbortedError(errno.ECONNABORTED, "closed within an answer")
        data += more
    return bytes(data)
