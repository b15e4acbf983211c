"""A DNS server for scripts."""

import socket

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import trio


class Names:
    """Answers from a table of `NAME TYPE VALUE`; what is not in it does not exist.

    A value may be the name of a return code (`SERVFAIL`), `empty`, `silent`, or a
    record of another type, which is named (`TXT hello`).
    """

    def __init__(self, table: list[str]) -> None:
        self._table: dict[tuple[str, str], list[str]] = {}
        for line in table:
            name, kind, value = line.split(" ", 2)
            self._table.setdefault((name.lower(), kind), []).append(value)
        self._socket = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    async def bind(self, port: int) -> None:
        """Take the port of the loopback."""
        await self._socket.bind(("127.0.0.1", port))

    async def serve(self) -> None:
        """Answer until cancelled."""
        with self._socket:
            while True:
                data, sender = await self._socket.recvfrom(4096)
                answer = self._answer(dns.message.from_wire(data))
                if answer is not None:
                    await self._socket.sendto(answer.to_wire(), sender)

    def _answer(self, query: dns.message.Message) -> dns.message.Message | None:
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        known = self._table.get((name, kind))
        if known is None:
            exists = any(other == name for other, _ in self._table)
            answer.set_rcode(dns.rcode.NOERROR if exists else dns.rcode.NXDOMAIN)
        elif known == ["silent"]:
            return None
        elif known[0].isupper():
            answer.set_rcode(dns.rcode.from_text(known[0]))
        elif known != ["empty"]:
            if " " in known[0]:
                kind, *known = known[0].split(" ", 1)
            answer.answer.append(
                dns.rrset.from_text(question.name, 60, "IN", kind, *known)
            )
        return answer
