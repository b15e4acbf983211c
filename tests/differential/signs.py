"""Received bytes as scripts write them: what differs from run to run gets a sign."""

import base64
import re
from collections.abc import Mapping

from tests.differential.notation import line_text, to_text


class Signs:
    """Ports, salts and other texts of one play.

    Ports are found in inputs too (`⟨backend⟩` in an answer of the auth server); salts
    are numbered as they show up.

    Args:
      ports: by the names of their signs.
      texts: other texts that differ from run to run, and their signs.
    """

    def __init__(self, ports: Mapping[str, int], texts: Mapping[bytes, bytes]) -> None:
        self._ports = dict(ports)
        self._texts = texts
        self._clients = 0
        self._salts: list[bytes] = []

    def add_client(self, port: int) -> None:
        """The next client has this port: ⟨client⟩, ⟨client2⟩, ..."""
        self._clients += 1
        self._ports["client" if self._clients == 1 else f"client{self._clients}"] = port

    def fill_in(self, text: str) -> str:
        """`text` of a script with the ports of this play."""
        for name, port in self._ports.items():
            text = text.replace(f"⟨{name}⟩", str(port))
        return text

    def put(self, data: bytes) -> bytes:
        """`data` with signs."""
        for volatile, sign in self._texts.items():
            data = data.replace(volatile, sign)
        for name, port in self._ports.items():
            data = re.sub(rb"(?<![1-9])%d(?!\d)" % port, f"⟨{name}⟩".encode(), data)
        data = re.sub(rb"(?<= )PD[A-Za-z0-9+/=]+(?=\r\n)", self._challenge, data)
        return re.sub(
            rb"<(\d+\.\d+)@", lambda found: b"<%s@" % self._salt(found[1]), data
        )

    def text(self, line: bytes) -> str:
        """A line with signs, in the language of the scripts."""
        *parts, last = re.split("(⟨[a-z]+\\d*⟩)".encode(), self.put(line))
        return "".join(
            part.decode() if index % 2 else to_text(part)
            for index, part in enumerate(parts)
        ) + line_text(last)

    def _salt(self, value: bytes) -> bytes:
        if value not in self._salts:
            self._salts.append(value)
        number = self._salts.index(value) + 1
        return ("⟨salt⟩" if number == 1 else f"⟨salt{number}⟩").encode()

    def _challenge(self, found: re.Match[bytes]) -> bytes:
        salt = re.fullmatch(rb"<(\d+\.\d+)@(.*)>", base64.b64decode(found[0] + b"=="))
        if salt is None:
            return found[0]
        return b"base64 of <%s@%s>" % (self._salt(salt[1]), salt[2])
