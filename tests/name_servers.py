"""Name servers for tests: a zone, and what answers out of it; messages by dnspython."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field

import dns.message
import dns.rcode
import dns.rrset
import trio

from mailproxy.conf.addresses import Address
from mailproxy.net.dns_messages import (
    Answer,
    Question,
    read_answer,
    write_query,
)
from mailproxy.net.resolver_settings import ResolverSettings

NEVER = "never"
NUMBER = b"\x12\x34"
"""Of all messages of `FakeServers`."""

Zone = dict[str, str | list[str]]
"""For "NAME TYPE": records as text ("TTL TYPE DATA"), an rcode, or NEVER."""


def server_address(host: str, port: int = 53) -> Address:
    """A name server with an IPv4 address."""
    return Address(socket.AF_INET, (host, port), f"{host}:{port}")


FIRST = server_address("127.0.0.1")
SECOND = server_address("127.0.0.2")


def resolver_settings(
    *servers: Address,
    valid: float | None = None,
    ipv4: bool = True,
    ipv6: bool = True,
) -> ResolverSettings:
    """What a `resolver` directive with these servers says; without any, with FIRST."""
    return ResolverSettings(
        servers=servers or (FIRST,), valid=valid, ipv4=ipv4, ipv6=ipv6
    )


def respond(zone: Zone, query: bytes) -> bytes | None:
    """What a name server with that zone sends, if anything."""
    message = dns.message.from_wire(query)
    question = message.question[0]
    name = question.name.to_text()
    entry = zone.get(f"{name} {question.to_text().split()[-1]}", "NXDOMAIN")
    if entry == NEVER:
        return None
    response = dns.message.make_response(message)
    if isinstance(entry, str):
        response.set_rcode(dns.rcode.from_text(entry))
        return response.to_wire()
    for record in entry:
        words = record.split(" ", 3)
        owner, ttl, kind, data = words if words[0].endswith(".") else [name, *words]
        response.answer.append(dns.rrset.from_text(owner, int(ttl), "IN", kind, data))
    return response.to_wire()


@dataclass
class FakeServers:
    """Answers out of a zone, at once or never; it stands for `NameServers.ask`.

    Attributes:
      asked: "NAME TYPE" of each question.
      servers: who was asked, and when.
      dead: servers that refuse.
      silent: servers that do not answer.
    """

    zone: Zone
    asked: list[str] = field(default_factory=list)
    servers: list[tuple[Address, float]] = field(default_factory=list)
    dead: dict[Address, OSError] = field(default_factory=dict)
    silent: set[Address] = field(default_factory=set)

    async def __call__(self, server: Address, question: Question) -> Answer:
        query = write_query(NUMBER, question)
        asked = dns.message.from_wire(query).question[0]
        self.asked.append(asked.to_text().replace(" IN", ""))
        self.servers.append((server, trio.current_time()))
        await trio.lowlevel.checkpoint()
        if server in self.dead:
            raise self.dead[server]
        data = None if server in self.silent else respond(self.zone, query)
        answer = None if data is None else read_answer(question, data)
        if answer is None:
            await trio.sleep_forever()
            raise AssertionError
        return answer
