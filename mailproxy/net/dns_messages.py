"""DNS questions and answers as bytes and values; no I/O.

Only `net/dns.py` needs it, and only where a resolver is configured: dnspython takes
its time to import.
"""

from __future__ import annotations

import secrets

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.reversename

from mailproxy.net.dns import Accept, Answer, Question


def reverse_question(address: str) -> Question:
    """The question for the name of an IP address."""
    return Question("PTR", dns.reversename.from_address(address).to_text())


def make_query(question: Question) -> tuple[bytes, Accept]:
    """The bytes of a question, and what reads the answers to it."""
    query = dns.message.make_query(
        question.name, question.kind, id=secrets.randbelow(65536)
    )
    return query.to_wire(), lambda data: _read(query, data)


def _read(query: dns.message.Message, data: bytes) -> Answer | None:
    try:
        if len(data) > 2 and data[2] & 2:  # TC: the end may be anything
            head = dns.message.from_wire(data, question_only=True)
            return Answer(0, truncated=True) if query.is_response(head) else None
        response = dns.message.from_wire(data)
        if not query.is_response(response):
            return None
        code = int(response.rcode())
        if code == dns.rcode.FORMERR:
            return None  # as nginx: another server may understand us
        if code != dns.rcode.NOERROR:
            return Answer(code)
        assert isinstance(response, dns.message.QueryMessage)
        chain = response.resolve_chaining()
    except (dns.exception.DNSException, ValueError):
        return None
    if chain.answer is None:
        alias = chain.canonical_name.to_text() if chain.cnames else ""
        return Answer(0, ttl=chain.minimum_ttl, alias=alias)
    values = tuple(
        b".".join(record.target.labels[:-1]).lower()
        if chain.answer.rdtype == dns.rdatatype.PTR
        else record.address.encode("ascii")
        for record in chain.answer
    )
    return Answer(0, values, chain.minimum_ttl)
